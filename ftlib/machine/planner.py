"""Before anything is downloaded or rented: does a run fit in memory, how long does it take, what does it cost?

`memory` counts what the libraries keep, tensor by tensor. Minutes rest on the rates in `planner.toml`, and costs on
the minutes.
"""

import math
import re
import tomllib
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ftlib.errors import FtlibError
from ftlib.machine import skus
from ftlib.machine.skus import Sku
from ftlib.model import architecture
from ftlib.model.architecture import BYTES, Shape
from ftlib.profiles import Profile
from ftlib.rehearsal.corpus import HELD_OUT_ROWS
from ftlib.session import device

if TYPE_CHECKING:
    import pandas as pd

Range = tuple[float, float]
FACTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
RATES: dict[str, Range] = FACTS["rates"]
WALKTHROUGH: dict[str, int] = FACTS["walkthrough"]
# TRL's loss never holds all logits, only tiles of this many tokens by this many vocabulary entries; without Triton, as
# on a CPU, its backward pass holds this many float32 copies of a tile.
HEAD_ROWS, HEAD_COLUMNS, CPU_HEAD_TILES = 4096, 32_768, 7
# What a process takes besides its tensors: on a CPU measured, on a GPU estimated.
PROCESS = {"Python and libraries": 0.8e9, "CUDA, NCCL and gaps": 4e9}
OUTPUT_BYTES = 1e9  # on the disk, for what does not grow with the adapter: notebooks, curves, records
YEAR_S = 365 * 24 * 3600
CHECKPOINTS = 3  # two are kept while the next one is written
Q8_BYTES = 34 / 32  # of a weight in GGUF's Q8_0: a block has 32 of one byte, and a scale of two


class Machine(NamedTuple):
    """Where a run would take place: a SKU, or this machine."""

    name: str
    processor: str
    gpus: int  # 0 if the CPU computes
    memory: float  # bytes of one GPU, or of the machine if the CPU computes
    speed: Sku | None  # the SKU that says how fast a GPU is; None if unknown


def rented(sku: Sku, profile: Profile) -> Machine:
    """An Azure machine, as far as the profile uses it; what a GPU has above 10⁹ bytes per GB, its driver takes."""
    if profile.train.use_cpu:
        return Machine(sku.name, "its CPU", 0, sku.ram_gb * 1e9, None)
    return Machine(sku.name, f"{sku.gpus} × {sku.gpu}", sku.gpus, sku.gpu_memory_gb * 1e9, sku)


def this_machine(profile: Profile, gpus: int) -> Machine:
    """This machine with its GPUs, as far as the profile uses it; an FtlibError if it needs a GPU and there is none."""
    if profile.train.use_cpu:
        return Machine("this machine", device.describe(use_cpu=True), 0, device.memory_bytes(use_cpu=True), None)
    if not gpus:
        advice = "name a machine to rent, such as --sku Standard_NC96ads_A100_v4"
        raise FtlibError(f"profile {profile.name} trains on a GPU: found none here; {advice}")
    processor = device.describe(count=gpus)
    same = (sku for sku in skus.load().values() if re.search(rf"\b{sku.gpu.removesuffix(' SXM')}\b", processor))
    return Machine("this machine", processor, gpus, device.memory_bytes(), next(same, None))


