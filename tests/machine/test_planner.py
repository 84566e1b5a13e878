"""The plan against what is known: the published run's numbers, and measured peaks of the tiny model."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import ROOT
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from ftlib import profiles
from ftlib.cli import app
from ftlib.dataset.prepare import token_lengths
from ftlib.errors import FtlibError
from ftlib.machine import planner, skus
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.session import device

PUBLISHED_MACHINE = "Standard_NC96ads_A100_v4"
SMALL_CARD = "Standard_NV36ads_A10_v5"


@pytest.fixture(scope="module")
def large() -> Profile:
    return profiles.load("gpt-oss-20b")


@pytest.fixture(scope="module")
def published(large: Profile) -> planner.Plan:
    return on_sku(large, PUBLISHED_MACHINE)


def on_sku(profile: Profile, sku: str, nproc: int | None = None) -> planner.Plan:
    return planner.plan(profile, planner.rented(skus.get(sku), profile), nproc)


def changed(profile: Profile, section: str, **values: Any) -> Profile:
    return profile.model_copy(update={section: getattr(profile, section).model_copy(update=values)})


def test_published_run_is_counted_as_it_was_and_fits(published: planner.Plan) -> None:
    assert (published.steps, published.tokens, published.nproc) == (63, 1_633_980, 4)
    assert published.seconds["training"][1] * published.nproc == pytest.approx(1703, rel=0.02), "one GPU at a time"
    assert published.fits
    assert 50e9 < published.peak < 60e9
    verdict, *_, cost = planner.explain(published, price=15.0)
    assert verdict.startswith("fits: it takes")
    assert "base weights (41.8 GB)" in verdict
    assert "activations are recomputed" in verdict
    low, high = published.total
    assert cost == f"notebooks 1 to 5 cost {low / 240:.2f} to {high / 240:.2f} at 15 an hour"


def test_what_exporting_takes_is_told(published: planner.Plan) -> None:
    (told,) = [line for line in planner.explain(published) if "exporting" in line]
    assert told.startswith("it downloads and writes 15.4 GB; exporting in notebook 6 writes 147.2 GB more, and loads")
    assert "the model once more, on the CPU (41.8 GB)" in told
    assert "packing 3 layers' experts takes 4.0 to 15 minutes on a CPU" in told
    tiny = profiles.load("tiny")
    assert not any("packing" in line for line in planner.explain(planner.plan(tiny, planner.this_machine(tiny, 0))))


def test_the_readme_asks_for_what_is_planned(published: planner.Plan, large: Profile) -> None:
    shape = architecture.shape_of(large.hub)
    on_disk = architecture.bytes_on_disk(shape) + planner.bytes_to_write(large, shape)
    planned = {
        r"training is planned to take (\d+) GB": published.peak,
        r"(\d+) GB of free disk": on_disk,
        r"notebook 6 writes (\d+) GB more": planner.export_bytes(large, shape),
    }
    readme = (ROOT / "README.md").read_text()
    for text, size in planned.items():
        (told,) = re.findall(text, readme)
        assert abs(int(told) - size / 1e9) < 1, text


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (8, 4)])
def test_processes_share_an_updates_rows_evenly(large: Profile, gpus: int, processes: int) -> None:
    assert planner.processes(large, gpus) == processes
    assert large.accumulation_steps(processes)


def test_what_does_not_fit_is_refused_with_the_reason(large: Profile) -> None:
    refused = {
        "no room for base weights (41.8 GB)": on_sku(large, SMALL_CARD),
        "no room for activations": on_sku(changed(large, "train", activation_checkpointing=False), PUBLISHED_MACHINE),
        "lower measure.batch_size": on_sku(changed(large, "measure", batch_size=1_000), PUBLISHED_MACHINE),
    }
    for reason, found in refused.items():
        assert not found.fits
        (told,) = planner.explain(found, price=3.0)
        assert told.startswith("does not fit")
        assert reason in told


def test_tiny_rows_are_as_many_and_as_long_as_noted(sample: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    profile = profiles.load("tiny")
    tokens = token_lengths(sample, tokenizer)["tokens"].clip(upper=profile.train.max_length)
    batches = [tokens.sample(frac=1, random_state=seed).to_numpy().reshape(-1, 8) for seed in range(20)]
    padded = sum(8 * int(batch.max(axis=1).sum()) for batch in batches) / len(batches)
    found = planner.plan(profile, planner.this_machine(profile, gpus=0))
    assert found.rows == len(tokens)
    assert found.tokens == pytest.approx(padded, rel=0.01)


def test_tiles_of_the_loss_are_trls() -> None:
    assert planner.HEAD_ROWS == chunked_logprob.TOKEN_CHUNK_SIZE
    assert planner.HEAD_COLUMNS == trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE


@pytest.fixture
def build_trainer(
    notebooks: Any, tmp_path: Path, model: GptOssForCausalLM, sample: Dataset, tokenizer: PreTrainedTokenizerFast
) -> Callable[[Profile], SFTTrainer]:
    """Executes notebook 04's cells up to its trainer, for two updates on rows that are cut at the profile's length."""

    def build(profile: Profile) -> SFTTrainer:
        folders = {"adapter_dir": tmp_path / "adapter", "checkpoints_dir": tmp_path / "checkpoints"}
        session = SimpleNamespace(world_size=1, is_main=False, trackers=[], profile=profile, **folders)
        namespace: dict[str, Any] = {"profile": profile, "session": session, "model": model, "tokenizer": tokenizer}
        model.to(getattr(torch, profile.model.dtype))
        model.set_experts_implementation(profile.model.experts_implementation)
        namespace |= {"train_dataset": sample.select(range(32)), "resume": True}
        return notebooks.run("04_train_lora", "trainer", namespace)

    return build


SHORT = "[train]\nmax_length = 64\n"
BF16 = f'[model]\ndtype = "bfloat16"\n{SHORT}bf16 = true\n'
RECOMPUTED = "activation_checkpointing = true\n"
SETTINGS = {
    "as shipped": SHORT,
    "recompute": SHORT + RECOMPUTED,
    "without padding": f"{SHORT}per_device_train_batch_size = 4\n[recipe]\npadding_free = true\n",
    "bfloat16": BF16,
    "expert loop": f'{SHORT}[model]\nexperts_implementation = "eager"\n',
}
FAST = ("recompute", "bfloat16")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SETTINGS]
)
def test_prediction_is_within_15_percent_of_the_measured_peak(
    name: str,
    build_trainer: Callable[[Profile], SFTTrainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In small tiles, or tiny's loss would take more than its layers, and only the loss would be measured."""
    monkeypatch.setattr(planner, "HEAD_COLUMNS", 64)
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 64)
    (tmp_path / "mine.toml").write_text(f'extends = "tiny"\n{SETTINGS[name]}')
    profile = profiles.load(tmp_path / "mine.toml")
    items = planner.memory(profile, architecture.shape_of(profile.hub), on_gpu=False)
    measured = device.peak_above(build_trainer(profile).train, use_cpu=True)
    held_before = ("base weights", "adapter", "Python and libraries")
    predicted = sum(size for name, size in items.items() if name not in held_before)
    assert predicted == pytest.approx(measured, rel=0.15)


