"""Whatever comes in: the data checks and the reply parser neither crash nor lose text without a word."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Json, load_dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.dataset.harmony import parse_reply, split_channels
from ftlib.dataset.shapes import COLUMNS, BadRow, reader
from ftlib.errors import FtlibError
from ftlib.profiles import ColumnRole

# The same examples each time; fixtures are only read.
usual = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
slower = settings(usual, max_examples=50)

MARKERS = [
    f"<|{name}|>"
    for name in (
        *("startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call"),
        *("endofprompt", "reserved_200000"),
    )
]
TAGS = ["<think>", "</think>"]
MAPPING: dict[ColumnRole, str] = {
    "prompt": "q",
    "response": "a",
    "system": "s",
    "thinking": "t",
    "reasoning_language": "l",
}

characters = st.characters(exclude_categories=["Cs"])
anything = st.text(characters, max_size=12)
pieces = st.lists(
    st.sampled_from(
        [*MARKERS, *TAGS, "reasoning language: ", "French", "assistant", "analysis", "final", "\n", "<|", " "]
    )
    | anything,
    max_size=6,
).map("".join)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | pieces,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=6,
)
plain = anything.filter(lambda text: text.strip() and not any(mark in text for mark in (*MARKERS, *TAGS)))
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
broken_messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles | values, "content": pieces | values},
        optional={"thinking": pieces | values, "reasoning_content": pieces | values},
    )
    | values,
    max_size=5,
)


@st.composite
def replies(draw: st.DrawFn) -> dict[str, Any]:
    """What an assistant says, with its reasoning in each of the places where it may be."""
    content, thinking = draw(plain), draw(plain)
    return draw(
        st.sampled_from(
            [
                {"role": "assistant", "content": content},
                {"role": "assistant", "content": content, "thinking": None},
                {"role": "assistant", "content": content, "thinking": thinking},
                {"role": "assistant", "content": f"<think>{thinking}</think>\n{content}"},
            ]
        )
    )


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A conversation that can be trained on."""
    turns = [
        message
        for _ in range(draw(st.integers(1, 3)))
        for message in ({"role": "user", "content": draw(plain)}, draw(replies()))
    ]
    system = draw(st.none() | st.sampled_from(["system", "developer"]))
    asked = draw(st.sampled_from(["", "reasoning language: French\n\n", "Be brief. "]))
    return [{"role": system, "content": asked + draw(plain)}, *turns] if system else turns


