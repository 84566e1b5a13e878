"""The walkthrough's plots: data in, matplotlib `Axes` out; the notebook shows what its cell drew.

A language has one colour in all plots. Grey is what was there before, purple is what training adds. Every figure is a
white card with dark ink, whichever theme the page has.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.font_manager import findfont, get_font, get_font_names
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ftlib.display import explains_arguments
from ftlib.errors import FtlibError

# Okabe and Ito's palette, which colour-blind eyes can tell apart.
LANGUAGE_COLOURS = {"English": "#0072B2", "Spanish": "#D55E00", "French": "#009E73"}
LANGUAGE_COLOURS |= {"Italian": "#CC79A7", "German": "#E69F00"}
BEFORE, AFTER = "#AEB5BD", "#5B3A9B"
_INK, _RULE = "#24292F", "#D0D7DE"
_FILL = {BEFORE: "#EDEFF2", AFTER: "#E4DCF5"}
_SMALL = 9.0
_MOST = 12  # languages in a plot
# Matplotlib's own, and those that cover other scripts on Linux, macOS and Windows.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans Devanagari",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Nirmala UI",
)
# White around the line keeps it visible on a dark bar.
_INTERVAL = {"ecolor": _INK, "path_effects": [withStroke(linewidth=3, foreground="white")]}

_NOTEBOOKS = (
    ("01_setup", "Is this machine ready?", "a checked\nmachine"),
    ("02_explore_dataset", "What does the model\nlearn from?", "rows to train on,\nrows held out"),
    ("03_load_model", "What can it do before\nwe touch it?", "agreement\nbefore training"),
    ("04_train_lora", "What does the adapter\nchange and cost?", "an adapter"),
    ("05_push_and_infer", "Did it work, and how\ndo others use it?", "an adapter on the\nHub, agreement after"),
    ("06_export_and_serve", "Can it run wherever\npeople run models?", "one model in three\nformats, checked"),
)
_LORA_STARTS = ((0.41, 1.71), (2.6, 2.45), (0.41, 1.39), (2.6, 0.7), (3.44, 0.7), (4.95, 0.85), (5.57, 1.55))
_LORA_ENDS = ((1.3, 2.45), (5.18, 1.69), (1.3, 0.7), (3.2, 0.7), (4.0, 0.7), (5.22, 1.37), (5.98, 1.55))
_CURVES = {"loss": "loss", "mean_token_accuracy": "token accuracy", "learning_rate": "learning rate"}
_COUNTS = ((1e9, " B"), (1e6, " M"), (1e3, " K"), (1.0, ""))
_BYTES = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B"))


def notebook_map() -> Axes:
    """Draw the notebooks: the question each answers and, below it, what it leaves for the next."""
    ax = _canvas(width=11.82, height=2.0)
    for number, (name, question, leaves) in enumerate(_NOTEBOOKS):
        left, middle = 2.02 * number, 2.02 * number + 0.86
        _box(ax, left, 1.0, 1.72, 0.98, BEFORE, "")
        _write(ax, middle, 1.77, name, fontweight="bold")
        _write(ax, middle, 1.33, question)
        _box(ax, left, 0.02, 1.72, 0.54, AFTER, leaves)
        _arrow(ax, (middle, 1.0), (middle, 0.56))
        if number + 1 < len(_NOTEBOOKS):
            _arrow(ax, (left + 1.72, 0.4), (left + 2.02, 1.2))
    return ax


@explains_arguments
def engines(table: pd.DataFrame) -> Axes:
    """Draw agreement and exact answers of each engine: a table with columns engine, agreement and exact."""
    ax = _axes(height=0.62 * len(table) + 1.3)
    for number, (measure, colour) in enumerate((("exact", BEFORE), ("agreement", AFTER))):
        places = np.arange(len(table)) + (number - 0.5) * 0.38
        bars = ax.barh(places, 100 * table[measure], 0.36, label=measure, color=colour)
        _label_bars(ax, bars, [f"{share:.1%}" for share in table[measure]])
    ax.set_yticks(range(len(table)), table["engine"])
    ax.invert_yaxis()
    ax.set(xlim=(0, 118), xticks=range(0, 101, 25), title="The same questions, asked of each engine")
    ax.xaxis.set_major_formatter(PercentFormatter(100))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    return ax


@explains_arguments
def lora_diagram(r: int, alpha: int, hidden: int) -> Axes:
    """Draw h = W·x + (α/r)·B·A·x for a square weight W of `hidden` rows; A and B are drawn thicker than they are."""
    ax = _canvas(width=6.5, height=3.2)
    shares = f"{2 * r * hidden:,} numbers beside {hidden**2:,} frozen ones ({_percent(2 * r / hidden)})"
    ax.set_title(f"A rank of {r} trains {shares}", fontsize=11)
    for x, symbol in ((0.25, "x"), (5.35, "+"), (6.2, "h")):
        ax.add_patch(Circle((x, 1.55), 0.22, facecolor="white", edgecolor=_INK))
        _write(ax, x, 1.55, symbol, fontsize=13)
    _box(ax, 1.3, 1.8, 1.3, 1.3, BEFORE, f"W\nfrozen\n{hidden:,} × {hidden:,}")
    _box(ax, 1.3, 0.58, 1.3, 0.24, AFTER, "A")
    _write(ax, 1.95, 0.32, f"{r} × {hidden:,}\nstarts random")
    _box(ax, 3.2, 0.05, 0.24, 1.3, AFTER, "B")
    _write(ax, 3.32, 1.56, f"{hidden:,} × {r}\nstarts at zero")
    _box(ax, 4.0, 0.42, 0.95, 0.56, AFTER, f"× α / r\n{alpha} / {r} = {alpha / r:g}")
    for start, end in zip(_LORA_STARTS, _LORA_ENDS, strict=True):
        _arrow(ax, start, end)
    return ax


@explains_arguments
def token_lengths(lengths: Sequence[int], max_length: int) -> Axes:
    """Draw how many tokens the conversations have, and how many of these `max_length` keeps; the last bar is open."""
    ax = _axes()
    longer = sum(length > max_length for length in lengths) / len(lengths)
    # One enormous conversation would squeeze all others into the first bar.
    end = int(1.5 * max(max_length, np.quantile(lengths, 0.95)))
    beyond = sum(length > end for length in lengths)
    ax.hist(np.minimum(lengths, end), bins=40, color=BEFORE)
    ax.axvline(max_length, color=AFTER, linewidth=2, label=f"max_length = {max_length:,}")
    ax.legend(frameon=False)
    ax.set(
        title=f"{_percent(longer)} of {len(lengths):,} conversations are longer than {max_length:,} tokens",
        xlabel="tokens in a conversation" + (f" (in the last bar: {beyond:,} longer than {end:,})" if beyond else ""),
        ylabel="conversations",
    )
    ax.set_xlim(left=0)
    ax.margins(y=0.3)  # room for the legend
    ax.xaxis.set_major_formatter("{x:,.0f}")
    return ax


@explains_arguments
def tokens_per_character(frame: pd.DataFrame) -> Axes:
    """Draw each language's tokens per character of reasoning, in the median row, by the table of `token_lengths`."""
    frame = frame[frame["reasoning_characters"] > 0].replace({"language": {"": "not named"}})
    costs = (frame["reasoning_tokens"] / frame["reasoning_characters"]).groupby(frame["language"]).median()
    names = _most_frequent(frame["language"].value_counts())
    colours = [LANGUAGE_COLOURS.get(name, "#56B4E9") for name in names]
    ax = _horizontal_bars(
        names, list(costs[names]), [f"{costs[name]:.2f}" for name in names], colours, 1.5 + 0.3 * len(names)
    )
    if not names:
        _write(ax, 0.5, 0.5, "no row has reasoning", transform=ax.transAxes)
    of_all = f" ({len(names)} of {len(costs)} languages)" if len(names) < len(costs) else ""
    title = "Does reasoning cost the same in every language?"
    ax.set(title=title, xlabel=f"tokens per character of reasoning{of_all}")
    return ax


