"""The accepted shapes of a row, and how each becomes a conversation in the published schema.

- published: the columns of HuggingFaceH4/Multilingual-Thinking, named in `COLUMNS`.
- messages: a list of messages, or its JSON, in one column: OpenAI's (role, content) or ShareGPT's (from, value).
- prompt and completion: texts, or lists of messages; or Alpaca's instruction, input and output.

Either of the last two may also have columns for a system message, the reasoning (beside a completion) and its language.
`USUAL` has the names of columns that are known; a profile's `data.columns` comes first. In every shape, a reply may
begin with its reasoning between `<think>` and `</think>`. A bad row cannot be trained on. An unusual one can: the
published data set has some, and the blog post trained on them.
"""

import contextlib
import json
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

USUAL = {
    "messages": ("messages", "conversations"),
    "prompt": ("prompt", "instruction"),
    "response": ("completion", "response", "output"),
    "input": ("input",),  # Alpaca's: what the instruction is about
    "system": ("system",),
    "thinking": ("thinking", "reasoning_content", "reasoning"),
    "reasoning_language": ("reasoning_language",),
}
"""The parts of a row, and the columns that are read as each where the profile names none."""

UNUSUAL = {
    "an empty answer": "The reply reasons, but does not answer.",
    "no reasoning": "A language is asked for, but the reply does not reason.",
    "reasoning in an earlier turn": "The template leaves it out: only the last reply's reasoning is trained on.",
    "a copy": "An earlier row says the same, so it counts twice.",
    "<think> inside a text": "It stays text: only a tag at the beginning of a reply marks reasoning.",
    "an enormous row": f"It has over {CHARACTERS_A_TOKEN} characters per token of max_length: most of it is cut off.",
}
"""What may be unusual about a row that is trained on, and what that means."""

_MESSAGE = {"role": ("role", "from"), "content": ("content", "value"), "thinking": USUAL["thinking"]}
_SHAREGPT = {"human": "user", "gpt": "assistant"}
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


class Reader(NamedTuple):
    """How the rows of a data set are read."""

    columns: dict[str, str]  # the columns that are read, by the part of a row that each is
    convert: Callable[[Row], dict[str, Any]]  # to the published schema; raises BadRow


def reader(column_names: Sequence[str], columns: Mapping[ColumnRole, str]) -> Reader:
    """Find out which shape the columns have; `columns` is a profile's `data.columns`.

    Raises:
        FtlibError: the columns have no accepted shape, or those that the profile names cannot be read as it says.
    """
    names = list(column_names)
    if not columns and set(COLUMNS) <= set(names):
        return Reader({name: name for name in COLUMNS}, _from_published)
    _check_named(names, columns)
    free = set(names) - set(columns.values())
    usual = {part: next((name for name in known if name in free), "") for part, known in USUAL.items()}
    parts = {part: name for part, name in usual.items() if name} | dict(columns)
    if "messages" in parts and not columns:
        unread = {"prompt", "response", "input", "thinking"}
    elif {"prompt", "response"} <= set(parts):
        unread = {"messages"} if parts["prompt"] == "instruction" else {"messages", "input"}
    else:
        raise FtlibError(
            f"the data set has columns {listed(names)}; expected messages, conversations, prompt and completion, or "
            'instruction and output; or name yours in the profile: [data] columns = { prompt = "…", response = "…" }'
        )
    parts = {part: name for part, name in parts.items() if part not in unread}
    return Reader(parts, lambda row: _from_parts(row, parts))


def _check_named(names: list[str], columns: Mapping[ColumnRole, str]) -> None:
    if columns and not {"prompt", "response"} <= set(columns):
        raise FtlibError(f"data.columns names {sorted(columns)}; expected at least prompt and response")
    if len(set(columns.values())) < len(columns):
        raise FtlibError(f"data.columns names a column twice: {dict(columns)}; expected another one for each part")
    for role, name in columns.items():
        if name not in names:
            hint = nearest(name, [shortened(known) for known in names])
            raise FtlibError(f"data.columns.{role} = {name!r}: the data set has no such column; {hint}")


def _from_published(row: Row) -> dict[str, Any]:
    texts = {column: _text(row[column], column) for column in ("reasoning_language", "user")}
    developer = _text_or_none(row["developer"], "developer") or ""  # not every conversation has instructions
    return _conversation(_turns(row["messages"], "messages"), None, "") | texts | {"developer": developer}


