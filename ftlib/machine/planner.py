"""Before anything is downloaded or paid for: will a run fit, how long will it take, what will it cost?

Memory is added up from what the libraries hold on to, tensor by tensor, and not fitted to measurements; tests compare
it with measured peaks of the tiny model. On a GPU it has not been measured yet. Minutes are ranges: what a machine can
do by its datasheet, and the shares of it that runs reach.
"""

import math
import re
import shutil
import tomllib
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlib.azureml import skus
from ftlib.azureml.skus import Sku
from ftlib.errors import FtlibError
from ftlib.model import architecture
from ftlib.model.architecture import BYTES, Shape
from ftlib.profiles import Profile
from ftlib.rehearsal.corpus import HELD_OUT_ROWS
from ftlib.session import device, records

if TYPE_CHECKING:
    import pandas as pd

    from ftlib.session.session import Session

FACTS = Path(__file__).with_suffix(".toml")
HEAD_ROWS, HEAD_COLUMNS = 4096, 32_768
"""Logits are never held whole: TRL's loss makes them in tiles of at most so many tokens, of so many tokens of the
vocabulary. The buffer has all columns, even where the vocabulary has fewer."""
CPU_HEAD_TILES = 7
"""Float32 copies of a tile that the loss's backward pass holds where there is no Triton, as on a CPU."""
PROCESS = {"cpu": 0.8e9, "gpu": 4e9}
"""What a process takes besides its tensors. On a CPU: Python and the libraries, measured. On a GPU: CUDA's context,
NCCL's buffers and gaps between tensors, estimated."""
OUTPUT_BYTES = 1e9
"""Room on the disk for what does not grow with the adapter: executed notebooks, trackio's files, records."""
CHECKPOINTS = 3
"""Two are kept while the next is written."""
Range = tuple[float, float]
BUSY: Range = (0.044, 0.28)
"""The share of its peak that a GPU reaches in training, in FLOPs without recompute, padding included. At worst as in
the published run: 1,633,980 tokens in 1,703 s, one A100 of four at work at a time. At best as in NVIDIA's NeMo
AutoModel: 279 TFLOP/s on an H100, in full training."""
READING: Range = (0.2, 0.6)
"""The share of its memory's bandwidth that a GPU reaches while replies grow: a token reads all weights. Estimated."""
NETWORK: Range = (0.1e9, 1e9)
"""Bytes a second of a download from the Hub. Estimated."""
LOADING: Range = (0.3e9, 3e9)
"""Bytes a second at which a checkpoint is read from a local disk and unpacked. Estimated."""
LOADS = 3
"""Notebooks that load the model: 03, 04 and 05."""
SINGLE_REPLIES = 9
"""Questions that notebooks 03 and 05 ask one by one."""
PROMPT_TOKENS = 256
"""More than a prompt of the published data set has; it has 122 at most."""


class Machine(NamedTuple):
    """Where a run would take place.

    Attributes:
        name: a SKU's name, or "this machine".
        processor: what computes, in words.
        gpus: how many there are; 0 where the CPU computes.
        memory: bytes of one GPU, or of the machine where the CPU computes.
        ram: bytes of the machine.
        disk: bytes free on the disk that is downloaded to.
        peak: FLOP/s in bfloat16 of one GPU; None where it is not known.
        bandwidth: bytes a second of one GPU's memory; None where it is not known.
    """

    name: str
    processor: str
    gpus: int
    memory: float
    ram: float
    disk: float
    peak: float | None
    bandwidth: float | None


def rented(sku: Sku, profile: Profile) -> Machine:
    """A machine of Azure's, as far as the profile uses it.

    A GB counts as 10⁹ bytes: GPUs have a little more, which their driver and the libraries take.
    """
    use_cpu = profile.train.use_cpu
    return Machine(
        name=sku.name,
        processor="its CPU" if use_cpu else f"{sku.gpus} × {sku.gpu}",
        gpus=0 if use_cpu else sku.gpus,
        memory=1e9 * (sku.ram_gb if use_cpu else sku.gpu_memory_gb),
        ram=sku.ram_gb * 1e9,
        disk=sku.temporary_disk_gib * 2**30,
        peak=None if use_cpu else sku.peak_tflops * 1e12,
        bandwidth=None if use_cpu else sku.bandwidth_gb_s * 1e9,
    )


