"""LoRA on a mixture of experts: which tensors to name, what the parameters are, and proof that nothing was left out.

PEFT says nothing when one of several names in `target_parameters` matches no parameter, or when a saved tensor finds
no place in the model that it is loaded into. Both leave experts that silently never learned, so both are checked here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftlib.errors import FtlibError

if TYPE_CHECKING:
    import pandas as pd
    from peft import PeftModel
    from torch import Tensor, nn

EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
MERGED_TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""How far logits may move when an adapter is merged, as a share of the largest."""
BLOCKS = {
    "experts": ("mlp.experts",),
    "attention": ("self_attn",),
    "router": ("mlp.router",),
    "embeddings": ("embed_tokens", "lm_head"),
}


def expert_target_parameters(layers: Sequence[int], num_hidden_layers: int) -> list[str]:
    """The expert tensors of some layers, by the names that `LoraConfig(target_parameters=…)` wants.

    Args:
        layers: indices of layers, from 0.
        num_hidden_layers: how many layers the model has.

    Raises:
        FtlibError: the model has no such layer; PEFT would silently adapt nothing there.
    """
    beyond = [layer for layer in layers if layer >= num_hidden_layers]
    if beyond:
        raise FtlibError(
            f"recipe.expert_layers names {beyond}, but there are layers 0 to {num_hidden_layers - 1}; choose from those"
        )
    return [f"{layer}.mlp.experts.{name}" for layer in layers for name in EXPERT_PARAMETERS]


def parameter_table(model: "nn.Module") -> "pd.DataFrame":
    """Count the parameters by the part of the network that they belong to.

    Returns:
        Columns block (experts, attention, router, embeddings, norms), parameters, trainable, share; largest first.
    """
    import pandas as pd

    rows = [(_block(name), p.numel(), p.numel() if p.requires_grad else 0) for name, p in model.named_parameters()]
    table = pd.DataFrame(rows, columns=["block", "parameters", "trainable"]).groupby("block").sum()
    table["share"] = table["parameters"] / table["parameters"].sum()
    return table.sort_values("parameters", ascending=False).reset_index()


def _block(name: str) -> str:
    for block, marks in BLOCKS.items():
        if any(mark in name for mark in marks):
            return block
    return "norms"


def adapted_expert_tensors(model: "PeftModel") -> list[str]:
    """The names of the expert tensors that an adapter trains.

    Raises:
        FtlibError: not every tensor named in the adapter's `target_parameters` is adapted.
    """
    wanted = list(getattr(model.peft_config[model.active_adapter], "target_parameters", None) or [])
    # PEFT nests the wrappers of one module, so a path may carry `.base_layer`, even more than once.
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
    """Prove that every tensor of a saved adapter is in the model, with the saved values.

    Args:
        model: the base with the adapter loaded onto it.
        adapter_dir: folder that holds `adapter_model.safetensors`.

    Returns:
        How many tensors were compared.

    Raises:
        FtlibError: a tensor is missing or differs, as when the base is still packed in MXFP4.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(adapter_dir / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model)
    unsaved = sorted(loaded.keys() - saved.keys())
    if unsaved:
        raise FtlibError(f"adapter tensor {unsaved[0]} is not in the saved adapter; save it again, to the end")
    for name, tensor in saved.items():
        if name not in loaded:
            raise FtlibError(
                f"adapter tensor {name} found no place in the model; load the base with Mxfp4Config(dequantize=True)"
            )
        here = loaded[name].to("cpu", tensor.dtype)
        if here.shape != tensor.shape or not torch.equal(here, tensor):
            raise FtlibError(f"adapter tensor {name} differs from the saved one; load the adapter onto a fresh base")
    return len(saved)


def check_merged(unmerged: "Tensor", merged: "Tensor") -> float:
    """Make sure that merging an adapter into its base changed nothing but rounding.

    Args:
        unmerged: logits of the base with the adapter on it.
        merged: logits of the merged model for the same tokens.

    Returns:
        The largest difference in a logit.

    Raises:
        FtlibError: it is more than rounding explains in this dtype.
    """
    dtype = str(unmerged.dtype).removeprefix("torch.")
    difference = (merged - unmerged).abs().max().item()
    expected = MERGED_TOLERANCE[dtype] * unmerged.abs().max().item()
    if not difference <= expected:
        raise FtlibError(
            f"the merged model answers otherwise: found logits {difference:.2g} apart, expected at most "
            f"{expected:.2g} in {dtype}; merge the adapter that was loaded onto this base, once"
        )
    return float(difference)