@explains_arguments
def parameter_blocks(frame: pd.DataFrame) -> Axes:
    """Draw where the model's parameters are, by the table of `adapters.parameter_table`."""
    ordered = frame.sort_values("parameters", ascending=False)
    counts = [int(count) for count in ordered["parameters"]]
    labels = [f"{_amount(count, _COUNTS)} ({_percent(count / sum(counts))})" for count in counts]
    ax = _horizontal_bars(list(ordered["block"]), counts, labels, BEFORE, units=_COUNTS)
    ax.set(title=f"Where are the {_amount(sum(counts), _COUNTS)} parameters?", xlabel="parameters")
    return ax


@explains_arguments
def adapter_size(base_bytes: int, adapter_bytes: int) -> Axes:
    """Draw the bytes of the adapter's weights beside those of the base model, to scale."""
    # On a logarithmic scale, a thousandth would look like three quarters. The truth is a bar too thin to see.
    share = f"{_percent(adapter_bytes / base_bytes)} of the base"
    labels = [_amount(base_bytes, _BYTES), f"{_amount(adapter_bytes, _BYTES)} ({share})"]
    sizes = [base_bytes, adapter_bytes]
    ax = _horizontal_bars(["base model", "adapter"], sizes, labels, [BEFORE, AFTER], height=1.9, units=_BYTES)
    ax.set(title="How large is what we trained?", xlabel="size on disk")
    return ax