def published(said: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """A row in the published schema, which always has reasoning."""
    reply = {"role": "assistant", "content": texts[0], "thinking": texts[1]}
    return dict(zip(COLUMNS, [*texts[2:], [*said[:-1], reply]], strict=True))


GOOD = {
    "messages": st.builds(
        lambda said, other: {"messages": said, "reasoning_language": "french" if "French" in str(said) else other},
        conversations(),
        st.none() | plain,
    ),
    "prompt": conversations().map(lambda said: {"prompt": said[:-1], "completion": said[-1:]})
    | st.fixed_dictionaries({"prompt": plain, "completion": plain}, optional={"thinking": st.none() | plain}),
    "named": st.fixed_dictionaries(
        {"q": plain, "a": plain, "s": st.none() | plain, "t": st.none() | plain, "l": st.none() | plain}
    ),
    "published": st.builds(published, conversations(), st.lists(plain, min_size=7, max_size=7)),
}
BROKEN = {
    "messages": st.fixed_dictionaries({"messages": broken_messages | values, "reasoning_language": values}),
    "prompt": st.fixed_dictionaries({"prompt": broken_messages | values, "completion": broken_messages | values}),
    "named": st.fixed_dictionaries(dict.fromkeys(MAPPING.values(), values | pieces)),
    "published": st.fixed_dictionaries({**dict.fromkeys(COLUMNS, values | pieces), "messages": broken_messages}),
}
good_rows = st.one_of(*GOOD.values())
broken_rows = st.one_of(*BROKEN.values())


def mapping(row: dict[str, Any]) -> dict[ColumnRole, str]:
    return MAPPING if "q" in row else {}


def read(row: dict[str, Any]) -> dict[str, Any] | BadRow:
    try:
        return reader(list(row), mapping(row))(row)
    except BadRow as problem:
        return problem


def texts(value: Any) -> list[str]:
    """Every text in a row that is content or reasoning, without tags, in pieces that no blank can hide."""
    if isinstance(value, str):
        for tag in TAGS:
            value = value.replace(tag, "\n")
        return [part.strip() for part in value.split("\n") if part.strip()]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    if isinstance(value, dict):
        other = ("role", "reasoning_language", "l")
        return [text for key, item in value.items() if key not in other for text in texts(item)]
    return []


def dataset_of(rows: list[dict[str, Any]]) -> Dataset:
    """As `load_dataset` gives columns whose values are of several types."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Dataset.from_dict(
        {name: [row.get(name) for row in rows] for name in names}, features=Features(dict.fromkeys(names, Json()))
    )


def is_one_line(text: str) -> bool:
    """A carriage return, or one of Unicode's own line breaks, ends a line as well."""
    return len(text.splitlines()) == 1


def said_in(row: dict[str, Any]) -> str:
    return " ".join(f"{message['content']} {message['thinking'] or ''}" for message in row["messages"])


@usual
@given(good_rows)
def test_a_good_row_loses_no_text(row: dict[str, Any]) -> None:
    found = read(row)
    assert not isinstance(found, BadRow)
    for text in texts(row.get("messages", row)):
        assert text in said_in(found)
    assert found["messages"][-1]["role"] == "assistant"


def seldom(system: str = "Be brief.", language: str | None = None, **more: Any) -> dict[str, Any]:
    """What chance would hardly put together."""
    asked = [{"role": "system", "content": system}, {"role": "user", "content": "q"}]
    return {"messages": [*asked, {"role": "assistant", "content": "a", **more}], "reasoning_language": language}


@usual
@example(seldom("reasoning language: Fre\rnch", "German"))
@example(seldom("reasoning language: Fre\u2028nch", "Ger\x85man"))
@example(seldom(reasoning_content="Hm."))
@example(seldom(reasoning_content=["Hm."]))
@example(seldom(reasoning_content={"text": "Hm."}))
@example(seldom(content="<think>one</think>two", thinking="three"))
@given(good_rows | broken_rows)
def test_any_row_is_read_or_refused_by_name(row: dict[str, Any]) -> None:
    before = json.dumps(row)
    found = read(row)
    assert json.dumps(row) == before
    if isinstance(found, BadRow):
        assert all(found.args)
        assert all(is_one_line(part) for part in found.args)
        return
    assert tuple(found) == COLUMNS
    messages = found["messages"]
    assert [set(message) for message in messages] == [{"role", "content", "thinking"}] * len(messages)
    for message in messages:
        assert message["content"].strip() or (message["role"] == "assistant" and message["thinking"])
    for text in texts(row.get("messages", row)):
        assert text in said_in(found)


@slower
@pytest.mark.parametrize("shape", GOOD)
@given(drawn=st.data())
def test_every_row_is_in_the_result_or_among_the_dropped(shape: str, drawn: st.DataObject) -> None:
    rows = drawn.draw(st.lists(GOOD[shape] | BROKEN[shape], min_size=1, max_size=5))
    rows += drawn.draw(st.lists(st.sampled_from(rows), max_size=2))
    loaded = dataset_of(rows)
    dropping = profiles.load("tiny").data.model_copy(update={"on_bad_row": "drop", "columns": mapping(rows[0])})
    bad = prepare.check(loaded, dropping, 216).problems
    with tempfile.TemporaryDirectory() as folder:
        if len(bad) == len(rows):
            with pytest.raises(FtlibError) as raised:
                prepare.conversations(loaded, dropping, Path(folder))
            assert is_one_line(str(raised.value))
            return
        kept = prepare.conversations(loaded, dropping, Path(folder))
        file = Path(folder) / prepare.DROPPED
        dropped = [json.loads(line) for line in file.open(encoding="utf-8")] if file.exists() else []
    assert [line["row"] for line in dropped] == bad["row"].tolist()
    assert len(kept) + len(dropped) == len(rows)
    assert [line["record"] for line in dropped] == [loaded[line["row"]] for line in dropped]
    good = [loaded[number] for number in range(len(rows)) if number not in set(bad["row"])]
    assert [said_in(row) for row in kept] == [said_in(read(row)) for row in good]


@slower
@pytest.mark.parametrize("shape", GOOD)
@given(drawn=st.data())
def test_stopping_keeps_every_row_or_says_why_not(shape: str, drawn: st.DataObject) -> None:
    rows = drawn.draw(st.lists(GOOD[shape], min_size=1, max_size=3))
    rows += drawn.draw(st.lists(BROKEN[shape] | st.sampled_from(rows), max_size=1))
    loaded = dataset_of(rows)
    stopping = profiles.load("tiny").data.model_copy(update={"columns": mapping(rows[0])})
    bad = prepare.check(loaded, stopping, 216).problems
    with tempfile.TemporaryDirectory() as folder:
        if bad.empty:
            kept = prepare.conversations(loaded, stopping, Path(folder))
            assert [said_in(row) for row in kept] == [said_in(read(row)) for row in loaded]
        else:
            with pytest.raises(FtlibError) as raised:
                prepare.conversations(loaded, stopping, Path(folder))
            assert is_one_line(str(raised.value))
            assert f", row {bad['row'][0]}, {bad['field'][0]}: found" in str(raised.value)
        assert not list(Path(folder).iterdir())


# Texts that are JSON, or a date, themselves.
tempting = st.sampled_from(["42", "null", '"Hi"', "[1]", '{"a": 1}', "2025-08-05", "-1.5e3", "NaN", "true "])
FILES = {
    "prompt": st.fixed_dictionaries({"prompt": plain | tempting, "completion": plain | tempting}),
    "messages": GOOD["messages"],
    "anything": BROKEN["prompt"],
}


@settings(usual, max_examples=15)
@pytest.mark.parametrize("shape", FILES)
@given(drawn=st.data())
def test_no_text_is_changed_on_its_way_from_a_file(shape: str, drawn: st.DataObject) -> None:
    rows = drawn.draw(st.lists(FILES[shape], min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "own.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tiny = profiles.load("tiny").data.model_dump() | {"dataset": str(file), "revision": None}
        own = profiles.Data.model_validate(tiny)
        try:
            source = prepare.source(own)
        except FtlibError:
            assert shape == "anything", "texts among values of other kinds are refused where they would change"
            return
        loaded = load_dataset(**source, split="train", cache_dir=folder)
        prepare.check(loaded, own, 216)
        assert [read(row) for row in rows if not isinstance(read(row), BadRow)] == [
            found for row in loaded if not isinstance(found := read(row), BadRow)
        ]


@usual
@given(st.lists(anything, max_size=4))
def test_any_columns_are_accepted_or_listed(names: list[str]) -> None:
    with pytest.raises(FtlibError) as raised:
        reader(names, {})
    assert is_one_line(str(raised.value))
    assert str(names) in str(raised.value)


# Replies, as a model may generate them: cut anywhere, glued together, a message inside another. ----------------------


@st.composite
def harmony_texts(draw: st.DrawFn) -> str:
    message = st.builds(
        lambda start, role, channel, content, stop: f"{start}{role}{channel}<|message|>{content}{stop}",
        st.sampled_from(["<|start|>", ""]),
        st.sampled_from(["assistant", "user", "", "functions.f to=assistant"]),
        st.sampled_from(
            ["<|channel|>analysis", "<|channel|>final", "<|channel|>commentary to=f <|constrain|>json", ""]
        ),
        anything | pieces,
        st.sampled_from(["<|end|>", "<|return|>", "<|call|>", ""]),
    )
    glued = "".join(draw(st.lists(message | pieces, max_size=4)))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(glued)))
        glued = glued[:place] + draw(message) + glued[place:]
    return glued[draw(st.integers(0, len(glued))) if draw(st.booleans()) else 0 :][: draw(st.integers(0, 400))]


@settings(usual, max_examples=400)
@given(harmony_texts() | anything)
def test_no_text_of_a_reply_is_lost(text: str) -> None:
    segments = split_channels(text)
    assert "".join(segment.text for segment in segments) == text
    assert all(segment.text and segment.content in segment.text for segment in segments)
    openings = ("<|start|>", "<|channel|>", "<|message|>")
    assert not any(opening in segment.content for segment in segments for opening in openings), (
        "glued ones are told apart"
    )
    reply = parse_reply(text)
    assert reply.raw == text
    assert all(part in text for said in (reply.analysis, reply.commentary) for part in said.split("\n"))
    assert reply.final in text
    said = [segment for segment in segments if segment.role == "assistant"]
    until = next((n for n, segment in enumerate(said) if segment.channel == "final"), len(said))
    for segment in said[: until + 1]:
        assert segment.content in {"analysis": reply.analysis, "final": reply.final}.get(segment.channel, text)
    assert not reply.complete or (until < len(said) and said[until].closed)


@usual
@given(conversations(), st.integers(0, 10_000))
def test_a_rendered_reply_is_parsed_back_however_it_is_cut(
    tokenizer: PreTrainedTokenizerFast, said: list[dict[str, Any]], cut: int
) -> None:
    messages = reader(["messages"], {})({"messages": said})["messages"]
    prompt = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
    text = str(tokenizer.apply_chat_template(messages, tokenize=False)).removeprefix(prompt)
    assert text.startswith("<|channel|>")
    reply = parse_reply(text)
    assert (reply.analysis, reply.final) == (messages[-1]["thinking"] or "", messages[-1]["content"])
    assert reply.complete
    short = parse_reply(text[: cut % len(text)])
    assert not short.complete
    assert reply.final.startswith(short.final.partition("<|")[0].rstrip("<"))
