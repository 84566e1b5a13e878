"""The benchmark: every recipe trains the same thing, one that does not is refused, and what is told was timed."""

import contextlib
import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers import HANGING_S, ROOT
from rich.console import Console
from transformers import GptOssConfig, PreTrainedTokenizerFast
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.machine import doctor
from ftlib.model import packing
from ftlib.profiles import Profile
from ftlib.runner import bench
from ftlib.session import device

PADDING_FREE = {("recipe", "padding_free"): True}
LEVERS = [
    {("model", "experts_implementation"): "grouped_mm"},
    {("train", "per_device_train_batch_size"): 16},
    {("train", "activation_checkpointing"): False},
    PADDING_FREE,
    {("train", "optim"): "adamw_torch"},
    {
        ("recipe", "padding_free"): True,
        ("train", "per_device_train_batch_size"): 16,
        ("model", "experts_implementation"): "grouped_mm",
    },
]
GIGABYTE = 10**9


def each_lever(*, fast: list[dict[tuple[str, str], Any]]) -> pytest.MarkDecorator:
    """Those that are not fast are slow; the shipped recipes pull most of them, and are always tested."""
    cases = [
        pytest.param(
            levers,
            id=", ".join(f"{key}={value}" for (_, key), value in levers.items()),
            marks=() if levers in fast else pytest.mark.slow,
        )
        for levers in LEVERS
    ]
    return pytest.mark.parametrize("levers", cases)


@pytest.fixture(scope="module")
def seed_recipe() -> Profile:
    """The seed's recipe on the tiny model."""
    return bench.recipes("tiny")[bench.REFERENCE]


@pytest.fixture(autouse=True, scope="module")
def in_the_project() -> Iterator[None]:
    with contextlib.chdir(ROOT):
        yield


@pytest.fixture(scope="module")
def config(seed_recipe: Profile) -> GptOssConfig:
    return bench.shape_of(seed_recipe)


@pytest.fixture(scope="module")
def rows(seed_recipe: Profile) -> Dataset:
    return bench.rows_of(seed_recipe)


Check = Callable[[dict[tuple[str, str], Any]], bench.Measured]


@pytest.fixture(scope="module")
def in_float32(seed_recipe: Profile, config: GptOssConfig, rows: Dataset) -> Check:
    """The seed's recipe with some levers changed, in float32, on weights that show the slightest difference."""

    def check(levers: dict[tuple[str, str], Any]) -> bench.Measured:
        return bench.check(bench.changed(seed_recipe, bench.IN_FLOAT32 | levers), bench.sensitive(config), rows)

    return check


@pytest.fixture(scope="module")
def exact(in_float32: Check) -> bench.Measured:
    """What the seed's recipe computes in float32."""
    return in_float32({})


@pytest.fixture(scope="module")
def coarse(seed_recipe: Profile, config: GptOssConfig, rows: Dataset) -> bench.Measured:
    """What the seed's recipe computes as it is, in bfloat16."""
    return bench.check(seed_recipe, config, rows)


# Each trains the same thing


@each_lever(fast=[PADDING_FREE])
def test_a_lever_changes_neither_loss_nor_gradient(
    levers: dict[tuple[str, str], Any], in_float32: Check, exact: bench.Measured
) -> None:
    found = in_float32(levers)
    assert found.loss == pytest.approx(exact.loss, rel=1e-4)
    assert found.grad_norm == pytest.approx(exact.grad_norm, rel=1e-4)


@each_lever(fast=[])
def test_nor_does_it_in_bfloat16(
    levers: dict[tuple[str, str], Any],
    seed_recipe: Profile,
    config: GptOssConfig,
    rows: Dataset,
    coarse: bench.Measured,
) -> None:
    found = bench.check(bench.changed(seed_recipe, levers), config, rows)
    assert found.loss == pytest.approx(coarse.loss, rel=2e-2)
    assert found.grad_norm == pytest.approx(coarse.grad_norm, rel=2e-2)


