"""The plan against what is known: the published run's numbers, and measured peaks of the tiny model."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from ftlib import profiles
from ftlib.azureml import skus
from ftlib.errors import FtlibError
from ftlib.machine import planner
from ftlib.machine.planner import Batch
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.session import device, records

SEED_MACHINE = "Standard_NC96ads_A100_v4"
SMALL_CARD = "Standard_NV36ads_A10_v5"
SEED_FLOS = 1.9951547028611328e17
BF16 = '[model]\ndtype = "bfloat16"\n[train]\nbf16 = true\n'
RECOMPUTED = "activation_checkpointing = true\n"


@pytest.fixture(scope="module")
def large() -> Profile:
    return profiles.load("gpt-oss-20b")


@pytest.fixture(scope="module")
def seed_run(large: Profile) -> planner.Plan:
    return on_sku(large, SEED_MACHINE)


def on_sku(profile: Profile, sku: str, nproc: int | None = None) -> planner.Plan:
    return planner.plan(profile, planner.rented(skus.get(sku), profile), nproc)


def with_values(folder: Path, values: str, base: str = "tiny") -> Profile:
    path = folder / "mine.toml"
    path.write_text(f'extends = "{base}"\n{values}', encoding="utf-8")
    return profiles.load(path)


def test_published_run_is_counted_as_it_was(seed_run: planner.Plan) -> None:
    assert (seed_run.steps, seed_run.tokens, seed_run.nproc) == (63, 1_633_980, 4)
    assert architecture.trainer_flos(seed_run.shape, seed_run.profile.lora, seed_run.tokens) == SEED_FLOS


def test_low_end_of_a_busy_gpu_is_that_runs(seed_run: planner.Plan) -> None:
    assert seed_run.flops / 1703 / 312e12 == pytest.approx(planner.BUSY[0], rel=0.02)


def test_published_run_fits_and_it_is_said_why(seed_run: planner.Plan) -> None:
    assert seed_run.fits
    assert 50e9 < seed_run.peak < 60e9
    verdict = planner.explain(seed_run)[0]
    assert verdict.startswith("fits: it takes")
    assert "base weights (41.8 GB)" in verdict
    assert "activations are recomputed" in verdict


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (8, 4)])
def test_processes_share_an_updates_rows_evenly(large: Profile, gpus: int, processes: int) -> None:
    assert planner.processes(large, gpus) == processes
    assert large.accumulation_steps(processes)


def test_small_card_is_refused_with_the_item_that_overflows(large: Profile) -> None:
    found = on_sku(large, SMALL_CARD)
    assert (found.fits, found.overflow) == (False, "base weights")
    told = planner.explain(found, price=3.0)
    assert "does not fit" in told[0]
    assert "base weights (41.8 GB) overflow it" in told[0]
    assert not [line for line in told if "costs" in line], "nobody pays for what does not fit"


def test_without_recompute_the_activations_overflow(large: Profile) -> None:
    changed = large.model_copy(update={"train": large.train.model_copy(update={"activation_checkpointing": False})})
    found = on_sku(changed, SEED_MACHINE)
    assert found.overflow == "activations"
    assert found.largest.rows == 1
    assert 0 < found.largest.length < changed.train.max_length


@pytest.mark.parametrize("name", profiles.shipped())
def test_largest_is_the_edge(name: str) -> None:
    profile = profiles.load(name)
    machine = planner.rented(skus.get("Standard_NC24ads_A100_v4"), profile)._replace(memory=60e9)
    found = planner.plan(profile, machine)

    def peak(rows: int, length: int) -> float:
        return sum(planner.memory(profile, found.shape, Batch(rows, length), on_gpu=machine.gpus > 0).values())

    rows, length = profile.train.per_device_train_batch_size, found.largest.length
    assert peak(rows, length) <= 60e9
    assert length == found.shape.max_position_embeddings or peak(rows, length + 1) > 60e9
    assert peak(found.largest.rows, profile.train.max_length) <= 60e9


def test_tiny_rows_are_as_many_and_as_long_as_noted(sample: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    from ftlib.dataset.prepare import token_lengths

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
    notebooks: Any,
    tmp_path: Path,
    model: GptOssForCausalLM,
    sample: Dataset,
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[[Profile], SFTTrainer]:
    """Executes notebook 04's cells up to its trainer, for two updates on rows that are cut at the profile's length."""

    def build(profile: Profile) -> SFTTrainer:
        session = SimpleNamespace(
            world_size=1,
            is_main=False,
            adapter_dir=tmp_path / "adapter",
            checkpoints_dir=tmp_path / "checkpoints",
            trackers=[],
            profile=profile,
        )
        namespace: dict[str, Any] = {"profile": profile, "session": session, "model": model, "tokenizer": tokenizer}
        model.to(getattr(torch, profile.model.dtype))
        model.set_experts_implementation(profile.model.experts_implementation)
        namespace |= {"train_dataset": sample.select(range(32)), "resume": True}
        return notebooks.run("04_train_lora", "trainer", namespace)

    return build


SETTINGS = {
    "as shipped": "",
    "micro-batch 4": "[train]\nper_device_train_batch_size = 4\n",
    "micro-batch 16": "[train]\nper_device_train_batch_size = 16\n",
    "recompute": f"[train]\n{RECOMPUTED}",
    "without padding": "[train]\nper_device_train_batch_size = 4\n[recipe]\npadding_free = true\n",
    "bfloat16": BF16,
    "bfloat16, recompute": BF16 + RECOMPUTED,
    "expert loop": '[model]\nexperts_implementation = "eager"\n',
}


FAST = ("recompute", "bfloat16")


@pytest.mark.parametrize(
    "tile",
    [pytest.param(planner.HEAD_COLUMNS, marks=pytest.mark.slow), 64],
    ids=["loss as it is", "loss that takes nothing"],
)
@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SETTINGS]
)
def test_prediction_is_within_15_percent_of_the_measured_peak(
    setting: str,
    tile: int,
    build_trainer: Callable[[Profile], SFTTrainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tiny is so small that the loss's buffer outweighs the layers; without it they have to be right too."""
    monkeypatch.setattr(planner, "HEAD_COLUMNS", tile)
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", tile)
    profile = with_values(tmp_path, "[train]\nmax_length = 100\n" + SETTINGS[setting])
    items = planner.memory(profile, architecture.shape_of(profile.hub), Batch.of(profile), on_gpu=False)
    trainer = build_trainer(profile)
    measured = device.peak_above(trainer.train, use_cpu=True)
    held_before = ("base weights", "adapter", "Python and libraries")
    predicted = sum(size for name, size in items.items() if name not in held_before)
    assert predicted == pytest.approx(measured, rel=0.15)


