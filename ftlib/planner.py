"""Before anything is downloaded or paid for: will a run fit, how long will it take, what will it cost?

Parameters are counted on a model without weights, on the meta device. Memory is added up from what the libraries hold
on to, tensor by tensor, and not fitted to measurements; tests compare it with measured peaks of the tiny model. On a
GPU it has not been measured yet. Times are training alone: installing, downloading and evaluating come on top.
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

from ftlib import adapters, architecture, device, doctor, profiles, records
from ftlib.azureml import skus
from ftlib.azureml.skus import Sku
from ftlib.errors import FtlibError
from ftlib.profiles import Hub, Lora, Profile

if TYPE_CHECKING:
    import pandas as pd
    from transformers import GptOssConfig

    from ftlib.session import Session

FACTS = Path(__file__).with_suffix(".toml")
BYTES = {"float32": 4, "bfloat16": 2}
MXFP4_BYTES = (4 + 8 / 32) / 8
"""Bytes of a packed value: four bits, and a shared exponent of eight for each 32."""
HEAD_ROWS, HEAD_COLUMNS = 4096, 32_768
"""Logits are never held whole: TRL's loss makes them in tiles of at most so many tokens, of so many tokens of the
vocabulary. The buffer has all columns, even where the vocabulary has fewer."""
CPU_HEAD_TILES = 7
"""Float32 copies of a tile that the loss's backward pass holds where there is no Triton, as on a CPU."""
BUSY = (0.044, 0.28)
"""The share of its peak that a GPU at work reaches, in FLOPs without recompute, padding included. At worst as in the
published run: 1,633,980 tokens in 1,703 s, one A100 of four at work at a time. At best as in NVIDIA's NeMo AutoModel:
279 TFLOP/s on an H100, in full training."""


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
    """

    name: str
    processor: str
    gpus: int
    memory: float
    ram: float
    disk: float
    peak: float | None


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
    )


def this_machine(profile: Profile) -> Machine:
    """The machine that this runs on, as far as the profile uses it."""
    use_cpu = profile.train.use_cpu
    processor = device.describe(use_cpu)
    peaks = [
        sku.peak_tflops * 1e12
        for sku in skus.load().values()
        if re.search(rf"\b{sku.gpu.removesuffix(' SXM')}\b", processor)
    ]
    return Machine(
        name="this machine",
        processor=processor,
        gpus=0 if use_cpu else device.gpus(),
        memory=device.memory_bytes(use_cpu),
        ram=device.memory_bytes(use_cpu=True),
        disk=shutil.disk_usage(".").free,
        peak=peaks[0] if peaks else None,
    )


class Shape(NamedTuple):
    """A model and its adapter, counted.

    Attributes:
        config: the model's configuration.
        base: parameters of the base.
        trainable: parameters of the adapter.
    """

    config: "GptOssConfig"
    base: int
    trainable: int


@cache
def shape(hub: Hub, lora: Lora) -> Shape:
    """Count the parameters of a base and its adapter, on a model without weights.

    Raises:
        FtlibError: the model is not known here and the Hub cannot be asked, or it is no gpt-oss.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssForCausalLM

    config = architecture.config_of(hub)
    targets = adapters.expert_target_parameters(lora.expert_layers, config.num_hidden_layers)
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
        adapter = LoraConfig(r=lora.r, target_modules=lora.target_modules, target_parameters=targets)
        trainable, total = get_peft_model(model, adapter).get_nb_trainable_parameters()
    return Shape(config, total - trainable, trainable)


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads(FACTS.read_text(encoding="utf-8"))


def bytes_on_disk(counted: Shape) -> float:
    """What is downloaded: 16 bits a parameter, but 4.25 for the experts' matrices where these are in MXFP4."""
    packed = 0
    if getattr(counted.config, "quantization_config", None):
        packed = counted.config.num_hidden_layers * architecture.expert_stack(counted.config)
    return MXFP4_BYTES * packed + BYTES["bfloat16"] * (counted.base - packed)


