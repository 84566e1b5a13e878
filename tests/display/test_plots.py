"""What each picture draws, read back from its axes; nothing is shown or saved."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ftlib.display import plots
from ftlib.errors import FtlibError
from ftlib.model.evaluation import wilson_interval

matplotlib.use("Agg")

LANGUAGES = ["English", "Spanish", "French", "Italian", "German"]


def shares(agreeing: dict[str, int], n: int = 20) -> pd.DataFrame:
    """A table as `evaluation.by_language` gives it."""
    intervals = [wilson_interval(count, n) for count in agreeing.values()]
    return pd.DataFrame(
        {
            "language": list(agreeing),
            "questions": n,
            "agreement": [count / n for count in agreeing.values()],
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
        }
    )


BEFORE = shares(dict(zip(LANGUAGES, [20, 0, 1, 0, 0], strict=True)))
AFTER = shares(dict(zip(LANGUAGES, [20, 20, 18, 20, 20], strict=True)))
COSTS = pd.DataFrame(
    {
        "language": ["Czech", "German", *["English"] * 4],
        "tokens": [40, 314, 10, 25, 30, 9_000],
        "characters": [100, 1000, 20, 100, 140, 10_000],
    }
)
BLOCKS = pd.DataFrame(
    {"block": ["router", "experts", "attention"], "parameters": [2_000_000, 19_000_000_000, 998_000_000]}
)
LOG: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "mean_token_accuracy": 0.5, "learning_rate": 1e-4},
    {"step": 2, "loss": 1.5, "mean_token_accuracy": 0.6, "learning_rate": 2e-4},
    {"step": 2, "eval_loss": 1.4},
    {"step": 3, "loss": 1.2, "mean_token_accuracy": 0.7, "learning_rate": 1e-5},
    {"step": 3, "train_loss": 1.6, "train_runtime": 9.0},
]
MEMORY = {"base weights": 40e9, "adapter": 1e9, "activations": 15e9}

Draw = Callable[[Axes | None], Axes]
EVERY_PLOT: dict[str, Draw] = {
    "notebook_map": lambda ax: plots.notebook_map(ax=ax),
    "lora_diagram": lambda ax: plots.lora_diagram(8, 16, 2880, ax=ax),
    "language_counts": lambda ax: plots.language_counts(["French", "English"], ax=ax),
    "token_lengths": lambda ax: plots.token_lengths([1, 2, 3], 2, ax=ax),
    "tokens_per_character": lambda ax: plots.tokens_per_character(COSTS, ax=ax),
    "parameter_blocks": lambda ax: plots.parameter_blocks(BLOCKS, ax=ax),
    "agreement": lambda ax: plots.agreement(BEFORE, AFTER, ax=ax),
    "adapter_size": lambda ax: plots.adapter_size(13_800_000_000, 60_000_000, ax=ax),
    "memory": lambda ax: plots.memory(MEMORY, 80e9, ax=ax),
}
each_plot = pytest.mark.parametrize("draw", EVERY_PLOT.values(), ids=EVERY_PLOT)


@pytest.fixture(autouse=True)
def no_figure_is_left_open() -> Iterator[None]:
    plt.close("all")
    yield
    plt.close("all")


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


def bars(ax: Axes, number: int = 0) -> BarContainer:
    return [container for container in ax.containers if isinstance(container, BarContainer)][number]


def heights(ax: Axes, number: int = 0) -> list[float]:
    return [float(bar.get_height()) for bar in bars(ax, number)]


def widths(ax: Axes) -> list[float]:
    return [float(bar.get_width()) for bar in bars(ax)]


def colours(ax: Axes, number: int = 0) -> list[str]:
    return [to_hex(bar.get_facecolor()).upper() for bar in bars(ax, number)]


def tick_labels(ax: Axes, axis: str) -> list[str]:
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


@each_plot
def test_a_plot_makes_one_figure_of_its_own(draw: Draw) -> None:
    ax = draw(None)
    assert plt.get_fignums() == [ax.figure.number]  # type: ignore[union-attr]


@each_plot
def test_a_plot_draws_on_the_axes_it_is_given(draw: Draw) -> None:
    _, given = plt.subplots()
    assert draw(given) is given
    assert len(plt.get_fignums()) == 1


@each_plot
def test_nothing_is_shown_or_saved(draw: Draw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plot function showed or saved its figure")

    monkeypatch.chdir(tmp_path)
    for owner, name in ((plt, "show"), (plt, "savefig"), (Figure, "show"), (Figure, "savefig")):
        monkeypatch.setattr(owner, name, refuse)
    draw(None)
    assert list(tmp_path.iterdir()) == []


@each_plot
def test_no_text_is_cut_off_overlaps_or_is_too_small(draw: Draw) -> None:
    ax = draw(None)
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    written = [text for text in (*ax.texts, ax.title) if text.get_text()]
    boxes = [text.get_window_extent() for text in written]
    page = figure.bbox.padded(1)
    for number, box in enumerate(boxes):
        name = written[number].get_text()
        assert page.containsx(box.x0), f"{name!r} is cut off"
        assert page.containsx(box.x1), f"{name!r} is cut off"
        assert page.containsy(box.y0), f"{name!r} is cut off"
        assert page.containsy(box.y1), f"{name!r} is cut off"
        assert float(written[number].get_fontsize()) >= 9
        overlapping = [written[i].get_text() for i in range(number) if boxes[i].overlaps(box)]
        assert not overlapping, f"{name!r} overlaps {overlapping}"


@pytest.mark.parametrize("name", [name for name in EVERY_PLOT if name not in ("notebook_map", "lora_diagram")])
def test_a_chart_has_a_title_and_names_what_it_measures(name: str) -> None:
    ax = EVERY_PLOT[name](None)
    assert ax.get_title()
    assert ax.get_xlabel() or ax.get_ylabel()
    assert not ax.spines["top"].get_visible()
    assert not ax.spines["right"].get_visible()


def test_the_map_names_the_notebooks_in_order() -> None:
    ax = plots.notebook_map()
    names = [text for text in texts(ax) if text[:2].isdigit()]
    assert names == ["01_setup", "02_explore_dataset", "03_load_model", "04_train_lora", "05_push_and_infer"]
    # Two boxes a notebook; an arrow down from each, an arrow on from each but the last.
    assert sum(isinstance(patch, FancyBboxPatch) for patch in ax.patches) == 10
    assert sum(text.get_text() == "" for text in ax.texts) == 9


def test_the_map_keeps_its_text_inside_its_boxes() -> None:
    ax = plots.notebook_map()
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    boxes = [patch.get_window_extent() for patch in ax.patches]
    for text in ax.texts:
        if text.get_text():
            extent = text.get_window_extent()
            assert any(box.x0 < extent.x0 and extent.x1 < box.x1 for box in boxes), text.get_text()


def test_the_lora_picture_carries_its_numbers() -> None:
    ax = plots.lora_diagram(r=4, alpha=6, hidden=128)
    assert ax.get_title() == "A rank of 4 trains 1,024 numbers beside 16,384 frozen ones (6.25%)"
    written = texts(ax)
    assert "× α / r\n6 / 4 = 1.5" in written
    assert "4 × 128\nstarts random" in written
    assert "128 × 4\nstarts at zero" in written
    assert "frozen\n128 × 128" in written
    assert {"x", "W", "A", "B", "+", "h"} <= set(written)


def test_languages_are_counted_in_the_usual_order() -> None:
    ax = plots.language_counts(["German"] * 3 + ["Basque", "English", "English", "Spanish"])
    assert tick_labels(ax, "x") == ["English", "Spanish", "German", "Basque"]
    assert heights(ax) == [2, 1, 3, 1]
    assert texts(ax) == ["2", "1", "3", "1"]
    assert ax.get_title() == "7 rows in 4 languages"


def test_a_language_has_the_same_colour_in_every_plot() -> None:
    counts = colours(plots.language_counts(["English", "German", "Czech"]))
    assert colours(plots.tokens_per_character(COSTS)) == counts
    assert len(set(counts)) == 3
    assert len(set(plots.LANGUAGE_COLOURS.values()) | {plots.OTHER_LANGUAGE_COLOUR, plots.BEFORE, plots.AFTER}) == 8


def test_the_cut_line_stands_at_max_length() -> None:
    ax = plots.token_lengths([100, 200, 300, 301], max_length=300)
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == [300, 300]
    assert ax.get_title() == "25% of 4 conversations are longer than 300 tokens"
    assert texts(ax) == ["max_length = 300"]
    assert sum(patch.get_height() for patch in bars(ax)) == 4


def test_an_enormous_conversation_does_not_squeeze_the_others() -> None:
    ax = plots.token_lengths([*range(100, 1099), 25_000, 26_000], max_length=1000)
    assert ax.get_xlim()[1] < 1700
    assert ax.get_xlabel() == "tokens in a conversation (in the last bar: 2 longer than 1,575)"
    assert heights(ax)[-1] == 2
    assert sum(heights(ax)) == 1001, "nothing is left out"


@pytest.mark.parametrize(("max_length", "side"), [(1500, "right"), (100, "left")])
def test_the_cut_line_and_its_label_stay_in_view(max_length: int, side: str) -> None:
    ax = plots.token_lengths([50, 250, 260], max_length)
    assert ax.get_xlim()[0] == 0
    assert ax.get_xlim()[1] > max_length
    assert ax.texts[0].get_horizontalalignment() == side


def test_the_cut_lines_label_stands_clear_of_the_bars() -> None:
    ax = plots.token_lengths([150] * 9 + [145, 155], max_length=160)
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    label = ax.texts[0].get_window_extent()
    assert not any(label.overlaps(bar.get_window_extent()) for bar in bars(ax) if bar.get_height())


def test_no_lengths_are_refused() -> None:
    with pytest.raises(FtlibError, match="Found no lengths"):
        plots.token_lengths([], 10)


def test_a_characters_cost_is_drawn_by_language() -> None:
    ax = plots.tokens_per_character(COSTS)
    assert tick_labels(ax, "y") == ["English", "German", "Czech"]
    assert widths(ax) == [0.375, 0.314, 0.4]
    assert texts(ax) == ["0.38", "0.31", "0.40"]
    assert ax.yaxis_inverted()


def test_blocks_are_sorted_and_shares_never_told_as_zero() -> None:
    ax = plots.parameter_blocks(BLOCKS)
    assert tick_labels(ax, "y") == ["experts", "attention", "router"]
    assert widths(ax) == [19_000_000_000, 998_000_000, 2_000_000]
    assert texts(ax) == ["19 B (95%)", "998 M (4.99%)", "2 M (0.01%)"]
    assert ax.get_title() == "Where are the 20 B parameters?"
    assert "5 B" in tick_labels(ax, "x")


def test_training_curves_leave_out_what_is_no_step() -> None:
    panels = plots.training_curves(LOG)
    assert panels.shape == (3,)
    drawn = {panel.get_title(): panel.lines[0] for panel in panels}
    assert list(drawn) == ["loss", "token accuracy", "learning rate"]
    assert all(list(line.get_xdata()) == [1, 2, 3] for line in drawn.values())
    assert list(drawn["loss"].get_ydata()) == [2.0, 1.5, 1.2]
    assert list(drawn["token accuracy"].get_ydata()) == [0.5, 0.6, 0.7]
    assert list(drawn["learning rate"].get_ydata()) == [1e-4, 2e-4, 1e-5]
    assert {panel.get_xlabel() for panel in panels} == {"step"}


def test_training_curves_without_an_accuracy_still_show_the_rest() -> None:
    panels = plots.training_curves([{"step": 1, "loss": 2.0, "learning_rate": 1e-4}])
    assert [len(panel.lines[0].get_xdata()) for panel in panels] == [1, 0, 1]


def test_training_curves_draw_on_given_axes() -> None:
    _, given = plt.subplots(1, 3)
    panels = plots.training_curves(LOG, axes=given)
    assert all(panel is axes for panel, axes in zip(panels, given, strict=True))
    assert len(plt.get_fignums()) == 1


def test_training_curves_before_training_are_refused() -> None:
    with pytest.raises(FtlibError, match="Found no loss in 1 log entries"):
        plots.training_curves([{"step": 1, "train_loss": 1.0}])


def test_agreement_before_and_after_stand_side_by_side() -> None:
    ax = plots.agreement(BEFORE, AFTER)
    assert heights(ax, 0) == [100, 0, 5, 0, 0]
    assert heights(ax, 1) == [100, 100, 90, 100, 100]
    assert tick_labels(ax, "x") == [f"{language}\nn = 20" for language in LANGUAGES]
    assert [text for text in texts(ax) if text in ("5%", "90%")] == ["5%", "90%"]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["before", "after"]
    assert set(colours(ax, 0)) == {plots.BEFORE}
    assert set(colours(ax, 1)) == {plots.AFTER}
    centres = [
        (one.get_x() + two.get_x() + two.get_width()) / 2 for one, two in zip(bars(ax), bars(ax, 1), strict=True)
    ]
    assert centres == pytest.approx(range(5))
    right_edges = [bar.get_x() + bar.get_width() for bar in bars(ax, 0)]
    assert all(edge <= bar.get_x() for edge, bar in zip(right_edges, bars(ax, 1), strict=True))


def intervals(ax: Axes, number: int = 0) -> list[list[float]]:
    """Where each bar's interval begins and ends."""
    assert bars(ax, number).errorbar is not None
    (lines,) = bars(ax, number).errorbar.lines[2]  # type: ignore[union-attr]
    return [[float(end) for end in segment[:, 1]] for segment in lines.get_segments()]


