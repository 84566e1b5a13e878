"""Rows that share one sequence, kept from seeing one another.

A batch without padding lays its rows end to end; `position_ids`, which begin again at each row, tell them apart.
transformers makes masks of them where a model passes them on, which `GptOssModel.forward` in 5.23 does not
(huggingface/transformers#39997, open). With eager or flex attention a row would then read those before it, and nothing
would say so. Here the masks are made before it is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def isolate_rows(model: "nn.Module") -> None:
    """From now on, have a gpt-oss keep apart the rows of batches without padding; other batches pass as they are.

    Args:
        model: a gpt-oss, or a PEFT model around one; the guard stays with it.
    """
    from transformers import GptOssModel

    for module in model.modules():
        if isinstance(module, GptOssModel):
            module.register_forward_pre_hook(_mask_by_row, with_kwargs=True)


def _mask_by_row(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the model its two masks, for layers of full and of sliding attention, where it would make them itself."""
    import torch
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    input_ids, position_ids = kwargs.get("input_ids"), kwargs.get("position_ids")
    given = any(kwargs.get(name) is not None for name in ("attention_mask", "past_key_values"))
    if input_ids is None or position_ids is None or given:
        return args, kwargs
    settings = {
        "config": model.config,
        # Of the embeddings only the shape, the dtype and the device are looked at.
        "inputs_embeds": torch.empty((*input_ids.shape, 1), dtype=model.dtype, device=input_ids.device),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": position_ids,
    }
    masks = {
        "full_attention": create_causal_mask(**settings),
        "sliding_attention": create_sliding_window_causal_mask(**settings),
    }
    return args, kwargs | {"attention_mask": masks}