def trainer_flos(counted: Shape, padded_tokens: int) -> int:
    """The `total_flos` that transformers' Trainer prints: 6 × parameters without embeddings × padded tokens.

    It is `PreTrainedModel.floating_point_ops`: two for each of a forward and two backward passes, with every expert at
    work on every token and every weight trained. Neither is so here, so it says little about the work, as
    `architecture.useful_flops` counts it.
    """
    embeddings = counted.config.vocab_size * counted.config.hidden_size
    return 6 * (counted.base + counted.trainable - embeddings) * padded_tokens


class Batch(NamedTuple):
    """What one GPU holds at once: rows, and tokens in each of them, with padding."""

    rows: int
    length: int


class _Layer:
    """Bytes that one layer's forward pass keeps for its backward pass, and what that needs besides.

    Counted on transformers' gpt-oss and PEFT's wrappers: what autograd saves, with frozen weights, whose inputs it need
    not keep. Of the experts, each token meets `num_experts_per_tok`.
    """

    def __init__(self, profile: Profile, config: "GptOssConfig", batch: Batch) -> None:
        compute = 2 if profile.train.bf16 else BYTES[profile.model.dtype]
        rows, length = (1, batch.rows * batch.length) if profile.train.padding_free else batch
        tokens, hidden = rows * length, config.hidden_size
        queries = config.num_attention_heads * config.head_dim
        eager, looped = profile.model.attention == "eager", profile.model.experts == "eager"
        # The adapters of q, k and v each keep the layer's input; where autocast converts it, each a copy of its own.
        inputs = 1 if compute == BYTES[profile.lora.dtype] else 3
        met = compute * tokens * config.num_experts_per_tok
        gate_up = BYTES[profile.model.dtype] * architecture.expert_stack(config) * 2 // 3

        self.input = compute * tokens * hidden
        # Two norms keep their inputs in float32. q, k and v are counted as eager attention has them, for all heads.
        self.attention = tokens * (2 * 4 * hidden + compute * (inputs * hidden + 4 * queries))
        self.scores = compute * rows * config.num_attention_heads * length * (length + 1) * eager
        self.masks = 2 * compute * rows * length**2 * eager
        # Two gradients of the scores' size; else of q, k and v.
        self.attention_work = 2 * self.scores if eager else 3 * compute * tokens * queries
        # gate and up, both clamped, a sigmoid, their product: 6 × intermediate; and the output before it is weighed.
        self.experts = met * (6 * config.intermediate_size + hidden)
        # The backward pass writes as much again, a loop for one expert at a time.
        self.experts_work = 6 * met * config.intermediate_size / (config.num_local_experts if looped else 1)
        # An adapted matrix needs its input too, is there once more as W + B·A, and its gradient is written out whole:
        # by a loop thrice, as it is added up from one of each expert's.
        self.adapted = met * (hidden + config.intermediate_size)
        self.copies = gate_up * 3 // 2
        self.adapted_work = gate_up * (3 if looped else 1)


def memory(
    profile: Profile, counted: Shape, batch: Batch, spread_over: int = 1, on_gpu: bool = True
) -> dict[str, float]:
    """Memory of one GPU at the moment of an update when it is most, item by item, in bytes.

    What the forward pass keeps is known. On top comes the working space of what the backward pass is at: the loss, a
    layer's experts, or its attention. With recompute only the inputs of the layers are kept, and the rest of one layer
    is there at a time.

    Args:
        profile: the recipe; of its micro-batch and length, `batch` takes the place.
        counted: the model and its adapter.
        batch: the micro-batch, every row as long as the longest.
        spread_over: GPUs that share one copy's layers (`device_map = "auto"`, one process), as evenly as they can.
        on_gpu: whether the loss is computed as on a GPU, in place.
    """
    each, lora = BYTES[profile.model.dtype], BYTES[profile.lora.dtype]
    layer, layers = _Layer(profile, counted.config, batch), counted.config.num_hidden_layers
    adapted = len(profile.lora.expert_layers)
    kept: tuple[float, ...]
    now: tuple[float, ...]
    one = (layer.attention + layer.experts + layer.adapted * bool(adapted), layer.scores, layer.copies * bool(adapted))
    if profile.train.activation_checkpointing:
        kept, now = (layers * layer.input, 0, 0), one
    else:
        activations = layers * (layer.attention + layer.experts) + adapted * layer.adapted
        kept, now = (activations, layers * layer.scores, adapted * layer.copies), (0, 0, 0)
    held = tuple(size / spread_over for size in kept)
    whole = tuple(kept_before + added for kept_before, added in zip(held, now, strict=True))
    experts_work = layer.experts_work + layer.adapted_work * bool(adapted)
    moments = [
        (*held, _loss_work(profile, counted.config, batch, on_gpu), 0.0),
        (*whole, 0.0, experts_work),
        (whole[0] - layer.experts, *whole[1:], 0.0, layer.attention_work),
    ]
    most, scores, copies, loss, work = max(moments, key=sum)
    return {
        "base weights": each * counted.base / spread_over,
        "adapter": lora * counted.trainable / spread_over,
        "gradients": lora * counted.trainable / spread_over,
        "optimizer": 2 * lora * counted.trainable / spread_over,
        "copies of adapted experts": copies,
        "activations": most + layer.masks,
        "attention scores": scores,
        "logits and loss": loss,
        "working space": work,
    }


