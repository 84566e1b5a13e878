"""Batches without padding: rows lie end to end in one sequence, and attention masks keep them apart.

`position_ids`, which restart at each row, tell the rows apart. `GptOssModel.forward` in transformers 5.23 does not pass
them on to its masks (huggingface/transformers#39997, open), so each row would silently read the rows before it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


def collator(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", padding_free: bool
) -> "DataCollatorForLanguageModeling | None":
    """The `data_collator` for SFTTrainer: None, its own default, for padded batches.

    For batches without padding, the model (a gpt-oss, or a PEFT model around one) is also made to keep rows apart.
    """
    if not padding_free:
        return None
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    isolate_rows(model)
    return DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=True)


def isolate_rows(model: "nn.Module") -> None:
    """Make a gpt-oss keep the rows of batches without padding apart, from now on; padded batches stay as they are."""
    from transformers import GptOssModel

    for module in model.modules():
        if isinstance(module, GptOssModel):
            module.register_forward_pre_hook(_mask_by_row, with_kwargs=True)


def _mask_by_row(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass the masks for layers of full and of sliding attention that the model would otherwise make itself."""
    import torch
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    input_ids, position_ids = kwargs.get("input_ids"), kwargs.get("position_ids")
    given = any(kwargs.get(name) is not None for name in ("attention_mask", "past_key_values"))
    if input_ids is None or position_ids is None or given:
        return args, kwargs
    settings = {
        "config": model.config,
        # Only the shape, dtype and device of the embeddings matter.
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