def test_measured_speed_takes_the_place_of_an_estimate(tmp_path: Path) -> None:
    profile = profiles.load("tiny")
    records.write(tmp_path, "profile", profile.model_dump(mode="json"))
    record = {"device": device.describe(use_cpu=True), "world_size": 1, "samples_per_second": 50.0}
    session: Any = SimpleNamespace(profile=profile, output_dir=tmp_path, read_record=lambda _: record, gpus=0)
    assert planner.here(session).seconds == {"training": (20.0, 20.0)}
    session.profile = profiles.load("tiny-fast")
    assert planner.here(session).seconds == {}, "another recipe"
    session.profile = profile
    record["device"] = "2 cores of another"
    assert planner.here(session).seconds == {}


def test_training_is_shared_and_the_rest_is_not(large: Profile) -> None:
    alone, together = on_sku(large, "Standard_NC24ads_A100_v4").seconds, on_sku(large, SEED_MACHINE).seconds
    assert list(together) == ["downloading", "loading", "measuring", "training"]
    assert alone["training"] == pytest.approx([4 * end for end in together["training"]])
    assert [alone[stage] for stage in list(alone)[:3]] == [together[stage] for stage in list(together)[:3]]


def test_measuring_takes_a_pass_over_the_weights_for_each_token_of_a_round(large: Profile) -> None:
    """Two rounds of 120 questions and one of a few, 41.8 GB, and nine replies alone, 7.2 GB, at 1,935 GB/s."""
    read = 2048 * (3 * 41.83 + 9 * 7.214)
    fast, slow = on_sku(large, SEED_MACHINE).seconds["measuring"]
    assert fast == pytest.approx(read / (1935 * planner.READING[1]), rel=1e-3)
    assert slow == pytest.approx(read / (1935 * planner.READING[0]), rel=1e-3)
    few = large.model_copy(update={"measure": large.measure.model_copy(update={"batch_size": 60})})
    more = 2048 * 2 * 41.83 / (1935 * planner.READING[1])
    assert on_sku(few, SEED_MACHINE).seconds["measuring"][0] == pytest.approx(fast + more, rel=1e-3)