def this_machine(profile: Profile, gpus: int) -> Machine:
    """The machine that this runs on, as far as the profile uses it; `gpus` is how many it has.

    Raises:
        FtlibError: the profile trains on a GPU, and there is none.
    """
    use_cpu = profile.train.use_cpu
    if not use_cpu and not gpus:
        raise FtlibError(
            f"profile {profile.name} trains on a GPU: found none here, expected one; name a machine to rent, such as "
            "--sku Standard_NC96ads_A100_v4"
        )
    processor = device.describe(use_cpu, gpus)
    known = [sku for sku in skus.load().values() if re.search(rf"\b{sku.gpu.removesuffix(' SXM')}\b", processor)]
    return Machine(
        name="this machine",
        processor=processor,
        gpus=0 if use_cpu else gpus,
        memory=device.memory_bytes(use_cpu),
        ram=device.memory_bytes(use_cpu=True),
        disk=shutil.disk_usage(".").free,
        peak=known[0].peak_tflops * 1e12 if known else None,
        bandwidth=known[0].bandwidth_gb_s * 1e9 if known else None,
    )


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads(FACTS.read_text(encoding="utf-8"))


class Batch(NamedTuple):
    """What one GPU holds at once: rows, and tokens in each of them, with padding."""

    rows: int
    length: int

    @classmethod
    def of(cls, profile: Profile) -> "Batch":
        """A profile's micro-batch, every row as long as the longest."""
        return cls(profile.train.per_device_train_batch_size, profile.train.max_length)


class _Layer:
    """Bytes that one layer's forward pass keeps for its backward pass, and what that needs besides.

    Counted on transformers' gpt-oss and PEFT's wrappers: what autograd saves, with frozen weights, whose inputs it need
    not keep. Of the experts, each token meets `num_experts_per_tok`.
    """

    def __init__(self, profile: Profile, shape: Shape, batch: Batch) -> None:
        compute = 2 if profile.train.bf16 else BYTES[profile.model.dtype]
        rows, length = (1, batch.rows * batch.length) if profile.recipe.padding_free else batch
        tokens, hidden = rows * length, shape.hidden_size
        queries = shape.num_attention_heads * shape.head_dim
        eager, looped = profile.model.attn_implementation == "eager", profile.model.experts_implementation == "eager"
        # The adapters of q, k and v each keep the layer's input; where autocast converts it, each a copy of its own.
        inputs = 1 if compute == BYTES[profile.recipe.adapter_dtype] else 3
        met = compute * tokens * shape.num_experts_per_tok
        gate_up = BYTES[profile.model.dtype] * architecture.expert_stack(shape) * 2 // 3

        self.input = compute * tokens * hidden
        # Two norms keep their inputs in float32. q, k and v are counted as eager attention has them, for all heads.
        self.attention = tokens * (2 * 4 * hidden + compute * (inputs * hidden + 4 * queries))
        self.scores = compute * rows * shape.num_attention_heads * length * (length + 1) * eager
        self.masks = 2 * compute * rows * length**2 * eager
        # Two gradients of the scores' size; else of q, k and v.
        self.attention_work = 2 * self.scores if eager else 3 * compute * tokens * queries
        # gate and up, both clamped, a sigmoid, their product: 6 × intermediate; and the output before it is weighed.
        self.experts = met * (6 * shape.intermediate_size + hidden)
        # The backward pass writes as much again, a loop for one expert at a time.
        self.experts_work = 6 * met * shape.intermediate_size / (shape.num_local_experts if looped else 1)
        # An adapted matrix needs its input too, is there once more as W + B·A, and its gradient is written out whole:
        # by a loop thrice, as it is added up from one of each expert's.
        self.adapted = met * (hidden + shape.intermediate_size)
        self.copies = gate_up * 3 // 2
        self.adapted_work = gate_up * (3 if looped else 1)


