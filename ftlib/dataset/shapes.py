"""The accepted shapes of a row, and how each becomes a conversation in the published schema.

- published: the columns of HuggingFaceH4/Multilingual-Thinking, named in `COLUMNS`.
- messages: a list of `role`, `content` and, where there is reasoning, `thinking`. Optional column: reasoning_language.
- prompt and completion: texts, or lists of messages. Optional columns: system, thinking, reasoning_language. A data set
  with other column names has this shape once the profile says which is which, in `data.columns`.

In every shape, a reply may also begin with its reasoning between `<think>` and `</think>`. A bad row cannot be trained
on. An unusual one can: the published data set has some, and the blog post trained on them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ftlib.dataset.harmony import MARKERS
from ftlib.errors import FtlibError, nearest
from ftlib.profiles import ColumnRole

COLUMNS = ("reasoning_language", "developer", "user", "analysis", "final", "messages")
LONGEST_SHOWN = 80
CHARACTERS_A_TOKEN = 10
"""More than any tokenizer averages: a row with more characters than this for each token loses most of its text."""

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
# One pair of tags with no other between them, and none right after.
_THOUGHT = re.compile(r"\s*<think>((?:(?!<think>).)*?)</think>(?!\s*</?think>)\s*(.*)", re.DOTALL)

Row = Mapping[str, Any]


class BadRow(Exception):
    """A row that cannot be trained on. Its arguments: the field, what was found there, what was expected."""


class Turn(NamedTuple):
    """A message before it is checked, and the fields it came from."""

    role: Any
    content: Any
    thinking: Any
    field: str
    thinking_field: str


def reader(column_names: Sequence[str], columns: Mapping[ColumnRole, str]) -> Callable[[Row], dict[str, Any]]:
    """A function that converts a row to the published schema or raises BadRow; `columns` is a profile's `data.columns`.

    Raises:
        FtlibError: the columns have no accepted shape, or a column that the profile names does not exist.
    """
    names = list(column_names)
    if columns:
        if not {"prompt", "response"} <= set(columns):
            raise FtlibError(f"data.columns names {sorted(columns)}; expected at least prompt and response")
        for role, name in columns.items():
            if name not in names:
                told = f"data.columns.{role} = {name!r}: the data set has no such column"
                raise FtlibError(f"{told}; {nearest(name, names)}")
        return lambda row: _from_columns(row, columns)
    if "messages" in names:
        return _from_messages
    if not {"prompt", "completion"} <= set(names):
        raise FtlibError(
            f"the data set has columns {names}; expected messages, or prompt and completion, or name yours in the "
            'profile: [data] columns = { prompt = "…", response = "…" }'
        )
    named: dict[ColumnRole, str] = {"prompt": "prompt", "response": "completion"}
    named |= {name: name for name in ("system", "thinking", "reasoning_language") if name in names}
    return lambda row: _from_columns(row, named)


def _from_messages(row: Row) -> dict[str, Any]:
    turns = _turns(row["messages"], "messages")
    if not set(COLUMNS) <= set(row):
        return _conversation(turns, row.get("reasoning_language"), "reasoning_language")
    texts = {column: _text(row[column], column) for column in ("reasoning_language", "user")}
    developer = _text_or_none(row["developer"], "developer") or ""  # not every conversation has instructions
    return _conversation(turns, None, "") | texts | {"developer": developer}


def _from_columns(row: Row, columns: Mapping[ColumnRole, str]) -> dict[str, Any]:
    values = {role: row[name] for role, name in columns.items()}
    system, prompt, response = columns.get("system", ""), columns["prompt"], columns["response"]
    thinking, language = columns.get("thinking", ""), columns.get("reasoning_language", "")
    turns = [] if _is_empty(values.get("system")) else [Turn("system", values["system"], None, system, system)]
    if isinstance(values["prompt"], list):
        turns += _turns(values["prompt"], prompt)
    else:
        turns.append(Turn("user", values["prompt"], None, prompt, prompt))
    if isinstance(values["response"], list):
        turns += _turns(values["response"], response)
        if not _is_empty(values.get("thinking")):
            raise BadRow(thinking, _shown(values["thinking"]), f"the reasoning inside the messages of {response}")
    else:
        turns.append(Turn("assistant", values["response"], values.get("thinking"), response, thinking))
    return _conversation(turns, values.get("reasoning_language"), language)


def _turns(messages: Any, field: str) -> list[Turn]:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise BadRow(field, _shown(messages), "a list of messages with role and content")
    turns = []
    for number, message in enumerate(messages):
        place = f"{field}[{number}]"
        role, content, thinking = (message.get(name) for name in ("role", "content", "thinking"))
        for name, value in message.items():
            is_read = name in ("role", "content", "thinking") or not isinstance(value, (str, list, Mapping))
            if not is_read and value and not _is_empty(value):  # its text would be lost
                raise BadRow(f"{place}.{name}", _shown(value), "role, content and thinking alone")
        turns.append(Turn(role, content, thinking, f"{place}.content", f"{place}.thinking"))
    return turns


def _conversation(turns: list[Turn], language: Any, language_field: str) -> dict[str, Any]:
    """A checked row in the published schema."""
    _check_roles(turns)
    messages = [_message(turn) for turn in turns]
    language = (_text_or_none(language, language_field) or "").strip()
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    asked = _LANGUAGE.search(system)
    if asked and language and asked[1].casefold() != language.casefold():
        raise BadRow(language_field, _shown(language), f"{_shown(asked[1])}, which the system message asks for")
    developer = _LANGUAGE.sub("", system, count=1).strip()
    if language and not asked:
        system = f"reasoning language: {language}\n\n{system}".rstrip()
    if system:
        messages.insert(0, {"content": system, "role": "system", "thinking": None})
    return {
        "reasoning_language": language or (asked[1] if asked else ""),
        "developer": developer,
        "user": messages[-2]["content"],
        "analysis": messages[-1]["thinking"] or "",
        "final": messages[-1]["content"],
        "messages": messages,
    }


def _check_roles(turns: list[Turn]) -> None:
    """The template accepts no other order."""
    roles = [turn.role for turn in turns]
    field = turns[0].field.partition("[")[0]
    if unknown := [role for role in roles if role not in ("system", "developer", "user", "assistant")]:
        raise BadRow(field, f"the role {_shown(unknown[0])}", "system, user and assistant")
    spoken = roles[roles[0] in ("system", "developer") :]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow(field, f"roles {_shown(roles)}", "system (or none), then user and assistant in turn")


def _message(turn: Turn) -> dict[str, Any]:
    thinking = _text_or_none(turn.thinking, turn.thinking_field)
    if turn.role != "assistant":
        role = "user" if turn.role == "user" else "system"
        return {"content": _text(turn.content, turn.field), "role": role, "thinking": thinking}
    # The template can write an empty answer, but not one that is None.
    content, thinking = _without_think_tags(_text_or_none(turn.content, turn.field) or "", thinking, turn.field)
    if not content and not thinking:
        raise BadRow(turn.field, "nothing", "an answer, or reasoning")
    return {"content": content, "role": "assistant", "thinking": thinking}


def _without_think_tags(content: str, thinking: str | None, field: str) -> tuple[str, str | None]:
    """Separate the reasoning from a reply that begins with it, between `<think>` and `</think>`."""
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
    """The keys of `UNUSUAL` that apply to a row in the published schema; `copied`: an earlier row says the same."""
    replies = [message for message in row["messages"] if message["role"] == "assistant"]
    texts = [text for message in row["messages"] for text in (message["content"], message["thinking"]) if text]
    replied = " ".join(f"{reply['thinking']} {reply['content']}" for reply in replies)
    found = (
        not all(reply["content"] for reply in replies),
        row["reasoning_language"] and not row["analysis"],
        copied,
        _THINK_TAG.search(replied),
        sum(map(len, texts)) > CHARACTERS_A_TOKEN * max_length,
    )
    return [what for what, applies in zip(UNUSUAL, found, strict=True) if applies]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text_or_none(value: Any, field: str) -> str | None:
    return None if _is_empty(value) else _text(value, field)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or _is_empty(value):
        raise BadRow(field, _shown(value), "text")
    if marker := re.search(MARKERS, value):
        raise BadRow(field, f"the marker {marker[0]}", "text without markers, which the template writes itself")
    return value


def _shown(value: Any) -> str:
    return "nothing" if _is_empty(value) else shortened(" ".join(repr(value).split()))


def shortened(text: str, longest: int = LONGEST_SHOWN) -> str:
    """As much of a text as a table shows."""
    return text if len(text) <= longest else f"{text[:longest].rstrip()}…"
