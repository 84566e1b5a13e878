"""What only a GPU can show, on random weights in the published shape: `make test-gpu`.

Each test prints its numbers in a line of its own. `make test-gpu RIG=tiny` rehearses them on a CPU.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import ROOT
from helpers.rig import CHECKPOINT_AFTER, Rig, write_checkpoint
from rich.console import Console
from safetensors import safe_open
from transformers import AutoTokenizer

from ftlib.dataset import harmony, prepare
from ftlib.machine import doctor, planner
from ftlib.model import architecture, evaluation
from ftlib.rehearsal import mxfp4
from ftlib.runner import bench
from ftlib.session import device, hub_client

pytestmark = pytest.mark.gpu

MEMORY = 0.2  # how far a measured peak may be from the planned one, as a share
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}  # the same for losses: float32 on a CPU, bfloat16 on a GPU
Tell = Callable[..., None]
Train = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    """42 GB of weights leave no room for the next test's; a fixture gives its own back after this."""
    free()
    yield
    free()


def free() -> int:
    """Free unused memory; returns the bytes of tensors that are left on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated() if device.gpus() else 0


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """The rig in a folder of its own: pytest's would keep 14 GB for the next three runs."""
    with contextlib.chdir(ROOT), tempfile.TemporaryDirectory() as folder:
        rig = Rig(os.environ.get("RIG", "gpt-oss-20b"), Path(folder))
        doctor.check_compute(rig.recipe)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub_client, "check_download", lambda *_: None)  # it comes from no Hub
            yield rig


@pytest.fixture(scope="module")
def tell(rig: Rig, request: pytest.FixtureRequest) -> Tell:
    plugins: Any = request.config.pluginmanager

    def tell(name: str, line: str) -> None:
        with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
            plugins.get_plugin("terminalreporter").write_line(f"{name}: {line}")

    tell("random weights in the shape of", f"{rig.name}, {device.describe(not rig.on_gpu)}")
    return tell


@pytest.fixture(scope="module")
def checkpoint(rig: Rig, tell: Tell) -> Path:
    """Random weights in MXFP4, as they would be downloaded."""
    started = time.monotonic()
    size = write_checkpoint(rig)
    seconds = time.monotonic() - started
    tell("written", f"{size / 1e9:.3f} GB in {seconds:.0f} s")
    assert size == pytest.approx(architecture.bytes_on_disk(rig.shape), rel=0.01)
    return rig.checkpoint


@pytest.fixture(scope="module")
def trained(rig: Rig, checkpoint: Path) -> Train:
    """Trains in a process of its own, which gives its memory back by ending; the same training is run once."""
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}

    def train(recipe: str, run: str, killed: int = 0, stopped: int = 0) -> dict[str, Any]:
        if (run, killed) not in done:
            arguments = map(str, (rig.name, rig.folder, recipe, run, killed, stopped))
            command = [sys.executable, "-m", "helpers.gpu_training", *arguments]
            ended = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert ended.returncode == (-signal.SIGKILL if killed else 0), ended.stderr[-4000:]
            assert "recompile_limit" not in ended.stderr
            done[run, killed] = {} if killed else json.loads(ended.stdout.splitlines()[-1])
        return done[run, killed]

    return train


def furthest(found: list[float], expected: list[float]) -> float:
    """The largest difference, as a share of what is expected."""
    return max(abs(here - there) / abs(there) for here, there in zip(found, expected, strict=True))


class TestLoaded:
    """The model as notebook 03 loads it."""

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, rig: Rig, checkpoint: Path, tell: Tell) -> Iterator[dict[str, Any]]:
        namespace: dict[str, Any] = {"profile": rig.recipe, "session": rig.session(rig.recipe)}
        started = time.monotonic()
        rig.run("03_load_model", "total_parameters", namespace)
        seconds, took = time.monotonic() - started, namespace["model"].get_memory_footprint()
        peak = torch.cuda.max_memory_allocated() if rig.on_gpu else device.peak_memory_bytes()
        tell("loaded", f"{took / 1e9:.3f} GB in {seconds:.0f} s, at most {peak / 1e9:.2f} GB")
        namespace["model"].generation_config.eos_token_id = None  # every reply as long as it may be
        yield namespace
        namespace["model"].to("meta")  # a test that failed may still hold it
        namespace.clear()

    def test_it_is_what_the_checkpoint_says_and_answers(self, rig: Rig, loaded: dict[str, Any], tell: Tell) -> None:
        assert loaded["total_parameters"] == architecture.parameters(rig.shape)
        weight_bytes = architecture.BYTES[rig.recipe.model.dtype] * architecture.parameters(rig.shape)
        assert loaded["model"].get_memory_footprint() == pytest.approx(weight_bytes, rel=0.01)
        last = rig.shape.num_hidden_layers - 1
        name = f"model.layers.{last}.mlp.experts.down_proj"
        with safe_open(rig.checkpoint / f"model-{last}.safetensors", "pt") as shard:
            packed = [shard.get_slice(f"{name}_{part}")[:1] for part in ("blocks", "scales")]
        assert torch.equal(loaded["model"].get_parameter(name)[:1].float().cpu(), mxfp4.unpack(*packed))
        started = time.monotonic()
        rig.run("03_load_model", "response", loaded)
        per_token = (time.monotonic() - started) / rig.recipe.measure.max_new_tokens
        assert harmony.parse_reply(loaded["response"]) is not None
        tell("one prompt", f"{1000 * per_token:.0f} ms a token")

    @pytest.mark.parametrize(
        ("experts", "batch", "questions"),
        [("eager", 8, 16), ("eager", 120, 16), ("grouped_mm", 8, 16), ("grouped_mm", 120, 120)],
    )
    def test_measuring(
        self, experts: str, batch: int, questions: int, rig: Rig, loaded: dict[str, Any], tell: Tell
    ) -> None:
        loaded["model"].set_experts_implementation(experts)
        tokenizer = AutoTokenizer.from_pretrained(rig.checkpoint)
        tokenizer.chat_template = harmony.pin_date(tokenizer.chat_template, rig.recipe.data.template_date)
        settings = rig.recipe.measure.model_copy(update={"batch_size": batch})
        rows = prepare.held_out_questions().select(range(questions))
        held = free()
        if rig.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        results = evaluation.evaluate(loaded["model"], tokenizer, rows, settings, rig.recipe.train.max_length)
        seconds = time.monotonic() - started
        above = torch.cuda.max_memory_allocated() - held if rig.on_gpu else 0
        speed = questions * settings.max_new_tokens / seconds
        line = f"{seconds:.1f} s, {speed:,.0f} tokens/s, {above / 1e9:.2f} GB above the weights"
        tell(f"measuring {questions} questions, {batch} at once, experts {experts}", line)
        assert len(results) == questions
        assert results["loss"].notna().all()
        assert above < 15e9, "to copy the experts for each token of 120 replies would take 24 GB"