def test_questions_that_would_not_fit_are_refused_as_a_batch_would_be(large: Profile) -> None:
    many = large.model_copy(update={"measure": large.measure.model_copy(update={"batch_size": 1_000})})
    found = on_sku(many, SEED_MACHINE)
    assert (found.fits, found.overflow) == (False, "")
    assert "measuring takes" in planner.explain(found)[0]
    assert "lower measure.batch_size" in planner.explain(found)[0]


def test_without_a_gpu_a_machine_to_rent_has_to_be_named(large: Profile) -> None:
    with pytest.raises(
        FtlibError, match="found none here, expected one; name a machine to rent, such as --sku Standard_"
    ):
        planner.this_machine(large, gpus=0)


def test_a_price_is_answered_also_where_only_training_is_known(tmp_path: Path) -> None:
    tiny = profiles.load("tiny")
    found = planner.plan(tiny, planner.this_machine(tiny, gpus=0), rows_per_second=10.0)
    assert planner.explain(found, price=36.0)[-1] == "training alone costs 1.00 to 1.00 at 36 an hour"


def test_more_processes_than_gpus_are_refused(large: Profile) -> None:
    with pytest.raises(FtlibError, match=r"--nproc 5: Standard_NC96ads_A100_v4 has 4 GPUs; expected 1 to 4 processes"):
        on_sku(large, SEED_MACHINE, nproc=5)


def test_own_data_needs_its_rows(tmp_path: Path) -> None:
    profile = with_values(tmp_path, '[data]\ndataset = "./mine.jsonl"\n', base="gpt-oss-20b")
    machine = planner.rented(skus.get(SEED_MACHINE), profile)
    with pytest.raises(FtlibError, match=r"how many rows mine\.jsonl has is not known here; say so with --rows"):
        planner.plan(profile, machine)
    assert planner.plan(profile, machine, rows=100).tokens == 100 * profile.train.max_length


def test_table_across_skus(large: Profile) -> None:
    table = planner.across_skus(large).set_index("machine")
    assert list(table.index) == list(skus.load())
    assert table["fits"].to_dict() == dict.fromkeys(skus.load(), "yes") | {SMALL_CARD: "no"}
    assert table.loc["Standard_ND96isr_H100_v5", "processor"] == "4 of 8 × H100 SXM", "16 rows are 4 × 4"


def test_unknown_sku_is_told_the_nearest() -> None:
    with pytest.raises(FtlibError, match="did you mean 'Standard_NC96ads_A100_v4'"):
        skus.get("NC96ads_A100_v4")


def test_command_prints_the_plan(project: Path, run_python: Callable[..., Any]) -> None:
    code = (
        "import contextlib, io, json\nfrom ftlib.cli import app\nout = io.StringIO()\n"
        "with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):\n"
        f"    app(['plan', '--profile', 'gpt-oss-20b', '--sku', '{SEED_MACHINE}', '--price', '10'])\n"
        "print(json.dumps(out.getvalue()))"
    )
    printed = run_python(code, COLUMNS="160")
    for wanted in (
        "fits: it takes",
        "63 updates",
        "1.9952e+17",
        "training takes 1.1 to 7.2 minutes",
        "all of it costs",
    ):
        assert wanted in printed
