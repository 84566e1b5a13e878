"""The shape of a gpt-oss before it is downloaded, and what follows from it: parameters, bytes, operations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ftlib.errors import FtlibError
from ftlib.model import adapters
from ftlib.profiles import Hub, Profile
from ftlib.rehearsal import ASSETS

BYTES = {"float32": 4, "bfloat16": 2}
MXFP4_BYTES = (4 + 8 / 32) / 8
"""Bytes of a packed value: four bits, and an exponent of eight bits for each 32 values."""

# From their config.json.
PUBLISHED: dict[str, dict[str, Any]] = {
    "openai/gpt-oss-20b": {
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 201_088,
        "sliding_window": 128,
        "router_aux_loss_coef": 0.9,
        "quantization_config": {"quant_method": "mxfp4"},
    }
}


class Shape(NamedTuple):
    """The sizes of a gpt-oss, as its config.json names them, and whether its experts are stored in MXFP4."""

    num_hidden_layers: int
    num_local_experts: int
    num_experts_per_tok: int
    hidden_size: int
    intermediate_size: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    sliding_window: int
    is_packed: bool


def config_json(hub: Hub) -> dict[str, Any]:
    """The config.json of a profile's model, from the table above or from the Hub.

    Raises:
        FtlibError: it cannot be downloaded, or is of another architecture.
    """
    if hub.model in PUBLISHED:
        return PUBLISHED[hub.model]
    file = ASSETS / "model/config.json" if hub.is_rehearsal else _download(hub)
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if config.get("model_type") != "gpt_oss":
        raise FtlibError(f"hub.model {hub.model}: found a {config.get('model_type')}, expected a gpt_oss; name another")
    return config


def _download(hub: Hub) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub.model, "config.json", revision=hub.model_revision))
    except (OSError, ValueError) as error:
        raise FtlibError(
            f"hub.model {hub.model}: found its config.json neither in the cache nor on the Hub "
            f"({type(error).__name__}); check the name and model_revision, and that {hub.endpoint} can be reached"
        ) from None


def shape_of(hub: Hub) -> Shape:
    """The shape of a profile's model; raises as `config_json` does."""
    config = config_json(hub)
    sizes = {name: config[name] for name in Shape._fields if name in config}
    return Shape(**sizes, is_packed="quantization_config" in config)


def expert_stack(shape: Shape) -> int:
    """Weights in the matrices of all experts of a layer: gate, up and down."""
    return 3 * shape.num_local_experts * shape.hidden_size * shape.intermediate_size


def linear_layers(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of each linear layer but the head; experts and routers are no linear layers."""
    hidden, head_dim = shape.hidden_size, shape.head_dim
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    sizes = {"q": (hidden, queries), "k": (hidden, keys), "v": (hidden, keys), "o": (queries, hidden)}
    for layer in range(shape.num_hidden_layers):
        for name, (inputs, outputs) in sizes.items():
            yield f"model.layers.{layer}.self_attn.{name}_proj", inputs, outputs


def parameters(shape: Shape) -> int:
    """Parameters of the base: 20,914,757,184 for gpt-oss-20b."""
    hidden, experts = shape.hidden_size, shape.num_local_experts
    attention = sum(inputs * outputs + outputs for _, inputs, outputs in linear_layers(shape))
    router = experts * (hidden + 1)
    expert_biases = experts * (2 * shape.intermediate_size + hidden)
    layer = shape.num_attention_heads + router + expert_stack(shape) + expert_biases + 2 * hidden  # sinks and norms
    return 2 * shape.vocab_size * hidden + hidden + attention + shape.num_hidden_layers * layer


def adapter_parameters(shape: Shape, profile: Profile) -> int:
    """Parameters of a profile's adapter, r × (inputs + outputs) a matrix: 15,040,512 for the blog post's recipe."""
    stacks = adapters.expert_target_parameters(profile.recipe.expert_layers, shape.num_hidden_layers)
    sizes = ((name, inputs + outputs) for name, inputs, outputs in linear_layers(shape))
    targets = [size for name, size in sizes if profile.lora.adapts(name)]
    gate_up, down = shape.hidden_size + 2 * shape.intermediate_size, shape.intermediate_size + shape.hidden_size
    experts = len(stacks) // 2 * shape.num_local_experts * (gate_up + down)
    return profile.lora.r * (sum(targets) + experts)


def bytes_on_disk(shape: Shape) -> float:
    """Bytes to download: 16 bits a parameter, or 4.25 for the experts' matrices in MXFP4."""
    packed = shape.num_hidden_layers * expert_stack(shape) if shape.is_packed else 0
    return MXFP4_BYTES * packed + BYTES["bfloat16"] * (parameters(shape) - packed)


def cache_bytes(shape: Shape, rows: int, tokens: int, dtype: str) -> int:
    """Bytes of the key-value cache while replies are generated; every other layer keeps only its window."""
    kept = shape.num_hidden_layers // 2 * (tokens + min(tokens, shape.sliding_window))
    return 2 * BYTES[dtype] * rows * kept * shape.num_key_value_heads * shape.head_dim


def active_matrices(shape: Shape) -> int:
    """Weights in the matrices that a token is multiplied with in all layers, without the head."""
    attention = sum(inputs * outputs for _, inputs, outputs in linear_layers(shape))
    router = shape.hidden_size * shape.num_local_experts
    experts = expert_stack(shape) // shape.num_local_experts * shape.num_experts_per_tok
    return attention + shape.num_hidden_layers * (router + experts)


def useful_flops(shape: Shape, tokens: int) -> int:
    """Floating-point operations of a forward and a backward pass with LoRA; 14.43 GFLOP a token for gpt-oss-20b.

    An active weight takes 2 forward and 2 backward; the 2 for its own gradient fall away, because it is frozen (compare
    Kaplan et al. 2020, section 2.1).
    """
    return 4 * tokens * (active_matrices(shape) + shape.vocab_size * shape.hidden_size)