@pytest.mark.slow
def test_batched_experts_too(in_float32: Check, exact: bench.Measured) -> None:
    """Only in float32: on a CPU they are slow."""
    found = in_float32({("model", "experts_implementation"): "batched_mm"})
    assert (found.loss, found.grad_norm) == pytest.approx((exact.loss, exact.grad_norm), rel=1e-4)


@pytest.mark.parametrize("name", [pytest.param("tiny", marks=pytest.mark.slow), "tiny-fast"])
def test_the_shipped_recipes_train_what_the_seeds_trains(
    name: str, config: GptOssConfig, rows: Dataset, exact: bench.Measured, coarse: bench.Measured
) -> None:
    recipe = profiles.load(name)
    bench.refuse_another_training(name, bench.check(recipe, bench.sensitive(config), rows), exact, 1e-4)
    bench.refuse_another_training(name, bench.check(recipe, config, rows), coarse, 2e-2)


def test_without_the_guard_rows_that_see_one_another_are_refused(
    in_float32: Check, exact: bench.Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid end to end as TRL lays them: faster with flex attention, and another training."""
    monkeypatch.setattr(packing, "isolate_rows", lambda model: None)
    leaking = in_float32(PADDING_FREE)
    with pytest.raises(FtlibError, match=r"^leaking trains something else: its (loss|grad_norm) is .*, expected .*"):
        bench.refuse_another_training("leaking", leaking, exact, 1e-4)
    assert abs(leaking.grad_norm / exact.grad_norm - 1) > 0.1


def test_another_training_is_not_even_timed(monkeypatch: pytest.MonkeyPatch, exact: bench.Measured) -> None:
    answers = iter([exact, exact, replace(exact, loss=1.001 * exact.loss)])
    monkeypatch.setattr(bench, "check", lambda *_: next(answers))
    monkeypatch.setattr(bench, "_time", lambda *_: pytest.fail("timed"))
    with pytest.raises(FtlibError, match=r"^tiny trains something else: its loss is .*; change its levers one by one"):
        bench.run("tiny", False, 1, 1, Console(quiet=True))


def test_what_is_recomputed_need_not_be_held(
    seed_recipe: Profile, config: GptOssConfig, rows: Dataset, coarse: bench.Measured
) -> None:
    kept = bench.changed(seed_recipe, {("train", "activation_checkpointing"): False})
    assert coarse.peak_bytes < 0.8 * bench.check(kept, config, rows).peak_bytes


# What is compared


def test_the_reference_is_the_seeds_recipe_on_the_profiles_model(seed_recipe: Profile) -> None:
    seed, tiny = profiles.load("gpt-oss-20b"), profiles.load("tiny")
    model = seed_recipe.model
    assert (model.dtype, model.attn_implementation, model.experts_implementation) == ("bfloat16", "eager", "eager")
    assert (seed_recipe.train.per_device_train_batch_size, seed_recipe.train.activation_checkpointing) == (4, True)
    assert seed_recipe.train.bf16
    assert seed_recipe.recipe.effective_batch_size == seed.recipe.effective_batch_size == 16
    assert (seed_recipe.hub, seed_recipe.data, seed_recipe.train.use_cpu) == (tiny.hub, tiny.data, True)


def test_each_model_has_its_recipes() -> None:
    assert list(bench.recipes("tiny")) == ["seed recipe", "tiny", "tiny-fast"]
    assert list(bench.recipes("gpt-oss-20b")) == ["seed recipe", "gpt-oss-20b-fast"]
    assert list(bench.recipes("gpt-oss-20b", one_by_one=True))[2:] == [
        "attention = flex_attention",
        "experts = grouped_mm",
        "padding_free = True",
    ]


def test_a_persons_own_recipe_is_compared_too(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('extends = "tiny"\n[train]\nper_device_train_batch_size = 2\n')
    assert list(bench.recipes(str(own))) == ["seed recipe", "mine"]


def test_an_update_of_another_size_is_divided_otherwise(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('extends = "tiny"\n[recipe]\neffective_batch_size = 6\n[train]\nper_device_train_batch_size = 3\n')
    assert bench.recipes(str(own))[bench.REFERENCE].train.per_device_train_batch_size == 2


def test_large_rows_are_as_long_as_the_seeds_with_their_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """The blog post trained on 1,633,980 padded tokens, 1,634 a row, in batches of four."""
    large = profiles.load("gpt-oss-20b")
    rows = bench.rows_of(large).shuffle(seed=0)["messages"][:]
    lengths = [min(len(tokenizer.apply_chat_template(row)["input_ids"]), large.train.max_length) for row in rows]
    longest = [max(lengths[place : place + 4]) for place in range(0, len(lengths), 4)]
    assert statistics.mean(longest) == pytest.approx(1634, rel=0.05)


def test_a_model_is_cut_to_the_layers_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    large = bench.recipes("gpt-oss-20b")[bench.REFERENCE]
    monkeypatch.setattr(doctor, "check_compute", lambda profile: None)
    layers = {}
    for memory in (24, 80):
        monkeypatch.setattr(device, "memory_bytes", lambda use_cpu, memory=memory: memory * GIGABYTE)
        config = bench.fitting(bench.shape_of(large), large)
        layers[memory] = config.num_hidden_layers
        assert len(config.layer_types) == config.num_hidden_layers
    assert layers == {24: 7, 80: 24}
    monkeypatch.setattr(device, "memory_bytes", lambda use_cpu: GIGABYTE)
    with pytest.raises(FtlibError, match="needs more than the 1 GB here for a single layer; try --profile tiny"):
        bench.fitting(bench.shape_of(large), large)


def test_without_a_gpu_the_large_model_is_not_even_tried() -> None:
    with pytest.raises(FtlibError, match=r"^profile gpt-oss-20b computes on a GPU: found no GPU"):
        bench.run("gpt-oss-20b", False, 1, 1, Console(quiet=True))


# What is told


def test_padding_is_told_from_tokens() -> None:
    counts = bench.Measured(0, 0, 0, 0).counts
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [5]}]
    for padding_free in (False, True):
        bench.counting(DataCollatorForLanguageModeling(0, padding_free), counts)(rows)
    assert counts == {"rows": 4, "real": 8, "padded": 10}


def test_what_was_timed_is_told(coarse: bench.Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks of the three recipes, which are tested above, and with small matrices for the peak."""
    monkeypatch.setattr(bench, "MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(bench, "_import_seconds", lambda: 1.0)
    monkeypatch.setattr(bench, "check", lambda *_: copy.deepcopy(coarse))
    result = bench.run("tiny", False, 1, 2, Console(quiet=True))
    console = Console(width=120)
    with console.capture() as printed:
        console.print(*bench.tables(result), bench.summary(result))
    bench.write(result, tmp_path / "tiny")
    check_what_is_told(printed.get(), tmp_path)


@pytest.mark.slow
def test_one_command_tells_it_all(tmp_path: Path) -> None:
    arguments = ["bench", "--rounds", "1", "--updates", "2", "--output-root", str(tmp_path)]
    printed = subprocess.run(
        [sys.executable, "-m", "ftlib.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANGING_S
    )
    assert printed.returncode == 0, printed.stderr
    check_what_is_told(printed.stdout, tmp_path)


def check_what_is_told(printed: str, output_root: Path) -> None:
    for name in ("seed recipe", "tiny", "tiny-fast", "rows/s", "GB", "of peak", "2 timed updates"):
        assert name in printed
    measured = json.loads((output_root / "tiny/bench.json").read_text())
    assert (output_root / "tiny/bench.png").stat().st_size > 10_000
    rows = {row["recipe"]: row for row in measured["recipes"]}
    for row in rows.values():
        assert len(row["update_s"]) == 2
        assert row["slowest"] <= row["samples_per_second"] <= row["fastest"]
        assert row["samples_per_second"] == pytest.approx(16 / statistics.median(row["update_s"]))
        assert row["share_of_peak"] > 0
        assert 1 <= row["expert_load"] <= 2, "two of four experts are active, so none has more than twice its share"
    padding = {name: row["padded_tokens_per_second"] / row["real_tokens_per_second"] for name, row in rows.items()}
    assert 1 < padding["tiny-fast"] < padding["tiny"]
    assert measured["flops_per_token"] == 4 * 722_944
