"""What a harmony conversation is made of: parse a reply into its channels, show what each token is there for.

gpt-oss speaks *harmony*: one stream of tokens in which `<|start|>role<|channel|>channel<|message|>` opens a message and
`<|end|>` (or `<|return|>`, when the whole reply is over) closes it. An assistant reasons on the channel `analysis` and
answers on `final`. Everything here works on text decoded with `skip_special_tokens=False`: without the markers nobody
can say where the reasoning ends and the answer begins.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date as calendar_date
from itertools import groupby
from typing import TYPE_CHECKING

from ftlib.errors import FtlibError

if TYPE_CHECKING:
    from IPython.display import HTML

IGNORED = -100
"""The label that the loss skips: such a token is read by the model, but not trained on."""

MARKERS = r"<\|(?:startoftext|endoftext|return|constrain|channel|start|end|message|call|endofprompt|reserved_\d+)\|>"
"""Every special token of gpt-oss's vocabulary: written in a text, it would become a token and no text."""

_MARKER_RUN = re.compile(rf"(?P<marker>{MARKERS})(?P=marker)*")
_MESSAGE = re.compile(
    r"""(?=<\|(?:start|channel|message)\|>)
    (?:<\|start\|>(?P<role>[^<]*))?
    (?:<\|channel\|>(?P<channel>[^<]*)(?:<\|constrain\|>[^<]*)?)?
    (?:<\|message\|>(?P<content>.*?)
        (?P<stop><\|(?:end|return|call|endoftext)\|>|(?=<\|(?:start|channel|message)\|>)|\Z))?""",
    re.DOTALL | re.VERBOSE,
)
_RECIPIENT = re.compile(r"\sto=(\S+)")
_DATE_PIN = re.compile(r"\A\{% macro strftime_now\(format\) \+%\}[^{]*\{% endmacro \+%\}")

_TEXT, _FAINT = "#1f2328", "#6e7781"
_BLOCK = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;font-size:13px;line-height:1.5"
_SEGMENT_COLOURS = {
    "system": "#eaeef2",
    "developer": "#fde7c2",
    "user": "#d6e9fb",
    "assistant · analysis": "#e6dcf7",
    "assistant · final": "#d3f0dc",
    "outside any message": "#f6f8fa",
}
_OTHER_COLOUR = "#f6e0e4"
# Two shades each, taken in turn, so that the eye sees where one token ends and the next begins.
_TRAINED_SHADES, _UNTRAINED_SHADES = ("#a9dfbf", "#c8ecd6"), ("#e2e6ea", "#f1f3f5")
_LONGEST_RUN_SHOWN = 3


@dataclass(frozen=True)
class Segment:
    """One message of a conversation, or the text between two messages.

    Attributes:
        role: "system", "developer", "user", "assistant", a tool's name; "" for text outside every message.
        channel: "analysis", "final", "commentary"; "" where the message names none.
        recipient: The tool that the message is sent to, such as "functions.search"; "" where the header names none.
        content: What the message says, without markers; "" where only its header is there.
        text: The exact stretch of the conversation, markers included.
        closed: Whether a marker ends the message; False where generation was cut inside it.
    """

    role: str
    channel: str
    recipient: str
    content: str
    text: str
    closed: bool


@dataclass(frozen=True)
class Reply:
    """What an assistant answered, channel by channel, exactly as generated ("" for a channel it did not use).

    Attributes:
        analysis: The reasoning; several analysis messages are joined with a newline.
        final: The answer.
        commentary: Tool calls, on whichever channel but `final`, and asides, joined with a newline.
        complete: Whether there is an answer that the model ended itself; False where generation was cut before.
        raw: The text that was parsed.
    """

    analysis: str
    final: str
    commentary: str
    complete: bool
    raw: str


