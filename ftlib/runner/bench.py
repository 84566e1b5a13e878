"""How fast is a recipe? Real updates of notebook 04's own cells on a model of random weights, recipes side by side.

Nothing is downloaded: the shape of a model decides most of its speed and memory. (Trained weights may load the experts
less evenly.) Recipes take turns, so that a busy moment of the machine meets all of them; each is first shown to train
the same thing as the reference.
"""

import contextlib
import gc
import io
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from pyarrow import parquet
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GptOssConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging
from trl.trainer.sft_trainer import SFTTrainer

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.machine import doctor
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.rehearsal import ASSETS
from ftlib.runner import cells
from ftlib.session import device, records
from ftlib.session.session import project_root

REFERENCE = "seed recipe"
REFERENCE_PROFILE = "gpt-oss-20b"
LEVERS = {
    "model": ("dtype", "attn_implementation", "experts_implementation"),
    "recipe": ("padding_free", "adapter_dtype"),
    "train": (
        "per_device_train_batch_size",
        "optim",
        "train_sampling_strategy",
        "activation_checkpointing",
        "bf16",
    ),
}
"""The values of a profile that decide how it is computed and not what is learned, by their section."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""How far a loss or a gradient's norm may be from the reference's, as a share of it, where either has this dtype. In
bfloat16 24 random layers magnify roundings: at a width of 256, two backends of the experts gave norms 3.7% apart."""

IN_FLOAT32 = {("model", "dtype"): "float32", ("train", "bf16"): False}

WEIGHTS_SHARE = 0.6
"""Of the memory, what the weights may take; the rest is for what is computed with them."""

ROWS = 160
TOKENS_OF_A_ROW, TOKENS_OF_ITS_REASONING = 174, 41
"""Means of the sample data set's first rows, in the tiny model's tokens."""

MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices whose product tells a machine's peak: large enough to be limited by nothing but arithmetic."""


@dataclass
class Measured:
    """What one recipe took.

    Attributes:
        loss: of the first update, on the same rows for all recipes.
        grad_norm: of the same update, before clipping.
        peak_bytes: the most memory above the weights in that update.
        expert_load: tokens of a layer's busiest expert over an even share, mean of the layers.
        update_s: seconds of every timed update, fetching its rows included.
        first_update_s: seconds of the update before the timed ones, in each turn; what is compiled was, in the check.
        counts: the `rows` that were made into batches, and their tokens without (`real`) and with padding (`padded`).
    """

    loss: float
    grad_norm: float
    peak_bytes: int
    expert_load: float
    update_s: list[float] = field(default_factory=list)
    first_update_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def recipes(profile: str, one_by_one: bool = False) -> dict[str, Profile]:
    """The recipes to compare on a profile's model: the seed's, the profile's own, and its fast one if one is shipped.

    Args:
        profile: a shipped profile's name or the path of a `.toml` file.
        one_by_one: also each lever in which the last of them differs from the seed's, alone.
    """
    own = profiles.load(profile)
    reference = changed(own, _levers(profiles.load(REFERENCE_PROFILE)))
    batch = math.gcd(reference.train.per_device_train_batch_size, own.recipe.effective_batch_size)
    reference = changed(reference, {("train", "per_device_train_batch_size"): batch})
    fast = f"{own.name}-fast"
    found = {REFERENCE: reference, own.name: own}
    if fast in profiles.shipped():
        found[fast] = changed(own, _levers(profiles.load(fast)))
    if _levers(own) == _levers(reference):
        del found[own.name]
    if one_by_one:
        last = _levers(list(found.values())[-1])
        pulled = {lever: value for lever, value in last.items() if value != _levers(reference)[lever]}
        found |= {f"{lever[1]} = {value}": changed(reference, {lever: value}) for lever, value in pulled.items()}
    return found


def _levers(profile: Profile) -> dict[tuple[str, str], Any]:
    return {(section, key): getattr(getattr(profile, section), key) for section, keys in LEVERS.items() for key in keys}


def changed(profile: Profile, values: dict[tuple[str, str], Any]) -> Profile:
    """The profile with other values, by their section and key."""
    for (section, key), value in values.items():
        updated = getattr(profile, section).model_copy(update={key: value})
        profile = profile.model_copy(update={section: updated})
    return profile


