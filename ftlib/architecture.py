"""The shape of a gpt-oss, known before anything of it is downloaded, and what a token costs on it."""

from typing import TYPE_CHECKING, Any

from ftlib.errors import FtlibError
from ftlib.profiles import Hub
from ftlib.rehearsal import ASSETS

if TYPE_CHECKING:
    from transformers import GptOssConfig

# As their config.json says, where that differs from GptOssConfig's defaults or is worth seeing.
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
        "router_aux_loss_coef": 0.9,
        "quantization_config": {"quant_method": "mxfp4"},
    }
}


def config_of(hub: Hub) -> "GptOssConfig":
    """The configuration of a profile's model: one that comes with the package, or the Hub's.

    Raises:
        FtlibError: it is neither here nor to be had, or of another architecture.
    """
    from transformers import AutoConfig, GptOssConfig

    if hub.model in PUBLISHED:
        return GptOssConfig(**PUBLISHED[hub.model])
    try:
        source = (ASSETS / "model", None) if hub.endpoint == "rehearsal" else (hub.model, hub.model_revision)
        config = AutoConfig.from_pretrained(source[0], revision=source[1])
    except (OSError, ValueError) as error:
        raise FtlibError(
            f"hub.model {hub.model}: its config.json is neither known here nor in the cache, and the Hub did not give "
            f"it ({type(error).__name__}); try where {hub.endpoint} can be reached, or once it is downloaded"
        ) from None
    if not isinstance(config, GptOssConfig):
        raise FtlibError(f"hub.model {hub.model}: found a {config.model_type}, and only a gpt_oss is known here")
    return config


def expert_stack(config: "GptOssConfig") -> int:
    """Weights in the matrices of all experts of a layer: gate and up in one, and down."""
    return 3 * int(config.num_local_experts * config.hidden_size * config.intermediate_size)


def active_matrices(config: "GptOssConfig") -> int:
    """Weights in the matrices that a token is multiplied with in all layers; the head comes on top."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention = config.hidden_size * config.head_dim * 2 * (heads + kv_heads)
    router = config.hidden_size * config.num_local_experts
    experts = expert_stack(config) // config.num_local_experts * config.num_experts_per_tok
    return int(config.num_hidden_layers * (attention + router + experts))


def useful_flops(config: "GptOssConfig", tokens: int, recompute: bool = False) -> int:
    """What a forward and a backward pass over some tokens takes with LoRA, in floating-point operations.

    Each weight that a token is multiplied with takes 2 forward (multiply and add) and 2 backward, for the gradient of
    its input; the other 2 of full training, for its own gradient, fall away because it is frozen (Kaplan et al. 2020,
    section 2.1, less that third). Of the experts, those count that the token is sent to. The adapter (0.1%) and the
    attention scores are left out. gpt-oss-20b: 3.607 billion weights, 14.43 GFLOP a token.

    Args:
        config: the model's.
        tokens: how many; with their padding for the work that is done, without it for what is wanted of it.
        recompute: add the second forward pass of activation checkpointing, which leaves out the head: 20.48 GFLOP.
    """
    layers, head = active_matrices(config), config.vocab_size * config.hidden_size
    return tokens * (4 * (layers + head) + 2 * layers * recompute)
