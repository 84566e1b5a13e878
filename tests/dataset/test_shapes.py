"""Rows of every accepted shape become conversations in the published schema; a bad one is named, with its field."""

from collections.abc import Mapping
from typing import Any

import pytest

from ftlib.dataset.shapes import COLUMNS, OPTIONAL_COLUMNS, TEXT_COLUMNS, UNUSUAL, BadRow, reader, unusual
from ftlib.errors import FtlibError
from ftlib.profiles import ColumnRole

ASKED, THOUGHT, ANSWERED = "Capital of Australia?", "Pregunta por la capital.", "Canberra."


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def published(
    language: str = "",
    developer: str = "",
    analysis: str = "",
    system: str = "",
    before: list[Any] | None = None,
    final: str = ANSWERED,
) -> dict[str, Any]:
    """The row that all shapes of the one conversation come to."""
    turns = [said("system", system)] if system else []
    turns += [*(before or []), said("user", ASKED), said("assistant", final, thinking=analysis or None)]
    return {
        "reasoning_language": language,
        "developer": developer,
        "user": ASKED,
        "analysis": analysis,
        "final": final,
        "messages": [{"thinking": None} | turn for turn in turns],
    }


def read(row: Mapping[str, Any], **columns: str) -> dict[str, Any]:
    mapping: dict[ColumnRole, str] = dict(columns)  # type: ignore[arg-type]
    return reader(list(row), mapping)(row)


def wrong(row: Mapping[str, Any], **columns: str) -> tuple[str, str, str]:
    with pytest.raises(BadRow) as raised:
        read(row, **columns)
    problem = raised.value
    assert problem.args == (problem.field, problem.found, problem.expected)
    assert "\n" not in "".join(problem.args)
    return problem.args


def exchange(reply: Any = ANSWERED, **more: Any) -> dict[str, Any]:
    return {"messages": [said("user", ASKED), said("assistant", reply, **more)]}