def split_channels(text: str) -> list[Segment]:
    """Split a rendered conversation, or a reply, into its messages.

    Joining the `text` of the segments gives back the input, whatever the input is. A message without `<|start|>` is
    the assistant's, as in a reply generated after the prompt `<|start|>assistant`.

    Args:
        text: A conversation decoded with its special tokens.

    Returns:
        The messages in order; text outside any message (padding, plain text) is a segment without role.
    """
    segments: list[Segment] = []
    position = 0
    for match in _MESSAGE.finditer(text):
        if match.start() > position:
            segments.append(_stray(text[position : match.start()]))
        role = _first_word("assistant" if match["role"] is None else match["role"])
        recipient = _RECIPIENT.search(f"{match['role']} {match['channel']}")
        segments.append(
            Segment(
                role,
                _first_word(match["channel"] or ""),
                recipient[1] if recipient else "",
                match["content"] or "",
                match[0],
                closed=bool(match["stop"]),
            )
        )
        position = match.end()
    if position < len(text):
        segments.append(_stray(text[position:]))
    return segments


def _stray(text: str) -> Segment:
    return Segment(role="", channel="", recipient="", content="", text=text, closed=False)


def _first_word(header: str) -> str:
    """Drop what may follow in a header, such as the recipient in `assistant to=functions.search`."""
    return header.split(maxsplit=1)[0] if header.strip() else ""


def parse_reply(text: str) -> Reply:
    """Parse what a model generated after the prompt `<|start|>assistant`.

    Reads up to the first answer: a model that goes on talking, to itself or as the user, is not quoted. Text without
    any marker has no channels to tell apart, so it gives an empty, incomplete reply whose `raw` keeps it.

    Args:
        text: The generated tokens decoded with `skip_special_tokens=False`; padding may follow.

    Returns:
        The reply; `complete` is False where the answer is missing or was cut by the token limit.
    """
    said: dict[str, list[str]] = {"analysis": [], "commentary": [], "final": []}
    complete = False
    # The prompt's last header may go on in the reply: ` to=python<|channel|>analysis`.
    opening = "<|start|>assistant" if text.lstrip().startswith("to=") else ""
    for segment in split_channels(opening + text):
        if segment.role != "assistant" or segment.channel not in said:
            continue
        # What is sent to a tool is a call, on the channel of the reasoning, too.
        channel = "commentary" if segment.recipient and segment.channel == "analysis" else segment.channel
        if segment.content:
            said[channel].append(segment.content)
        if channel == "final":
            complete = segment.closed
            break
    joined = {channel: "\n".join(parts) for channel, parts in said.items()}
    return Reply(joined["analysis"], joined["final"], joined["commentary"], complete, raw=text)


def show_conversation(text: str) -> HTML:
    """Show a conversation as it is, one block a message, coloured by who speaks on which channel.

    Args:
        text: A conversation decoded with its special tokens, which are shown in grey.
    """
    segments = [(_kind(segment), segment) for segment in split_channels(text)]
    # Styles are inline because JupyterLab drops <style> from a notebook that it does not trust yet.
    blocks = [
        f'<pre style="{_BLOCK};margin:2px 0;padding:4px 8px;border-radius:4px;'
        f'background-color:{_colour(kind)};color:{_TEXT}">{_grey_markers(segment.text)}</pre>'
        for kind, segment in segments
    ]
    legend = dict.fromkeys(kind for kind, _ in segments)
    return _as_html(_panel(_legend((kind, _colour(kind)) for kind in legend) + "".join(blocks)))


def _kind(segment: Segment) -> str:
    return " · ".join(part for part in (segment.role, segment.channel) if part) or "outside any message"


def _colour(kind: str) -> str:
    return _SEGMENT_COLOURS.get(kind, _OTHER_COLOUR)


def _grey_markers(text: str) -> str:
    """Escape the text and grey its special tokens; a run of the same one, as in padding, is counted."""
    parts: list[str] = []
    position = 0
    for match in _MARKER_RUN.finditer(text):
        count = len(match[0]) // len(match["marker"])
        shown = match[0] if count <= _LONGEST_RUN_SHOWN else f"{match['marker']} × {count}"
        parts.append(html.escape(text[position : match.start()]))
        parts.append(f'<span style="color:{_FAINT}">{html.escape(shown)}</span>')
        position = match.end()
    return "".join(parts) + html.escape(text[position:])


