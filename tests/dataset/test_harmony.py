"""Harmony text in, channels out; and what is shown of a conversation is escaped, counted and complete."""

import html
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ftlib.dataset.harmony import parse_reply, pin_date, show_conversation, show_trained_tokens, split_channels
from ftlib.errors import FtlibError

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
REPLY = (
    "<|channel|>analysis<|message|>El usuario pregunta 2 < 3.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Canberra.<|return|>"
)
CONVERSATION = [
    {"role": "system", "content": "reasoning language: Spanish"},
    {"role": "user", "content": "Capital of Australia?"},
    {"role": "assistant", "content": "Which one?"},
    {"role": "user", "content": "Is <b> & \n\nit Canberra?"},
    {"role": "assistant", "thinking": "Pregunta por la capital.", "content": "Canberra."},
]


def render(chat_template: str, messages: list[dict[str, str]] = CONVERSATION, generation_prompt: bool = False) -> str:
    """Render as the notebooks do, with a tokenizer that has no vocabulary to download."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=chat_template, tokenize=False, add_generation_prompt=generation_prompt
    )
    assert isinstance(rendered, str)
    return rendered


def template(name: str = "gptoss") -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def visible_text(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def test_a_whole_reply_is_told_apart() -> None:
    reply = parse_reply(REPLY)
    assert (reply.analysis, reply.final, reply.commentary) == ("El usuario pregunta 2 < 3.", "Canberra.", "")
    assert reply.complete
    assert reply.raw == REPLY


@pytest.mark.parametrize(
    "text",
    [
        "<|start|>assistant" + REPLY,
        REPLY + "<|endoftext|>" * 5,
        REPLY.replace("<|return|>", "<|end|>"),
        REPLY.replace("<|return|>", "<|endoftext|>" * 2),
        REPLY.replace("<|end|><|start|>assistant", ""),
        REPLY
        + "<|start|>user<|message|>And France?<|end|><|start|>assistant<|channel|>final<|message|>Paris.<|return|>",
    ],
    ids=["leading start", "padding", "ended by end", "ended by padding", "no header between", "went on talking"],
)
def test_what_surrounds_a_reply_does_not_change_it(text: str) -> None:
    reply = parse_reply(text)
    assert (reply.analysis, reply.final) == ("El usuario pregunta 2 < 3.", "Canberra.")
    assert reply.complete
    assert reply.raw == text


@pytest.mark.parametrize(
    ("text", "analysis", "final", "complete"),
    [
        ("<|channel|>final<|message|>Canberra.<|return|>", "", "Canberra.", True),
        ("<|channel|>analysis<|message|>El usuario", "El usuario", "", False),
        ("<|channel|>analysis<|message|>Sí.<|end|>", "Sí.", "", False),
        ("<|channel|>analysis<|message|>Sí.<|end|><|start|>assistant<|channel|>fin", "Sí.", "", False),
        (
            "<|channel|>analysis<|message|>Sí.<|end|><|start|>assistant<|channel|>final<|message|>Can",
            "Sí.",
            "Can",
            False,
        ),
        ("Canberra is the capital, 2 < 3.", "", "", False),
        ("<|start|>user<|message|>Canberra?<|end|>", "", "", False),
        ("", "", "", False),
    ],
    ids=["no analysis", "cut in analysis", "no final", "cut in header", "cut in final", "plain", "user only", "empty"],
)
def test_a_partial_reply_keeps_what_is_there(text: str, analysis: str, final: str, complete: bool) -> None:
    reply = parse_reply(text)
    assert (reply.analysis, reply.final, reply.complete, reply.raw) == (analysis, final, complete, text)


def test_commentary_is_kept_aside() -> None:
    call = '<|channel|>commentary to=functions.search <|constrain|>json<|message|>{"q": 1}<|call|>'
    reply = parse_reply("<|channel|>analysis<|message|>One.<|end|><|start|>assistant" + call + REPLY)
    assert reply.commentary == '{"q": 1}'
    assert reply.analysis == "One.\nEl usuario pregunta 2 < 3."
    assert reply.final == "Canberra."


@pytest.mark.parametrize(
    "opening",
    [
        "<|channel|>analysis to=python code<|message|>",
        "<|start|>assistant to=python<|channel|>analysis<|message|>",
        "<|start|>assistant<|channel|>analysis to=python <|constrain|>json<|message|>",
        " to=python<|channel|>analysis code<|message|>",
    ],
    ids=["in the channel", "in the role", "before the type", "after the prompt's header"],
)
def test_what_is_sent_to_a_tool_is_no_reasoning(opening: str) -> None:
    reply = parse_reply(f"{opening}print(1)<|call|><|start|>assistant{REPLY}")
    assert (reply.commentary, reply.analysis) == ("print(1)", "El usuario pregunta 2 < 3.")


def test_what_others_say_is_no_part_of_the_reply() -> None:
    tool = "<|start|>functions.search to=assistant<|channel|>commentary<|message|>1 result<|end|>"
    text = tool + "<|start|>assistant" + REPLY
    assert parse_reply(text) == replace(parse_reply(REPLY), raw=text)


def test_a_rendered_conversation_is_split_into_its_messages() -> None:
    segments = split_channels(render(template()))
    assert [(segment.role, segment.channel) for segment in segments] == [
        ("system", ""),
        ("developer", ""),
        ("user", ""),
        ("assistant", "final"),
        ("user", ""),
        ("assistant", "analysis"),
        ("assistant", "final"),
    ]
    assert [segment.content for segment in segments[-3:]] == [
        "Is <b> & \n\nit Canberra?",
        "Pregunta por la capital.",
        "Canberra.",
    ]
    assert all(segment.closed for segment in segments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "a <|message|>b",
        "<|start|>",
        "<|startoftext|>" + REPLY + "\n <|endoftext|><|endoftext|>",
        "<|start|>assistant<|channel|>",
        "<|end|><|return|><|channel|><|message|><|channel|>final",
        "<|start|>functions.search to=assistant<|channel|>commentary<|message|>1<|end|>" + REPLY,
    ],
)
def test_segments_join_to_the_exact_text(text: str) -> None:
    assert "".join(segment.text for segment in split_channels(text)) == text


def test_recipients_are_no_part_of_role_or_channel() -> None:
    text = '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    (segment,) = split_channels(text)
    assert (segment.role, segment.channel, segment.content) == ("assistant", "commentary", '{"a": 1}')
    assert segment.recipient == "functions.f"


def test_a_generation_prompt_is_the_assistants_though_nothing_is_said() -> None:
    last = split_channels(render(template(), CONVERSATION[:2], generation_prompt=True))[-1]
    assert (last.role, last.content, last.text, last.closed) == ("assistant", "", "<|start|>assistant", False)


def test_a_conversation_is_shown_whole_and_escaped() -> None:
    text = render(template())
    markup = show_conversation(text).data
    assert "Is &lt;b&gt; &amp; \n\nit Canberra?" in markup
    assert "<b>" not in markup
    assert text in visible_text(markup)


def test_text_without_markers_is_escaped_too() -> None:
    markup = show_conversation("a <b> & c").data
    assert "a &lt;b&gt; &amp; c" in markup


def test_each_channel_has_its_own_colour_and_legend() -> None:
    markup = show_conversation(render(template())).data
    blocks = re.findall(r"<pre style=\"[^\"]*background-color:(#\w+);color:(#\w+)\">(.*?)</pre>", markup, re.DOTALL)
    assert len(blocks) == 7
    assert len({background for background, _, _ in blocks}) == 5
    assert {text for _, text, _ in blocks} == {"#1f2328"}
    legend = re.findall(r"background-color:(#\w+)\">([^<]+)</span>", markup.split("<pre")[0])
    assert [name for _, name in legend] == ["system", "developer", "user", "assistant · final", "assistant · analysis"]
    assert {name: colour for colour, name in legend}["assistant · analysis"] == blocks[5][0]


def test_a_short_conversation_has_a_short_legend() -> None:
    markup = show_conversation(REPLY).data
    assert "developer" not in markup
    assert "outside any message" not in markup


def test_padding_is_counted_not_repeated() -> None:
    shown = visible_text(show_conversation(REPLY + "<|endoftext|>" * 37).data)
    assert shown.count("<|endoftext|>") == 1
    assert "<|endoftext|> × 37" in shown


def test_trained_tokens_are_counted_and_marked() -> None:
    tokens = ["<|start|>", "user", "<i>", "\n\n", "Hola", ".", *["<|endoftext|>"] * 37]
    labels = [-100, -100, -100, -100, 7, 8, *[-100] * 37]
    markup = show_trained_tokens(tokens, labels).data
    assert "2 of 43 tokens are trained on (5%)" in markup
    assert re.findall(r"<mark [^>]*>([^<]*)</mark>", markup) == ["Hola", "."]
    untrained = re.findall(r"<span [^>]*>([^<]*)</span>", markup.split("<pre")[1])
    assert [html.unescape(text) for text in untrained] == [
        "<|start|>",
        "user",
        "<i>",
        "↵\n↵\n",
        "<|endoftext|> × 37",
    ]


def test_neighbouring_tokens_differ_in_shade() -> None:
    body = show_trained_tokens(["a", "b", "c", "c"], [1, 2, -100, -100]).data.split("<pre")[1]
    shades = re.findall(r"<(mark|span) style=\"background-color:(#\w+)", body)
    assert len(set(shades)) == 4


def test_the_same_token_is_not_merged_across_the_mask() -> None:
    body = show_trained_tokens(["a"] * 8, [-100] * 4 + [1] * 4).data.split("<pre")[1]
    assert re.findall(r">(a[^<]*)<", body) == ["a × 4", "a × 4"]


def test_no_tokens_are_shown_as_none() -> None:
    assert "0 of 0 tokens are trained on<" in show_trained_tokens([], []).data


def test_tokens_and_labels_of_different_rows_are_refused() -> None:
    with pytest.raises(FtlibError, match="Found 2 tokens and 1 labels"):
        show_trained_tokens(["a", "b"], [1])


@pytest.mark.parametrize("name", ["gptoss", "gptoss_training"])
@pytest.mark.parametrize("generation_prompt", [False, True])
def test_a_pinned_date_is_all_that_changes(name: str, generation_prompt: bool) -> None:
    messages = CONVERSATION[:2] if generation_prompt else CONVERSATION
    today = render(template(name), messages, generation_prompt)
    pinned = render(pin_date(template(name), "2025-08-05"), messages, generation_prompt)
    assert "Current date: 2025-08-05\n" in pinned
    dates = r"Current date: \d{4}-\d\d-\d\d"
    assert re.findall(dates, today) != re.findall(dates, pinned)
    assert re.sub(dates, "", today) == re.sub(dates, "", pinned)


def test_a_templates_own_leading_newline_survives() -> None:
    assert render(pin_date("\n a{{ strftime_now('%Y') }}", "2025-08-05")) == "\n a2025-08-05"


def test_pinning_again_replaces_the_date() -> None:
    once = pin_date(template(), "2025-08-05")
    assert pin_date(once, "2025-08-05") == once
    assert pin_date(once, "2026-01-31") == pin_date(template(), "2026-01-31")


@pytest.mark.parametrize("date", ["", "today", "2025-02-30", "20250805", "2025-W01-1", "05/08/2025", "{{ 1 }}"])
def test_a_date_that_is_none_is_refused(date: str) -> None:
    with pytest.raises(FtlibError, match="expected a real day as YYYY-MM-DD") as refusal:
        pin_date(template(), date)
    assert repr(date) in str(refusal.value)


def test_importing_it_stays_light() -> None:
    heavy = "{'torch', 'transformers', 'IPython', 'matplotlib'}"
    code = f"import sys, ftlib.dataset.harmony; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