def test_training_is_shared_and_the_rest_is_not(large: Profile) -> None:
    alone, together = on_sku(large, "Standard_NC24ads_A100_v4").seconds, on_sku(large, PUBLISHED_MACHINE).seconds
    assert alone["training"] == pytest.approx([4 * end for end in together["training"]])
    assert alone | {"training": together["training"]} == together
    halves = on_sku(changed(large, "measure", batch_size=60), PUBLISHED_MACHINE).seconds
    more = 2048 * 2 * 41.83 / 1935 / planner.RATES["bandwidth_share"][1]  # two rounds more that read all weights
    assert halves["measuring"][0] - together["measuring"][0] == pytest.approx(more, rel=1e-3)


def test_this_machine_is_planned_without_times() -> None:
    profile = profiles.load("tiny")
    found = planner.plan(profile, planner.this_machine(profile, gpus=0), rows=500)
    assert (found.fits, found.steps, found.seconds) == (True, 32, {})
    assert planner.explain(found, price=3.0)[-1].startswith("time unknown")


def test_what_cannot_be_planned_is_refused(large: Profile) -> None:
    with pytest.raises(FtlibError, match="found none here; name a machine to rent, such as --sku Standard_"):
        planner.this_machine(large, gpus=0)
    with pytest.raises(FtlibError, match=r"--nproc 5: Standard_NC96ads_A100_v4 has 4 GPUs; expected 1 to 4 processes"):
        on_sku(large, PUBLISHED_MACHINE, nproc=5)
    with pytest.raises(FtlibError, match=r"train\.warmup_steps = 64, of 63 updates in all: .*; lower it"):
        on_sku(changed(large, "train", warmup_steps=64.0), PUBLISHED_MACHINE)
    own = changed(large, "data", dataset="/data/mine.jsonl", revision=None)
    with pytest.raises(FtlibError, match=r"the number of rows in mine\.jsonl is unknown here; give it with --rows"):
        on_sku(own, PUBLISHED_MACHINE)
    machine = planner.rented(skus.get(PUBLISHED_MACHINE), own)
    assert planner.plan(own, machine, rows=100).tokens == 100 * own.train.max_length


def test_a_plan_without_end_says_so(large: Profile) -> None:
    *_, told = planner.explain(on_sku(changed(large, "train", num_train_epochs=10**6), PUBLISHED_MACHINE))
    assert told == "that is 2 to 14 years; lower train.num_train_epochs"
    on_sku(changed(large, "lora", r=2**31 - 1), PUBLISHED_MACHINE)


def test_table_across_skus(large: Profile) -> None:
    table = planner.across_skus(large).set_index("machine")
    assert list(table.index) == list(skus.load())
    assert table["fits"].to_dict() == dict.fromkeys(skus.load(), "yes") | {SMALL_CARD: "no"}
    assert table.loc["Standard_ND96isr_H100_v5", "processor"] == "4 of 8 × H100 SXM", "16 rows are 4 × 4"


def test_command_prints_the_plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    session = SimpleNamespace(profile=profiles.load("gpt-oss-20b"))
    monkeypatch.setattr("ftlib.start", lambda *_: session)
    with pytest.raises(SystemExit) as ended:
        app(["plan", "--profile", "gpt-oss-20b", "--sku", PUBLISHED_MACHINE, "--price", "10"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for wanted in ("fits: it takes", "63 updates", "training 1.1 to 7.2", "notebooks 1 to 5 cost"):
        assert wanted in printed