SPANISH = "reasoning language: Spanish"
WHOLE = published("Spanish", "Be brief.", THOUGHT, f"{SPANISH}\n\nBe brief.")
REASONED = published("Spanish", "Be brief.", THOUGHT, f"{SPANISH}\n\nBe brief.", final="")
UNREASONED = published("Spanish", "Be brief.", "", f"{SPANISH}\n\nBe brief.")
SHAPES: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = {
    "published": (WHOLE, {}, WHOLE),
    "published without instructions": (WHOLE | {"developer": None}, {}, WHOLE | {"developer": None}),
    "published with an empty answer": (REASONED, {}, REASONED),
    "published with an answer that is not there": (
        REASONED | {"final": None, "messages": [*WHOLE["messages"][:2], said("assistant", None, thinking=THOUGHT)]},
        {},
        REASONED,
    ),
    "published without reasoning": (UNREASONED, {}, UNREASONED),
    "published among other columns": (WHOLE | {"source": "mine"}, {}, WHOLE),
    "messages with thinking": (exchange(thinking=THOUGHT), {}, published(analysis=THOUGHT)),
    "messages without": (exchange(), {}, published()),
    "messages with thinking that is blank": (exchange(thinking=" \n"), {}, published()),
    "messages with <think>": (
        exchange(f"\n<think>\n{THOUGHT}\n</think>\n\n{ANSWERED}"),
        {},
        published(analysis=THOUGHT),
    ),
    "messages with <think> and no answer": (
        exchange(f"<think>{THOUGHT}</think>\n"),
        {},
        published(analysis=THOUGHT, final=""),
    ),
    "messages with <think> and an answer about it": (
        exchange(f"<think>{THOUGHT}</think>Write <think>, then </think>."),
        {},
        published(analysis=THOUGHT, final="Write <think>, then </think>."),
    ),
    "messages that mention <think>": (
        exchange("Write <think>…</think> around it."),
        {},
        published(final="Write <think>…</think> around it."),
    ),
    "messages with <think> and nothing in it": (exchange(f"<think>\n\n</think>{ANSWERED}"), {}, published()),
    "messages with a language beside them": (
        exchange(thinking=THOUGHT) | {"reasoning_language": " Spanish "},
        {},
        published("Spanish", analysis=THOUGHT, system=SPANISH),
    ),
    "prompt and completion as texts": ({"prompt": ASKED, "completion": ANSWERED}, {}, published()),
    "prompt and completion with <think>": (
        {"prompt": ASKED, "completion": f"<think>{THOUGHT}</think>{ANSWERED}", "reasoning_language": "Spanish"},
        {},
        published("Spanish", analysis=THOUGHT, system=SPANISH),
    ),
    "prompt and completion as lists": (
        {
            "prompt": [said("system", "Be brief."), said("user", ASKED)],
            "completion": [said("assistant", ANSWERED, thinking=THOUGHT)],
        },
        {},
        published("", "Be brief.", THOUGHT, "Be brief."),
    ),
    "a prompt of several turns and a completion as text": (
        {"prompt": [said("user", "Hi"), said("assistant", "Yes?"), said("user", ASKED)], "completion": ANSWERED},
        {},
        published(before=[said("user", "Hi"), said("assistant", "Yes?")]),
    ),
    "two named columns": (
        {"instruction": ASKED, "output": ANSWERED},
        {"prompt": "instruction", "response": "output"},
        published(),
    ),
    "all columns named": (
        {"q": ASKED, "a": ANSWERED, "s": "Be brief.", "t": THOUGHT, "l": "Spanish"},
        {"prompt": "q", "response": "a", "system": "s", "thinking": "t", "reasoning_language": "l"},
        WHOLE,
    ),
    "all columns named, most of them empty": (
        {"q": ASKED, "a": ANSWERED, "s": "", "t": None, "l": " "},
        {"prompt": "q", "response": "a", "system": "s", "thinking": "t", "reasoning_language": "l"},
        published(),
    ),
    "named columns go before those that are known": (
        {"messages": [], "prompt": "not this", "completion": "nor this", "q": ASKED, "a": ANSWERED},
        {"prompt": "q", "response": "a"},
        published(),
    ),
    "named columns with <think>": (
        {"q": ASKED, "a": f"<think>{THOUGHT}</think>{ANSWERED}", "t": None},
        {"prompt": "q", "response": "a", "thinking": "t"},
        published(analysis=THOUGHT),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_comes_to_the_published_schema(shape: str) -> None:
    row, columns, expected = SHAPES[shape]
    before = repr(row)
    found = read(row, **columns)
    assert found == expected
    assert tuple(found) == COLUMNS
    assert repr(row) == before, "the row itself is left as it is"


def test_earlier_turns_are_kept_with_their_reasoning() -> None:
    earlier = [said("user", "Hi"), said("assistant", "<think>A greeting.</think>Hello!")]
    found = read({"messages": [*earlier, *exchange()["messages"]]})
    assert found == published(before=[said("user", "Hi"), said("assistant", "Hello!", thinking="A greeting.")])


def test_a_message_of_the_developer_is_the_system_message() -> None:
    row = {"messages": [said("developer", f"{SPANISH}\n\nBe brief."), *exchange(thinking=THOUGHT)["messages"]]}
    assert read(row) == WHOLE


def test_a_published_row_is_read_as_the_template_needs_it() -> None:
    reply = said("assistant", f"<think>{THOUGHT}</think>{ANSWERED}", thinking=None)
    row = WHOLE | {"messages": [said("developer", f"{SPANISH}\n\nBe brief."), said("user", ASKED), reply]}
    assert read(row) == WHOLE


@pytest.mark.parametrize(
    ("system", "language", "developer"),
    [
        (SPANISH, "Spanish", ""),
        ("Reasoning Language:Swiss German  \n\n\nBe brief.", "Swiss German", "Be brief."),
        ("Be brief.\nreasoning language: French\nBe kind.", "French", "Be brief.\nBe kind."),
        ("reasoning language: French\r\n\r\n  Be brief.\r\nBe kind.", "French", "Be brief.\r\nBe kind."),
        (
            "Be brief about any reasoning language: all of them.",
            "",
            "Be brief about any reasoning language: all of them.",
        ),
        ("reasoning language:\nBe brief.", "", "reasoning language:\nBe brief."),
    ],
)
def test_the_language_is_read_from_the_system_message(system: str, language: str, developer: str) -> None:
    row = read({"messages": [said("system", system), *exchange()["messages"]]})
    assert row == published(language, developer, system=system)


@pytest.mark.parametrize("column", ["Spanish", "spanish", None, ""])
def test_a_language_that_is_named_twice_is_asked_for_once(column: str | None) -> None:
    row = {"messages": [said("system", SPANISH), *exchange()["messages"]], "reasoning_language": column}
    assert read(row)["messages"][0]["content"] == SPANISH
    assert read(row)["reasoning_language"].casefold() == "spanish"


def test_a_language_is_written_into_the_system_message() -> None:
    row = {"messages": [said("system", "Be brief."), *exchange(thinking=THOUGHT)["messages"]]}
    assert read(row | {"reasoning_language": "Spanish"}) == WHOLE


def test_two_languages_are_refused() -> None:
    row = {"messages": [said("system", SPANISH), *exchange()["messages"]], "reasoning_language": "French"}
    assert wrong(row) == ("reasoning_language", "'French'", "'Spanish', which the system message asks for")
    mapped = {"q": ASKED, "a": ANSWERED, "s": SPANISH, "l": "French\nor German"}
    named = {"prompt": "q", "response": "a", "system": "s", "reasoning_language": "l"}
    assert wrong(mapped, **named)[:2] == ("l", r"'French\nor German'")


@pytest.mark.parametrize("column", TEXT_COLUMNS)
@pytest.mark.parametrize(("value", "found"), [("", "nothing"), (" \n", "nothing"), (None, "nothing"), (42, "42")])
def test_a_field_of_the_published_schema_without_text_is_named(column: str, value: Any, found: str) -> None:
    assert wrong(WHOLE | {column: value}) == (column, found, "text")


@pytest.mark.parametrize("column", OPTIONAL_COLUMNS)
def test_a_field_that_may_be_empty_must_otherwise_hold_text(column: str) -> None:
    assert wrong(WHOLE | {column: ["Be brief."]}) == (column, "['Be brief.']", "text")


@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_a_reply_without_reasoning_and_answer_is_named(nothing: str | None) -> None:
    expected = ("nothing", "an answer, or reasoning")
    row = WHOLE | {"messages": [*WHOLE["messages"][:2], said("assistant", nothing, thinking=nothing)]}
    assert wrong(row) == ("messages[2].content", *expected)
    assert wrong(exchange("<think> </think>\n", thinking=nothing)) == ("messages[1].content", *expected)
    row = {"q": ASKED, "a": nothing, "t": nothing}
    assert wrong(row, prompt="q", response="a", thinking="t") == ("a", *expected)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (WHOLE, []),
        (published(), []),
        (REASONED, ["an empty answer"]),
        (UNREASONED, ["no reasoning"]),
        (published(final="Write <think> first."), ["<think> inside a text"]),
        (published(analysis="It closes with </think>."), ["<think> inside a text"]),
        (published(final="x" * (2_160 - len(ASKED))), []),
        (published(final="x" * (2_161 - len(ASKED))), ["an enormous row"]),
        (published("French", analysis="x" * 2_161, final=""), ["an empty answer", "an enormous row"]),
    ],
)
def test_what_is_unusual_is_noted(row: dict[str, Any], found: list[str]) -> None:
    assert unusual(row, 216, copied=False) == found
    assert set(unusual(row, 216, copied=True)) == {*found, "a copy"} <= set(UNUSUAL)