@pytest.mark.parametrize(("number", "table"), [(0, BEFORE), (1, AFTER)], ids=["before", "after"])
def test_each_agreement_has_its_interval(number: int, table: pd.DataFrame) -> None:
    ax = plots.agreement(BEFORE, AFTER)
    assert np.allclose(intervals(ax, number), 100 * table[["low", "high"]].to_numpy())


def test_labels_stand_clear_of_the_intervals() -> None:
    ax = plots.agreement(BEFORE, AFTER)
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    tops = [high for _, high in intervals(ax, 0) + intervals(ax, 1)]
    labels = [text.get_window_extent().y0 for text in ax.texts if text.get_text()]
    assert len(labels) == len(tops) == 10
    assert all(label >= ax.transData.transform((0, top))[1] for label, top in zip(labels, tops, strict=True))


def test_no_two_labels_touch_however_many_languages() -> None:
    many = shares({f"Language {letter}": 20 for letter in "ABCDEFGHIJKL"})
    for table in (AFTER, many):
        ax = plots.agreement(table, table)
        ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
        for labels in ([text for text in ax.texts if text.get_text()], ax.get_xticklabels()):
            places = sorted((label.get_window_extent() for label in labels), key=lambda extent: extent.x0)
            assert all(one.x1 < two.x0 for one, two in pairwise(places))


