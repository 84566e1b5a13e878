"""What is shown of conversations and tables is whole, escaped, and legible in a light and a dark theme."""

import html
import re
from itertools import pairwise

import pandas as pd
import pytest

from ftlib.display.conversation import show_conversation, show_trained_tokens
from ftlib.display.tables import readable
from ftlib.errors import FtlibError

CONVERSATION = (
    "<|start|>system<|message|>You are.<|end|><|start|>user<|message|>Is <b> & \n\nit Canberra?<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>Sí.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Canberra.<|return|>"
)
KINDS = ["system", "user", "assistant · analysis", "assistant · final"]


def visible(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def test_a_conversation_is_shown_whole_and_escaped_one_colour_a_channel() -> None:
    markup = show_conversation(CONVERSATION).data
    assert "Is &lt;b&gt; &amp; \n\nit Canberra?" in markup
    assert visible(markup).endswith(CONVERSATION)
    legend = re.findall(r'background-color:(rgba[^"]+)">([^<]+)</span>', markup.split('<div style="white-space')[0])
    assert [name for _, name in legend] == KINDS
    blocks = re.findall(r'<div style="[^"]*background-color:(rgba[^"]+)">', markup)
    assert blocks == [colour for colour, _ in legend]
    assert len(set(blocks)) == 4


def test_messages_instead_of_their_text_are_refused_in_one_line() -> None:
    with pytest.raises(FtlibError, match=r"^show_conversation cannot use .*; expected show_conversation\(text: str\)"):
        show_conversation([{"role": "user", "content": "Hi"}])  # type: ignore[arg-type]
    with pytest.raises(FtlibError, match=r"^show_trained_tokens cannot use .*longer.*; expected show_trained_tokens\("):
        show_trained_tokens(["a"], [1, 2])


def test_padding_is_counted_not_repeated() -> None:
    shown = visible(show_conversation(CONVERSATION + "<|endoftext|>" * 37).data)
    assert shown.count("<|endoftext|>") == 1
    assert "<|endoftext|> × 37" in shown
    assert "outside any message" in shown


def test_trained_tokens_are_counted_and_bold() -> None:
    tokens = ["<|start|>", "<i>", "\n\n", "Hola", ".", *["<|endoftext|>"] * 37, *["a"] * 8]
    labels = [-100, -100, -100, 7, 8, *[-100] * 37, *[-100] * 4, *[1] * 4]
    markup = show_trained_tokens(tokens, labels).data
    assert "6 of 50 tokens are trained on (12%)" in markup
    body = re.findall(r'<(b|span) style="background-color:([^"]+)">([^<]*)</', markup.split("white-space")[1])
    assert [text for tag, _, text in body if tag == "b"] == ["Hola", ".", "a × 4"]
    untrained = [html.unescape(text) for tag, _, text in body if tag == "span"]
    assert untrained == ["<|start|>", "<i>", "↵\n↵\n", "<|endoftext|> × 37", "a × 4"]
    shades = [colour for _, colour, _ in body]
    assert all(one != two for one, two in pairwise(shades)), "neighbours differ"
    assert "0 of 0 tokens are trained on<" in show_trained_tokens([], []).data


def test_a_table_of_texts_is_shown_whole_and_from_the_left() -> None:
    long, tricky = "word " * 60, "a <td> & b"
    markup = readable(pd.DataFrame({"one": [long], "two": [tricky]})).data
    assert long.strip() in markup
    assert "a &lt;td&gt; &amp; b" in markup
    assert markup.count("text-align:left;vertical-align:top") == 2 + 2, "headings and cells"


def test_both_themes_are_legible_and_words_stay_whole() -> None:
    """Text takes the theme's colour, and backgrounds let the theme's through."""
    shown = [show_conversation(CONVERSATION), show_trained_tokens(["a", "b"], [1, -100])]
    markup = "".join(part.data for part in shown)
    styles = dict(re.findall(r"([a-z-]+):([^;]+)", ";".join(re.findall(r'style="([^"]+)"', markup))))
    assert "color" not in styles
    assert styles["overflow-wrap"] == "break-word"
    assert "<style" not in markup
    for red, green, blue, alpha in re.findall(r"background-color:rgba\((\d+),(\d+),(\d+),([\d.]+)\)", markup):
        for page, ink in ((255, 33), (17, 224)):
            mixed = [page + float(alpha) * (int(part) - page) for part in (red, green, blue)]
            assert contrast(mixed, [ink] * 3) > 4.5
    assert markup.count("background-color:") == len(re.findall(r"background-color:rgba\(", markup))


def contrast(one: list[float], two: list[int]) -> float:
    """As the WCAG defines it."""

    def luminance(colour: list[float] | list[int]) -> float:
        linear = [(part / 255 / 12.92) if part < 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(one), luminance(two)])
    return (light + 0.05) / (dark + 0.05)
