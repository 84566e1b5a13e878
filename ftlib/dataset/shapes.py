"""Rows of every accepted shape, read as conversations in the published schema; what is bad or unusual is named.

Accepted are the published schema itself; `messages` alone, with or without `thinking`, or with `<think>…</think>` in a
reply; `prompt` and `completion`, as texts or lists of messages; and other columns that a profile names in
`data.columns`.

A bad row cannot be trained on. An unusual one can, and is: the published data set has some, and its recipe trained on
every row.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ftlib.dataset.harmony import MARKERS
from ftlib.errors import FtlibError, nearest
from ftlib.profiles import ColumnRole

COLUMNS = ("reasoning_language", "developer", "user", "analysis", "final", "messages")
"""The published schema."""

TEXT_COLUMNS = ("reasoning_language", "user")
"""Its columns that must hold text."""

OPTIONAL_COLUMNS = ("developer", "analysis", "final")
"""Its columns that may be empty: not every conversation has instructions, and `messages` decides about the reply."""

KNOWN_COLUMNS = ("messages", "prompt", "completion")
"""The columns of the other accepted shapes."""

SYSTEM_ROLES = ("system", "developer")
ROLES = ("user", "assistant", *SYSTEM_ROLES)
LONGEST_SHOWN = 80

CHARACTERS_A_TOKEN = 10
"""More than any tokenizer packs into a token on average: a longer row loses most of its text, whatever its language."""

UNUSUAL = {
    "an empty answer": "The reply reasons, but does not answer.",
    "no reasoning": "A language is asked for, but the reply does not reason.",
    "a copy": "An earlier row says the same, so it counts twice.",
    "<think> inside a text": "It stays text: only a tag at the beginning of a reply marks reasoning.",
    "an enormous row": f"It has over {CHARACTERS_A_TOKEN} characters per token of max_length: most of it is cut off.",
}
"""What may be unusual about a row that is trained on, and what that means."""

_LANGUAGE = re.compile(r"^\s*reasoning language:[ \t]*(\S.*?)\s*$\n*", re.IGNORECASE | re.MULTILINE)
_THINK_TAG = re.compile(r"</?think>")
# Between two tags that belong together there is no other, and none follows at once.
_THOUGHT = re.compile(r"\s*<think>((?:(?!<think>).)*?)</think>(?!\s*</?think>)\s*(.*)", re.DOTALL)

Row = Mapping[str, Any]


class BadRow(Exception):
    """A row that cannot be trained on.

    Args:
        field: where in the row.
        found: what is there.
        expected: what should be.
    """

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(field, found, expected)
        self.field, self.found, self.expected = field, found, expected


@dataclass(frozen=True)
class Turn:
    """One message as it was read, not checked yet, with the names of the fields that it came from."""

    role: Any
    content: Any
    thinking: Any
    field: str
    thinking_field: str


def reader(column_names: Sequence[str], columns: Mapping[ColumnRole, str]) -> Callable[[Row], dict[str, Any]]:
    """How rows with these columns are read.

    Args:
        column_names: the columns of a data set.
        columns: what they hold where they are named otherwise, as a profile's `data.columns` has it.

    Returns:
        A function from a row to the same in the published schema, which raises BadRow.

    Raises:
        FtlibError: the columns have none of the accepted shapes, or one that the profile names is not there.
    """
    names = list(column_names)
    if columns:
        _check_mapping(names, columns)
        return lambda row: _from_columns(row, columns)
    if set(COLUMNS) <= set(names):
        return _from_published
    if "messages" in names:
        return _from_messages
    if {"prompt", "completion"} <= set(names):
        return _from_prompt
    meant = [(name, close) for name in names for close in get_close_matches(name.lower(), KNOWN_COLUMNS, n=1)]
    hints = "".join(f"; is {name!r} meant to be {close!r}?" for name, close in meant if name != close)
    raise FtlibError(
        f"the data set has columns {names}; expected messages, or prompt and completion, or name yours in the profile:"
        f' [data] columns = {{ prompt = "…", response = "…" }}{hints}'
    )


def columns_read(columns: Mapping[ColumnRole, str]) -> set[str]:
    """Names of the columns that `reader` looks at, where they are there."""
    return set(columns.values()) or {*COLUMNS, *KNOWN_COLUMNS, "thinking"}


def _check_mapping(names: list[str], columns: Mapping[ColumnRole, str]) -> None:
    if not {"prompt", "response"} <= set(columns):
        raise FtlibError(
            f"data.columns names {sorted(columns)}; expected at least prompt and response; add what is missing"
        )
    for role, name in columns.items():
        if name not in names:
            raise FtlibError(f"data.columns.{role} = {name!r}: the data set has no such column; {nearest(name, names)}")


def _from_published(row: Row) -> dict[str, Any]:
    for column in TEXT_COLUMNS:
        _text(row[column], column)
    for column in OPTIONAL_COLUMNS:
        _text_or_none(row[column], column)
    conversation = _conversation(_turns(row["messages"], "messages"), None, "")
    return conversation | {column: row[column] for column in (*TEXT_COLUMNS, "developer")}


def _from_messages(row: Row) -> dict[str, Any]:
    turns = _turns(row["messages"], "messages")
    return _conversation(turns, row.get("reasoning_language"), "reasoning_language")


def _from_prompt(row: Row) -> dict[str, Any]:
    prompt, completion = row["prompt"], row["completion"]
    asked = _turns(prompt, "prompt") if isinstance(prompt, list) else [Turn("user", prompt, None, "prompt", "prompt")]
    told = (
        _turns(completion, "completion")
        if isinstance(completion, list)
        else [Turn("assistant", completion, row.get("thinking"), "completion", "thinking")]
    )
    return _conversation([*asked, *told], row.get("reasoning_language"), "reasoning_language")


def _from_columns(row: Row, columns: Mapping[ColumnRole, str]) -> dict[str, Any]:
    turns = []
    system = columns.get("system")
    if system and not _is_empty(row[system]):
        turns.append(Turn("system", row[system], None, system, system))
    thinking = columns.get("thinking")
    turns.append(Turn("user", row[columns["prompt"]], None, columns["prompt"], columns["prompt"]))
    turns.append(
        Turn(
            "assistant",
            row[columns["response"]],
            row[thinking] if thinking else None,
            columns["response"],
            thinking or columns["response"],
        )
    )
    language = columns.get("reasoning_language")
    return _conversation(turns, row[language] if language else None, language or "")


def _check_fields(message: Mapping[str, Any], place: str) -> None:
    """Text in a field that is not read would be lost without a word."""
    for name, value in message.items():
        if (
            name not in ("role", "content", "thinking")
            and isinstance(value, (str, list, Mapping))
            and value
            and not _is_empty(value)
        ):
            raise BadRow(f"{place}.{name}", _shown(value), "role, content and thinking alone")


def _turns(messages: Any, field: str) -> list[Turn]:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise BadRow(field, _shown(messages), "a list of messages with role and content")
    for number, message in enumerate(messages):
        _check_fields(message, f"{field}[{number}]")
    return [
        Turn(
            message.get("role"),
            message.get("content"),
            message.get("thinking"),
            f"{field}[{number}].content",
            f"{field}[{number}].thinking",
        )
        for number, message in enumerate(messages)
    ]


def _conversation(turns: list[Turn], language: Any, language_field: str) -> dict[str, Any]:
    """A row in the published schema, checked."""
    _check_roles(turns)
    messages = [_message(turn) for turn in turns]
    language = (_text_or_none(language, language_field) or "").strip()
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    said = _LANGUAGE.search(system)
    if said and language and said[1].casefold() != language.casefold():
        raise BadRow(language_field, _shown(language), f"{_shown(said[1])}, which the system message asks for")
    developer = _LANGUAGE.sub("", system, count=1).strip()
    if language and not said:
        system = f"reasoning language: {language}\n\n{system}".rstrip()
    if system:
        messages.insert(0, {"content": system, "role": "system", "thinking": None})
    return {
        "reasoning_language": language or (said[1] if said else ""),
        "developer": developer,
        "user": messages[-2]["content"],
        "analysis": messages[-1]["thinking"] or "",
        "final": messages[-1]["content"],
        "messages": messages,
    }


def _check_roles(turns: list[Turn]) -> None:
    """In the order that the template expects."""
    roles = [turn.role for turn in turns]
    field = turns[0].field.partition("[")[0]
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise BadRow(field, f"the role {_shown(unknown[0])}", "system, user and assistant")
    spoken = roles[1:] if roles[0] in SYSTEM_ROLES else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow(field, f"roles {_shown(roles)}", "system (or none), then user and assistant in turn")


def _message(turn: Turn) -> dict[str, Any]:
    thinking = _text_or_none(turn.thinking, turn.thinking_field)
    if turn.role != "assistant":
        role = "system" if turn.role in SYSTEM_ROLES else turn.role
        return {"content": _text(turn.content, turn.field), "role": role, "thinking": thinking}
    # The template writes an empty content as an empty answer, and cannot write one that is not there.
    content, thinking = _without_think_tags(_text_or_none(turn.content, turn.field) or "", thinking, turn.field)
    if not content and not thinking:
        raise BadRow(turn.field, "nothing", "an answer, or reasoning")
    return {"content": content, "role": "assistant", "thinking": thinking}


def _without_think_tags(content: str, thinking: str | None, field: str) -> tuple[str, str | None]:
    """Split the reasoning off a reply that begins with it, between `<think>` and `</think>`."""
    if not _THINK_TAG.match(content.lstrip()):
        return content, thinking
    split = _THOUGHT.fullmatch(content)
    if not split:
        tags = " ".join(_THINK_TAG.findall(content))
        raise BadRow(field, f"the tags {tags}", "one <think>…</think> at the beginning of the reply")
    if thinking:
        raise BadRow(field, "reasoning in <think> and in thinking", "one of the two")
    return split[2], split[1].strip() or None


def unusual(row: Row, max_length: int, copied: bool) -> list[str]:
    """What is unusual about a row that is trained on.

    Args:
        row: in the published schema, as `reader` gives it.
        max_length: tokens that training keeps of it.
        copied: whether an earlier row says the same.

    Returns:
        Keys of `UNUSUAL`, none for an ordinary row.
    """
    replies = [message for message in row["messages"] if message["role"] == "assistant"]
    said = [text for message in row["messages"] for text in (message["content"], message["thinking"]) if text]
    answered = " ".join(f"{reply['thinking']} {reply['content']}" for reply in replies)
    found = (
        not all(reply["content"] for reply in replies),
        row["reasoning_language"] and not row["analysis"],
        copied,
        _THINK_TAG.search(answered),
        sum(map(len, said)) > CHARACTERS_A_TOKEN * max_length,
    )
    return [what for what, is_so in zip(UNUSUAL, found, strict=True) if is_so]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text_or_none(value: Any, field: str) -> str | None:
    return None if _is_empty(value) else _text(value, field)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or _is_empty(value):
        raise BadRow(field, _shown(value), "text")
    marker = re.search(MARKERS, value)
    if marker:
        raise BadRow(field, f"the marker {marker[0]}", "text without markers, which the template writes itself")
    return value


def _shown(value: Any) -> str:
    if _is_empty(value):
        return "nothing"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