def memory(profile: Profile, shape: Shape, batch: Batch, on_gpu: bool = True) -> dict[str, float]:
    """Memory of one process at the moment of an update when it is most, item by item, in bytes.

    What the forward pass keeps is known. On top comes the working space of what the backward pass is at: the loss, a
    layer's experts, or its attention. With recompute only the inputs of the layers are kept, and the rest of one layer
    is there at a time.

    Args:
        profile: the recipe; of its micro-batch and length, `batch` takes the place.
        shape: the model's.
        batch: the micro-batch, every row as long as the longest.
        on_gpu: whether a GPU computes, where the loss is computed in place.
    """
    trainable = BYTES[profile.recipe.adapter_dtype] * architecture.adapter_parameters(shape, profile)
    layer, layers = _Layer(profile, shape, batch), shape.num_hidden_layers
    adapted = len(profile.recipe.expert_layers)
    kept: tuple[float, ...]
    now: tuple[float, ...]
    one = (layer.attention + layer.experts + layer.adapted * bool(adapted), layer.scores, layer.copies * bool(adapted))
    if profile.train.activation_checkpointing:
        kept, now = (layers * layer.input, 0, 0), one
    else:
        activations = layers * (layer.attention + layer.experts) + adapted * layer.adapted
        kept, now = (activations, layers * layer.scores, adapted * layer.copies), (0, 0, 0)
    whole = tuple(kept_before + added for kept_before, added in zip(kept, now, strict=True))
    experts_work = layer.experts_work + layer.adapted_work * bool(adapted)
    moments = [
        (*kept, _loss_work(profile, shape, batch, on_gpu), 0.0),
        (*whole, 0.0, experts_work),
        (whole[0] - layer.experts, *whole[1:], 0.0, layer.attention_work),
    ]
    most, scores, copies, loss, work = max(moments, key=sum)
    items = {
        "base weights": BYTES[profile.model.dtype] * architecture.parameters(shape),
        "adapter": trainable,
        "gradients": trainable,
        "optimizer": 2 * trainable,
        "copies of adapted experts": copies,
        "activations": most + layer.masks,
        "attention scores": scores,
        "logits and loss": loss,
        "working space": work,
        "CUDA, NCCL and gaps" if on_gpu else "Python and libraries": PROCESS["gpu" if on_gpu else "cpu"],
    }
    return {name: size for name, size in items.items() if size}


def _loss_work(profile: Profile, shape: Shape, batch: Batch, on_gpu: bool) -> float:
    """Working space of TRL's loss: one tile of logits, and the gradient of what enters the head."""
    compute, tokens = 2 if profile.train.bf16 else BYTES[profile.model.dtype], batch.rows * batch.length
    rows = min(tokens, HEAD_ROWS)
    tile = compute * rows * HEAD_COLUMNS
    folded = 0 if on_gpu else 4 * CPU_HEAD_TILES * rows * min(shape.vocab_size, HEAD_COLUMNS)
    return tile + folded + (4 + compute) * tokens * shape.hidden_size


def bytes_to_write(profile: Profile, shape: Shape) -> float:
    """Bytes of an adapter, for a moment twice, and of checkpoints with two optimizer values a weight; all float32."""
    return OUTPUT_BYTES + 4 * architecture.adapter_parameters(shape, profile) * (2 + 3 * CHECKPOINTS)


@dataclass(frozen=True)
class Plan:
    """What a run will take on a machine.

    Attributes:
        profile: the recipe.
        machine: where.
        nproc: processes that train together, one a GPU.
        shape: the model's.
        items: memory of one GPU (of the machine on a CPU) at its most, in bytes.
        overflow: the item with which it no longer fits; "" where it does.
        measuring: bytes of one GPU while many questions are asked at once.
        largest: the largest micro-batch at the profile's length, and the largest length at its micro-batch, that fit.
        disk: bytes to download and to write.
        ram: bytes of the machine's memory that loading takes.
        rows: how many are trained on in an epoch.
        steps: updates.
        tokens: what all passes see, with padding; at most, where `padding_free` or `sampling` makes it less.
        flops: of all tokens, padding included; without recompute.
        seconds: from and to by stage: downloading, loading, measuring, training; a stage is left out where nothing is
            known of the machine's speed.
        basis: where the seconds of training come from.
    """

    profile: Profile
    machine: Machine
    nproc: int
    shape: Shape
    items: dict[str, float]
    overflow: str
    measuring: float
    largest: Batch
    disk: float
    ram: float
    rows: int
    steps: int
    tokens: int
    flops: int
    seconds: dict[str, Range]
    basis: str

    @property
    def peak(self) -> float:
        """Memory of one GPU at its most, in bytes."""
        return sum(self.items.values())

    @property
    def fits(self) -> bool:
        """Whether one GPU has the memory, to train and to measure."""
        return not self.overflow and self.measuring <= self.machine.memory

    @property
    def total(self) -> Range | None:
        """Seconds of the whole run, from and to; None where a stage is not known."""
        if not {"measuring", "training"} <= self.seconds.keys():
            return None
        low, high = zip(*self.seconds.values(), strict=True)
        return sum(low), sum(high)