class _Layer:
    """Bytes that one layer's forward pass saves for its backward pass, and working space of the backward pass.

    Counted in transformers' gpt-oss with PEFT's wrappers. The base is frozen, so autograd saves no inputs for it.
    """

    def __init__(self, profile: Profile, shape: Shape, on_gpu: bool) -> None:
        compute = 2 if profile.train.bf16 else BYTES[profile.model.dtype]
        rows, length = profile.train.per_device_train_batch_size, profile.train.max_length
        rows, length = (1, rows * length) if profile.recipe.padding_free else (rows, length)
        tokens, hidden = rows * length, shape.hidden_size
        queries = shape.num_attention_heads * shape.head_dim
        eager, looped = profile.model.attn_implementation == "eager", profile.model.experts_implementation == "eager"
        # The adapters of q, k and v all save the layer's input; autocast makes a copy for each of them.
        inputs = 1 if compute == BYTES[profile.recipe.adapter_dtype] else 3
        routed = compute * tokens * shape.num_experts_per_tok
        gate_up = BYTES[profile.model.dtype] * architecture.expert_stack(shape) * 2 // 3

        self.input = compute * tokens * hidden
        # Two norms save float32 inputs. Eager attention repeats k and v for all heads, so each is as large as q.
        self.attention = tokens * (2 * 4 * hidden + compute * (inputs * hidden + 4 * queries))
        self.scores = compute * rows * shape.num_attention_heads * length * (length + 1) * eager
        self.masks = 2 * compute * rows * length**2 * eager
        # Two gradients as large as the scores; without scores, the gradients of q, k and v.
        self.attention_work = 2 * self.scores if eager else 3 * compute * tokens * queries
        # gate and up, both clamped, a sigmoid and their product: 6 × intermediate; plus the output before weighting.
        self.experts = routed * (6 * shape.intermediate_size + hidden)
        # The backward pass writes as much again; a loop does so for one expert at a time.
        self.experts_work = 6 * routed * shape.intermediate_size / (shape.num_local_experts if looped else 1)
        # Adapting the experts saves their inputs, a copy W + B·A of each matrix, and a full-size gradient of it: three
        # in a loop, which sums the gradients of single experts.
        adapted = bool(profile.recipe.expert_layers)
        self.adapted = adapted * routed * (hidden + shape.intermediate_size)
        self.copies = adapted * gate_up * 3 // 2
        self.experts_work += adapted * gate_up * (3 if looped else 1)
        # The loss: one tile of logits, its copies on a CPU, and the gradient of the last hidden states.
        tile, copies = min(tokens, HEAD_ROWS), 0 if on_gpu else CPU_HEAD_TILES
        self.loss = tile * (compute * HEAD_COLUMNS + 4 * copies * min(shape.vocab_size, HEAD_COLUMNS))
        self.loss += (4 + compute) * tokens * hidden


def memory(profile: Profile, shape: Shape, on_gpu: bool = True) -> dict[str, float]:
    """The most memory that one process takes during an update, item by item, in bytes; on a CPU the loss holds more."""
    trainable = BYTES[profile.recipe.adapter_dtype] * architecture.adapter_parameters(shape, profile)
    layer, process = _Layer(profile, shape, on_gpu), list(PROCESS)[on_gpu]
    items = {
        "base weights": BYTES[profile.model.dtype] * architecture.parameters(shape),
        "adapter": trainable,
        "gradients": trainable,
        "optimizer": 2 * trainable,
        **max(_moments(profile, shape, layer), key=lambda moment: sum(moment.values())),
        process: PROCESS[process],
    }
    items["activations"] += layer.masks
    return {name: size for name, size in items.items() if size}


def _moments(profile: Profile, shape: Shape, layer: _Layer) -> list[dict[str, float]]:
    """What is held when the backward pass is at the loss, at a layer's experts, and at its attention.

    With activation checkpointing only the layers' inputs are kept, plus all of the layer that is being recomputed.
    """
    layers, adapted = shape.num_hidden_layers, len(profile.recipe.expert_layers)

    def held(copies: float, activations: float, scores: float) -> dict[str, float]:
        return {"copies of adapted experts": copies, "activations": activations, "attention scores": scores}

    one = layer.attention + layer.experts
    if profile.train.activation_checkpointing:
        at_loss = held(0, layers * layer.input, 0)
        in_layer = held(layer.copies, layers * layer.input + one + layer.adapted, layer.scores)
    else:
        at_loss = in_layer = held(adapted * layer.copies, layers * one + adapted * layer.adapted, layers * layer.scores)
    activations = in_layer["activations"] - layer.experts
    return [
        at_loss | {"logits and loss": layer.loss},
        in_layer | {"working space": layer.experts_work},
        in_layer | {"activations": activations, "working space": layer.attention_work},
    ]


def _measuring_memory(profile: Profile, shape: Shape, on_gpu: bool) -> float:
    """Bytes while replies are generated: the weights, and the keys and values of a whole batch of questions."""
    tokens = WALKTHROUGH["prompt_tokens"] + profile.measure.max_new_tokens
    cache = architecture.cache_bytes(shape, profile.measure.batch_size, tokens, profile.model.dtype)
    return BYTES[profile.model.dtype] * architecture.parameters(shape) + cache + list(PROCESS.values())[on_gpu]


def bytes_to_write(profile: Profile, shape: Shape) -> float:
    """Bytes that a run writes: checkpoints with two optimizer values per weight, and the adapter twice; all float32."""
    return OUTPUT_BYTES + 4 * architecture.adapter_parameters(shape, profile) * (2 + 3 * CHECKPOINTS)


def export_bytes(profile: Profile, shape: Shape) -> float:
    """Bytes that notebook 6 writes: merged as a folder and a GGUF file, and in Q8_0; three times in MXFP4."""
    dense = BYTES[profile.model.dtype] * architecture.parameters(shape)
    return 2 * dense + Q8_BYTES * architecture.parameters(shape) + 3 * architecture.bytes_on_disk(shape)


