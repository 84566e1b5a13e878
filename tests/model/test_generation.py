"""Replies, one or many: the same ones, read channel by channel, and marked where they were cut."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib.dataset.harmony import Reply
from ftlib.model.generation import generate_replies, generate_reply, score_replies

LONG_ENOUGH = 80
LENGTH = 4_096  # longer than any conversation here


@pytest.fixture(scope="module")
def conversations(sample_rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Three prompts of different lengths, as a data set stores them: `thinking` is None where nobody thinks."""
    several_turns = next(row["messages"] for row in sample_rows if len(row["messages"]) > 3)
    return [
        [{"role": "user", "content": "What is 2 plus 3?", "thinking": None}],
        sample_rows[0]["messages"][:-1],
        several_turns[:-1],
    ]


@pytest.fixture(scope="module")
def together(
    base_model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[list[dict[str, Any]]],
) -> list[Reply]:
    return generate_replies(base_model, tokenizer, conversations, LONG_ENOUGH)


def test_replies_are_read_channel_by_channel(together: list[Reply]) -> None:
    for reply in together:
        assert reply.complete
        assert reply.analysis.startswith("The user")
        assert reply.final
        assert "<|" not in reply.analysis + reply.final
    assert together[0].final == "2 plus 3 is 5."


def test_prompts_are_not_part_of_the_reply(together: list[Reply]) -> None:
    for reply in together:
        assert reply.raw.startswith("<|channel|>analysis<|message|>")
        assert "<|start|>user" not in reply.raw


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_prompt_gets_the_same_reply_alone_and_in_company(
    base_model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[list[dict[str, Any]]],
    together: list[Reply],
    position: int,
) -> None:
    """Padding on the right would put it between a prompt and its reply."""
    lengths = {len(tokenizer.apply_chat_template(messages)["input_ids"]) for messages in conversations}
    assert len(lengths) == 3, "without padding this would prove nothing"
    alone = generate_reply(base_model, tokenizer, conversations[position], LONG_ENOUGH)
    assert (alone.analysis, alone.final) == (together[position].analysis, together[position].final)


def test_a_reply_is_greedy_whatever_the_model_would_rather(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, together: list[Reply]
) -> None:
    """openai/gpt-oss-20b is published with `do_sample: true`."""
    model.generation_config.update(do_sample=True, temperature=5.0)
    conversation = [{"role": "user", "content": "What is 2 plus 3?"}]
    assert generate_reply(model, tokenizer, conversation, LONG_ENOUGH).final == together[0].final


