"""The shape of a gpt-oss, known before it is downloaded, and what follows from it: parameters, bytes, work."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlib.errors import FtlibError
from ftlib.profiles import Hub, Profile
from ftlib.rehearsal import ASSETS

if TYPE_CHECKING:
    from transformers import GptOssConfig

BYTES = {"float32": 4, "bfloat16": 2}
MXFP4_BYTES = (4 + 8 / 32) / 8
"""Bytes of a packed value: four bits, and a shared exponent of eight for each 32."""

# As their config.json says.
PUBLISHED: dict[str, dict[str, Any]] = {
    "openai/gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 201_088,
        "max_position_embeddings": 131_072,
        "sliding_window": 128,
        "router_aux_loss_coef": 0.9,
        "quantization_config": {"quant_method": "mxfp4"},
    }
}


class Shape(NamedTuple):
    """The sizes of a gpt-oss, by the names of its config.json.

    Attributes:
        is_packed: whether the experts are stored in MXFP4.
    """

    num_hidden_layers: int
    num_local_experts: int
    num_experts_per_tok: int
    hidden_size: int
    intermediate_size: int
    head_dim: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    sliding_window: int
    is_packed: bool


def config_json(hub: Hub) -> dict[str, Any]:
    """The config.json of a profile's model: one that is known here, or the Hub's.

    Raises:
        FtlibError: it is neither here nor to be had, or of another architecture.
    """
    if hub.model in PUBLISHED:
        return PUBLISHED[hub.model]
    config: dict[str, Any] = json.loads(_config_file(hub).read_text(encoding="utf-8"))
    if config.get("model_type") != "gpt_oss":
        raise FtlibError(f"hub.model {hub.model}: found a {config.get('model_type')}, and only a gpt_oss is known here")
    return config


def _config_file(hub: Hub) -> Path:
    if hub.endpoint == "rehearsal":
        return ASSETS / "model/config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub.model, "config.json", revision=hub.model_revision))
    except (OSError, ValueError) as error:
        raise FtlibError(
            f"hub.model {hub.model}: its config.json is neither known here nor in the cache, and the Hub did not give "
            f"it ({type(error).__name__}); try where {hub.endpoint} can be reached, or once it is downloaded"
        ) from None


def shape_of(hub: Hub) -> Shape:
    """The shape of a profile's model.

    Raises:
        FtlibError: as for `config_json`.
    """
    config = config_json(hub)
    sizes = {name: config[name] for name in Shape._fields if name in config}
    return Shape(**sizes, is_packed="quantization_config" in config)


def expert_stack(shape: "Shape | GptOssConfig") -> int:
    """Weights in the matrices of all experts of a layer: gate and up in one, and down."""
    return 3 * int(shape.num_local_experts * shape.hidden_size * shape.intermediate_size)


def linear_layers(shape: "Shape | GptOssConfig") -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of each linear layer, the head left out; experts and routers are no linear layers."""
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
    """Parameters of an adapter: 15,040,512 for the blog post's recipe.

    A and B together have r × (inputs + outputs) for a matrix, and an expert's two matrices are adapted like any other.
    """
    lora = profile.lora
    targets = [
        inputs + outputs
        for name, inputs, outputs in linear_layers(shape)
        if lora.target_modules == "all-linear" or re.fullmatch(lora.target_modules, name)
    ]
    gate_up, down = shape.hidden_size + 2 * shape.intermediate_size, shape.intermediate_size + shape.hidden_size
    experts = len(profile.recipe.expert_layers) * shape.num_local_experts * (gate_up + down)
    return lora.r * (sum(targets) + experts)


def bytes_on_disk(shape: Shape) -> float:
    """What is downloaded: 16 bits a parameter, but 4.25 for the experts' matrices where these are in MXFP4."""
    packed = shape.num_hidden_layers * expert_stack(shape) if shape.is_packed else 0
    return MXFP4_BYTES * packed + BYTES["bfloat16"] * (parameters(shape) - packed)


def cache_bytes(shape: Shape, rows: int, tokens: int, dtype: str) -> int:
    """What the keys and values of rows take while replies grow; every other layer keeps its window alone."""
    kept = shape.num_hidden_layers // 2 * (tokens + min(tokens, shape.sliding_window))
    return 2 * BYTES[dtype] * rows * kept * shape.num_key_value_heads * shape.head_dim


def active_matrices(shape: "Shape | GptOssConfig") -> int:
    """Weights in the matrices that a token is multiplied with in all layers; the head comes on top."""
    attention = sum(inputs * outputs for _, inputs, outputs in linear_layers(shape))
    router = shape.hidden_size * shape.num_local_experts
    experts = expert_stack(shape) // shape.num_local_experts * shape.num_experts_per_tok
    return int(attention + shape.num_hidden_layers * (router + experts))


def useful_flops(shape: "Shape | GptOssConfig", tokens: int, recompute: bool = False) -> int:
    """What a forward and a backward pass over some tokens takes with LoRA, in floating-point operations.

    Each weight that a token is multiplied with takes 2 forward (multiply and add) and 2 backward, for the gradient of
    its input; the other 2 of full training, for its own gradient, fall away because it is frozen (Kaplan et al. 2020,
    section 2.1, less that third). Of the experts, those count that the token is sent to. The adapter (0.1%) and the
    attention scores are left out. gpt-oss-20b: 3.607 billion weights, 14.43 GFLOP a token.

    Args:
        shape: the model's.
        tokens: how many; with their padding for the work that is done, without it for what is wanted of it.
        recompute: add the second forward pass of activation checkpointing, which leaves out the head: 20.48 GFLOP.
    """
    layers, head = active_matrices(shape), shape.vocab_size * shape.hidden_size
    return tokens * (4 * (layers + head) + 2 * layers * recompute)


def trainer_flos(shape: Shape, profile: Profile, padded_tokens: int) -> int:
    """The `total_flos` that transformers' Trainer prints: 6 × parameters without embeddings × padded tokens.

    It is `PreTrainedModel.floating_point_ops`: two for each of a forward and two backward passes, with every expert at
    work on every token and every weight trained. Neither is so here, so it says little about the work, as
    `useful_flops` counts it.
    """
    embeddings = shape.vocab_size * shape.hidden_size
    return 6 * (parameters(shape) + adapter_parameters(shape, profile) - embeddings) * padded_tokens