def test_the_legend_hides_no_bar() -> None:
    ax = plots.agreement(AFTER, AFTER)
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 < ax.get_window_extent().y0


def test_agreement_is_always_drawn_from_0_to_100_percent() -> None:
    ax = plots.agreement(shares({"French": 1}, n=10))
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] >= 100
    ruled = [np.asarray(line.get_ydata()).tolist() for line in ax.lines]
    assert [ends for ends in ruled if len(ends) == 2] == [[0, 0], [100, 100]]
    assert list(ax.get_yticks()) == [0, 25, 50, 75, 100]


def test_agreement_without_an_after_is_the_baseline_alone() -> None:
    ax = plots.agreement(BEFORE)
    assert sum(isinstance(container, BarContainer) for container in ax.containers) == 1
    assert ax.get_legend() is None
    centres = [bar.get_x() + bar.get_width() / 2 for bar in bars(ax)]
    assert centres == pytest.approx(range(5))


def test_agreement_reads_a_record_in_any_order() -> None:
    """As JSON gives it back: a list of dicts, with None for what was not measured."""
    unknown = {"language": "Klingon", "questions": 3, "agreement": None, "low": None, "high": None}
    record = [unknown, *BEFORE[::-1].to_dict("records")]
    ax = plots.agreement(pd.DataFrame(json.loads(json.dumps(record))), AFTER)
    assert heights(ax, 0) == [100, 0, 5, 0, 0]
    assert heights(ax, 1) == [100, 100, 90, 100, 100]
    assert tick_labels(ax, "x")[0] == "English\nn = 20"


