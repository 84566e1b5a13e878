"""The shapes of the two models, which can be built with random weights, or with none, before anything is downloaded."""

import json
from typing import TYPE_CHECKING, Any

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.rehearsal import ASSETS

if TYPE_CHECKING:
    from transformers import GptOssConfig

# config.json of openai/gpt-oss-20b, where it differs from GptOssConfig() or decides about size.
PUBLISHED: dict[str, Any] = {
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
}


def config_of(model: str) -> "GptOssConfig":
    """The configuration of a model that a shipped profile names, without asking any Hub.

    Raises:
        FtlibError: it is another model, whose shape is not known here.
    """
    from transformers import GptOssConfig

    if model == profiles.load("gpt-oss-20b").hub.model:
        return GptOssConfig(**PUBLISHED)
    if model == profiles.load("tiny").hub.model:
        values = json.loads((ASSETS / "model/config.json").read_text(encoding="utf-8"))
        del values["quantization_config"]  # random weights are not packed
        return GptOssConfig(**values)
    raise FtlibError(
        f"hub.model {model!r} has a shape that is not known here; known are those of the shipped profiles' models"
    )


def active_matrix_parameters(config: "GptOssConfig") -> int:
    """Weights of the matrices that one token is multiplied with: attention, router, its experts, and the output.

    3.607 billion at the published shape. Biases, norms and the table of embeddings, which is looked up, are left out.
    """
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * config.hidden_size * config.head_dim * heads  # queries and output; keys and values
    router = config.hidden_size * config.num_local_experts
    experts = config.num_experts_per_tok * 3 * config.hidden_size * config.intermediate_size  # gate, up and down
    return config.num_hidden_layers * (attention + router + experts) + config.vocab_size * config.hidden_size


def training_flops_per_token(config: "GptOssConfig") -> int:
    """Floating-point operations that LoRA has to do for a token, forward and backward: 14.43 billion as published.

    Two (a multiplication and an addition) for each active weight forward, and two backward for the gradient of the
    activations; the frozen weights need no gradient, which full training spends two more on. What recomputing repeats
    is not counted, for nobody asked for it; nor are attention scores and the thin adapter matrices.
    """
    return 4 * active_matrix_parameters(config)