def run(profile: str, one_by_one: bool, rounds: int, updates: int, console: Console) -> dict[str, Any]:
    """Check that the recipes train the same thing, then time them in turns.

    Args:
        profile: a shipped profile's name or the path of a `.toml` file.
        one_by_one: also each lever alone.
        rounds: how often every recipe has its turn.
        updates: timed updates in a turn, after one to warm up.
        console: where a line says what is being done.

    Returns:
        The machine, the model, and a row for each recipe, as JSON takes them.

    Raises:
        FtlibError: a recipe trains something else, or the model finds no room here.
    """
    compared = recipes(profile, one_by_one)
    reference = compared[REFERENCE]
    config = fitting(shape_of(reference), reference)
    try:
        measured = _measure(compared, config, rounds, updates, console)
    except torch.OutOfMemoryError:
        raise FtlibError(
            f"the GPU's memory ran out, with {config.num_hidden_layers} layers; lower "
            "train.per_device_train_batch_size, or free what else uses the GPU (`nvidia-smi` names it)"
        ) from None
    peaks = {dtype: matmul_flops(dtype, reference.train.use_cpu) for dtype in TOLERANCE}
    flops = architecture.useful_flops(config, tokens=1)
    return {
        "profile": reference.name,
        "model": reference.hub.model,
        "layers": config.num_hidden_layers,
        "machine": device.describe(reference.train.use_cpu),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": {package: version(package) for package in ("torch", "transformers", "peft", "trl")},
        "timed_updates": rounds * updates,
        "flops_per_token": flops,
        "matmul_flops": peaks,
        "imports_s": _import_seconds(),
        "recipes": [_row(name, compared[name], found, flops, peaks) for name, found in measured.items()],
    }


def _measure(
    compared: dict[str, Profile], config: GptOssConfig, rounds: int, updates: int, console: Console
) -> dict[str, Measured]:
    rows = rows_of(compared[REFERENCE])
    exact: dict[str, Measured] = {}
    measured: dict[str, Measured] = {}
    for name, recipe in compared.items():
        console.print(f"does {name} train the same?", highlight=False)
        exact[name] = check(changed(recipe, IN_FLOAT32), sensitive(config), rows)
        refuse_another_training(name, exact[name], exact[REFERENCE], TOLERANCE["float32"])
        measured[name] = check(recipe, config, rows)
        refuse_another_training(name, measured[name], measured[REFERENCE], TOLERANCE["bfloat16"])
    for turn in range(rounds):
        console.print(f"timing, round {turn + 1} of {rounds}", highlight=False)
        for name in list(compared)[:: 1 if turn % 2 == 0 else -1]:
            _time(compared[name], config, rows, updates, measured[name])
    return measured


def shape_of(recipe: Profile) -> GptOssConfig:
    """The configuration of a recipe's model, for weights that are random and therefore not packed."""
    config = architecture.config_json(recipe.hub)
    return GptOssConfig(**{name: value for name, value in config.items() if name != "quantization_config"})


def check(recipe: Profile, config: GptOssConfig, rows: Dataset) -> Measured:
    """Train one update, on the same rows in the same order for every recipe, and see what it computes and holds."""
    with _trainer(changed(recipe, {("train", "train_sampling_strategy"): "random"}), config, rows) as (trainer, _):
        trainer.args.max_steps = 1
        _disturb_adapter(trainer)
        with _expert_load(trainer) as loads:
            peak_bytes = device.peak_above(trainer.train, recipe.train.use_cpu)
        first = trainer.state.log_history[0]
    return Measured(first["loss"], first["grad_norm"], peak_bytes, statistics.mean(loads()))


def _disturb_adapter(trainer: SFTTrainer) -> None:
    """Give B values too: a fresh adapter is the identity, and would hide what a recipe does with A."""
    assert trainer.model is not None
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def sensitive(config: GptOssConfig) -> GptOssConfig:
    """Two layers, one of each kind of attention, whose weights are so large that what a token attends to is seen.

    With the usual ones a row that reads its neighbour changes the loss by a mere thousandth.
    """
    return GptOssConfig(**config.to_dict() | {"num_hidden_layers": 2, "layer_types": None, "initializer_range": 0.1})


def refuse_another_training(name: str, found: Measured, expected: Measured, tolerance: float) -> None:
    """Make sure that a recipe computes the loss and the gradient norm that the reference computes.

    Raises:
        FtlibError: one of the two is further away than the tolerance, a share of the reference's.
    """
    for quantity in ("loss", "grad_norm"):
        here, there = getattr(found, quantity), getattr(expected, quantity)
        if not abs(here - there) <= tolerance * abs(there):
            raise FtlibError(
                f"{name} trains something else: its {quantity} is {here:.6g}, expected {there:.6g} as with the "
                f"{REFERENCE}, to a share of {tolerance:.0e}; change its levers one by one"
            )


def _time(recipe: Profile, config: GptOssConfig, rows: Dataset, updates: int, measured: Measured) -> None:
    """Train some updates, of which the first warms up, and add what they took to what was measured."""
    with _trainer(recipe, config, rows) as (trainer, clock):
        trainer.data_collator = counting(trainer.data_collator, measured.counts)
        trainer.args.max_steps = 1 + updates
        trainer.train()
    first, *timed = clock.update_s
    measured.first_update_s.append(first)
    measured.update_s += timed


