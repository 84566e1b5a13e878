"""The data before training: the schema is checked row by row, and nothing that is measured with is trained on."""

from collections import Counter
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from ftlib import data
from ftlib.errors import FtlibError


def message(role: str, content: str | None = "something", thinking: str | None = None) -> dict[str, str | None]:
    return {"content": content, "role": role, "thinking": thinking}


def row(*messages: dict[str, str | None], **columns: str | None) -> dict[str, Any]:
    texts = dict.fromkeys((*data.TEXT_COLUMNS, "developer"), "something") | columns
    said = messages or (message("system"), message("user"), message("assistant", thinking="because"))
    return {**texts, "messages": list(said)}


def refusal(rows: Dataset) -> str:
    with pytest.raises(FtlibError) as raised:
        data.check_schema(rows)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def prompts() -> Dataset:
    """A hundred rows, of which every two share a prompt."""
    return Dataset.from_list([row(user=f"question {number // 2}", final=str(number)) for number in range(100)])


def test_the_shipped_rows_are_in_the_schema(sample: Dataset) -> None:
    data.check_schema(sample)
    data.check_schema(data.held_out_questions())


def test_rows_with_and_without_system_message_and_of_several_turns_are_in_the_schema() -> None:
    turn = (message("user"), message("assistant", thinking="because"))
    data.check_schema(Dataset.from_list([row(), row(*turn), row(message("system"), *turn, *turn)]))


@pytest.mark.parametrize("column", [*data.TEXT_COLUMNS, "developer", "messages"])
def test_a_missing_column_is_named(column: str) -> None:
    message = refusal(Dataset.from_list([row()]).remove_columns(column))
    assert f"lacks ['{column}']" in message
    assert "found columns" in message


def test_no_rows_at_all_are_refused() -> None:
    assert "no rows" in refusal(Dataset.from_list([row()]).select([]))


@pytest.mark.parametrize("column", data.TEXT_COLUMNS)
@pytest.mark.parametrize("found", ["", "  ", None])
def test_an_empty_field_is_named_with_its_row(column: str, found: str | None) -> None:
    message = refusal(Dataset.from_list([row(), row(**{column: found})]))
    assert message.startswith(f"row 1, {column}: found {found!r}, expected text")


@pytest.mark.parametrize(
    "roles",
    [
        ["user"],
        ["system"],
        ["assistant", "user"],
        ["user", "assistant", "user"],
        ["user", "user", "assistant"],
        ["user", "system", "assistant"],
        ["system", "system", "user", "assistant"],
        ["developer", "user", "assistant"],
    ],
)
def test_roles_out_of_order_are_named_with_their_row(roles: list[str]) -> None:
    wrong = row(*(message(role, thinking="because") for role in roles))
    assert refusal(Dataset.from_list([row(), row(), wrong])).startswith(f"row 2, messages: found roles {roles}")


@pytest.mark.parametrize("content", ["", None])
def test_a_message_without_content_is_named(content: str | None) -> None:
    wrong = row(message("user", content), message("assistant", thinking="because"))
    assert refusal(Dataset.from_list([row(), wrong])).startswith("row 1, messages[0].content: found nothing")


@pytest.mark.parametrize("thinking", ["", None])
def test_a_reply_without_reasoning_is_named(thinking: str | None) -> None:
    wrong = row(message("system"), message("user"), message("assistant", thinking=thinking))
    assert refusal(Dataset.from_list([wrong])).startswith("row 0, messages[2].thinking: found nothing")


def test_share_0_trains_on_every_row_and_measures_with_the_shipped_questions(sample: Dataset) -> None:
    train, held_out = data.split(sample, 0, seed=0)
    assert train is sample
    assert len(held_out) == 120
    assert set(Counter(held_out["reasoning_language"]).values()) == {24}
    assert set(train["user"]).isdisjoint(held_out["user"])
    assert held_out.column_names == sample.column_names


def test_a_shipped_question_among_the_training_rows_is_refused(sample_rows: list[dict[str, Any]]) -> None:
    question = data.held_out_questions()["user"][7]
    rows = Dataset.from_list([*sample_rows[:5], {**sample_rows[5], "user": question}])
    with pytest.raises(FtlibError) as raised:
        data.split(rows, 0, seed=0)
    assert "1 of the shipped held-out questions are in the data set" in str(raised.value)
    assert repr(question) in str(raised.value)
    assert "data.held_out_share" in str(raised.value)


def test_a_share_is_kept_by_prompt(prompts: Dataset) -> None:
    train, held_out = data.split(prompts, 0.2, seed=0)
    assert (len(train), len(held_out)) == (80, 20)
    assert set(train["user"]).isdisjoint(held_out["user"])
    assert sorted([*train["final"], *held_out["final"]], key=int) == prompts["final"][:]


def test_a_kept_prompt_is_in_no_turn_of_a_training_row(sample: Dataset) -> None:
    train, held_out = data.split(sample, 0.2, seed=0)
    said = {turn["content"] for messages in train["messages"] for turn in messages if turn["role"] == "user"}
    assert said.isdisjoint(held_out["user"])


def test_the_seed_alone_decides_what_is_kept(prompts: Dataset) -> None:
    held_out = [data.split(prompts, 0.2, seed)[1]["final"][:] for seed in (3, 3, 4)]
    assert held_out[0] == held_out[1]
    assert held_out[0] != held_out[2]
    _, from_reversed = data.split(prompts.select(range(99, -1, -1)), 0.2, seed=3)
    assert sorted(from_reversed["final"][:]) == sorted(held_out[0]), "the order of the rows does not"


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_keeps_nothing_or_everything_is_refused(prompts: Dataset, share: float) -> None:
    with pytest.raises(FtlibError, match=f"held_out_share {share} of 50 prompts"):
        data.split(prompts, share, seed=0)


def test_lengths_are_those_of_the_tokens_that_training_sees(
    sample: Dataset, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = sample.select(range(20))
    lengths = data.token_lengths(rows, tokenizer)
    assert list(lengths.columns) == ["language", "characters", "tokens"]
    assert lengths["language"].tolist() == rows["reasoning_language"][:]
    for messages, tokens, characters in zip(rows["messages"], lengths["tokens"], lengths["characters"], strict=True):
        assert tokens == len(tokenizer.apply_chat_template(messages)["input_ids"])
        assert characters == len(tokenizer.apply_chat_template(messages, tokenize=False))


def test_another_language_is_asked_for_and_nothing_else_changes(sample: Dataset) -> None:
    rows = sample.select(range(10))
    asked = data.ask_for_language(rows, "Portuguese")
    assert set(asked["reasoning_language"]) == {"Portuguese"}
    for before, after in zip(rows, asked, strict=True):
        system = message("system", f"reasoning language: Portuguese\n\n{before['developer']}")
        assert after["messages"] == [system, *before["messages"][1:]]
        unchanged = set(before) - {"messages", "reasoning_language"}
        assert {column: before[column] for column in unchanged} == {column: after[column] for column in unchanged}
        assert f"reasoning language: {before['reasoning_language']}\n" in before["messages"][0]["content"]


def test_a_row_may_come_without_instructions() -> None:
    data.check_schema(Dataset.from_list([row(), row(developer=""), row(developer=None)]))
