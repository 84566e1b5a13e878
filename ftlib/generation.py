"""Ask a model and get its reply back by channel: what notebook 03 writes out once, for one prompt or many."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ftlib.harmony import Reply, parse_reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]


def generate_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Messages],
    max_new_tokens: int,
) -> list[Reply]:
    """Continue several conversations at once, greedily, so that the same model always says the same.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; prompts are padded on the left so that all replies start together.
        conversations: each a list of messages that ends with the user's.
        max_new_tokens: where a reply that does not end is cut; it is then not `complete`.
    """
    import torch

    prompts = [
        tokenizer.apply_chat_template(cast(Any, messages), add_generation_prompt=True, tokenize=False)
        for messages in conversations
    ]
    inputs = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    inputs = inputs.to(model.device)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]  # PreTrainedModel does not declare it
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True
        )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
    return [parse_reply(text) for text in texts]


def generate_reply(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", messages: Messages, max_new_tokens: int
) -> Reply:
    """Continue one conversation greedily; see `generate_replies`."""
    return generate_replies(model, tokenizer, [messages], max_new_tokens)[0]
