"""What each plot draws, read back from its axes."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from ftlib.display import plots
from ftlib.errors import FtlibError
from ftlib.model.evaluation import wilson_interval

matplotlib.use("Agg")

LANGUAGES = ["English", "Spanish", "French", "Italian", "German"]


def shares(agreeing: dict[str, int], n: int = 20) -> pd.DataFrame:
    """A table as `evaluation.by_language` gives it."""
    rows = [(name, n, count / n, *wilson_interval(count, n)) for name, count in agreeing.items()]
    return pd.DataFrame(rows, columns=["language", "questions", "agreement", "low", "high"])


BEFORE = shares(dict(zip(LANGUAGES, [20, 0, 1, 0, 0], strict=True)))
AFTER = shares(dict(zip(LANGUAGES, [20, 20, 18, 20, 20], strict=True)))
COSTS = pd.DataFrame(
    [("Czech", 40, 100), ("", 50, 100), *[("English", tokens, 100) for tokens in (30, 38, 900)], ("German", 0, 0)],
    columns=["language", "reasoning_tokens", "reasoning_characters"],
)
BLOCKS = pd.DataFrame({"block": ["router", "experts", "attention"], "parameters": [2e6, 19e9, 998e6]})


def costs(names: Iterable[str]) -> pd.DataFrame:
    return pd.DataFrame([(name, 40, 100) for name in names], columns=COSTS.columns)


LOG: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "mean_token_accuracy": 0.5, "learning_rate": 1e-4},
    {"step": 2, "loss": 1.5, "learning_rate": 2e-4},
    {"step": 2, "eval_loss": 1.4},
    {"step": 3, "train_loss": 1.6, "train_runtime": 9.0},
]
MEMORY = {"base weights": 40e9, "adapter": 1e9, "activations": 15e9}
ODD = ["US$ $x_", r"\frac{1}$", "日本語", "العربية", "a" * 300, "a" * 299, "x\ny\tz", "<b>"]
EVERY_PLOT: dict[str, Callable[[], Axes]] = {
    "notebook_map": plots.notebook_map,
    "lora_diagram": lambda: plots.lora_diagram(8, 16, 2880),
    "token_lengths": lambda: plots.token_lengths([*range(100, 1100), 25_000], 1000),
    "tokens_per_character": lambda: plots.tokens_per_character(COSTS),
    "parameter_blocks": lambda: plots.parameter_blocks(BLOCKS),
    "agreement": lambda: plots.agreement(BEFORE, AFTER),
    "agreement of many": lambda: plots.agreement(shares({f"Language {letter}": 20 for letter in "ABCDEFGHIJKL"})),
    "agreement of odd names": lambda: plots.agreement(shares(dict.fromkeys(ODD, 20))),
    "agreement of sixty": lambda: plots.agreement(shares({f"L{number}": 20 for number in range(60)})),
    "costs of odd names": lambda: plots.tokens_per_character(costs(ODD)),
    "costs of sixty": lambda: plots.tokens_per_character(costs(f"L{number}" for number in range(60))),
    "agreement of none": lambda: plots.agreement(pd.DataFrame([])),
    "adapter_size": lambda: plots.adapter_size(13_800_000_000, 60_000_000),
    "memory": lambda: plots.memory(MEMORY, 80e9),
}


@pytest.fixture(autouse=True)
def no_figure_is_left_open() -> Iterator[None]:
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


def tick_labels(ax: Axes, axis: str) -> list[str]:
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


@pytest.mark.filterwarnings("error")  # as for a glyph that no font has
@pytest.mark.parametrize("name", EVERY_PLOT)
def test_no_text_is_cut_off_overlaps_or_is_too_small(name: str) -> None:
    ax = EVERY_PLOT[name]()
    figure = ax.get_figure(root=True)
    assert figure is not None
    assert to_hex(figure.get_facecolor()) == "#ffffff", "dark ink needs it in a dark theme"
    figure.draw_without_rendering()
    written = [text for text in (*ax.texts, ax.title) if text.get_text()]
    boxes = [text.get_window_extent() for text in written]
    page = figure.bbox.padded(1)
    for number, box in enumerate(boxes):
        shown = written[number].get_text()
        assert page.containsx(box.x0), f"{shown!r} is cut off"
        assert page.containsx(box.x1), f"{shown!r} is cut off"
        assert page.containsy(box.y1), f"{shown!r} is cut off"
        assert float(written[number].get_fontsize()) >= 9
        overlapping = [written[i].get_text() for i in range(number) if boxes[i].overlaps(box)]
        assert not overlapping, f"{shown!r} overlaps {overlapping}"


def test_the_lora_picture_carries_its_numbers() -> None:
    ax = plots.lora_diagram(r=4, alpha=6, hidden=128)
    assert ax.get_title() == "A rank of 4 trains 1,024 numbers beside 16,384 frozen ones (6.25%)"
    numbers = {"× α / r\n6 / 4 = 1.5", "4 × 128\nstarts random", "128 × 4\nstarts at zero", "W\nfrozen\n128 × 128"}
    assert numbers < set(texts(ax))


def test_lengths_are_cut_at_max_length_and_an_enormous_one_squeezes_none() -> None:
    ax = plots.token_lengths([*range(100, 1099), 25_000, 26_000], max_length=1000)
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == [1000, 1000]
    assert ax.get_title() == "9.99% of 1,001 conversations are longer than 1,000 tokens"
    assert ax.get_xlim()[1] < 1700
    assert ax.get_xlabel() == "tokens in a conversation (in the last bar: 2 longer than 1,575)"
    assert heights(ax)[-1] == 2
    assert sum(heights(ax)) == 1001, "nothing is left out"
    assert plots.token_lengths([50, 260], 1500).get_xlim()[1] > 1500, "the line stays in view"


def test_a_characters_cost_is_the_median_of_the_rows_that_reason() -> None:
    ax = plots.tokens_per_character(COSTS)
    assert tick_labels(ax, "y") == ["English", "Czech", "not named"]
    assert widths(ax) == [0.38, 0.4, 0.5]
    assert texts(ax) == ["0.38", "0.40", "0.50"]
    assert ax.yaxis_inverted()
    assert to_hex(bars(ax)[0].get_facecolor()).upper() == plots.LANGUAGE_COLOURS["English"]
    assert texts(plots.tokens_per_character(COSTS[-1:])) == ["no row has reasoning"]


def test_blocks_are_sorted_and_shares_are_never_shown_as_zero() -> None:
    ax = plots.parameter_blocks(BLOCKS)
    assert tick_labels(ax, "y") == ["experts", "attention", "router"]
    assert widths(ax) == [19e9, 998e6, 2e6]
    assert texts(ax) == ["19 B (95%)", "998 M (4.99%)", "2 M (0.01%)"]
    assert "5 B" in tick_labels(ax, "x")


def test_training_curves_leave_out_what_is_no_step() -> None:
    loss, accuracy, rate = plots.training_curves(LOG)
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.5]]
    assert accuracy.lines[0].get_ydata()[0] == 0.5
    assert rate.lines[0].get_xydata().tolist() == [[1, 1e-4], [2, 2e-4]]
    with pytest.raises(FtlibError, match="found no loss in 1 log entries"):
        plots.training_curves(LOG[-1:])


def test_agreement_before_and_after_stand_side_by_side_with_intervals() -> None:
    """Read from a record: a list of dicts in any order, with None for what was not measured."""
    unknown = {"language": "Klingon", "questions": 3, "agreement": None, "low": None, "high": None}
    record = json.loads(json.dumps([unknown, *BEFORE[::-1].to_dict("records")]))
    ax = plots.agreement(pd.DataFrame(record), AFTER)
    assert heights(ax, 0) == [100, 0, 5, 0, 0]
    assert heights(ax, 1) == [100, 100, 90, 100, 100]
    assert tick_labels(ax, "x") == [f"{language}\nn = 20" for language in LANGUAGES]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]  # type: ignore[union-attr]
    for number, table in enumerate((BEFORE, AFTER)):
        (lines,) = bars(ax, number).errorbar.lines[2]  # type: ignore[union-attr]
        ends = [segment[:, 1] for segment in lines.get_segments()]
        assert np.allclose(ends, 100 * table[["low", "high"]].to_numpy())
    edges = [
        (bar.get_x(), bar.get_x() + bar.get_width()) for pair in zip(bars(ax), bars(ax, 1), strict=True) for bar in pair
    ]
    assert all(one[1] <= two[0] for one, two in pairwise(edges))
    assert ax.get_ylim()[0] == 0
    assert list(ax.get_yticks()) == [0, 25, 50, 75, 100], "always drawn from 0 to 100%"


def test_agreement_of_no_language_says_so_and_of_other_languages_is_refused() -> None:
    alone = plots.agreement(BEFORE)
    assert alone.get_legend() is None
    unmeasured = pd.DataFrame([{"language": "Klingon", "questions": 3, "agreement": None}])
    for table in (unmeasured, pd.DataFrame([])):
        assert texts(plots.agreement(table, table)) == ["no reasoning language was measured"]
    for after in (AFTER[:4], AFTER[:0]):
        with pytest.raises(FtlibError, match=r"in `after` and .*'German'.* in `before`"):
            plots.agreement(BEFORE, after)


def test_sizes_are_drawn_to_scale() -> None:
    ax = plots.adapter_size(13_800_000_000, 60_200_000)
    assert ax.get_xscale() == "linear"
    assert widths(ax) == [13_800_000_000, 60_200_000]
    assert texts(ax) == ["13.8 GB", "60.2 MB (0.436% of the base)"]


def test_memory_adds_up_beside_the_capacity() -> None:
    ax = plots.memory(MEMORY, 50e9)
    assert [bar.get_x() for bar in bars(ax)] == [0, 40e9, 41e9]
    assert widths(ax) == [40e9, 1e9, 15e9]
    assert [line.get_xdata()[0] for line in ax.lines] == [50e9]
    assert ax.get_title() == "Will it fit? 56 GB of 50 GB at its most"


@pytest.mark.parametrize("draw", ["agreement", "costs"])
def test_any_name_is_drawn_whole_or_shortened_and_never_as_a_formula(draw: str) -> None:
    ax = EVERY_PLOT[f"{draw} of odd names"]()
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    labels = ax.get_xticklabels() if draw == "agreement" else ax.get_yticklabels()
    assert len(labels) == len(ODD), "also where two are cut to the same"
    names = [label.get_text().split("\nn =")[0] for label in labels]
    assert {r"US\$ \$x_", r"x\ny\tz", "<b>", "العربية"} < set(names)
    assert not [label for label in labels if label._preprocess_math(label.get_text())[1] is True]  # type: ignore[attr-defined]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: (box.x0, box.y0))
    assert not any(one.overlaps(two) for one, two in pairwise(boxes))
    assert figure.bbox.padded(1).containsx(boxes[0].x0), "nothing is cut off"


def test_of_sixty_languages_the_twelve_most_asked_are_drawn() -> None:
    table = shares({f"L{number}": 20 for number in range(60)})
    table["questions"] = range(60)
    ax = plots.agreement(table, table)
    assert tick_labels(ax, "x") == [f"L{number}\nn = {number}" for number in range(48, 60)]
    assert ax.get_xlabel() == "the 12 of 60 languages with the most questions"
    assert "12 of 60 languages" in EVERY_PLOT["costs of sixty"]().get_xlabel()


def test_a_wrong_argument_is_told_in_one_line() -> None:
    with pytest.raises(
        FtlibError, match=r"^agreement cannot use what it was given \(.*\); expected agreement\(before: pa"
    ):
        plots.agreement([1])  # type: ignore[arg-type]