def show_trained_tokens(tokens: Sequence[str], labels: Sequence[int]) -> HTML:
    """Show token by token what the loss sees of a training example.

    Args:
        tokens: The text of each token, such as `[tokenizer.decode(i) for i in input_ids]`.
        labels: The label of each token; -100 where it is not trained on.

    Raises:
        FtlibError: If there is not one label a token.
    """
    if len(tokens) != len(labels):
        raise FtlibError(
            f"Found {len(tokens)} tokens and {len(labels)} labels; expected one label a token: "
            "pass the `input_ids` and `labels` of the same row."
        )
    trained = [int(label) != IGNORED for label in labels]
    share = f" ({sum(trained) / len(trained):.0%})" if trained else ""
    summary = f"<div><b>{sum(trained)} of {len(trained)} tokens are trained on{share}</b></div>"
    legend = _legend([("trained on", _TRAINED_SHADES[0]), ("not trained on", _UNTRAINED_SHADES[0])])
    body = "".join(_token_spans(tokens, trained))
    style = f"{_BLOCK};margin:2px 0;padding:4px 8px;background-color:#ffffff;color:{_TEXT}"
    return _as_html(_panel(f'{summary}{legend}<pre style="{style}">{body}</pre>'))


def _token_spans(tokens: Sequence[str], trained: Sequence[bool]) -> Iterable[str]:
    shown = 0
    for (token, is_trained), run in groupby(zip(tokens, trained, strict=True)):
        count = len(list(run))
        pieces = [token] * count if count <= _LONGEST_RUN_SHOWN else [f"{token} × {count}"]
        # <mark> still tells the two apart where a viewer, as GitHub's does, throws the colours away.
        tag, shades = ("mark", _TRAINED_SHADES) if is_trained else ("span", _UNTRAINED_SHADES)
        for piece in pieces:
            visible = html.escape(piece).replace("\n", "↵\n")
            yield f'<{tag} style="background-color:{shades[shown % 2]};color:{_TEXT}">{visible}</{tag}>'
            shown += 1


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    style = f"color:{_TEXT};padding:2px 8px;border-radius:4px"
    chips = (f'<span style="{style};background-color:{colour}">{html.escape(name)}</span>' for name, colour in entries)
    return f'<div style="margin:4px 0;line-height:2">{" ".join(chips)}</div>'


def _as_html(markup: str) -> HTML:
    # IPython takes longer to import than all the rest here, and parsing a reply needs none of it.
    from IPython.display import HTML

    return HTML(markup)  # type: ignore[no-untyped-call]


def _panel(body: str) -> str:
    """Put a light sheet under the coloured text, so that it reads the same in a dark theme."""
    return f'<div style="background-color:#ffffff;color:{_TEXT};padding:8px;border-radius:4px">{body}</div>'


def pin_date(chat_template: str, date: str) -> str:
    """Make a chat template write the same date every day.

    gpt-oss's template writes today's date into every conversation, so the same row gives other tokens tomorrow than
    today: lengths, losses and greedy answers could not be compared between two days. A macro named `strftime_now` put
    in front of the template answers in place of the clock. Pinning a pinned template replaces its date.

    Args:
        chat_template: A jinja chat template, such as `tokenizer.chat_template`.
        date: The date to write, as YYYY-MM-DD, the format that gpt-oss's template asks for.

    Raises:
        FtlibError: If `date` is not such a date.
    """
    try:
        valid = calendar_date.fromisoformat(date).isoformat() == date
    except ValueError:
        valid = False
    if not valid:
        raise FtlibError(f"Found the date {date!r}; expected a real day as YYYY-MM-DD: write it like '2025-08-05'.")
    # `+%}` keeps the newline that jinja would trim here: the conversation must not change by anything but its date.
    return f"{{% macro strftime_now(format) +%}}{date}{{% endmacro +%}}{_DATE_PIN.sub('', chat_template)}"
