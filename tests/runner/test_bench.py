"""The benchmark: every recipe trains the same thing, one that does not is refused, and the speeds are those timed."""

import contextlib
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from helpers import ROOT
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import packing
from ftlib.profiles import Profile
from ftlib.runner import bench

PADDING_FREE = {("recipe", "padding_free"): True}


@pytest.fixture(scope="module")
def reference() -> Iterator[Profile]:
    """The blog post's recipe on the tiny model."""
    with contextlib.chdir(ROOT):
        yield bench.recipes("tiny")[bench.REFERENCE]


@pytest.fixture(scope="module")
def rows(reference: Profile) -> Dataset:
    return bench.rows_of(reference).select(range(16))


def in_float32(recipe: Profile, rows: Dataset) -> bench.Measured:
    config = bench.sensitive(bench.config_of(recipe))
    return bench.check(bench.changed(recipe, bench.IN_FLOAT32), config, rows)


@pytest.fixture(scope="module")
def exact(reference: Profile, rows: Dataset) -> bench.Measured:
    return in_float32(reference, rows)


def test_each_model_has_its_recipes(reference: Profile, tmp_path: Path) -> None:
    assert list(bench.recipes("tiny")) == ["blog post's recipe", "tiny", "tiny-fast"]
    assert list(bench.recipes("gpt-oss-20b")) == ["blog post's recipe", "gpt-oss-20b-fast"]
    own = tmp_path / "mine.toml"
    own.write_text('extends = "tiny"\n[recipe]\neffective_batch_size = 6\n[train]\nper_device_train_batch_size = 3\n')
    found = bench.recipes(str(own))
    assert list(found) == ["blog post's recipe", "mine"]
    assert found[bench.REFERENCE].train.per_device_train_batch_size == 2, "four rows at once do not divide six"
    assert reference.hub == profiles.load("tiny").hub
    assert bench._levers(reference) == bench._levers(profiles.load("gpt-oss-20b"))


def test_the_shipped_recipes_train_what_the_blog_posts_trains(
    reference: Profile, rows: Dataset, exact: bench.Measured
) -> None:
    for recipe in (profiles.load("tiny-fast"), bench.changed(reference, PADDING_FREE)):
        found = in_float32(recipe, rows)
        bench.refuse_another_training(recipe.name, found, exact, 1e-4)


def test_without_their_guard_rows_that_see_one_another_are_refused(
    reference: Profile, rows: Dataset, exact: bench.Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid end to end as TRL lays them: faster with flex attention, and another training."""
    monkeypatch.setattr(packing, "isolate_rows", lambda model: None)
    leaking = in_float32(bench.changed(reference, PADDING_FREE), rows)
    with pytest.raises(FtlibError, match=r"^leaking trains something else: its (loss|grad_norm) is .*, expected .*"):
        bench.refuse_another_training("leaking", leaking, exact, 1e-4)


def test_recomputed_activations_need_less_memory(reference: Profile, rows: Dataset) -> None:
    config = bench.config_of(reference)
    kept = bench.changed(reference, {("train", "activation_checkpointing"): False})
    assert bench.check(reference, config, rows).peak_bytes < 0.8 * bench.check(kept, config, rows).peak_bytes


def test_another_training_is_not_even_timed(monkeypatch: pytest.MonkeyPatch, exact: bench.Measured) -> None:
    answers = iter([exact, replace(exact, loss=1.001 * exact.loss)])
    monkeypatch.setattr(bench, "check", lambda *_: next(answers))
    monkeypatch.setattr(bench, "_time", lambda *_: pytest.fail("timed"))
    with pytest.raises(FtlibError, match=r"^tiny trains something else: its loss is .*; change one value"):
        bench.run("tiny", 1, 1, Console(quiet=True))


def test_large_rows_are_as_long_as_the_blog_posts_with_their_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """It trained on 1,633,980 padded tokens, 1,634 for each row, in batches of four."""
    large = profiles.load("gpt-oss-20b")
    rows = bench.rows_of(large).shuffle(seed=0)["messages"][:]
    lengths = [min(len(tokenizer.apply_chat_template(row)["input_ids"]), large.train.max_length) for row in rows]
    longest = [max(lengths[place : place + 4]) for place in range(0, len(lengths), 4)]
    assert statistics.mean(longest) == pytest.approx(1634, rel=0.05)


def test_the_ratio_is_that_of_the_median_updates(
    reference: Profile, rows: Dataset, exact: bench.Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(bench._time(reference, bench.config_of(reference), rows, updates=2)) == 2
    turns = iter([[4.0, 4.0], [1.0, 2.0], [1.0, 1.0], [1.0, 1.0], [9.0, 2.0], [4.0, 4.0]])  # forth, and back
    monkeypatch.setattr(bench, "check", lambda *_: replace(exact, update_s=[]))
    monkeypatch.setattr(bench, "_time", lambda *_: next(turns))
    result = json.loads(json.dumps(bench.run("tiny", 2, 2, Console(quiet=True))))
    told = [(row["recipe"], row["times_as_fast"], row["slowest"]) for row in result["recipes"]]
    assert told == [("blog post's recipe", 1, 4), ("tiny", 2, 16 / 9), ("tiny-fast", 4, 16)]
    console = Console(width=120)
    with console.capture() as printed:
        console.print(bench.table(result))
    assert re.search(r"medians of 4 updates.*tiny-fast +16\.0 +16\.0 to 16\.0 +4\.00 ", printed.get(), re.DOTALL)