@dataclass(frozen=True)
class Plan:
    """What a run takes on a machine; memory in bytes."""

    profile: Profile
    machine: Machine
    nproc: int  # processes that train together, one per GPU
    items: dict[str, float]  # peak memory of one GPU (of the machine on a CPU) in training
    measuring: float  # memory while a batch of questions is answered
    rows: int  # of an epoch
    steps: int  # updates
    tokens: int  # of all epochs with padding; an upper limit where padding is avoided
    seconds: dict[str, Range]  # from and to for downloading, loading, measuring, training; empty if speed is unknown

    @property
    def peak(self) -> float:
        """Peak memory of one GPU in training."""
        return sum(self.items.values())

    @property
    def overflow(self) -> str:
        """The item that no longer fits; "" if all do."""
        sums = zip(self.items, accumulate(self.items.values()), strict=True)
        return next((name for name, total in sums if total > self.machine.memory), "")

    @property
    def fits(self) -> bool:
        """Whether one GPU has the memory to train and to measure."""
        return not self.overflow and self.measuring <= self.machine.memory

    @property
    def total(self) -> Range:
        """Seconds of notebooks 1 to 5, from and to; 0 if unknown."""
        return sum(low for low, _ in self.seconds.values()), sum(high for _, high in self.seconds.values())


def processes(profile: Profile, gpus: int) -> int:
    """How many processes train together on this many GPUs: as many as divide the rows of an update evenly."""
    batches = profile.recipe.effective_batch_size // profile.train.per_device_train_batch_size
    return max((count for count in range(1, gpus + 1) if batches % count == 0), default=1)


def plan(profile: Profile, machine: Machine, nproc: int | None = None, rows: int | None = None) -> Plan:
    """Plan a run with `nproc` processes (default: as many as `ftlib run` starts) on `rows` (default: the data set's).

    Raises:
        FtlibError: there are more processes than GPUs, or the size of the model or data set is unknown.
    """
    nproc, most = processes(profile, machine.gpus) if nproc is None else nproc, max(1, machine.gpus)
    if not 1 <= nproc <= most:
        raise FtlibError(f"--nproc {nproc}: {machine.name} has {machine.gpus} GPUs; expected 1 to {most} processes")
    shape, train, on_gpu = architecture.shape_of(profile.hub), profile.train, machine.gpus > 0
    rows, padded = _rows(profile, rows)
    micro_batches = math.ceil(rows / (train.per_device_train_batch_size * nproc))
    tokens = padded * train.num_train_epochs
    flops = architecture.useful_flops(shape, tokens) / nproc
    steps = train.num_train_epochs * math.ceil(micro_batches / profile.accumulation_steps(nproc))
    if train.warmup_steps > max(1, steps):
        advice = "the learning rate would never be reached; lower it, below 1 it is a share"
        raise FtlibError(f"train.warmup_steps = {train.warmup_steps:g}, of {steps:,} updates in all: {advice}")
    return Plan(
        profile=profile,
        machine=machine,
        nproc=nproc,
        items=memory(profile, shape, on_gpu),
        measuring=_measuring_memory(profile, shape, on_gpu),
        rows=rows,
        steps=steps,
        tokens=tokens,
        seconds=_seconds(profile, machine.speed, shape, rows, flops) if machine.speed else {},
    )


def _rows(profile: Profile, given: int | None) -> tuple[int, int]:
    """Rows to train on, and their tokens with padding: as known of the data set, else at most."""
    known = FACTS["datasets"].get(profile.data.dataset)
    if known is None and given is None:
        raise FtlibError(f"the number of rows in {profile.data.shown} is unknown here; give it with --rows")
    rows = given or round(known["rows"] * (1 - profile.data.held_out_share))
    per_row = known["padded_tokens"] / known["rows"] if known else profile.train.max_length
    return rows, round(rows * min(per_row, profile.train.max_length))


def _seconds(profile: Profile, gpu: Sku, shape: Shape, rows: int, flops: float) -> dict[str, Range]:
    """From and to, by stage; training does `flops` operations per GPU, and everything else uses one GPU."""
    download, share = architecture.bytes_on_disk(shape), profile.data.held_out_share
    questions = round(rows * share / (1 - share)) if share else HELD_OUT_ROWS
    # Notebooks 3 and 5 ask all questions, and 5 asks some again in another language. Each token of a round reads all
    # weights; the token of a single question reads those of a few experts.
    rounds = 2 * math.ceil(questions / profile.measure.batch_size) + 1
    alone = architecture.active_matrices(shape) + shape.vocab_size * shape.hidden_size
    weights = rounds * architecture.parameters(shape) + WALKTHROUGH["single_replies"] * alone
    read = BYTES[profile.model.dtype] * profile.measure.max_new_tokens * weights
    at_full_speed = {
        "downloading": (download, "download"),
        "loading": (WALKTHROUGH["loads"] * download, "load"),
        "measuring": (read / (gpu.bandwidth_gb_s * 1e9), "bandwidth_share"),
        "training": (flops / (gpu.peak_tflops * 1e12), "peak_share"),
    }
    return {stage: (work / RATES[rate][1], work / RATES[rate][0]) for stage, (work, rate) in at_full_speed.items()}


