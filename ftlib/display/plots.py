"""The walkthrough's pictures: data in, matplotlib `Axes` out.

Nothing here shows or saves a figure: a notebook shows what its cell drew. Every function draws on the `ax` it is given
or on a figure of its own. A language has one colour in all plots; grey is what was there before (the frozen base, the
baseline), purple is what training adds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from ftlib.errors import FtlibError

# Okabe and Ito's palette: its colours stay apart for colour-blind eyes.
LANGUAGE_COLOURS = {
    "English": "#0072B2",
    "Spanish": "#D55E00",
    "French": "#009E73",
    "Italian": "#CC79A7",
    "German": "#E69F00",
}
OTHER_LANGUAGE_COLOUR = "#56B4E9"
BEFORE, AFTER = "#AEB5BD", "#5B3A9B"
_BEFORE_FILL, _AFTER_FILL = "#EDEFF2", "#E4DCF5"
_INK, _RULE = "#24292F", "#D0D7DE"
_SMALL = 9.0
# White around the line keeps it visible on a dark bar.
_INTERVAL = {"ecolor": _INK, "path_effects": [withStroke(linewidth=3, foreground="white")]}

_NOTEBOOKS = (
    ("01_setup", "Is this machine ready?", "a checked\nmachine"),
    ("02_explore_dataset", "What does the model\nlearn from?", "rows to train on,\nrows held out"),
    ("03_load_model", "What can it do before\nwe touch it?", "agreement\nbefore training"),
    ("04_train_lora", "What does the adapter\nchange and cost?", "an adapter"),
    ("05_push_and_infer", "Did it work, and how\ndo others use it?", "an adapter on the\nHub, agreement after"),
)
_LORA_ARROWS = (
    ((0.41, 1.71), (1.3, 2.45)),
    ((2.6, 2.45), (5.18, 1.69)),
    ((0.41, 1.39), (1.3, 0.7)),
    ((2.6, 0.7), (3.2, 0.7)),
    ((3.44, 0.7), (4.0, 0.7)),
    ((4.95, 0.85), (5.22, 1.37)),
    ((5.57, 1.55), (5.98, 1.55)),
)
_CURVES = {"loss": "loss", "mean_token_accuracy": "token accuracy", "learning_rate": "learning rate"}
_COUNT_UNITS = ((1e9, " B"), (1e6, " M"), (1e3, " K"), (1.0, ""))
_BYTE_UNITS = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B"))


def notebook_map(ax: Axes | None = None) -> Axes:
    """Draw the five notebooks: the question each answers and, below it, what it leaves for the next."""
    ax = _canvas(ax, width=9.8, height=2.0)
    box_width, gap = 1.72, 0.3
    for number, (name, question, leaves) in enumerate(_NOTEBOOKS):
        left = number * (box_width + gap)
        _box(ax, left, 1.0, box_width, 0.98, BEFORE, _BEFORE_FILL)
        _write(ax, left + box_width / 2, 1.77, name, fontweight="bold")
        _write(ax, left + box_width / 2, 1.33, question)
        _arrow(ax, (left + box_width / 2, 1.0), (left + box_width / 2, 0.56))
        _box(ax, left, 0.02, box_width, 0.54, AFTER, _AFTER_FILL)
        _write(ax, left + box_width / 2, 0.29, leaves)
        if number + 1 < len(_NOTEBOOKS):
            _arrow(ax, (left + box_width, 0.4), (left + box_width + gap, 1.2))
    return ax


def lora_diagram(r: int, alpha: int, hidden: int, ax: Axes | None = None) -> Axes:
    """Draw h = W·x + (α/r)·B·A·x for a square weight W, with its numbers (A and B are drawn thicker than they are).

    Args:
        r: Rank: rows of A and columns of B.
        alpha: What A and B add is scaled by alpha / r.
        hidden: Numbers in x and in h.
        ax: Axes to draw on; None for a figure of its own.
    """
    ax = _canvas(ax, width=6.5, height=3.2)
    shares = f"{2 * r * hidden:,} numbers beside {hidden**2:,} frozen ones ({_percent(2 * r / hidden)})"
    ax.set_title(f"A rank of {r} trains {shares}", fontsize=11)
    for x, symbol in ((0.25, "x"), (5.35, "+"), (6.2, "h")):
        ax.add_patch(Circle((x, 1.55), 0.22, facecolor="white", edgecolor=_INK))
        _write(ax, x, 1.55, symbol, fontsize=13)
    _box(ax, 1.3, 1.8, 1.3, 1.3, BEFORE, _BEFORE_FILL)
    _write(ax, 1.95, 2.3, f"frozen\n{hidden:,} × {hidden:,}")
    _write(ax, 1.95, 2.68, "W", fontsize=12)
    _box(ax, 1.3, 0.58, 1.3, 0.24, AFTER, _AFTER_FILL)
    _write(ax, 1.95, 0.69, "A", fontsize=12)
    _write(ax, 1.95, 0.32, f"{r} × {hidden:,}\nstarts random")
    _box(ax, 3.2, 0.05, 0.24, 1.3, AFTER, _AFTER_FILL)
    _write(ax, 3.32, 0.69, "B", fontsize=12)
    _write(ax, 3.32, 1.56, f"{hidden:,} × {r}\nstarts at zero")
    _box(ax, 4.0, 0.42, 0.95, 0.56, AFTER, "white")
    _write(ax, 4.475, 0.7, f"× α / r\n{alpha} / {r} = {alpha / r:g}")
    for start, end in _LORA_ARROWS:
        _arrow(ax, start, end)
    return ax


def language_counts(languages: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draw how many rows there are in each language.

    Args:
        languages: The language of each row.
        ax: Axes to draw on; None for a figure of its own.
    """
    ax = _axes(ax)
    counts = Counter(languages)
    names = _in_order(counts)
    bars = ax.bar(names, [counts[name] for name in names], color=_colours(names), width=0.7)
    _label_bars(ax, bars, [f"{counts[name]:,}" for name in names])
    ax.set(title=f"{len(languages):,} rows in {len(names)} languages", ylabel="rows")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    ax.margins(y=0.12)
    return ax