@pytest.mark.parametrize(
    "roles",
    [
        ["user"],
        ["assistant"],
        ["system"],
        ["developer"],
        ["system", "user"],
        ["system", "assistant"],
        ["assistant", "user"],
        ["user", "assistant", "user"],
        ["user", "user", "assistant"],
        ["user", "assistant", "assistant"],
        ["user", "system", "assistant"],
        ["user", "assistant", "system"],
        ["system", "system", "user", "assistant"],
        ["system", "developer", "user", "assistant"],
    ],
)
@pytest.mark.parametrize("rest", [{}, WHOLE], ids=["messages", "published"])
def test_roles_out_of_order_are_named(roles: list[str], rest: dict[str, Any]) -> None:
    field, found, expected = wrong(rest | {"messages": [said(role, "text", thinking="so") for role in roles]})
    assert (field, found) == ("messages", f"roles {roles}")
    assert expected == "system (or none), then user and assistant in turn"


@pytest.mark.parametrize(
    ("role", "found"),
    [("tool", "'tool'"), ("Assistant", "'Assistant'"), (None, "nothing"), ("", "nothing"), (["user"], "['user']")],
)
def test_a_role_that_the_template_does_not_know_is_named(role: Any, found: str) -> None:
    row = {"prompt": [said("user", "a"), said(role, "b")], "completion": ANSWERED}
    assert wrong(row) == ("prompt", f"the role {found}", "system, user and assistant")


