"""How fast is a recipe? Times real updates of notebook 04's own cells, recipe by recipe, on a model of random weights.

A model's shape decides most of its speed and memory, so nothing is downloaded. The recipes take turns, so that a busy
moment of the machine affects all of them, and each is first shown to train the same thing as the blog post's.
"""

import contextlib
import gc
import io
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from pyarrow import parquet
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssConfig, TrainerCallback, TrainingArguments, set_seed
from trl.trainer.sft_trainer import SFTTrainer

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.machine import doctor
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.rehearsal import ASSETS
from ftlib.runner import cells
from ftlib.runner.ranks import TRAINING
from ftlib.session import device
from ftlib.session.session import project_root

REFERENCE = "blog post's recipe"
# The values of a profile that decide how it is computed and not what is learned, by section.
LEVERS = {
    "model": ("dtype", "attn_implementation", "experts_implementation"),
    "recipe": ("padding_free", "adapter_dtype"),
    "train": ("per_device_train_batch_size", "optim", "train_sampling_strategy", "activation_checkpointing", "bf16"),
}
# How far a loss or gradient norm may be from the reference's, as a share: 24 random layers magnify bfloat16's rounding.
TOLERANCE_IN_FLOAT32, TOLERANCE = 1e-4, 1e-1
IN_FLOAT32 = {("model", "dtype"): "float32", ("train", "bf16"): False, ("recipe", "expert_layers"): (1,)}
ROWS = 160
TOKENS_OF_A_ROW, TOKENS_OF_ITS_REASONING = 174, 41  # means, in the tiny model's tokens


@dataclass
class Measured:
    """What one recipe computed in an update of the same rows for all recipes, and the seconds of its timed updates."""

    loss: float
    grad_norm: float  # before clipping
    peak_bytes: int  # above the weights
    update_s: list[float] = field(default_factory=list)


def recipes(profile: str) -> dict[str, Profile]:
    """The recipes to compare on a profile's model: the blog post's, the profile's own and its fast one, if shipped."""
    own = profiles.load(profile)
    reference = changed(own, _levers(profiles.load("gpt-oss-20b")))
    batch = math.gcd(reference.train.per_device_train_batch_size, own.recipe.effective_batch_size)
    reference = changed(reference, {("train", "per_device_train_batch_size"): batch})
    found = {REFERENCE: reference}
    if _levers(own) != _levers(reference):
        found[own.name] = own
    if (fast := f"{own.name}-fast") in profiles.shipped():
        found[fast] = changed(own, _levers(profiles.load(fast)))
    return found


def _levers(profile: Profile) -> dict[tuple[str, str], Any]:
    return {(section, key): getattr(getattr(profile, section), key) for section, keys in LEVERS.items() for key in keys}


def changed(profile: Profile, values: dict[tuple[str, str], Any]) -> Profile:
    """The profile with other values, by section and key."""
    for (section, key), value in values.items():
        updated = getattr(profile, section).model_copy(update={key: value})
        profile = profile.model_copy(update={section: updated})
    return profile


def run(profile: str, rounds: int, updates: int, console: Console) -> dict[str, Any]:
    """Check that the recipes train the same thing, then time `updates` of each in each of the `rounds`.

    Returns the machine, the model and a row for each recipe; FtlibError if a recipe trains something else.
    """
    compared = recipes(profile)
    reference = compared[REFERENCE]
    doctor.check_compute(reference)
    rows, config = rows_of(reference), config_of(reference)
    measured = _same_training(compared, config, rows, console)
    for turn in range(rounds):
        console.print(f"timing, round {turn + 1} of {rounds}", highlight=False)
        for name in list(compared)[:: 1 if turn % 2 == 0 else -1]:
            measured[name].update_s += _time(compared[name], config, rows, updates)
    slow, batch = statistics.median(measured[REFERENCE].update_s), reference.recipe.effective_batch_size
    return {
        "model": reference.hub.model,
        "machine": device.describe(reference.train.use_cpu),
        "timed_updates": rounds * updates,
        "recipes": [_row(name, found, batch, slow) for name, found in measured.items()],
    }


def _same_training(
    compared: dict[str, Profile], config: GptOssConfig, rows: Dataset, console: Console
) -> dict[str, Measured]:
    """What each recipe computes as it is; FtlibError if one trains something else, so or in float32 on two layers."""
    for values, shape, tolerance in ((IN_FLOAT32, sensitive(config), TOLERANCE_IN_FLOAT32), ({}, config, TOLERANCE)):
        measured: dict[str, Measured] = {}
        for name, recipe in compared.items():
            console.print(f"does {name} train the same?", highlight=False)
            measured[name] = check(changed(recipe, values), shape, rows)
            refuse_another_training(name, measured[name], measured[REFERENCE], tolerance)
    return measured


def config_of(recipe: Profile) -> GptOssConfig:
    """The configuration of a recipe's model, for random weights, which are not packed."""
    config = architecture.config_json(recipe.hub)
    return GptOssConfig(**{name: value for name, value in config.items() if name != "quantization_config"})


def sensitive(config: GptOssConfig) -> GptOssConfig:
    """Two layers, one of each kind of attention, with weights so large that a row that reads its neighbour shows."""
    return GptOssConfig(**config.to_dict() | {"num_hidden_layers": 2, "layer_types": None, "initializer_range": 0.1})


