"""Replies, one or many: the same ones, read channel by channel, and marked where they were cut."""

import copy
from typing import Any

import pytest
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib.generation import generate_replies, generate_reply
from ftlib.harmony import Reply

LONG_ENOUGH = 80


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
