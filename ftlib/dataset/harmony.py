"""Harmony, the format that gpt-oss speaks: parse a reply into its channels, and pin the date in its chat template.

A message is `<|start|>role<|channel|>channel<|message|>text<|end|>`; the last one of a reply ends in `<|return|>`. The
assistant reasons on the channel `analysis` and answers on `final`. Decode with `skip_special_tokens=False`: without the
markers, nothing tells the reasoning from the answer.
"""

import re
from dataclasses import dataclass

MARKERS = r"<\|(?:startoftext|endoftext|return|constrain|channel|start|end|message|call|endofprompt|reserved_\d+)\|>"
"""Every special token of gpt-oss: written inside a text, it would become a token."""

_MESSAGE = re.compile(
    r"""(?=<\|(?:start|channel|message)\|>)
    (?:<\|start\|>(?P<role>[^<]*))?
    (?:<\|channel\|>(?P<channel>[^<]*)(?:<\|constrain\|>[^<]*)?)?
    (?:<\|message\|>(?P<content>.*?)
        (?P<stop><\|(?:end|return|call|endoftext)\|>|(?=<\|(?:start|channel|message)\|>)|\Z))?""",
    re.DOTALL | re.VERBOSE,
)
_RECIPIENT = re.compile(r"\sto=\S+")
_DATE_PIN = re.compile(r"\A\{% macro strftime_now\(format\) \+%\}[^{]*\{% endmacro \+%\}")


@dataclass(frozen=True)
class Segment:
    """One message of a conversation; text between two messages has no role and no content."""

    text: str  # as it stands, markers included
    role: str = ""
    channel: str = ""
    to_tool: bool = False
    content: str = ""
    closed: bool = False  # whether a marker ends the message


@dataclass(frozen=True)
class Reply:
    """What an assistant replied; "" for what it did not say."""

    analysis: str  # its reasoning
    final: str  # its answer
    commentary: str  # its tool calls and asides
    complete: bool  # whether it finished its answer


def split_channels(text: str) -> list[Segment]:
    """Split a rendered conversation, or a reply, decoded with its special tokens, into its messages.

    A message without `<|start|>` is the assistant's, as in a reply generated after the prompt `<|start|>assistant`.
    Nothing is left out: joined, the `text` of all segments gives back the input.
    """
    segments: list[Segment] = []
    position = 0
    for match in _MESSAGE.finditer(text):
        if match.start() > position:
            segments.append(Segment(text[position : match.start()]))
        role = _first_word("assistant" if match["role"] is None else match["role"])
        channel = _first_word(match["channel"] or "")
        to_tool = bool(_RECIPIENT.search(f"{match['role']} {match['channel']}"))
        segments.append(Segment(match[0], role, channel, to_tool, match["content"] or "", bool(match["stop"])))
        position = match.end()
    return segments + ([Segment(text[position:])] if position < len(text) else [])


def _first_word(header: str) -> str:
    """Drop what may follow in a header, such as the recipient in `assistant to=functions.search`."""
    return header.split(maxsplit=1)[0] if header.strip() else ""


def parse_reply(text: str) -> Reply:
    """Parse what a model generated after the prompt `<|start|>assistant`, decoded with its special tokens.

    Everything after the first answer is ignored: a model may go on talking, to itself or as the user.
    """
    said: dict[str, list[str]] = {"analysis": [], "commentary": [], "final": []}
    complete = False
    # The reply may continue the header that the prompt began: ` to=python<|channel|>analysis`.
    opening = "<|start|>assistant" if text.lstrip().startswith("to=") else ""
    for segment in split_channels(opening + text):
        if segment.role != "assistant" or segment.channel not in said:
            continue
        # A message to a tool is a call, even on the reasoning channel.
        channel = "commentary" if segment.to_tool and segment.channel == "analysis" else segment.channel
        if segment.content:
            said[channel].append(segment.content)
        if channel == "final":
            complete = segment.closed
            break
    return Reply(**{channel: "\n".join(parts) for channel, parts in said.items()}, complete=complete)


def pin_date(chat_template: str, date: str) -> str:
    """Make a chat template write the same date, as YYYY-MM-DD, every day.

    gpt-oss's template writes today's date into every conversation, so the same row gives other tokens tomorrow. A macro
    named `strftime_now`, put in front of the template, answers instead of the clock. A date pinned before is replaced.
    """
    # `+%}` keeps the newline that jinja would trim: nothing but the date may change.
    return f"{{% macro strftime_now(format) +%}}{date}{{% endmacro +%}}{_DATE_PIN.sub('', chat_template)}"