def processes(profile: Profile, gpus: int) -> int:
    """How many processes train together where there are so many GPUs: as many as share an update's rows evenly."""
    rows = profile.recipe.effective_batch_size // profile.train.per_device_train_batch_size
    return max((count for count in range(1, gpus + 1) if rows % count == 0), default=1)


def plan(
    profile: Profile,
    machine: Machine,
    nproc: int | None = None,
    rows: int | None = None,
    rows_per_second: float | None = None,
) -> Plan:
    """Plan a run.

    Args:
        profile: the recipe.
        machine: where it would run.
        nproc: processes that train together, one a GPU; None for as many as `ftlib run` starts there.
        rows: how many there are to train on; None for what is known of the profile's data set.
        rows_per_second: measured on this machine with this profile and as many processes; None for an estimate.

    Raises:
        FtlibError: there are more processes than GPUs, or the model or the data set is not known.
    """
    if nproc is None:
        nproc = processes(profile, machine.gpus)
    if not 1 <= nproc <= max(1, machine.gpus):
        most = max(1, machine.gpus)
        raise FtlibError(f"--nproc {nproc}: {machine.name} has {machine.gpus} GPUs; expected 1 to {most} processes")
    shape, train = architecture.shape_of(profile.hub), profile.train
    rows, padded = _rows(profile, rows)
    steps = train.num_train_epochs * math.ceil(
        math.ceil(rows / (train.per_device_train_batch_size * nproc)) / profile.accumulation_steps(nproc)
    )
    items = memory(profile, shape, Batch.of(profile), machine.gpus > 0)
    flops = architecture.useful_flops(shape, padded * train.num_train_epochs)
    download = architecture.bytes_on_disk(shape)
    training, basis = _training(machine, nproc, rows * train.num_train_epochs, flops, rows_per_second)
    stages = {**_besides(profile, machine, shape, rows), "training": training}
    return Plan(
        profile=profile,
        machine=machine,
        nproc=nproc,
        shape=shape,
        items=items,
        overflow=_overflow(items, machine.memory),
        measuring=_measuring(profile, shape, machine.gpus > 0),
        largest=_largest(profile, shape, machine, nproc),
        disk=download + bytes_to_write(profile, shape),
        ram=download + (0 if machine.gpus else items["base weights"]),
        rows=rows,
        steps=steps,
        tokens=padded * train.num_train_epochs,
        flops=flops,
        seconds={name: seconds for name, seconds in stages.items() if seconds},
        basis=basis,
    )


def _rows(profile: Profile, given: int | None) -> tuple[int, int]:
    """Rows to train on, and their tokens with padding: as known of the data set, or at most."""
    known = _facts()["datasets"].get(profile.data.dataset)
    if known is None and given is None:
        raise FtlibError(f"how many rows {profile.data.shown} has is not known here; say so with --rows")
    rows = given or round(known["rows"] * (1 - profile.data.held_out_share))
    each = known["padded_tokens"] / known["rows"] if known else profile.train.max_length
    return rows, round(rows * min(each, profile.train.max_length))


def _overflow(items: dict[str, float], capacity: float) -> str:
    """The item with which a running sum passes the capacity; "" where all fit."""
    return next((name for name, total in zip(items, accumulate(items.values()), strict=True) if total > capacity), "")