@explains_arguments
def memory(items: Mapping[str, float], capacity: float) -> Axes:
    """Draw what takes memory, in bytes, from left to right, and the capacity."""
    sizes = list(items.values())
    *starts, total = accumulate(sizes, initial=0.0)
    colours = [BEFORE] + [AFTER] * (len(sizes) - 1)
    labels = [_amount(size, _BYTES) for size in sizes]
    ax = _horizontal_bars(list(items), sizes, labels, colours, 3.2, _BYTES, starts)
    ax.axvline(capacity, color=_INK, linewidth=1.5, linestyle="--")
    share = f"{_amount(total, _BYTES)} of {_amount(capacity, _BYTES)}"
    ax.set(title=f"Will it fit? {share} at its most", xlabel="memory, added up")
    return ax


@explains_arguments
def training_curves(log_history: Sequence[Mapping[str, Any]]) -> list[Axes]:
    """Draw loss, token accuracy and learning rate by step, on three axes, from `trainer.state.log_history`."""
    steps = pd.DataFrame([entry for entry in log_history if "loss" in entry], columns=["step", *_CURVES])
    if steps.empty:
        raise FtlibError(f"found no loss in {len(log_history)} log entries; run `trainer.train()` first")
    _, panels = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained", facecolor="white")
    for panel, (key, title) in zip(panels, _CURVES.items(), strict=True):
        panel.plot(steps["step"], steps[key], color=AFTER, linewidth=1.8)
        panel.set(title=title, xlabel="step")
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[2].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return list(panels)


@explains_arguments
def agreement(before: pd.DataFrame, after: pd.DataFrame | None = None) -> Axes:
    """Draw how often the reasoning uses the language asked for, before and after training, with 95% intervals.

    Both are tables of `evaluation.by_language` and name the same languages; what was not measured is left out.
    """
    tables = [_measured(table) for table in (before, after) if table is not None]
    names, *others = (_in_order(table.index) for table in tables)
    if others and others[0] != names:
        raise FtlibError(f"found {others[0]} in `after` and {names} in `before`; measure the same languages")
    asked = tables[0]["questions"]
    names = _most_frequent(asked)
    ax = _axes(width=max(6.2, 1.24 * len(names)))
    if len(names) < len(asked):
        ax.set_xlabel(f"the {len(names)} of {len(asked)} languages with the most questions")
    if not names:
        _write(ax, 0.5, 0.5, "no reasoning language was measured", transform=ax.transAxes)
    width = 0.8 / len(tables)
    for number, table in enumerate(tables if names else []):
        agreed, low, high = (100 * table.loc[names, column].to_numpy() for column in ("agreement", "low", "high"))
        places = np.arange(len(names)) + (number - (len(tables) - 1) / 2) * width
        style: dict[str, Any] = {"label": ("before", "after")[number], "color": (BEFORE, AFTER)[number]}
        bars = ax.bar(places, agreed, 0.94 * width, yerr=[agreed - low, high - agreed], error_kw=_INTERVAL, **style)
        _label_bars(ax, bars, [f"{share:.0f}%" for share in agreed])
    if names and others:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    ax.set_xticks(range(len(names)), [f"{_label(name, 11)}\nn = {asked[name]:.0f}" for name in names], family=_fonts())
    ax.set(ylim=(0, 112), yticks=range(0, 101, 25))  # room above 100% for the labels of full bars
    ax.yaxis.set_major_formatter(PercentFormatter(100))
    ax.axhline(100, color=_RULE, linewidth=1, zorder=0)
    ax.set(title="Does the reasoning use the language asked for?", ylabel="share of replies")
    return ax


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """The shares that were measured, by language; a table read from JSON may hold None, or be empty."""
    by_language = table.reindex(columns=["language", "questions", "agreement", "low", "high"]).set_index("language")
    return by_language.astype(float).dropna(subset=["agreement"])