def rows_of(reference: Profile) -> Dataset:
    """Rows of the sample data set; for the large model with longer reasoning, so that they are padded as the post's."""
    rows = parquet.read_table(ASSETS / "dataset/data")["messages"].to_pylist()[:ROWS]
    if not reference.hub.is_rehearsal:
        for place, messages in enumerate(rows):
            longer = reference.train.max_length * (place + 1) / ROWS - TOKENS_OF_A_ROW
            messages[-1]["thinking"] *= 1 + max(0, round(longer / TOKENS_OF_ITS_REASONING))
    return Dataset.from_dict({"messages": rows})


def check(recipe: Profile, config: GptOssConfig, rows: Dataset) -> Measured:
    """Train one update, on the same rows in the same order for every recipe, and measure what it computes and holds."""
    with _trainer(changed(recipe, {("train", "train_sampling_strategy"): "random"}), config, rows) as (trainer, _):
        trainer.args.max_steps = 1
        assert trainer.model is not None
        # A fresh adapter is the identity, since B is zero, and would hide what a recipe does with A.
        generator = torch.Generator().manual_seed(0)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        peak_bytes = device.peak_above(trainer.train, recipe.train.use_cpu)
        first = trainer.state.log_history[0]
    return Measured(first["loss"], first["grad_norm"], peak_bytes)


def refuse_another_training(name: str, found: Measured, expected: Measured, tolerance: float) -> None:
    """Raise an FtlibError if the loss or gradient norm is not the reference's, to a share of it."""
    for quantity in ("loss", "grad_norm"):
        here, there = getattr(found, quantity), getattr(expected, quantity)
        if not abs(here - there) <= tolerance * abs(there):
            raise FtlibError(
                f"{name} trains something else: its {quantity} is {here:.6g}, expected {there:.6g} as with the "
                f"{REFERENCE} (within {tolerance:.0e} of it); change one value of the profile at a time"
            )


def _time(recipe: Profile, config: GptOssConfig, rows: Dataset, updates: int) -> list[float]:
    """The seconds of some updates, after one to warm up."""
    with _trainer(recipe, config, rows) as (trainer, clock):
        trainer.args.max_steps = 1 + updates
        trainer.train()
    return [after - before for before, after in itertools.pairwise(clock.read)]


@contextlib.contextmanager
def _trainer(recipe: Profile, config: GptOssConfig, rows: Dataset) -> "Iterator[tuple[SFTTrainer, _Clock]]":
    """The trainer as notebook 04's cells build it, with a clock and without files, curves or prints."""
    gc.collect()  # or the previous one would still hold its memory
    torch.cuda.empty_cache()
    if recipe.model.attn_implementation == "flex_attention":
        device.compile_for_many_shapes()
    set_seed(recipe.train.seed)
    settings = recipe.model.model_dump() | {"dtype": getattr(torch, recipe.model.dtype)}
    with torch.device("cpu" if recipe.train.use_cpu else "cuda"):
        model = AutoModelForCausalLM.from_config(config, **settings)
    clock = _Clock()
    sink = io.StringIO()  # for prints and progress bars
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        session = SimpleNamespace(
            profile=recipe, world_size=1, is_main=False, trackers=[], checkpoints_dir=Path(folder)
        )
        namespace = {
            "profile": recipe,
            "session": session,
            "model": model,
            "tokenizer": AutoTokenizer.from_pretrained(ASSETS / "model"),  # its few ids are in any vocabulary
            "train_dataset": rows,
            "progress": clock,
        }
        trainer = cells.run("trainer", project_root() / "notebooks" / f"{TRAINING}.ipynb", namespace)
        trainer.args.save_strategy = "no"
        try:
            yield trainer, clock
        finally:
            model.to("meta")  # an error's traceback would keep its weights


@dataclass
class _Clock(TrainerCallback):
    """Reads the time at the end of every update."""

    read: list[float] = field(default_factory=list)

    def on_step_end(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        if not args.use_cpu:
            torch.cuda.synchronize()
        self.read.append(time.perf_counter())


def _row(name: str, measured: Measured, batch: int, reference_s: float) -> dict[str, Any]:
    median_s = statistics.median(measured.update_s)
    speed = {"rows_per_second": batch / median_s, "times_as_fast": reference_s / median_s}
    spread = {"slowest": batch / max(measured.update_s), "fastest": batch / min(measured.update_s)}
    return {"recipe": name, **speed, **spread, **asdict(measured)}


def table(result: dict[str, Any]) -> Table:
    """The result of `run` for a terminal."""
    title = f"{result['model']} on {result['machine']}: medians of {result['timed_updates']} updates, random weights"
    headings = ("recipe", "rows/s", "slowest to fastest", "×", "above the weights", "loss")
    shown = Table(*headings, title=title, box=SIMPLE, pad_edge=False, title_justify="left")
    for row in result["recipes"]:
        spread = f"{row['slowest']:.1f} to {row['fastest']:.1f}"
        memory = f"{row['peak_bytes'] / 1e9:.2f} GB"
        rate, ratio = f"{row['rows_per_second']:.1f}", f"{row['times_as_fast']:.2f}"
        shown.add_row(row["recipe"], rate, spread, ratio, memory, f"{row['loss']:.4f}")
    return shown