def test_a_message_without_a_role_is_named() -> None:
    assert wrong({"messages": [{"content": "a"}]})[1] == "the role nothing"


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        (None, "nothing"),
        ("", "nothing"),
        ([], "[]"),
        ({}, "{}"),
        (42, "42"),
        ("user: a", "'user: a'"),
        (["user: a", "assistant: b"], "['user: a', 'assistant: b']"),
        ([said("user", "a"), None], "[{'role': 'user', 'content': 'a'}, None]"),
    ],
)
def test_messages_that_are_no_list_of_messages_are_named(messages: Any, found: str) -> None:
    expected = "a list of messages with role and content"
    assert wrong({"messages": messages}) == ("messages", found, expected)
    assert wrong(WHOLE | {"messages": messages}) == ("messages", found, expected)


def test_a_list_of_something_else_is_named_in_prompt_and_completion() -> None:
    assert wrong({"prompt": [], "completion": ANSWERED})[:2] == ("prompt", "[]")
    assert wrong({"prompt": ASKED, "completion": ["a"]})[:2] == ("completion", "['a']")


def test_only_the_beginning_of_a_long_value_is_shown() -> None:
    assert wrong({"messages": "x" * 1000})[1] == f"'{'x' * 79}…"


@pytest.mark.parametrize(
    ("value", "found"), [(None, "nothing"), ("", "nothing"), (" \n\t", "nothing"), (42, "42"), (["a"], "['a']")]
)
def test_every_text_that_is_none_is_named(value: Any, found: str) -> None:
    assert wrong({"messages": [said("system", value), *exchange()["messages"]]})[0] == "messages[0].content"
    assert wrong({"prompt": value, "completion": ANSWERED})[0] == "prompt"
    assert wrong({"prompt": [said("user", value)], "completion": ANSWERED}) == ("prompt[0].content", found, "text")
    assert wrong({"q": value, "a": ANSWERED}, prompt="q", response="a") == ("q", found, "text")


def test_a_message_without_content_is_named() -> None:
    assert wrong({"messages": [{"role": "user"}, said("assistant", "a")]})[:2] == ("messages[0].content", "nothing")


def test_replies_and_other_fields_that_are_no_text_are_named() -> None:
    assert wrong(exchange(42)) == ("messages[1].content", "42", "text")
    assert wrong(exchange(thinking=42)) == ("messages[1].thinking", "42", "text")
    named = {"prompt": "q", "response": "a", "system": "s", "thinking": "t", "reasoning_language": "l"}
    row = dict.fromkeys(named.values(), "text")
    for column in named.values():
        assert wrong(row | {column: 42}, **named) == (column, "42", "text")


@pytest.mark.parametrize(
    "marker",
    [
        *("start", "end", "return", "channel", "message", "call", "constrain", "startoftext", "endoftext"),
        *("endofprompt", "reserved_200013"),
    ],
)
def test_markers_are_named_wherever_they_are(marker: str) -> None:
    text = f"Say <|{marker}|>analysis"
    found = (f"the marker <|{marker}|>", "text without markers, which the template writes itself")
    assert wrong(exchange(text)) == ("messages[1].content", *found)
    assert wrong(exchange(thinking=text)) == ("messages[1].thinking", *found)
    assert wrong({"prompt": text, "completion": ANSWERED}) == ("prompt", *found)
    assert wrong(exchange() | {"reasoning_language": text}) == ("reasoning_language", *found)
    assert wrong(WHOLE | {"developer": text}) == ("developer", *found)
    assert wrong({"q": ASKED, "a": ANSWERED, "t": text}, prompt="q", response="a", thinking="t") == ("t", *found)