def token_lengths(lengths: Sequence[int], max_length: int, ax: Axes | None = None) -> Axes:
    """Draw how long the conversations are and where `max_length` cuts them, all that are far longer in the last bar.

    Args:
        lengths: Tokens in each conversation, at least one.
        max_length: Tokens that training keeps of a conversation.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        FtlibError: If there are no lengths.
    """
    if len(lengths) == 0:
        raise FtlibError("Found no lengths; expected the token count of one conversation or more: load the rows first.")
    ax = _axes(ax)
    longer = sum(length > max_length for length in lengths) / len(lengths)
    # One enormous conversation would squeeze all others into the first bar.
    end = int(1.5 * max(max_length, np.quantile(lengths, 0.95)))
    beyond = sum(length > end for length in lengths)
    ax.hist(np.minimum(lengths, end), bins=40, color=BEFORE)
    ax.axvline(max_length, color=AFTER, linewidth=2)
    ax.set(
        title=f"{_percent(longer)} of {len(lengths):,} conversations are longer than {max_length:,} tokens",
        xlabel="tokens in a conversation" + (f" (in the last bar: {beyond:,} longer than {end:,})" if beyond else ""),
        ylabel="conversations",
    )
    ax.set_xlim(left=0)
    ax.margins(y=0.2)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    _label_cut(ax, max_length)
    return ax


def _label_cut(ax: Axes, max_length: int) -> None:
    """Write above the bars, on the side of the line that has room."""
    on_the_left = max_length > ax.get_xlim()[1] / 2
    ax.annotate(
        f"max_length = {max_length:,}",
        (max_length, 0.97),
        xycoords=ax.get_xaxis_transform(),
        xytext=(-6 if on_the_left else 6, 0),
        textcoords="offset points",
        ha="right" if on_the_left else "left",
        va="top",
        color=AFTER,
    )