@contextlib.contextmanager
def _trainer(recipe: Profile, config: GptOssConfig, rows: Dataset) -> "Iterator[tuple[SFTTrainer, _Clock]]":
    """The trainer as notebook 04's cells build it, with a clock, and without files, curves and prints."""
    gc.collect()  # or the one before would still hold its memory
    if device.gpus():
        torch.cuda.empty_cache()
    set_seed(recipe.train.seed)
    clock = _Clock(on_gpu=not recipe.train.use_cpu)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), _quiet():
        namespace = {
            "profile": changed(recipe, {("recipe", "expert_layers"): _expert_layers(recipe, config)}),
            "session": SimpleNamespace(world_size=1, is_main=False, checkpoints_dir=Path(folder), trackers=[]),
            "model": _random_model(recipe, config),
            "tokenizer": AutoTokenizer.from_pretrained(ASSETS / "model"),  # its few ids are in any vocabulary
            "train_dataset": rows,
            "progress": clock,
        }
        trainer = cells.run("trainer", project_root() / "notebooks" / "04_train_lora.ipynb", namespace)
        trainer.args.save_strategy = "no"
        for unwanted in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(unwanted)
        yield trainer, clock


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the libraries say and show of their progress."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        enable_progress_bars()


def _random_model(recipe: Profile, config: GptOssConfig) -> Any:
    if recipe.model.attn_implementation == "flex_attention":
        device.compile_for_many_shapes()
    with torch.device("cpu" if recipe.train.use_cpu else "cuda"):
        return AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, recipe.model.dtype),
            attn_implementation=recipe.model.attn_implementation,
            experts_implementation=recipe.model.experts_implementation,
        )


def _expert_layers(recipe: Profile, config: GptOssConfig) -> tuple[int, ...]:
    """Those of the profile's expert layers that a cut model still has, or at least its last one."""
    kept = tuple(layer for layer in recipe.recipe.expert_layers if layer < config.num_hidden_layers)
    return kept or (config.num_hidden_layers - 1,)


class _Clock(TrainerCallback):
    """Times updates from end to end, so that fetching rows and logging count as well."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._read = [0.0]

    def _tick(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self._read.append(time.perf_counter())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._read.clear()
        self._tick()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._tick()

    @property
    def update_s(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self._read)]


def counting(collator: Callable[[list[Any]], dict[str, Any]], counts: Counter[str]) -> Callable[[list[Any]], Any]:
    """A collator that also counts the rows, and their tokens without and with padding."""

    def collate(rows: list[Any]) -> dict[str, Any]:
        batch = collator(rows)
        padded = batch["input_ids"].numel()
        real = int(batch["attention_mask"].sum()) if "attention_mask" in batch else padded
        counts.update(rows=len(rows), real=real, padded=padded)
        return batch

    return collate


@contextlib.contextmanager
def _expert_load(trainer: SFTTrainer) -> Iterator[Callable[[], list[float]]]:
    """Watch the routers; afterwards, for each layer, the busiest expert's tokens over an even share."""
    routed: dict[nn.Module, torch.Tensor] = {}

    def count(router: Any, _: Any, output: tuple[torch.Tensor, ...]) -> None:
        routed[router] = routed.get(router, 0) + output[2].flatten().bincount(minlength=router.num_experts)

    assert trainer.model is not None
    routers = [module for module in trainer.model.modules() if isinstance(module, GptOssTopKRouter)]
    hooks = [router.register_forward_hook(count) for router in routers]
    try:
        yield lambda: [(tokens.max() * len(tokens) / tokens.sum()).item() for tokens in routed.values()]
    finally:
        for hook in hooks:
            hook.remove()


def fitting(config: GptOssConfig, reference: Profile) -> GptOssConfig:
    """The configuration with as many layers as there is room for here; all of them if there is."""
    doctor.check_compute(reference)
    memory = device.memory_bytes(reference.train.use_cpu)
    kinds = list(config.layer_types or ())
    for layers in range(config.num_hidden_layers, 0, -1):
        config.num_hidden_layers, config.layer_types = layers, kinds[:layers]
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        if parameters * getattr(torch, reference.model.dtype).itemsize <= WEIGHTS_SHARE * memory:
            return config
    raise FtlibError(
        f"{reference.hub.model} needs more than the {memory / 1e9:.0f} GB here for a single layer; try --profile tiny"
    )


def rows_of(reference: Profile) -> Dataset:
    """What is trained on: rows of the sample data set, with longer reasoning for a model that takes longer rows.

    Their lengths are then spread evenly up to `max_length`: the longest of four has 1,638 tokens of 2,048 on average,
    and about as many, 1,634, had the blog post's rows with their padding. How many of those were real is not known.
    """
    rows = parquet.read_table(ASSETS / "dataset/data")["messages"].to_pylist()[:ROWS]
    if reference.hub.endpoint != "rehearsal":
        for place, messages in enumerate(rows):
            longer = reference.train.max_length * (place + 1) / ROWS - TOKENS_OF_A_ROW
            messages[-1]["thinking"] *= 1 + max(0, round(longer / TOKENS_OF_ITS_REASONING))
    return Dataset.from_dict({"messages": rows})