def test_a_model_loaded_for_training_generates_with_its_cache(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notebook 03 loads it with `use_cache=False`; without a cache every token reads the whole prompt again."""
    model.config.use_cache = model.generation_config.use_cache = False
    widths = []
    forward = model.forward

    def measured(*arguments: Any, **settings: Any) -> Any:
        widths.append(settings["input_ids"].shape[1])
        return forward(*arguments, **settings)

    monkeypatch.setattr(model, "forward", measured)
    generate_reply(model, tokenizer, [{"role": "user", "content": "What is 2 plus 3?"}], 4)
    assert len(widths) == 4
    assert widths[1:] == [1, 1, 1]


def test_a_reply_that_is_cut_is_not_complete(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, together: list[Reply]
) -> None:
    conversation = [{"role": "user", "content": "What is 2 plus 3?"}]
    reply = generate_reply(base_model, tokenizer, conversation, 10)
    assert not reply.complete
    assert reply.final == ""
    assert reply.analysis
    assert together[0].analysis.startswith(reply.analysis)
    assert len(tokenizer(reply.raw)["input_ids"]) == 10


def test_the_tokenizer_is_left_as_it_was(base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    mine = copy.deepcopy(tokenizer)
    mine.padding_side = "right"
    generate_replies(base_model, mine, [[{"role": "user", "content": text}] for text in ("Hello", "Hello again")], 1)
    assert mine.padding_side == "right", "training pads on the right"
    assert len(mine("Hello again")["input_ids"]) == len(tokenizer("Hello again")["input_ids"])


@pytest.fixture(scope="module")
def answered(sample_rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Conversations that end with a reply: the second has several turns, the third no reasoning anywhere."""
    several_turns = next(row["messages"] for row in sample_rows if len(row["messages"]) > 3)
    silent = [{**message, "thinking": None} for message in several_turns]
    return [sample_rows[0]["messages"], several_turns, silent]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_prompt_begins_its_rendered_conversation(
    tokenizer: PreTrainedTokenizerFast, answered: list[list[dict[str, Any]]], position: int
) -> None:
    """What comes after it is the reply: its reasoning, where there is some, its answer and the token that ends it."""
    messages = answered[position]
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert whole[: len(prompt)] == prompt
    answer = f"<|channel|>final<|message|>{messages[-1]['content']}<|return|>"
    thought = f"<|channel|>analysis<|message|>{messages[-1]['thinking']}<|end|><|start|>assistant"
    assert tokenizer.decode(whole[len(prompt) :]) == (thought if messages[-1]["thinking"] else "") + answer


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_score_is_the_cross_entropy_of_the_replys_tokens(
    base_model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    answered: list[list[dict[str, Any]]],
    position: int,
) -> None:
    messages = answered[position]
    start = len(tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"])
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = base_model(ids).logits[0, start - 1 : -1]
    targets = ids[0, start:]
    score = score_replies(base_model, tokenizer, answered, LENGTH)[position]
    assert score.tokens == len(targets)
    assert score.loss == pytest.approx(float(cross_entropy(logits, targets)), abs=1e-4)
    assert score.correct_tokens == int((logits.argmax(dim=-1) == targets).sum())


def test_logits_are_computed_for_the_replys_tokens_alone(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, answered: list[list[dict[str, Any]]]
) -> None:
    computed = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: computed.append(tuple(logits.shape)))
    scores = score_replies(model, tokenizer, answered, LENGTH)
    assert computed == [(score.tokens, len(tokenizer)) for score in scores]


def test_a_conversation_is_cut_where_training_cuts_it(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, answered: list[list[dict[str, Any]]]
) -> None:
    """Or one enormous row would take more memory than the model."""
    prompt = len(tokenizer.apply_chat_template(answered[0][:-1], add_generation_prompt=True)["input_ids"])
    cut, beyond = (score_replies(base_model, tokenizer, answered[:1], prompt + kept)[0] for kept in (10, 0))
    assert cut.tokens == 10
    assert (beyond.tokens, math.isnan(beyond.loss)) == (0, True)


def test_a_half_precise_model_is_scored_in_float32(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, answered: list[list[dict[str, Any]]]
) -> None:
    exact = score_replies(model, tokenizer, answered, LENGTH)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits.bfloat16())
    rounded = score_replies(model, tokenizer, answered, LENGTH)
    assert [score.loss for score in rounded] == pytest.approx([score.loss for score in exact], abs=2e-3)


def test_an_adapted_model_is_scored_as_it_is(
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    with_adapter: Any,
    answered: list[list[dict[str, Any]]],
) -> None:
    torch.manual_seed(0)
    before = score_replies(model, tokenizer, answered, LENGTH)
    adapted = with_adapter(model).eval()
    assert [score.loss for score in score_replies(adapted, tokenizer, answered, LENGTH)] == pytest.approx(
        [score.loss for score in before], abs=1e-5
    ), "a fresh LoRA changes nothing"
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    changed = score_replies(adapted, tokenizer, answered, LENGTH)
    assert all(abs(one.loss - two.loss) > 1e-2 for one, two in zip(before, changed, strict=True))


def test_scoring_leaves_the_tokenizer_and_the_model_as_they_were(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, answered: list[list[dict[str, Any]]]
) -> None:
    mine = copy.deepcopy(tokenizer)
    mine.padding_side = "left"
    assert score_replies(base_model, mine, answered, LENGTH) == score_replies(base_model, tokenizer, answered, LENGTH)
    assert mine.padding_side == "left"
