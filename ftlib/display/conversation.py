"""Conversations in colour: who speaks on which channel, and which tokens the loss sees.

Colours are translucent and the text has the page's own colour, so both are legible in a light and a dark theme. Styles
are inline: JupyterLab removes <style> from a notebook that is not trusted, and `inherit` and variables too.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from IPython.display import HTML

from ftlib.dataset.harmony import MARKERS, split_channels
from ftlib.display import explains_arguments

IGNORED = -100
"""The label that the loss skips: the model reads the token, but is not trained on it."""

LONGEST_RUN = 3
"""How often the same token is shown in a row; a longer run, such as padding, is counted."""

_BLOCK = (
    "white-space:pre-wrap;overflow-wrap:break-word;font-family:monospace;font-size:13px;line-height:1.5;"
    "margin:2px 0;padding:4px 8px;border-radius:4px"
)
_COLOURS = {
    "system": "rgba(128,128,128,.2)",
    "developer": "rgba(230,159,0,.25)",
    "user": "rgba(0,114,178,.25)",
    "assistant · analysis": "rgba(138,99,210,.28)",
    "assistant · final": "rgba(0,158,115,.28)",
    "outside any message": "rgba(128,128,128,.08)",
}
_OTHER_COLOUR = "rgba(213,94,0,.2)"
# Two shades each, in turn, so that the eye sees where one token ends and the next begins.
_TRAINED = ("rgba(0,158,115,.45)", "rgba(0,158,115,.25)")
_UNTRAINED = ("rgba(128,128,128,.25)", "rgba(128,128,128,.1)")
_MARKER_RUN = re.compile(rf"(?P<marker>{html.escape(MARKERS)})(?P=marker)*")


@explains_arguments
def show_conversation(text: str) -> HTML:
    """Show a conversation, decoded with its special tokens, one block a message, coloured by role and channel."""
    blocks, legend = [], {}
    for segment in split_channels(text):
        kind = " · ".join(filter(None, (segment.role, segment.channel))) or "outside any message"
        legend[kind] = _COLOURS.get(kind, _OTHER_COLOUR)
        blocks.append(f'<div style="{_BLOCK};background-color:{legend[kind]}">{_faint(segment.text)}</div>')
    return HTML(_legend(legend) + "".join(blocks))  # type: ignore[no-untyped-call]


def _faint(text: str) -> str:
    """Escape a text and make its markers faint."""

    def marker(match: re.Match[str]) -> str:
        count = len(match[0]) // len(match["marker"])
        return f'<span style="opacity:.7">{"".join(_repeated(match["marker"], count))}</span>'

    return _MARKER_RUN.sub(marker, html.escape(text))


@explains_arguments
def show_trained_tokens(tokens: Sequence[str], labels: Sequence[int]) -> HTML:
    """Show which tokens of a training example, given as texts, the loss sees: those with a label other than -100."""
    trained = [int(label) != IGNORED for label in labels]
    share = f" ({sum(trained) / len(trained):.0%})" if trained else ""
    summary = f"<div><b>{sum(trained)} of {len(trained)} tokens are trained on{share}</b></div>"
    legend = _legend({"trained on": _TRAINED[0], "not trained on": _UNTRAINED[0]})
    body = f'<div style="{_BLOCK}">{"".join(_token_spans(tokens, trained))}</div>'
    return HTML(summary + legend + body)  # type: ignore[no-untyped-call]


def _token_spans(tokens: Sequence[str], trained: Sequence[bool]) -> Iterator[str]:
    shown = 0
    for (token, is_trained), run in groupby(zip(tokens, trained, strict=True)):
        # Bold still tells the two apart where a viewer, such as GitHub's, removes the colours.
        tag, shades = ("b", _TRAINED) if is_trained else ("span", _UNTRAINED)
        for piece in _repeated(token, len(list(run))):
            visible = html.escape(piece).replace("\n", "↵\n")
            yield f'<{tag} style="background-color:{shades[shown % 2]}">{visible}</{tag}>'
            shown += 1


def _repeated(token: str, count: int) -> list[str]:
    return [token] * count if count <= LONGEST_RUN else [f"{token} × {count}"]


def _legend(colours: Mapping[str, str]) -> str:
    style = "padding:2px 8px;border-radius:4px;background-color"
    chips = (f'<span style="{style}:{colour}">{html.escape(name)}</span>' for name, colour in colours.items())
    return f'<div style="margin:4px 0;line-height:2">{" ".join(chips)}</div>'