def _axes(height: float = 3.0, width: float = 6.2) -> Axes:
    # JupyterLab would lay a white sheet under a transparent figure in its dark theme.
    _, ax = plt.subplots(figsize=(width, height), layout="constrained", facecolor="white")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _horizontal_bars(
    names: Sequence[str],
    values: Sequence[float],
    labels: Sequence[str],
    colours: str | Sequence[str],
    height: float = 3.0,
    units: Sequence[tuple[float, str]] = (),
    starts: float | Sequence[float] = 0,
) -> Axes:
    """Draw labelled bars, the first on top; `units` are those of the values."""
    ax = _axes(height)
    places = range(len(names))
    _label_bars(ax, ax.barh(places, values, color=colours, height=0.7, left=starts), labels)
    ax.set_yticks(places, [_label(name, 20) for name in names], family=_fonts())
    ax.invert_yaxis()
    ax.margins(x=0.3)  # room for the labels
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if units:
        ax.xaxis.set_major_formatter(lambda value, _: _amount(value, units))
    return ax


def _canvas(width: float, height: float) -> Axes:
    """Axes to draw boxes and arrows on, measured in inches."""
    ax = _axes(height, width)
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()
    return ax


def _box(ax: Axes, left: float, bottom: float, width: float, height: float, colour: str, text: str) -> None:
    style: dict[str, Any] = {"facecolor": _FILL[colour], "edgecolor": colour}
    ax.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.06", **style))
    _write(ax, left + width / 2, bottom + height / 2, text)


def _write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": _SMALL, "color": _INK, **style})


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": _INK, "shrinkA": 0, "shrinkB": 0})


def _label_bars(ax: Axes, bars: BarContainer, labels: Sequence[str]) -> None:
    # White behind a label keeps lines from crossing it out.
    backing = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    ax.bar_label(bars, labels, padding=3, fontsize=_SMALL, color=_INK, bbox=backing)


def _in_order(languages: Iterable[str]) -> list[str]:
    """The walkthrough's languages first, in their usual order, then the others by name."""
    known = list(LANGUAGE_COLOURS)
    return sorted(languages, key=lambda name: (known.index(name) if name in known else len(known), name))


def _most_frequent(counts: "pd.Series[int]") -> list[str]:
    """The names with the highest counts, as many as one plot can show, in their usual order."""
    return _in_order(counts.nlargest(_MOST).index)


def _label(name: str, longest: int) -> str:
    """A name from the data as it can be drawn: short, without mathematics, and an escape for what no font has."""
    escaped = "".join(char if ord(char) in _drawn() else char.encode("unicode_escape").decode() for char in name)
    short = escaped if len(escaped) <= longest else f"{escaped[: longest - 1]}…"
    return short.replace("$", r"\$")


@cache
def _drawn() -> set[int]:
    """The characters that these fonts have."""
    return {code for family in _fonts() for code in get_font(findfont(family)).get_charmap()}


@cache
def _fonts() -> list[str]:
    """Matplotlib's own font, and those for other scripts that this machine has."""
    return [name for name in _FONTS if name in get_font_names()]


def _amount(number: float, units: Sequence[tuple[float, str]]) -> str:
    """Write 20929797696 as "20.9 B" and 5000000 as "5 M"."""
    size, unit = next((entry for entry in units if number >= entry[0]), units[-1])
    return f"{number / size:.1f}".removesuffix(".0") + unit


def _percent(share: float) -> str:
    """Write three digits, so that a thousandth of a percent is not shown as zero."""
    return f"{100 * share:.3g}%"
