"""Rows of every accepted shape become conversations in the published schema; a bad one is named, with its field."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftlib.dataset.shapes import COLUMNS, UNUSUAL, BadRow, reader, unusual

ASKED, THOUGHT, ANSWERED = "Capital of Australia?", "Pregunta por la capital.", "Canberra."
SPANISH = "reasoning language: Spanish"
TWO = {"prompt": "q", "response": "a"}
FIVE = TWO | {"system": "s", "thinking": "t", "reasoning_language": "l"}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def published(
    language: str = "", developer: str = "", analysis: str = "", system: str = "", final: str = ANSWERED
) -> dict[str, Any]:
    """The row that all shapes of the one conversation come to."""
    turns = [said("system", system, thinking=None)] if system else []
    turns += [said("user", ASKED, thinking=None), said("assistant", final, thinking=analysis or None)]
    texts = (language, developer, ASKED, analysis, final)
    return dict(zip(COLUMNS, (*texts, turns), strict=True))


def exchange(reply: Any = ANSWERED, system: Any = None, **more: Any) -> dict[str, Any]:
    opening = [] if system is None else [said("system", system)]
    return {"messages": [*opening, said("user", ASKED), said("assistant", reply, **more)]}


def read(row: Mapping[str, Any], columns: Mapping[Any, str] | None = None) -> dict[str, Any]:
    return reader(list(row), columns or {}).convert(row)


WHOLE = published("Spanish", "Be brief.", THOUGHT, f"{SPANISH}\n\nBe brief.")
UNANSWERED = published("Spanish", "Be brief.", THOUGHT, f"{SPANISH}\n\nBe brief.", final="")
UNREASONED = published("Spanish", "Be brief.", "", f"{SPANISH}\n\nBe brief.")
TAGGED = f"\n<think>\n{THOUGHT}\n</think>\n\n{ANSWERED}"
TAUGHT = "Write <think>, then </think>."
TOLD_BY_DEVELOPER = [said("developer", f"{SPANISH}\n\nBe brief."), said("user", ASKED), said("assistant", TAGGED)]
LOWER = UNREASONED | {"reasoning_language": "spanish"}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = {
    "published": (WHOLE | {"source": "mine"}, {}, WHOLE),
    "published, empty answer": (UNANSWERED | {"final": None}, {}, UNANSWERED),
    "published, no reasoning": (UNREASONED, {}, UNREASONED),
    "published, as others write it": (WHOLE | {"messages": TOLD_BY_DEVELOPER}, {}, WHOLE),
    "messages": (exchange(thinking=" \n"), {}, published()),
    "messages with thinking": (exchange(thinking=THOUGHT), {}, published(analysis=THOUGHT)),
    "messages with <think>": (exchange(TAGGED), {}, published(analysis=THOUGHT)),
    "messages with empty <think>": (exchange(f"<think>\n\n</think>{ANSWERED}"), {}, published()),
    "messages with <think> alone": (exchange(f"<think>{THOUGHT}</think>\n"), {}, published("", "", THOUGHT, final="")),
    "an answer about <think>": (exchange(TAUGHT), {}, published(final=TAUGHT)),
    "an answer after and about it": (exchange(f"<think>a</think>{TAUGHT}"), {}, published("", "", "a", final=TAUGHT)),
    "a language beside": (
        exchange(system="Be brief.", thinking=THOUGHT) | {"reasoning_language": " Spanish "},
        {},
        WHOLE,
    ),
    "a language twice": ({"reasoning_language": "spanish", "messages": UNREASONED["messages"]}, {}, LOWER),
    "prompt and completion": ({"prompt": ASKED, "completion": ANSWERED}, {}, published()),
    "prompt and completion with all beside them": (
        {"system": "Be brief.", "prompt": ASKED, "thinking": THOUGHT, "completion": ANSWERED}
        | {"reasoning_language": "Spanish"},
        {},
        WHOLE,
    ),
    "prompt and completion as messages": (
        {
            "prompt": [said("system", "Be brief."), said("user", ASKED)],
            "completion": [said("assistant", ANSWERED, thinking=THOUGHT)],
        },
        {},
        published("", "Be brief.", THOUGHT, "Be brief."),
    ),
    "two named columns before known ones": ({"q": ASKED, "a": TAGGED, "messages": []}, TWO, published("", "", THOUGHT)),
    "five named columns": ({"q": ASKED, "a": ANSWERED, "s": "Be brief.", "t": THOUGHT, "l": "Spanish"}, FIVE, WHOLE),
    "five, most of them empty": ({"q": ASKED, "a": ANSWERED, "s": "", "t": None, "l": " "}, FIVE, published()),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_comes_to_the_published_schema(shape: str) -> None:
    row, columns, expected = SHAPES[shape]
    before = repr(row)
    found = read(row, columns)
    assert found == expected
    assert tuple(found) == COLUMNS
    assert repr(row) == before, "the row itself is left as it is"


SYSTEM, TEXT = {"system": "Be brief."}, {"type": "text"}
TALK = [("system", "Be brief."), ("human", ASKED), ("gpt", TAGGED)]
PARTS = [TEXT | {"text": "Capital of"}, TEXT | {"text": "Australia?", "image_url": None}]
ALPACA = {"instruction": "Name its capital.", "input": "Australia", "output": ANSWERED}
IN_ONE = {"prompt": "Name its capital.\n\nAustralia", "completion": ANSWERED}
THE_SAME: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = {
    "Alpaca": (ALPACA, {}, IN_ONE),
    "Alpaca, named": (ALPACA, {"prompt": "instruction", "response": "output"}, IN_ONE),
    "Alpaca without input": (ALPACA | {"input": ""}, {}, {"prompt": ALPACA["instruction"], "completion": ANSWERED}),
    "an input of something else": ({"q": ASKED, "input": "x", "a": ANSWERED}, TWO, exchange()),
    "a prompt and a response": ({"prompt": ASKED, "response": ANSWERED}, {}, exchange()),
    "ShareGPT": (
        {"conversations": [{"from": who, "value": text} for who, text in TALK]},
        {},
        exchange(thinking=THOUGHT, system="Be brief."),
    ),
    "OpenAI": (
        {"messages": [said("developer", [TEXT | {"text": "Be brief."}]), said("user", PARTS), said("assistant", "a")]},
        {},
        {"messages": [said("system", "Be brief."), said("user", "Capital of\nAustralia?"), said("assistant", "a")]},
    ),
    "reasoning_content": (exchange(reasoning_content=THOUGHT), {}, exchange(thinking=THOUGHT)),
    "the same reasoning twice": (exchange(reasoning_content="t", reasoning="t"), {}, exchange(thinking="t")),
    "messages as a text": ({"messages": json.dumps(exchange()["messages"])}, {}, exchange()),
    "system beside messages": (SYSTEM | exchange(), {}, exchange(system="Be brief.")),
    "system beside named columns": (SYSTEM | {"q": ASKED, "a": ANSWERED}, TWO, exchange(system="Be brief.")),
    "reasoning beside named columns": ({"q": ASKED, "reasoning": "t", "a": "a"}, TWO, exchange("a", thinking="t")),
}


@pytest.mark.parametrize("layout", THE_SAME)
def test_a_common_layout_is_read_as_people_mean_it(layout: str) -> None:
    row, columns, same = THE_SAME[layout]
    assert read(row, columns) == read(same)


def test_the_columns_that_are_read_are_known() -> None:
    assert set(reader([*COLUMNS, "source"], {}).columns.values()) == set(COLUMNS)
    assert reader(["messages", "thinking", "prompt", "tools"], {}).columns == {"messages": "messages"}
    alpaca = reader([*ALPACA, "text"], {}).columns
    assert alpaca == {"prompt": "instruction", "input": "input", "response": "output"}
    named = reader(["q", "input", "a", "reasoning", "thinking"], {"prompt": "q", "response": "a"}).columns
    assert named == {"prompt": "q", "response": "a", "thinking": "thinking"}


def test_earlier_turns_are_kept_with_their_reasoning() -> None:
    earlier = [said("user", "Hi"), said("assistant", "<think>A greeting.</think>Hello!")]
    found = read({"prompt": [*earlier, said("user", ASKED)], "completion": ANSWERED})["messages"]
    assert found[1] == said("assistant", "Hello!", thinking="A greeting.")
    assert [message["content"] for message in found] == ["Hi", "Hello!", ASKED, ANSWERED]


@pytest.mark.parametrize(
    ("system", "language", "developer"),
    [
        ("Reasoning Language:Swiss German  \n\n\nBe brief.", "Swiss German", "Be brief."),
        ("Be brief.\nreasoning language: French\nBe kind.", "French", "Be brief.\nBe kind."),
        ("Be brief in any reasoning language: all of them.", "", "Be brief in any reasoning language: all of them."),
        ("reasoning language:\nBe brief.", "", "reasoning language:\nBe brief."),
    ],
)
def test_the_language_is_read_from_the_system_message(system: str, language: str, developer: str) -> None:
    assert read(exchange(system=system)) == published(language, developer, system=system)


MARKER = "the marker <|end|> | text without markers, which the template writes itself"
TAGS = "one <think>…</think> at the beginning of the reply"
MESSAGES = "a list of messages with role and content, or its JSON"
ORDER = "system (or none), then user and assistant in turn"
REPLY = "messages[1].content"
BESIDE = {"prompt": ASKED, "completion": [said("assistant", "a")], "thinking": THOUGHT}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no language": (WHOLE | {"reasoning_language": " \n"}, "reasoning_language | nothing | text"),
    "user is a number": (WHOLE | {"user": 42}, "user | 42 | text"),
    "developer is a list": (WHOLE | {"developer": ["Be"]}, "developer | ['Be'] | text"),
    "no messages": (WHOLE | {"messages": []}, f"messages | [] | {MESSAGES}"),
    "messages are text": ({"messages": "x" * 1000}, f"messages | '{'x' * 79}… | {MESSAGES}"),
    "messages are texts": ({"messages": ["user: a"]}, f"messages | ['user: a'] | {MESSAGES}"),
    "no list of messages": ({"prompt": ASKED, "completion": ["a"]}, f"completion | ['a'] | {MESSAGES}"),
    "system alone": ({"messages": [said("system", "a")]}, f"messages | roles ['system'] | {ORDER}"),
    "two questions": (
        {"prompt": [said("user", "a")] * 2, "completion": "b"},
        f"['user', 'user', 'assistant'] | {ORDER}",
    ),
    "no content": ({"prompt": [{"role": "user"}], "completion": "a"}, "prompt[0].content | nothing | text"),
    "no prompt": ({"q": None, "a": ANSWERED}, "q | nothing | text"),
    "thinking is a number": (exchange(thinking=42), "messages[1].thinking | 42 | text"),
    "no response": ({"q": ASKED, "a": ""}, "a | nothing | an answer, or reasoning"),
    "marker in reasoning": (exchange(thinking="So.<|end|>"), f"messages[1].thinking | {MARKER}"),
    "marker in a language": (exchange() | {"reasoning_language": "<|end|>"}, f"reasoning_language | {MARKER}"),
    "two thoughts": (exchange("<think>a</think>\n<think>b"), f"{REPLY} | the tags <think> </think> <think> | {TAGS}"),
    "reasoning beside messages": (BESIDE, f"thinking | '{THOUGHT}' | the reasoning inside the messages of completion"),
    "input beside messages": (
        {"instruction": [said("user", "a")], "input": "b", "output": "c"},
        "instruction | [{'role': 'user', 'content': 'a'}] | text",
    ),
    "unread": (exchange(tools=["Hm."]), "messages[1].tools | ['Hm.'] | role, content and thinking alone"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_field(case: str) -> None:
    row, problem = BAD[case]
    with pytest.raises(BadRow) as raised:
        read(row, {role: name for role, name in FIVE.items() if name in row})
    assert problem in " | ".join(raised.value.args)


def test_a_field_that_is_blank_is_no_reason_to_refuse_a_row() -> None:
    assert read(exchange(reasoning_content=" \n", weight=0, tools=[])) == published()


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (WHOLE, []),
        (published(), []),
        (UNANSWERED, ["an empty answer"]),
        (UNREASONED, ["no reasoning"]),
        (published() | {"messages": [*WHOLE["messages"], *published()["messages"]]}, ["reasoning in an earlier turn"]),
        (published(final=TAUGHT), ["<think> inside a text"]),
        (published(final="x" * (2_160 - len(ASKED))), []),
        (published(final="x" * (2_161 - len(ASKED))), ["an enormous row"]),
    ],
)
def test_what_is_unusual_is_noted(row: dict[str, Any], found: list[str]) -> None:
    assert unusual(row, 216, copied=False) == found
    assert set(unusual(row, 216, copied=True)) == {*found, "a copy"} <= set(UNUSUAL)


pieces = st.sampled_from(["<|end|>", "<think>", "</think>", "reasoning language: ", "Hola", "\r", "\u2028", " ", "a"])
texts = st.lists(pieces, max_size=5).map("".join)
values = st.recursive(st.none() | st.integers() | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3)
optional = {"thinking": texts | values, "other": values}
roles = st.sampled_from(["system", "user", "assistant", "tool"])
anything = st.lists(st.fixed_dictionaries({"role": roles, "content": values}, optional=optional), max_size=3)
replies = st.builds(lambda reply, thought: exchange(reply, thinking=thought)["messages"], texts, texts)
languages = st.sampled_from([None, "", "French", "\r"])
rows = st.fixed_dictionaries({"messages": anything | replies, "reasoning_language": languages})
prompts = st.fixed_dictionaries({"prompt": values, "completion": values})


@settings(derandomize=True, deadline=None, max_examples=150)
@given(rows | prompts)
def test_any_row_is_read_whole_or_refused_in_one_line(row: dict[str, Any]) -> None:
    before = json.dumps(row)
    found, problem = None, ()
    try:
        found = read(row)
    except BadRow as bad:
        problem = bad.args
    assert (found is None) == (len(problem) == 3)
    assert all(len(part.splitlines()) == 1 for part in problem)
    assert found is None or json.dumps(found["messages"]).count("Hola") == before.count("Hola"), "no text is lost"
    assert json.dumps(row) == before