def tokens_per_character(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw what a character costs in each language, in the median conversation.

    Args:
        frame: Columns `language`, `tokens` and `characters`, one row a conversation, as `data.token_lengths` gives it.
        ax: Axes to draw on; None for a figure of its own.
    """
    ax = _axes(ax)
    # The median: in a mean or a total, one enormous conversation would speak for its whole language.
    costs = (frame["tokens"] / frame["characters"]).groupby(frame["language"]).median()
    names = _in_order(costs.index)
    bars = ax.barh(names, [costs[name] for name in names], color=_colours(names), height=0.7)
    _label_bars(ax, bars, [f"{costs[name]:.2f}" for name in names])
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(title="Does a character cost the same in every language?", xlabel="tokens per character")
    return ax


def parameter_blocks(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw where the model's parameters are, the largest block on top.

    Args:
        frame: Columns `block` and `parameters`, one row a block, as `adapters.parameter_table` gives it.
        ax: Axes to draw on; None for a figure of its own.
    """
    ax = _axes(ax)
    ordered = frame.sort_values("parameters", ascending=False)
    counts = [int(count) for count in ordered["parameters"]]
    bars = ax.barh([str(block) for block in ordered["block"]], counts, color=BEFORE, height=0.7)
    _label_bars(ax, bars, [f"{_amount(count, _COUNT_UNITS)} ({_percent(count / sum(counts))})" for count in counts])
    ax.invert_yaxis()
    ax.margins(x=0.3)
    ax.set(title=f"Where are the {_amount(sum(counts), _COUNT_UNITS)} parameters?", xlabel="parameters")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.xaxis.set_major_formatter(lambda value, _: _amount(value, _COUNT_UNITS))
    return ax


def training_curves(
    log_history: Sequence[Mapping[str, Any]], axes: Sequence[Axes] | None = None
) -> npt.NDArray[np.object_]:
    """Draw loss, token accuracy and learning rate by optimizer step.

    Args:
        log_history: `trainer.state.log_history`; entries without a loss, such as the closing summary, are left out.
        axes: Three axes to draw on.

    Returns:
        The three axes, shape (3,).

    Raises:
        FtlibError: If no step was logged.
    """
    steps = _logged_steps(log_history)
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(9, 2.7), sharex=True, layout="constrained")
    panels = np.asarray(axes, dtype=object)
    for panel, (key, title) in zip(panels, _CURVES.items(), strict=True):
        logged = [(entry["step"], entry[key]) for entry in steps if key in entry]
        _axes(panel).plot([step for step, _ in logged], [value for _, value in logged], color=AFTER, linewidth=1.8)
        panel.set(title=title, xlabel="step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return panels


def _logged_steps(log_history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    steps = [entry for entry in log_history if "loss" in entry]
    if not steps:
        found = f"Found no loss in {len(log_history)} log entries"
        raise FtlibError(f"{found}; expected one a logged step: run `trainer.train()` first.")
    return steps


def agreement(before: pd.DataFrame, after: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Draw how often the reasoning uses the language asked for, before and after training, with 95% intervals.

    Args:
        before: Columns `language`, `questions`, `agreement`, `low` and `high` (shares from 0 to 1), as
            `evaluation.by_language` gives them; languages without an agreement are left out. No rows, no bars.
        after: The same after training; None to draw the baseline alone.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        FtlibError: If `before` and `after` do not name the same languages.
    """
    series = {"before": before} if after is None else {"before": before, "after": after}
    shares = {what: _measured(table) for what, table in series.items()}
    names = _same_languages(shares)
    ax = _axes(ax, width=max(6.2, 1.1 * len(names)))
    if not names:
        _write(
            ax,
            0.5,
            0.5,
            "no row asks for a reasoning language\nthat can be identified",
            transform=ax.transAxes,
        )
    width = 0.8 / len(shares)
    for number, (what, table) in enumerate(shares.items()) if names else ():
        agreed, low, high = (100 * table.loc[names, column].to_numpy() for column in ("agreement", "low", "high"))
        places = np.arange(len(names)) + (number - (len(shares) - 1) / 2) * width
        bars = ax.bar(
            places,
            agreed,
            width * 0.94,
            yerr=[agreed - low, high - agreed],
            error_kw=_INTERVAL,
            label=what,
            color=(BEFORE, AFTER)[number],
        )
        _label_bars(ax, bars, [f"{share:.0f}%" for share in agreed])
    counts = shares["before"].loc[names, "questions"].to_list()
    _frame_agreement(ax, [f"{name}\nn = {count:.0f}" for name, count in zip(names, counts, strict=True)])
    return ax


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """The shares that were measured, by language; a table read from JSON may hold None, or nothing at all."""
    columns = ["questions", "agreement", "low", "high"]
    by_language = table.reindex(columns=["language", *columns]).set_index("language")
    return by_language.astype(float).dropna(subset=["agreement"])


def _same_languages(shares: Mapping[str, pd.DataFrame]) -> list[str]:
    names = _in_order(shares["before"].index)
    for what, table in shares.items():
        if set(table.index) != set(names):
            found = ", ".join(_in_order(table.index)) or "no language"
            raise FtlibError(
                f"Found {found} in `{what}`; expected {', '.join(names) or 'none'}, as in `before`: "
                "measure the same languages each time."
            )
    return names


def _frame_agreement(ax: Axes, tick_labels: Sequence[str]) -> None:
    ax.set_xticks(range(len(tick_labels)), tick_labels)
    # Room above 100 % for the labels of full bars.
    ax.set_ylim(0, 112)
    ax.set_yticks(range(0, 101, 25))
    ax.yaxis.set_major_formatter(PercentFormatter(100))
    for height in (0, 100):
        ax.axhline(height, color=_RULE, linewidth=1, zorder=0)
    ax.set(title="Does the reasoning use the language asked for?", ylabel="share of replies")
    if len(ax.containers) > 2:  # of bars and of their intervals, before and after
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)


def adapter_size(base_bytes: int, adapter_bytes: int, ax: Axes | None = None) -> Axes:
    """Draw the adapter's size on disk beside the base model's, to scale.

    Args:
        base_bytes: Bytes of the base model's weight files.
        adapter_bytes: Bytes of the adapter's.
        ax: Axes to draw on; None for a figure of its own.
    """
    ax = _axes(ax, height=1.9)
    # A logarithmic scale would draw a thousandth as three quarters: the truth here is a bar too thin to see.
    bars = ax.barh(["base model", "adapter"], [base_bytes, adapter_bytes], color=[BEFORE, AFTER], height=0.6)
    share = f"{_percent(adapter_bytes / base_bytes)} of the base"
    _label_bars(ax, bars, [_amount(base_bytes, _BYTE_UNITS), f"{_amount(adapter_bytes, _BYTE_UNITS)} ({share})"])
    ax.invert_yaxis()
    ax.margins(x=0.3)
    ax.set(title="How large is what we trained?", xlabel="size on disk")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.xaxis.set_major_formatter(lambda value, _: _amount(value, _BYTE_UNITS))
    return ax


def memory(items: Mapping[str, float], capacity: float, ax: Axes | None = None) -> Axes:
    """Draw what takes memory, item by item from left to right, beside what there is.

    Args:
        items: Bytes by item, as `planner.Plan.items` has them.
        capacity: Bytes that one GPU, or the machine, has.
        ax: Axes to draw on; None for a figure of its own.
    """
    ax = _axes(ax, height=3.2)
    sizes = list(items.values())
    starts = [0.0, *accumulate(sizes)][:-1]
    # What is there whatever is trained is grey; what does not fit is hatched.
    bars = ax.barh(list(items), sizes, left=starts, color=[BEFORE, *[AFTER] * (len(sizes) - 1)], height=0.7)
    for bar, start, size in zip(bars, starts, sizes, strict=True):
        bar.set_hatch("///" if start + size > capacity else "")
    _label_bars(ax, bars, [_amount(size, _BYTE_UNITS) for size in sizes])
    if capacity < 3 * sum(sizes):  # further away, it would squeeze the bars to nothing
        ax.axvline(capacity, color=_INK, linewidth=1.5, linestyle="--")
    ax.invert_yaxis()
    ax.margins(x=0.15)
    total = f"{_amount(sum(sizes), _BYTE_UNITS)} of {_amount(capacity, _BYTE_UNITS)}"
    ax.set(title=f"Will it fit? {total} at its most", xlabel="memory, added up")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.xaxis.set_major_formatter(lambda value, _: _amount(value, _BYTE_UNITS))
    return ax


def _axes(ax: Axes | None, height: float = 3.0, width: float = 6.2) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _canvas(ax: Axes | None, width: float, height: float) -> Axes:
    """Prepare axes to draw boxes and arrows on, measured in inches."""
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()
    return ax


def _box(ax: Axes, left: float, bottom: float, width: float, height: float, edge: str, fill: str) -> None:
    style = "round,pad=0,rounding_size=0.06"
    ax.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=fill, edgecolor=edge))


def _write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": _SMALL, "color": _INK, **style})


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": _INK, "shrinkA": 0, "shrinkB": 0})


def _label_bars(ax: Axes, bars: BarContainer, labels: Sequence[str]) -> None:
    # The white behind a label keeps a grid line from crossing it out.
    backing = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    ax.bar_label(bars, labels, padding=3, fontsize=_SMALL, color=_INK, bbox=backing)


def _in_order(languages: Iterable[str]) -> list[str]:
    """Sort languages as everywhere in the walkthrough; the ones it does not know come last, by name."""
    known = list(LANGUAGE_COLOURS)
    return sorted(languages, key=lambda name: (known.index(name) if name in known else len(known), name))


def _colours(languages: Iterable[str]) -> list[str]:
    return [LANGUAGE_COLOURS.get(name, OTHER_LANGUAGE_COLOUR) for name in languages]


def _amount(number: float, units: Sequence[tuple[float, str]]) -> str:
    """Write 20929797696 as "20.9 B" and 5000000 as "5 M"."""
    size, unit = next((entry for entry in units if number >= entry[0]), units[-1])
    return f"{number / size:.1f}".removesuffix(".0") + unit


def _percent(share: float) -> str:
    """Write three digits, so that a thousandth of a percent is not told as zero."""
    return f"{100 * share:.3g}%"