def _loss_work(profile: Profile, config: "GptOssConfig", batch: Batch, on_gpu: bool) -> float:
    """Working space of TRL's loss: one tile of logits, and the gradient of what enters the head."""
    compute, tokens = 2 if profile.train.bf16 else BYTES[profile.model.dtype], batch.rows * batch.length
    rows = min(tokens, HEAD_ROWS)
    tile = compute * rows * HEAD_COLUMNS
    folded = 0 if on_gpu else 4 * CPU_HEAD_TILES * rows * min(config.vocab_size, HEAD_COLUMNS)
    return tile + folded + (4 + compute) * tokens * config.hidden_size


@dataclass(frozen=True)
class Plan:
    """What a run will take on a machine.

    Attributes:
        profile: the recipe.
        machine: where.
        nproc: processes that train together, one a GPU.
        counted: the model and its adapter.
        items: memory of one GPU (of the machine on a CPU) at its most, in bytes.
        overflow: the item with which it no longer fits; "" where it does.
        largest: the largest micro-batch at the profile's length, and the largest length at its micro-batch, that fit.
        disk: bytes to download and to write.
        ram: bytes of the machine's memory that loading takes.
        rows: how many are trained on in an epoch.
        steps: updates.
        tokens: what all passes see, with padding; at most, where `padding_free` or `sampling` makes it less.
        flops: of all tokens, padding included; without recompute.
        seconds: from and to; None where nothing is known of the machine's speed.
        basis: where `seconds` come from.
    """

    profile: Profile
    machine: Machine
    nproc: int
    counted: Shape
    items: dict[str, float]
    overflow: str
    largest: Batch
    disk: float
    ram: float
    rows: int
    steps: int
    tokens: int
    flops: int
    seconds: tuple[float, float] | None
    basis: str

    @property
    def peak(self) -> float:
        """Memory of one GPU at its most, in bytes."""
        return sum(self.items.values())

    @property
    def fits(self) -> bool:
        """Whether one GPU has the memory."""
        return not self.overflow

    def cost(self, price: float) -> tuple[float, float] | None:
        """From and to, of training alone, in the currency that an hour's price is given in."""
        return None if self.seconds is None else (self.seconds[0] / 3600 * price, self.seconds[1] / 3600 * price)