def _measuring(profile: Profile, shape: Shape, on_gpu: bool) -> float:
    """Bytes while replies grow: the weights, and the keys and values of all questions that are asked at once."""
    tokens, dtype = PROMPT_TOKENS + profile.measure.max_new_tokens, profile.model.dtype
    cache = architecture.cache_bytes(shape, profile.measure.batch_size, tokens, dtype)
    return BYTES[dtype] * architecture.parameters(shape) + cache + PROCESS["gpu" if on_gpu else "cpu"]


def _largest(profile: Profile, shape: Shape, machine: Machine, nproc: int) -> Batch:
    """The most rows at the profile's length, and the greatest length at its rows, that fit; 0 where not one does."""

    def fits(rows: int, length: int) -> bool:
        return not _overflow(memory(profile, shape, Batch(rows, length), machine.gpus > 0), machine.memory)

    rows, length = profile.train.per_device_train_batch_size, profile.train.max_length
    most = profile.recipe.effective_batch_size // nproc
    possible = [count for count in range(1, most + 1) if most % count == 0]
    lengths = range(1, shape.max_position_embeddings + 1)
    return Batch(
        rows=max((count for count in possible if fits(count, length)), default=0),
        length=bisect_left(lengths, True, key=lambda tokens: not fits(rows, tokens)),
    )


def _training(
    machine: Machine, nproc: int, rows: int, flops: int, rows_per_second: float | None
) -> tuple[Range | None, str]:
    """From and to, and what that is based on: a measured run, or the share of a GPU's peak that is within reach."""
    if rows_per_second:
        return (rows / rows_per_second,) * 2, "measured on this machine"
    if not machine.peak:
        return None, "not known: neither a measured run nor this processor's peak is known"
    slow, fast = (flops / (machine.peak * nproc * share) for share in BUSY)
    low, high = (f"{share:.1%}" for share in BUSY)
    return (fast, slow), f"{low} to {high} of {nproc} × {machine.peak / 1e12:.0f} TFLOP/s"


def _besides(profile: Profile, machine: Machine, shape: Shape, rows: int) -> dict[str, Range | None]:
    """What a run takes besides training. Measuring runs on one GPU, and each token of a round reads all weights."""
    if not machine.bandwidth:
        return {}
    download = architecture.bytes_on_disk(shape)
    share = profile.data.held_out_share
    questions = round(rows * share / (1 - share)) if share else HELD_OUT_ROWS
    # Notebooks 03 and 05 ask all of them, and 05 asks some once more in another language. One question alone meets
    # few of the experts.
    rounds = 2 * math.ceil(questions / profile.measure.batch_size) + 1
    alone = architecture.active_matrices(shape) + shape.vocab_size * shape.hidden_size
    weights = rounds * architecture.parameters(shape) + SINGLE_REPLIES * alone
    read = BYTES[profile.model.dtype] * profile.measure.max_new_tokens * weights
    slow, fast = (read / (machine.bandwidth * reached) for reached in READING)
    return {
        "downloading": (download / NETWORK[1], download / NETWORK[0]),
        "loading": (LOADS * download / LOADING[1], LOADS * download / LOADING[0]),
        "measuring": (fast, slow),
    }


def _recipe(profile: Profile) -> dict[str, Any]:
    """What decides how long training takes: all but where things are, and what is measured and tracked."""
    return profile.model_dump(mode="json", include={"data", "model", "recipe", "lora", "train"})


def here(session: "Session", nproc: int | None = None, rows: int | None = None) -> Plan:
    """Plan a run on this machine, with the speed that it was measured at where it has run before."""
    profile, machine = session.profile, this_machine(session.profile, session.gpus)
    found = plan(profile, machine, nproc, rows)
    try:
        record = session.read_record("04_train_lora")
    except FtlibError:
        return found
    trained = records.read(session.output_dir, "profile")
    used = device.describe(profile.train.use_cpu, found.nproc)
    same = (record["device"], record["world_size"]) == (used, found.nproc)
    if not same or not _recipe(profile).items() <= trained.items():
        return found
    return plan(profile, machine, nproc, rows, record["samples_per_second"])