def matmul_flops(dtype: str, use_cpu: bool) -> float:
    """Floating-point operations a second of a large dense product of matrices here: the peak that shares refer to."""
    place = "cpu" if use_cpu else "cuda"
    side = MATRIX_SIDE[place]
    a, b = (torch.randn(side, side, device=place).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # to wait for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def _import_seconds() -> float:
    """What the libraries of notebook 04 take to be imported, in a Python of their own."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import trackio, trl; from trl import SFTTrainer"], check=True)
    return time.perf_counter() - started


def _row(name: str, recipe: Profile, measured: Measured, flops: int, peaks: dict[str, float]) -> dict[str, Any]:
    batch, counts = recipe.recipe.effective_batch_size, measured.counts
    rows_per_second = batch / statistics.median(measured.update_s)
    real_tokens_per_second = rows_per_second * counts["real"] / counts["rows"]
    return {
        "recipe": name,
        "levers": {".".join(lever): value for lever, value in _levers(recipe).items()},
        "samples_per_second": rows_per_second,
        "slowest": batch / max(measured.update_s),
        "fastest": batch / min(measured.update_s),
        "real_tokens_per_second": real_tokens_per_second,
        "padded_tokens_per_second": rows_per_second * counts["padded"] / counts["rows"],
        "share_of_peak": real_tokens_per_second
        * flops
        / peaks["bfloat16" if recipe.train.bf16 else recipe.model.dtype],
        "peak_bytes_above_weights": measured.peak_bytes,
        "loss": measured.loss,
        "grad_norm": measured.grad_norm,
        "expert_load": measured.expert_load,
        "first_update_s": max(measured.first_update_s),
        "update_s": measured.update_s,
    }


def tables(result: dict[str, Any]) -> tuple[Table, Table]:
    """The result of `run` for a terminal: how fast, and what was computed in that time."""
    style: dict[str, Any] = {"box": SIMPLE, "pad_edge": False, "collapse_padding": True, "title_justify": "left"}
    speed = Table(title="Medians of whole updates, between the slowest and the fastest", **style)
    work = Table(title="What was computed in that time", **style)
    for shown in (speed, work):
        shown.add_column("recipe", no_wrap=True)
    for heading in ("rows/s", "slow", "fast", "×", "GB", "loss"):
        speed.add_column(heading, justify="right")
    for heading in ("tokens/s", "padded", "of peak", "busiest", "first"):
        work.add_column(heading, justify="right")
    reference = result["recipes"][0]["samples_per_second"]
    for row in result["recipes"]:
        rates = (row["samples_per_second"], row["slowest"], row["fastest"])
        speed.add_row(
            row["recipe"],
            *(f"{rate:.1f}" for rate in rates),
            f"{row['samples_per_second'] / reference:.2f}",
            f"{row['peak_bytes_above_weights'] / 1e9:.2f}",
            f"{row['loss']:.4f}",
        )
        work.add_row(
            row["recipe"],
            f"{row['real_tokens_per_second']:,.0f}",
            f"{row['padded_tokens_per_second']:,.0f}",
            f"{row['share_of_peak']:.1%}",
            f"{row['expert_load']:.2f} ×",
            f"{row['first_update_s']:.1f} s",
        )
    return speed, work


def summary(result: dict[str, Any]) -> str:
    """What the tables are about, in a few lines."""
    peaks = " and ".join(f"{flops / 1e12:.2f} in {dtype}" for dtype, flops in result["matmul_flops"].items())
    return (
        f"{result['model']}, {result['layers']} layers, random weights, on {result['machine']}, {result['date']}\n"
        f"{result['timed_updates']} timed updates of each recipe, in turns; GB: memory above the weights\n"
        "tokens/s: without and with padding; busiest: an expert's tokens over an even share; first: the first update\n"
        f"peak: {peaks} TFLOP/s, of large matrices multiplied here; a real token takes "
        f"{result['flops_per_token'] / 1e9:.4g} GFLOP\n"
        f"before all this, the libraries take {result['imports_s']:.1f} s to be imported"
    )


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """Keep the result of `run` as `bench.json`, and its picture beside it; returns both files."""
    import matplotlib.pyplot as plt

    from ftlib.display import plots

    records.write(folder, "bench", result)
    picture = folder / "bench.png"
    plots.recipes(pd.DataFrame(result["recipes"]))
    plt.savefig(picture, dpi=150, bbox_inches="tight")
    return [folder / "bench.json", picture]