def plan(
    profile: Profile, machine: Machine, nproc: int = 1, rows: int | None = None, rows_per_second: float | None = None
) -> Plan:
    """Plan a run.

    Args:
        profile: the recipe.
        machine: where it would run.
        nproc: processes that train together, as `ftlib run --nproc` has it; one spreads the layers over all GPUs.
        rows: how many there are to train on; None for what is known of the profile's data set.
        rows_per_second: measured on this machine with this profile and as many processes; None for an estimate.

    Raises:
        FtlibError: there are more processes than GPUs, or the model or the data set is not known.
    """
    if nproc > max(1, machine.gpus):
        raise FtlibError(f"--nproc {nproc}: {machine.name} has {machine.gpus} GPUs; name at most as many processes")
    counted, train = shape(profile.hub, profile.lora), profile.train
    rows, padded = _rows(profile, rows)
    steps = train.epochs * math.ceil(
        math.ceil(rows / (train.per_device_batch * nproc)) / train.accumulation_steps(nproc)
    )
    items = _items(profile, counted, machine, nproc, Batch(train.per_device_batch, profile.data.max_length))
    flops = architecture.useful_flops(counted.config, padded * train.epochs)
    download = bytes_on_disk(counted)
    weights = BYTES[profile.model.dtype] * counted.base
    seconds, basis = _seconds(profile, machine, nproc, rows * train.epochs, flops, rows_per_second)
    return Plan(
        profile=profile,
        machine=machine,
        nproc=nproc,
        counted=counted,
        items=items,
        overflow=_overflow(items, machine.memory),
        largest=_largest(profile, counted, machine, nproc),
        disk=download + doctor.bytes_to_write(counted.trainable),
        ram=download + (0 if machine.gpus else weights),
        rows=rows,
        steps=steps,
        tokens=padded * train.epochs,
        flops=flops,
        seconds=seconds,
        basis=basis,
    )


def _rows(profile: Profile, given: int | None) -> tuple[int, int]:
    """Rows to train on, and their tokens with padding: as known of the data set, or at most."""
    known = _facts()["datasets"].get(profile.data.dataset)
    if known is None and given is None:
        raise FtlibError(f"how many rows {profile.data.shown} has is not known here; say so with --rows")
    rows = given or round(known["rows"] * (1 - profile.data.held_out_share))
    each = known["padded_tokens"] / known["rows"] if known else profile.data.max_length
    return rows, round(rows * min(each, profile.data.max_length))


def _items(profile: Profile, counted: Shape, machine: Machine, nproc: int, batch: Batch) -> dict[str, float]:
    spread_over = machine.gpus if nproc == 1 and machine.gpus and profile.model.device_map == "auto" else 1
    return memory(profile, counted, batch, spread_over, on_gpu=machine.gpus > 0)


def _overflow(items: dict[str, float], capacity: float) -> str:
    """The item with which a running sum passes the capacity; "" where all fit."""
    return next((name for name, total in zip(items, accumulate(items.values()), strict=True) if total > capacity), "")


def _largest(profile: Profile, counted: Shape, machine: Machine, nproc: int) -> Batch:
    """The most rows at the profile's length, and the greatest length at its rows, that fit; 0 where not one does."""

    def fits(rows: int, length: int) -> bool:
        return not _overflow(_items(profile, counted, machine, nproc, Batch(rows, length)), machine.memory)

    rows, length = profile.train.per_device_batch, profile.data.max_length
    most = profile.train.effective_batch // nproc
    possible = [count for count in range(1, most + 1) if most % count == 0]
    lengths = range(1, counted.config.max_position_embeddings + 1)
    return Batch(
        rows=max((count for count in possible if fits(count, length)), default=0),
        length=bisect_left(lengths, True, key=lambda tokens: not fits(rows, tokens)),
    )


def _seconds(
    profile: Profile, machine: Machine, nproc: int, rows: int, flops: int, rows_per_second: float | None
) -> tuple[tuple[float, float] | None, str]:
    """From and to, and what that is based on: a measured run, or the share of a GPU's peak that is within reach."""
    published = [
        run["rows_per_second"]
        for run in _facts()["runs"]
        if (run["machine"], run["nproc"]) == (machine.name, nproc)
        and _recipe(profiles.load(run["profile"])) == _recipe(profile)
    ]
    if rows_per_second or published:
        seconds = rows / (rows_per_second or published[0])
        return (seconds, seconds), "measured on this machine" if rows_per_second else "measured in the published run"
    if not machine.peak:
        return None, "not known: neither a measured run nor this processor's peak is known"
    slow, fast = (flops / (machine.peak * nproc * share) for share in BUSY)
    waiting = "; one GPU works at a time" if nproc < machine.gpus else ""
    low, high = (f"{share:.1%}" for share in BUSY)
    return (fast, slow), f"{low} to {high} of {nproc} × {machine.peak / 1e12:.0f} TFLOP/s{waiting}"


def _recipe(profile: Profile) -> dict[str, Any]:
    """What decides how long training takes: all but where things are, and what is generated and tracked."""
    return profile.model_dump(mode="json", include={"data", "model", "lora", "train"})


