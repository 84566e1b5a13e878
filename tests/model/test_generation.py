"""Replies and scores: the same for one conversation or many, and honest about what was cut."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib.dataset.harmony import Reply
from ftlib.model.generation import generate_replies, generate_reply, score_replies

LONG_ENOUGH = 80
LENGTH = 4_096  # longer than any conversation here
QUESTION = [{"role": "user", "content": "What is 2 plus 3?"}]
Conversations = list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def answered(sample_rows: list[dict[str, Any]]) -> Conversations:
    """Conversations that end with a reply: the second has several turns, the third no reasoning anywhere."""
    several_turns = next(row["messages"] for row in sample_rows if len(row["messages"]) > 3)
    silent = [{**message, "thinking": None} for message in several_turns]
    return [sample_rows[0]["messages"], several_turns, silent]


@pytest.fixture(scope="module")
def prompts(answered: Conversations) -> Conversations:
    """Three prompts of different lengths, as a data set stores them: `thinking` is None where nobody thinks."""
    question = [{"role": "user", "content": "What is 2 plus 3?", "thinking": None}]
    return [question, answered[0][:-1], answered[1][:-1]]


@pytest.fixture(scope="module")
def together(base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Conversations) -> list[Reply]:
    right_padded = copy.deepcopy(tokenizer)
    right_padded.padding_side = "right"
    replies = generate_replies(base_model, right_padded, prompts, LONG_ENOUGH)
    assert right_padded.padding_side == "right", "training pads on the right"
    return replies


def test_replies_are_read_channel_by_channel_and_are_the_same_alone_and_in_a_batch(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Conversations, together: list[Reply]
) -> None:
    """Padding on the right would come between a prompt and its reply."""
    for prompt, reply in zip(prompts, together, strict=True):
        assert reply.complete
        assert reply.analysis.startswith("The user")
        assert "<|" not in reply.analysis + reply.final
        assert generate_reply(base_model, tokenizer, prompt, LONG_ENOUGH).final == reply.final
    assert together[0].final == "2 plus 3 is 5."


def test_several_replies_are_written_with_the_experts_that_were_asked_for_on_a_gpu_too(
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Conversations,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There `generate` goes over to another implementation, which takes 24 GB more for 120 replies."""
    on_cpu, used = GptOssForCausalLM._optimize_model_for_decode, []

    def on_gpu(model: GptOssForCausalLM) -> Any:
        experts = {name: getattr(model, name) for name in ("get_experts_implementation", "set_experts_implementation")}
        return on_cpu(SimpleNamespace(device=torch.device("cuda"), **experts))

    monkeypatch.setattr(GptOssForCausalLM, "_optimize_model_for_decode", on_gpu)
    model.register_forward_hook(lambda *_: used.append(model.config._experts_implementation))
    for asked, implementations in ((prompts[:1], ["grouped_mm", "batched_mm"]), (prompts, ["grouped_mm"] * 2)):
        used.clear()
        generate_replies(model, tokenizer, asked, max_new_tokens=2)
        assert used == implementations


def test_replies_are_greedy_and_cached_however_the_model_is_configured(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, together: list[Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt-oss-20b is published with `do_sample: true`; notebook 03 loads it with `use_cache=False`."""
    model.generation_config.update(do_sample=True, temperature=5.0)
    model.config.use_cache = model.generation_config.use_cache = False
    widths, forward = [], model.forward

    def measured(*arguments: Any, **settings: Any) -> Any:
        widths.append(settings["input_ids"].shape[1])
        return forward(*arguments, **settings)

    monkeypatch.setattr(model, "forward", measured)
    assert generate_reply(model, tokenizer, QUESTION, LONG_ENOUGH).final == together[0].final
    assert set(widths[1:]) == {1}, "without a cache every token reads the whole prompt again"


def test_a_reply_that_is_cut_is_not_complete(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, together: list[Reply]
) -> None:
    reply = generate_reply(base_model, tokenizer, QUESTION, 10)
    assert not reply.complete
    assert (reply.final, together[0].analysis.startswith(reply.analysis)) == ("", True)
    assert 0 < len(tokenizer(reply.analysis)["input_ids"]) < 10


def test_a_score_is_the_cross_entropy_of_the_replys_tokens(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, answered: Conversations
) -> None:
    for messages, score in zip(answered, score_replies(base_model, tokenizer, answered, LENGTH), strict=True):
        start = len(tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"])
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = base_model(ids).logits[0, start - 1 : -1]
        targets = ids[0, start:]
        thought = f"<|channel|>analysis<|message|>{messages[-1]['thinking']}<|end|><|start|>assistant"
        answer = f"<|channel|>final<|message|>{messages[-1]['content']}<|return|>"
        assert tokenizer.decode(targets) == (thought if messages[-1]["thinking"] else "") + answer
        assert score.tokens == len(targets)
        assert score.loss == pytest.approx(float(cross_entropy(logits, targets)), abs=1e-4)
        assert score.correct_tokens == int((logits.argmax(dim=-1) == targets).sum())


def test_logits_are_computed_for_the_replys_tokens_alone_and_compared_in_float32(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, answered: Conversations
) -> None:
    exact = score_replies(model, tokenizer, answered, LENGTH)
    computed = []

    def note_and_round(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        computed.append(tuple(logits.shape))
        return logits.bfloat16()

    model.lm_head.register_forward_hook(note_and_round)
    rounded = score_replies(model, tokenizer, answered, LENGTH)
    assert computed == [(score.tokens, len(tokenizer)) for score in rounded]
    assert [score.loss for score in rounded] == pytest.approx([score.loss for score in exact], abs=2e-3)


def test_a_conversation_is_cut_where_training_cuts_it(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, answered: Conversations
) -> None:
    """Otherwise one enormous row would take more memory than the model."""
    prompt = len(tokenizer.apply_chat_template(answered[0][:-1], add_generation_prompt=True)["input_ids"])
    cut, beyond = (score_replies(base_model, tokenizer, answered[:1], prompt + kept)[0] for kept in (10, 0))
    assert cut.tokens == 10
    assert (beyond.tokens, math.isnan(beyond.loss)) == (0, True)