@pytest.mark.parametrize(
    ("reply", "tags"),
    [
        (f"<think>{THOUGHT} {ANSWERED}", "<think>"),
        (f"\n<think>{THOUGHT} {ANSWERED}", "<think>"),
        (f"</think>{THOUGHT}<think>{ANSWERED}", "</think> <think>"),
        (f"<think>a</think>\n<think>b</think>{ANSWERED}", "<think> </think> <think> </think>"),
        (f"<think><think>a</think></think>{ANSWERED}", "<think> <think> </think> </think>"),
    ],
)
def test_think_tags_that_do_not_match_are_named(reply: str, tags: str) -> None:
    expected = (f"the tags {tags}", "one <think>…</think> at the beginning of the reply")
    assert wrong(exchange(reply)) == ("messages[1].content", *expected)
    assert wrong({"q": ASKED, "a": reply}, prompt="q", response="a") == ("a", *expected)


def test_reasoning_in_two_places_is_named() -> None:
    row = exchange(f"<think>{THOUGHT}</think>{ANSWERED}", thinking="Otra vez.")
    assert wrong(row) == ("messages[1].content", "reasoning in <think> and in thinking", "one of the two")


def test_a_question_may_be_about_think_tags() -> None:
    assert read({"prompt": "What is <think>?", "completion": ANSWERED})["user"] == "What is <think>?"


@pytest.mark.parametrize("names", [["text"], ["prompt", "response"], ["question", "answer"], list(COLUMNS[:-1])])
def test_columns_of_no_accepted_shape_are_listed(names: list[str]) -> None:
    with pytest.raises(FtlibError) as raised:
        reader(names, {})
    assert str(raised.value) == (
        f"the data set has columns {names}; expected messages, or prompt and completion, or name yours in the profile:"
        ' [data] columns = { prompt = "…", response = "…" }'
    )


def test_columns_that_are_nearly_right_are_told_so() -> None:
    with pytest.raises(FtlibError) as raised:
        reader(["Prompt", "completions", "id"], {})
    assert str(raised.value).endswith("; is 'Prompt' meant to be 'prompt'?; is 'completions' meant to be 'completion'?")


def test_a_named_column_that_is_not_there_is_told_with_the_nearest_name() -> None:
    with pytest.raises(FtlibError) as raised:
        reader(["instruction", "output"], {"prompt": "instructions", "response": "output"})
    assert str(raised.value) == (
        "data.columns.prompt = 'instructions': the data set has no such column; did you mean 'instruction'?"
    )


@pytest.mark.parametrize("columns", [{"prompt": "q"}, {"response": "q"}, {"thinking": "q", "system": "q"}])
def test_columns_without_prompt_and_response_are_refused(columns: dict[ColumnRole, str]) -> None:
    with pytest.raises(FtlibError) as raised:
        reader(["q"], columns)
    assert str(raised.value) == (
        f"data.columns names {sorted(columns)}; expected at least prompt and response; add what is missing"
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "tool_calls"])
def test_text_in_a_field_that_is_not_read_is_not_lost_without_a_word(name: str) -> None:
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes.", name: ["Hm."]}]
    with pytest.raises(BadRow) as raised:
        reader(["messages"], {})({"messages": said})
    assert raised.value.args == (f"messages[1].{name}", "['Hm.']", "role, content and thinking alone")
    said[1][name] = None  # as `datasets` fills what other rows have
    assert reader(["messages"], {})({"messages": said})["final"] == "Yes."


def test_a_prompt_with_a_completion_may_have_a_column_of_reasoning() -> None:
    row = {"prompt": "Hi?", "completion": "Yes.", "thinking": "Hm."}
    assert reader(list(row), {})(row)["analysis"] == "Hm."