def here(session: "Session", nproc: int = 1, rows: int | None = None) -> Plan:
    """Plan a run on this machine, with the speed that it was measured at where it has run before."""
    profile, machine = session.profile, this_machine(session.profile)
    try:
        record = session.read_record("04_train_lora")
    except FtlibError:
        return plan(profile, machine, nproc, rows)
    trained = records.read(session.output_dir, "profile")
    same = (record["device"], record["world_size"]) == (machine.processor, nproc) and _recipe(
        profile
    ).items() <= trained.items()
    return plan(profile, machine, nproc, rows, record["samples_per_second"] if same else None)


def across_skus(profile: Profile, rows: int | None = None) -> "pd.DataFrame":
    """The same run on every SKU, with as many processes as its GPUs and the profile's batch allow.

    Returns:
        Columns machine, processor, processes, memory and of, in GB a GPU, fits ("yes", or the item that overflows), and
        minutes, from and to.
    """
    import pandas as pd

    table = []
    for sku in skus.load().values():
        machine, train = rented(sku, profile), profile.train
        fitting = [n for n in range(1, machine.gpus + 1) if train.effective_batch % (train.per_device_batch * n) == 0]
        found = plan(profile, machine, max(fitting, default=1), rows)
        table.append(
            {
                "machine": sku.name,
                "processor": machine.processor,
                "processes": found.nproc,
                "memory": round(found.peak / 1e9, 1),
                "of": round(machine.memory / 1e9),
                "fits": "yes" if found.fits else f"no: {found.overflow}",
                "minutes": _span(found.seconds, 60) if found.fits else "",
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
        f"it takes {gb(found.disk)} of {gb(found.machine.disk)} on the disk, and {gb(found.ram)} of memory to load"
    )
    if not found.fits:
        return lines
    less = found.profile.train.padding_free or found.profile.train.sampling == "group_by_length"
    lines += [
        f"{found.steps} updates on {found.rows:,} rows, {'at most ' * less}{found.tokens:,} tokens with padding",
        f"{found.flops:.2e} floating-point operations; the Trainer, which counts every expert, will print "
        f"{trainer_flos(found.counted, found.tokens):.4e}",
    ]
    time = "training time" if found.seconds is None else f"training takes {_span(found.seconds, 60)} minutes:"
    lines.append(f"{time} {found.basis}")
    cost = None if price is None else found.cost(price)
    if cost:
        lines.append(
            f"training costs {_span(cost, 1)} at {price:g} an hour; installing, downloading and measuring on top"
        )
    return lines


def _verdict(found: Plan) -> str:
    who = "a GPU" if found.machine.gpus else "the machine"
    needs = f"{gb(found.peak)} of {gb(found.machine.memory)} that {who} has"
    if not found.fits:
        return f"does not fit: it takes {needs}; {found.overflow} ({gb(found.items[found.overflow])}) overflow it"
    largest = max(found.items, key=lambda name: found.items[name])
    spread = found.items["base weights"] < BYTES[found.profile.model.dtype] * found.counted.base
    where = f", spread over {found.machine.gpus} GPUs" if spread else ""
    recompute = (
        "; activations are recomputed, so it holds one layer's" if found.profile.train.activation_checkpointing else ""
    )
    return f"fits: it takes {needs}, its largest part {largest} ({gb(found.items[largest])}{where}){recompute}"


def _room(found: Plan) -> str:
    train, largest = found.profile.train, found.largest
    if not largest.rows and not largest.length:
        return "no batch is small enough; it takes a GPU with more memory"
    return (
        f"the largest per_device_batch that fits is {largest.rows} at {found.profile.data.max_length:,} tokens, the "
        f"largest max_length {largest.length:,} at {train.per_device_batch} rows"
    )


def _span(ends: tuple[float, float] | None, unit: float) -> str:
    """Write (60, 150) in units of 60 as "1.0 to 2.5", and equal ends once."""
    if ends is None:
        return "unknown"
    low, high = (f"{end / unit:.{0 if end / unit >= 10 else 1}f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def gb(size: float) -> str:
    """Write 41_829_514_368 as "41.8 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
