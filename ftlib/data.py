"""The data set before training: is it in the published schema, how long are its rows, what is kept for measuring."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftlib.errors import FtlibError
from ftlib.rehearsal import HELD_OUT_FILE

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MESSAGE_FIELDS = {"content", "role", "thinking"}
# `developer` may be empty: not every conversation has instructions.
TEXT_COLUMNS = ("reasoning_language", "user", "analysis", "final")


def check_schema(dataset: "Dataset") -> None:
    """Make sure that every row has the published schema, before anything is loaded that costs time or memory.

    Args:
        dataset: rows of reasoning_language, developer, user, analysis, final and messages[content, role, thinking].

    Raises:
        FtlibError: naming the first row and field that is wrong, what was found and what was expected.
    """
    missing = [column for column in (*TEXT_COLUMNS, "developer", "messages") if column not in dataset.column_names]
    if missing:
        raise FtlibError(f"the data set lacks {missing}; found columns {dataset.column_names}; rename or add them")
    if len(dataset) == 0:
        raise FtlibError("the data set has no rows; expected at least one")
    for number, row in enumerate(dataset):
        for column in TEXT_COLUMNS:
            if not isinstance(row[column], str) or not row[column].strip():
                raise FtlibError(f"row {number}, {column}: found {row[column]!r}, expected text; mend or drop the row")
        _check_messages(number, row["messages"])


def _check_messages(number: int, messages: Sequence[Mapping[str, Any]]) -> None:
    """Roles in the order that the template expects, with text in each and reasoning in the reply."""
    if not isinstance(messages, list) or any(set(message) < MESSAGE_FIELDS for message in messages):
        raise FtlibError(
            f"row {number}, messages: found {str(messages)[:80]}, expected a list of messages with "
            f"{', '.join(sorted(MESSAGE_FIELDS))}; mend or drop the row"
        )
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise FtlibError(
            f"row {number}, messages: found roles {roles}, expected system (or none), then user and assistant in turn; "
            "mend or drop the row"
        )
    for position, message in enumerate(messages):
        if not (message["content"] or "").strip():
            raise FtlibError(
                f"row {number}, messages[{position}].content: found nothing, expected text; mend or drop the row"
            )
    if not (messages[-1]["thinking"] or "").strip():
        raise FtlibError(
            f"row {number}, messages[{len(messages) - 1}].thinking: found nothing, expected the reply's reasoning; "
            "mend or drop the row"
        )


def split(dataset: "Dataset", held_out_share: float, seed: int) -> "tuple[Dataset, Dataset]":
    """Rows to train on and rows to measure with, which share no user prompt.

    Args:
        dataset: rows in the published schema.
        held_out_share: share of the distinct prompts to keep from training. 0 trains on every row and measures with the
            120 questions that come with the package, 24 in each of the published data set's five languages.
        seed: decides which prompts are kept.

    Raises:
        FtlibError: a shipped question is also in the data set, or the share keeps nothing or everything.
    """
    if held_out_share == 0:
        questions = held_out_questions()
        shared = set(dataset["user"]) & set(questions["user"])
        if shared:
            raise FtlibError(
                f"{len(shared)} of the shipped held-out questions are in the data set, such as {min(shared)!r}; "
                "set data.held_out_share to keep a share of the data set's own prompts instead"
            )
        return dataset, questions
    prompts = sorted(set(dataset["user"]))
    kept = set(random.Random(seed).sample(prompts, round(held_out_share * len(prompts))))
    held_out = dataset.select([row for row, prompt in enumerate(dataset["user"]) if prompt in kept])
    # A prompt may also come in an earlier turn of a row about something else: that row is used for neither.
    said = [{turn["content"] for turn in messages if turn["role"] == "user"} for messages in dataset["messages"]]
    asked = [{prompt} | turns for prompt, turns in zip(dataset["user"], said, strict=True)]
    train = dataset.select([row for row, prompts_of_row in enumerate(asked) if not prompts_of_row & kept])
    if not len(held_out) or not len(train):
        raise FtlibError(
            f"data.held_out_share {held_out_share} of {len(prompts)} prompts leaves {len(train)} rows to train on and "
            f"{len(held_out)} to measure with; expected some of both"
        )
    return train, held_out


def held_out_questions() -> "Dataset":
    """The 120 questions that come with the package, in the published schema."""
    from datasets import Dataset

    lines = HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])


def token_lengths(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> "pd.DataFrame":
    """How long each conversation is, as rendered by the tokenizer's template.

    Returns:
        One row a conversation: language, characters, tokens.
    """
    import pandas as pd

    texts = [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in dataset["messages"]]
    tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    characters = [len(text) for text in texts]
    return pd.DataFrame({"language": list(dataset["reasoning_language"]), "characters": characters, "tokens": tokens})


def ask_for_language(rows: "Dataset", language: str) -> "Dataset":
    """The same questions, each asking for reasoning in another language."""
    system = f"reasoning language: {language}"

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        asked = {"role": "system", "content": f"{system}\n\n{row['developer']}", "thinking": None}
        others = [message for message in row["messages"] if message["role"] != "system"]
        return {"reasoning_language": language, "messages": [asked, *others]}

    return rows.map(ask)