def across_skus(profile: Profile, rows: int | None = None) -> "pd.DataFrame":
    """The same run on every SKU in `machine/skus.toml`: GPUs that train, GB of one GPU, minutes of notebooks 1 to 5."""
    import pandas as pd

    plans = [plan(profile, rented(sku, profile), rows=rows) for sku in skus.load().values()]
    return pd.DataFrame(
        {
            "machine": found.machine.name,
            "processor": f"{found.nproc} of " * (found.nproc < found.machine.gpus) + found.machine.processor,
            "memory": f"{found.peak / 1e9:.1f} of {found.machine.memory / 1e9:.0f}",
            "fits": "yes" if found.fits else "no",
            "minutes": minutes(found.total) if found.fits and found.seconds else "",
        }
        for found in plans
    )


def explain(found: Plan, price: float | None = None) -> list[str]:
    """A plan in a few sentences: whether it fits and why, what it takes, and its cost at a price per hour."""
    if not found.fits:
        return [_verdict(found)]
    lines = [
        _verdict(found),
        f"measuring takes {gb(found.measuring)}: {found.profile.measure.batch_size} questions are answered at once",
        f"{found.steps:,} updates on {found.rows:,} rows, up to {found.tokens:,} tokens with padding",
        _on_disk(found.profile),
    ]
    if not found.seconds:
        return [*lines, f"time unknown: machine/skus.toml does not say how fast {found.machine.processor} computes"]
    stages = ", ".join(f"{stage} {minutes(seconds)}" for stage, seconds in found.seconds.items())
    lines.append(f"estimated minutes: {stages}; in all {minutes(found.total)}, without installation and notebook 6")
    if found.total[0] > YEAR_S:
        low, high = (seconds / YEAR_S for seconds in found.total)
        lines.append(f"that is {low:,.0f} to {high:,.0f} years; lower train.num_train_epochs")
    if price is not None:
        low, high = (seconds / 3600 * price for seconds in found.total)
        lines.append(f"notebooks 1 to 5 cost {low:.2f} to {high:.2f} at {price:g} an hour")
    return lines


def _verdict(found: Plan) -> str:
    needs = f"{gb(found.peak)} of {gb(found.machine.memory)}"
    if found.overflow:
        return f"does not fit: it takes {needs}; no room for {found.overflow} ({gb(found.items[found.overflow])})"
    if not found.fits:
        return f"does not fit: measuring takes {gb(found.measuring)}; lower measure.batch_size"
    item = max(found.items, key=lambda name: found.items[name])
    recompute = "; activations are recomputed, one layer at a time" * found.profile.train.activation_checkpointing
    return f"fits: it takes {needs}; the largest part is {item} ({gb(found.items[item])}){recompute}"


def _on_disk(profile: Profile) -> str:
    """What a run leaves on the disk, and what notebook 6 adds to it, to the memory and to the time."""
    shape, layers = architecture.shape_of(profile.hub), len(profile.recipe.expert_layers)
    kept, exported = architecture.bytes_on_disk(shape) + bytes_to_write(profile, shape), export_bytes(profile, shape)
    loaded = BYTES[profile.model.dtype] * architecture.parameters(shape)
    told = f"it downloads and writes {gb(kept)}; exporting in notebook 6 writes {gb(exported)} more"
    told += f", and loads the model once more, on the CPU ({gb(loaded)})"
    slow, fast = RATES["pack"]
    weights = layers * architecture.expert_stack(shape)
    if weights / slow < 60:
        return told
    packing = minutes((weights / fast, weights / slow))
    return f"{told}; packing {layers} layers' experts takes {packing} minutes on a CPU, unmeasured on a GPU"


def minutes(seconds: Range) -> str:
    """Write (60, 150) as "1.0 to 2.5"."""
    return " to ".join(f"{end / 60:.{0 if end >= 600 else 1}f}" for end in seconds)


def gb(size: float) -> str:
    """Write 41_829_514_368 as "41.8 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