def test_the_benchmark_runs_to_its_end(rig: Rig, tell: Tell) -> None:
    """Every recipe is shown to train the same, in float32 on two layers and as it is on all, and is then timed."""
    result = bench.run(rig.name, rounds=1, updates=2, console=Console(file=sys.stderr))
    for row in result["recipes"]:
        memory = row["peak_bytes"] / 1e9
        line = f"{row['rows_per_second']:.2f} rows/s, {memory:.2f} GB above the weights, loss {row['loss']:.4f}"
        tell(f"benchmark, {row['recipe']}", line)


@pytest.mark.parametrize("name", ["recipe", "fast"])
def test_memory_is_as_planned(name: str, rig: Rig, tell: Tell) -> None:
    """On rows that are all as long as the longest, which is what the plan is for."""
    profile = rig.profile(name)
    rows = bench.rows_of(rig.recipe).to_list()[-profile.recipe.effective_batch_size :]
    for row in rows:
        row["messages"][-1]["thinking"] *= 4
    measured = bench.check(profile, rig.config, Dataset.from_list(rows)).peak_bytes
    items = planner.memory(profile, rig.shape, rig.on_gpu)
    not_above = ("base weights", "adapter", "CUDA, NCCL and gaps", "Python and libraries")
    planned = sum(size for item, size in items.items() if item not in not_above)
    tell(f"memory, {name}", f"{measured / 1e9:.3f} GB above the weights, planned {planned / 1e9:.3f} GB")
    assert measured == pytest.approx(planned, rel=MEMORY)


def test_the_fast_profile_trains_the_same_and_meets_no_limit(rig: Rig, trained: Train, tell: Tell) -> None:
    """On rows of many lengths. The warm-up leaves the weights alone in the first update, so two losses compare."""
    runs = {"fast": trained("fast", "fast"), "recipe": trained("recipe", "recipe", stopped=2)}
    for name, run in runs.items():
        line = (
            f"loaded in {run['load_s']:.0f} s, {run['updates']} updates in {run['train_s']:.0f} s, "
            f"at most {run['peak_bytes'] / 1e9:.2f} GB; loss {run['losses'][0]:.4f} to {run['losses'][-1]:.4f}"
        )
        tell(f"training, {name}", line)
    assert runs["fast"]["updates"] == bench.ROWS // rig.recipe.recipe.effective_batch_size
    assert furthest(runs["fast"]["losses"][:2], runs["recipe"]["losses"]) < TOLERANCE[rig.place]


def test_a_training_that_was_killed_goes_on(rig: Rig, trained: Train, tell: Tell) -> None:
    trained("fast", "killed", killed=CHECKPOINT_AFTER + 2)
    resumed = trained("fast", "killed")
    apart = furthest(resumed["losses"], trained("fast", "fast")["losses"])
    tell("killed and resumed", f"losses {apart:.1e} apart")
    assert resumed["resumed_from"] == f"checkpoint-{CHECKPOINT_AFTER}"
    assert apart < TOLERANCE[rig.place]


def test_the_adapter_comes_back_answers_and_is_merged(rig: Rig, trained: Train, tell: Tell) -> None:
    """Notebook 05's cells, with a folder in the Hub's place. The model is loaded twice: both would not fit at once."""
    trained("fast", "fast")
    before, session = free(), rig.session(rig.recipe, "fast")
    given = {"profile": rig.recipe, "session": session, "repo": str(session.adapter_dir), "hub_client": hub_client}
    namespace: dict[str, Any] = dict(given)
    attached = rig.run("05_push_and_infer", "attached", namespace)
    rig.run("05_push_and_infer", "output", namespace)
    assert isinstance(namespace["reply"], harmony.Reply)
    namespace.clear()
    left = free() - before
    namespace = dict(given)
    started = time.monotonic()
    difference = rig.run("05_push_and_infer", "merged_difference", namespace)
    seconds, largest = time.monotonic() - started, namespace["logits_unmerged"].abs().max().item()
    loaded = f"{attached} tensors attached; {left / 1e9:.2f} GB left once deleted"
    tell("adapter", f"{loaded}; merged in {seconds:.0f} s, logits {difference:.1e} apart of up to {largest:.1f}")
    assert left < 0.1e9
