"""LoRA on a mixture of experts: which tensors to adapt, how many parameters that makes, and proof that none is missing.

PEFT says nothing when a name in `target_parameters` matches no parameter, or when a saved tensor has no place in the
model that it is loaded into. Either leaves experts that silently never learned.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftlib.errors import FtlibError

if TYPE_CHECKING:
    import pandas as pd
    from peft import LoraConfig, PeftModel
    from torch import Tensor, nn

EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
MERGED_TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""How far a typical token's logits may move when an adapter is merged, as a share of the largest."""
BLOCKS = {
    "experts": ("mlp.experts",),
    "attention": ("self_attn",),
    "router": ("mlp.router",),
    "embeddings": ("embed_tokens", "lm_head"),
}


def expert_target_parameters(layers: Sequence[int], num_hidden_layers: int) -> list[str]:
    """Name the expert tensors of some layers as `LoraConfig(target_parameters=…)` expects them."""
    missing = [layer for layer in layers if layer >= num_hidden_layers]
    if missing:
        raise FtlibError(
            f"recipe.expert_layers names {missing}, but the model has layers 0 to {num_hidden_layers - 1}; "
            "choose from those"
        )
    return [f"{layer}.mlp.experts.{name}" for layer in layers for name in EXPERT_PARAMETERS]


def check_targets(model: "nn.Module", peft_config: "LoraConfig") -> None:
    """Check that a model has no adapter yet, and has the layers that `target_modules` names.

    PEFT takes a text for a pattern that must match a layer's whole name, and skips in silence what matches none.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
    from torch.nn import Embedding, Linear

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise FtlibError("this model has an adapter already; run the cells again from the one that loads the model")
    wanted, each = peft_config.target_modules, copy.copy(peft_config)
    for name in [wanted] if isinstance(wanted, str) else sorted(wanted or ()):
        each.target_modules = name if isinstance(wanted, str) else [name]
        found = [module for path, module in model.named_modules() if check_target_module_exists(each, path)]
        if name != "all-linear" and not (found and all(isinstance(module, Linear | Embedding) for module in found)):
            hint = f"a pattern for whole names, such as '.*{name or 'q_proj'}'" if isinstance(wanted, str) else "q_proj"
            raise FtlibError(
                f"lora.target_modules: {name!r} names no linear layers of the model; write 'all-linear' or {hint}"
            )


def parameter_table(model: "nn.Module") -> "pd.DataFrame":
    """Count the parameters of each part of the network: columns block, parameters, trainable, share; largest first."""
    import pandas as pd

    rows = [(_block(name), p.numel(), p.numel() if p.requires_grad else 0) for name, p in model.named_parameters()]
    table = pd.DataFrame(rows, columns=["block", "parameters", "trainable"]).groupby("block").sum()
    table["share"] = table["parameters"] / table["parameters"].sum()
    return table.sort_values("parameters", ascending=False).reset_index()


def _block(name: str) -> str:
    return next((block for block, marks in BLOCKS.items() if any(mark in name for mark in marks)), "norms")


def adapted_expert_tensors(model: "PeftModel") -> list[str]:
    """Name the expert tensors that an adapter trains, and check that it trains all of its `target_parameters`."""
    wanted = list(getattr(model.peft_config[model.active_adapter], "target_parameters", None) or [])
    # PEFT nests the wrappers of one module, so a path may contain `.base_layer` several times.
    adapted = {
        f"{path.split('.layers.')[-1].replace('.base_layer', '')}.{module.parameter_name}"
        for path, module in model.named_modules()
        if hasattr(module, "parameter_name")
    }
    missing = [name for name in wanted if name not in adapted]
    if missing:
        raise FtlibError(
            f"{len(missing)} of {len(wanted)} expert tensors have no adapter, such as {missing[0]}; "
            "check recipe.expert_layers"
        )
    return wanted


def check_attached(model: "PeftModel", adapter_dir: Path) -> int:
    """Check that the model has every tensor of a saved adapter with the saved values; returns how many there are.

    Raises:
        FtlibError: a tensor is missing or differs, for example because the base is still packed in MXFP4.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(adapter_dir / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)  # or it asks the Hub
    for name, tensor in saved.items():
        if name not in loaded:
            raise FtlibError(
                f"adapter tensor {name} has no place in the model; load the base with Mxfp4Config(dequantize=True)"
            )
        here = loaded[name].to("cpu", tensor.dtype)
        if not torch.equal(here, tensor):
            raise FtlibError(f"adapter tensor {name} differs from the saved one; load the adapter onto a fresh base")
    unsaved = sorted(loaded.keys() - saved.keys())
    if unsaved:
        raise FtlibError(f"adapter tensor {unsaved[0]} is missing in the saved adapter; save the adapter again")
    return len(saved)


def check_merged(unmerged: "Tensor", merged: "Tensor") -> float:
    """Check that merging an adapter changed logits by no more than rounding; returns the largest difference.

    Rounding may send a token to another expert, and that token's logits far away. A wrong merge moves those of all
    tokens, so the median over the tokens is judged.
    """
    dtype = str(unmerged.dtype).removeprefix("torch.")
    by_token = (merged - unmerged).abs().amax(dim=-1).float()
    typical, largest = by_token.median().item(), by_token.max().item()
    expected = MERGED_TOLERANCE[dtype] * unmerged.abs().max().item()
    if not typical <= expected:  # so that NaN is refused, too
        raise FtlibError(
            f"the merged model answers differently: found the typical token's logits {typical:.2g} apart, expected at "
            f"most {expected:.2g} in {dtype}; merge the adapter into the base that it was loaded onto, once"
        )
    return largest