def _from_parts(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    values = {part: row[name] for part, name in columns.items()}
    system = values.get("system")
    turns = [] if _is_empty(system) else [Turn("system", system, None, columns["system"], "")]
    if "messages" in columns:
        turns += _turns(values["messages"], columns["messages"])
    else:
        turns += _question(values, columns) + _reply(values, columns)
    return _conversation(turns, values.get("reasoning_language"), columns.get("reasoning_language", ""))


def _question(values: Row, columns: Mapping[str, str]) -> list[Turn]:
    prompt, field = values["prompt"], columns["prompt"]
    if not _is_empty(values.get("input")):  # of Alpaca
        prompt = f"{_text(prompt, field)}\n\n{_text(values['input'], columns['input'])}"
    return _turns(prompt, field) if isinstance(prompt, list) else [Turn("user", prompt, None, field, "")]


def _reply(values: Row, columns: Mapping[str, str]) -> list[Turn]:
    response, field = values["response"], columns["response"]
    thinking, thinking_field = values.get("thinking"), columns.get("thinking", "")
    if not isinstance(response, list):
        return [Turn("assistant", response, thinking, field, thinking_field)]
    if not _is_empty(thinking):
        raise BadRow(thinking_field, _shown(thinking), f"the reasoning inside the messages of {field}")
    return _turns(response, field)


def _turns(messages: Any, field: str) -> list[Turn]:
    if isinstance(messages, str):  # in a CSV file, say
        with contextlib.suppress(ValueError, RecursionError):
            messages = json.loads(messages)
    if not isinstance(messages, list) or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise BadRow(field, _shown(messages), "a list of messages with role and content, or its JSON")
    return [_turn(message, f"{field}[{number}]") for number, message in enumerate(messages)]


def _turn(message: Row, place: str) -> Turn:
    """A message by any of its usual names; everything else in it would be lost."""
    found: dict[str, Any] = {}
    fields: dict[str, str] = {}
    part_of = {name: part for part, names in _MESSAGE.items() for name in names}
    for name, value in message.items():
        field, part = f"{place}.{shortened(name)}", part_of.get(name)
        if _is_empty(value) or not (part or (value and isinstance(value, (str, list, Mapping)))):
            continue
        if part is None:
            raise BadRow(field, _shown(value), "role, content and thinking alone")
        if found.setdefault(part, value) != value:
            raise BadRow(field, _shown(value), f"the same as in {fields[part]}, or one of the two")
        fields.setdefault(part, field)
    role, content = found.get("role"), found.get("content")
    if isinstance(content, list) and all(
        isinstance(piece, Mapping) and piece.get("type") == "text" for piece in content
    ):
        content = "\n".join(_text(piece.get("text"), fields["content"]) for piece in content)
    content_field, thinking_field = (fields.get(part, f"{place}.{part}") for part in ("content", "thinking"))
    return Turn(_SHAREGPT.get(str(role), role), content, found.get("thinking"), content_field, thinking_field)


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
    field = turns[-1].field.partition("[")[0]
    if unknown := [role for role in roles if role not in ("system", "developer", "user", "assistant")]:
        raise BadRow(field, f"the role {_shown(unknown[0])}", "system, user and assistant")
    spoken = roles[roles[0] in ("system", "developer") :]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow(field, f"roles {_shown(roles)}", "system (or none), then user and assistant in turn")


def _message(turn: Turn) -> dict[str, Any]:
    thinking = _text_or_none(turn.thinking, turn.thinking_field)
    if turn.role != "assistant":
        role = "user" if turn.role == "user" else "system"
        if thinking:
            raise BadRow(turn.thinking_field, _shown(thinking), "the reasoning of the assistant alone")
        return {"content": _text(turn.content, turn.field), "role": role, "thinking": None}
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
        any(reply["thinking"] for reply in replies[:-1]),
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


def listed(names: Sequence[str]) -> str:
    """The names of columns, as an error shows them."""
    return shortened(str([shortened(name, 30) for name in names]), 200)


def shortened(text: str, longest: int = LONGEST_SHOWN) -> str:
    """As much of a text as a table shows."""
    return text if len(text) <= longest else f"{text[:longest].rstrip()}…"
