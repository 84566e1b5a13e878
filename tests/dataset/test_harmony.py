"""Harmony text in, channels out; a pinned date changes nothing else."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ftlib.dataset.harmony import Reply, parse_reply, pin_date, split_channels

REPLY = (
    "<|channel|>analysis<|message|>El usuario pregunta 2 < 3.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Canberra.<|return|>"
)
WHOLE = Reply("El usuario pregunta 2 < 3.", "Canberra.", "", True)
CONVERSATION = [
    {"role": "system", "content": "reasoning language: Spanish"},
    {"role": "user", "content": "Capital of Australia?"},
    {"role": "assistant", "content": "Which one?"},
    {"role": "user", "content": "Is <b> & \n\nit Canberra?"},
    {"role": "assistant", "thinking": "Pregunta por la capital.", "content": "Canberra."},
]


TOOL = "<|start|>functions.search to=assistant<|channel|>commentary<|message|>1 result<|end|><|start|>assistant"
SURROUNDED = {
    "whole": REPLY,
    "leading start": "<|start|>assistant" + REPLY,
    "padding": REPLY + "<|endoftext|>" * 5,
    "end": REPLY.replace("<|return|>", "<|end|>"),
    "ended by padding": REPLY.replace("<|return|>", "<|endoftext|>" * 2),
    "no header between": REPLY.replace("<|end|><|start|>assistant", ""),
    "talked on": f"{REPLY}<|start|>user<|message|>France?<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
    "a tool said": TOOL + REPLY,
}


@pytest.mark.parametrize("case", SURROUNDED)
def test_what_surrounds_a_reply_does_not_change_it(case: str) -> None:
    assert parse_reply(SURROUNDED[case]) == WHOLE


PARTIAL = {
    "no analysis": ("<|channel|>final<|message|>Canberra.<|return|>", "", "Canberra.", True),
    "cut in analysis": ("<|channel|>analysis<|message|>El usuario", "El usuario", "", False),
    "no final": ("<|channel|>analysis<|message|>Sí.<|end|>", "Sí.", "", False),
    "cut in header": ("<|channel|>analysis<|message|>Sí.<|end|><|start|>assistant<|channel|>fin", "Sí.", "", False),
    "cut in final": (REPLY.replace("berra.<|return|>", ""), "El usuario pregunta 2 < 3.", "Can", False),
    "plain": ("Canberra is the capital, 2 < 3.", "", "", False),
    "user only": ("<|start|>user<|message|>Canberra?<|end|>", "", "", False),
    "empty": ("", "", "", False),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_a_partial_reply_keeps_what_is_there(case: str) -> None:
    text, analysis, final, complete = PARTIAL[case]
    assert parse_reply(text) == Reply(analysis, final, "", complete)


@pytest.mark.parametrize(
    "opening",
    [
        "<|channel|>analysis to=python code<|message|>",
        "<|start|>assistant to=python<|channel|>analysis<|message|>",
        " to=python<|channel|>analysis code<|message|>",
        "<|channel|>commentary to=functions.search <|constrain|>json<|message|>",
    ],
    ids=["in the channel", "in the role", "after the prompt's header", "commentary"],
)
def test_what_is_sent_to_a_tool_is_no_reasoning(opening: str) -> None:
    reply = parse_reply(f"{opening}print(1)<|call|><|start|>assistant{REPLY}")
    assert (reply.commentary, reply.analysis) == ("print(1)", "El usuario pregunta 2 < 3.")


def test_a_rendered_conversation_is_split_into_its_messages(tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = str(tokenizer.apply_chat_template(CONVERSATION, tokenize=False))
    segments = split_channels(rendered + "<|start|>assistant")
    assert [(segment.role, segment.channel, segment.content) for segment in segments[2:]] == [
        ("user", "", "Capital of Australia?"),
        ("assistant", "final", "Which one?"),
        ("user", "", "Is <b> & \n\nit Canberra?"),
        ("assistant", "analysis", "Pregunta por la capital."),
        ("assistant", "final", "Canberra."),
        ("assistant", "", ""),
    ]
    assert [segment.role for segment in segments[:2]] == ["system", "developer"]
    assert [segment.closed for segment in segments] == [True] * 7 + [False]


markers = st.sampled_from(["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|"])
words = st.sampled_from(["assistant", "user", "analysis", "final", "commentary to=f", " ", "\n", "Hola."])


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(markers | words | st.text(max_size=5), max_size=16).map("".join))
def test_no_text_is_lost_and_no_marker_is_content(text: str) -> None:
    segments = split_channels(text)
    assert "".join(segment.text for segment in segments) == text
    for segment in segments:
        assert not any(marker in segment.content for marker in ("<|start|>", "<|channel|>", "<|message|>"))
    reply = parse_reply(text)
    assert all(part in text for said in (reply.analysis, reply.commentary, reply.final) for part in said.split("\n"))
    assert not reply.complete or any(segment.closed and segment.channel == "final" for segment in segments)


@pytest.mark.parametrize("generation_prompt", [False, True])
def test_a_pinned_date_is_all_that_changes(shipped_tokenizer: PreTrainedTokenizerFast, generation_prompt: bool) -> None:
    def render(template: str) -> str:
        messages = CONVERSATION[:2] if generation_prompt else CONVERSATION
        options = {"tokenize": False, "add_generation_prompt": generation_prompt}
        return str(shipped_tokenizer.apply_chat_template(messages, chat_template=template, **options))

    shipped = str(shipped_tokenizer.chat_template)
    today, pinned = (render(text) for text in (shipped, pin_date(shipped, "2025-08-05")))
    dates = r"Current date: \d{4}-\d\d-\d\d"
    assert re.findall(dates, pinned) == ["Current date: 2025-08-05"] != re.findall(dates, today)
    assert re.sub(dates, "", today) == re.sub(dates, "", pinned)
    assert render(pin_date("\n a{{ strftime_now('%Y') }}", "2025-08-05")) == "\n a2025-08-05", "a leading newline stays"


def test_pinning_again_replaces_the_date() -> None:
    assert pin_date(pin_date("{{ 1 }}", "2025-08-05"), "2026-01-31") == pin_date("{{ 1 }}", "2026-01-31")