def across_skus(profile: Profile, rows: int | None = None) -> "pd.DataFrame":
    """The same run on every SKU, with as many processes as `ftlib run` starts there.

    Returns:
        Columns machine, processor (how many GPUs train), memory (GB of one GPU), fits, and minutes of the whole run.
    """
    import pandas as pd

    table = []
    for sku in skus.load().values():
        found = plan(profile, machine := rented(sku, profile), rows=rows)
        idle = found.nproc < machine.gpus
        table.append(
            {
                "machine": sku.name,
                "processor": f"{found.nproc} of {machine.processor}" if idle else machine.processor,
                "memory": f"{found.peak / 1e9:.1f} of {machine.memory / 1e9:.0f}",
                "fits": "yes" if found.fits else "no",
                "minutes": minutes(found.total) if found.fits else "",
            }
        )
    return pd.DataFrame(table)


def explain(found: Plan, price: float | None = None) -> list[str]:
    """A plan in a few sentences: fits or not and why, what could change, steps and tokens, time, cost.

    Args:
        found: the plan.
        price: of the machine for an hour; None leaves the cost out.
    """
    lines = [_verdict(found), _room(found)]
    lines.append(
        f"it takes {gb(found.disk)} of {gb(found.machine.disk)} on the disk, {gb(found.ram)} of RAM to load, and "
        f"{gb(found.measuring)} to ask {found.profile.measure.batch_size} questions at once"
    )
    if not found.fits:
        return lines
    less = found.profile.recipe.padding_free or found.profile.train.train_sampling_strategy == "group_by_length"
    flos = architecture.trainer_flos(found.shape, found.profile, found.tokens)
    lines += [
        f"{found.steps} updates on {found.rows:,} rows, {'at most ' * less}{found.tokens:,} tokens with padding",
        f"{found.flops:.2e} floating-point operations; the Trainer, which counts every expert, will print {flos:.4e}",
    ]
    return lines + _times(found, price)


def _times(found: Plan, price: float | None) -> list[str]:
    training = found.seconds.get("training")
    if not training:
        return [f"training time {found.basis}"]
    lines = [f"training takes {minutes(training)} minutes: {found.basis}"]
    besides = [f"{name} {minutes(ends)}" for name, ends in found.seconds.items() if name != "training"]
    if found.total:
        lines.append(
            f"besides, in estimated minutes: {', '.join(besides)}; in all {minutes(found.total)}, and installing on top"
        )
    if price is not None:
        low, high = (seconds / 3600 * price for seconds in found.total or training)
        what = "all of it" if found.total else "training alone"
        lines.append(f"{what} costs {low:.2f} to {high:.2f} at {price:g} an hour")
    return lines


def _verdict(found: Plan) -> str:
    who = "a GPU" if found.machine.gpus else "the machine"
    needs = f"{gb(found.peak)} of {gb(found.machine.memory)} that {who} has"
    if found.overflow:
        return f"does not fit: it takes {needs}; {found.overflow} ({gb(found.items[found.overflow])}) overflow it"
    if not found.fits:
        needs = f"{gb(found.measuring)} of {gb(found.machine.memory)}"
        return f"does not fit: measuring takes {needs}; lower measure.batch_size"
    largest = max(found.items, key=lambda name: found.items[name])
    recompute = (
        "; activations are recomputed: only one layer's are held at a time"
        if found.profile.train.activation_checkpointing
        else ""
    )
    return f"fits: it takes {needs}, its largest part {largest} ({gb(found.items[largest])}){recompute}"


def _room(found: Plan) -> str:
    train, largest = found.profile.train, found.largest
    if not largest.rows and not largest.length:
        return "no batch is small enough; it takes a GPU with more memory"
    return (
        f"the largest per_device_train_batch_size that fits is {largest.rows} at {train.max_length:,} tokens, "
        f"the largest max_length {largest.length:,} at {train.per_device_train_batch_size} rows"
    )


def minutes(seconds: Range | None) -> str:
    """Write (60, 150) as "1.0 to 2.5", and equal ends once."""
    if seconds is None:
        return "unknown"
    low, high = (f"{end / 60:.{0 if end >= 600 else 1}f}" for end in seconds)
    return low if low == high else f"{low} to {high}"


def gb(size: float) -> str:
    """Write 41_829_514_368 as "41.8 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