@pytest.mark.parametrize("rows", [[], [{"language": "Klingon", "questions": 3, "agreement": None}]])
@pytest.mark.parametrize("twice", [True, False])
def test_agreement_of_no_language_says_so(rows: list[dict[str, Any]], twice: bool) -> None:
    table = pd.DataFrame(rows)
    ax = plots.agreement(table, table if twice else None)
    assert texts(ax) == ["no row asks for a reasoning language\nthat can be identified"]
    assert not ax.containers
    assert ax.get_legend() is None
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    note = ax.texts[0].get_window_extent()
    assert ax.get_window_extent().x0 < note.x0 < note.x1 < ax.get_window_extent().x1


@pytest.mark.parametrize("after", [shares({"French": 20}), AFTER[:4], AFTER[:0]], ids=["other", "fewer", "none"])
def test_agreement_of_other_languages_is_refused(after: pd.DataFrame) -> None:
    with pytest.raises(FtlibError, match="in `after`; expected English, Spanish, French, Italian, German"):
        plots.agreement(BEFORE, after)


def test_sizes_are_drawn_to_scale() -> None:
    ax = plots.adapter_size(13_800_000_000, 60_200_000)
    assert ax.get_xscale() == "linear"
    assert widths(ax) == [13_800_000_000, 60_200_000]
    assert texts(ax) == ["13.8 GB", "60.2 MB (0.436% of the base)"]
    assert tick_labels(ax, "y") == ["base model", "adapter"]
    assert colours(ax) == [plots.BEFORE, plots.AFTER]


def test_a_small_models_sizes_have_small_units() -> None:
    ax = plots.adapter_size(1_000_000, 250)
    assert texts(ax) == ["1 MB", "250 B (0.025% of the base)"]
    assert np.isclose(ax.get_xlim()[0], 0)


def test_memory_adds_up_from_left_to_right() -> None:
    ax = plots.memory(MEMORY, 50e9)
    assert [bar.get_x() for bar in bars(ax)] == [0, 40e9, 41e9]
    assert widths(ax) == [40e9, 1e9, 15e9]
    assert tick_labels(ax, "y") == list(MEMORY)
    assert [bool(bar.get_hatch()) for bar in bars(ax)] == [False, False, True], "what does not fit is hatched"
    assert [line.get_xdata()[0] for line in ax.lines] == [50e9]
    assert ax.get_title() == "Will it fit? 56 GB of 50 GB at its most"


def test_memory_that_is_far_from_full_is_drawn_large() -> None:
    ax = plots.memory(MEMORY, 1e12)
    assert not ax.lines
    assert ax.get_xlim()[1] < 100e9
