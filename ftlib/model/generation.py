"""Generate replies for one conversation or many, and score the replies that a data set holds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ftlib.dataset.harmony import Reply, parse_reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]


def generate_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Messages],
    max_new_tokens: int,
    streamer: Any = None,
) -> list[Reply]:
    """Continue several conversations at once, greedily; a reply that is cut at `max_new_tokens` is not `complete`.

    A `streamer` is told of each token, as `generate` tells it.
    """
    import torch

    prompts = [_render(tokenizer, messages, add_generation_prompt=True) for messages in conversations]
    # Padded on the left, so that all replies start together.
    inputs = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode(), _same_experts(model) if len(prompts) > 1 else nullcontext():
        output = model.generate(  # type: ignore[operator]  # PreTrainedModel does not declare it
            **inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, streamer=streamer
        )
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
    return [parse_reply(text) for text in texts]


@contextmanager
def _same_experts(model: Any) -> Iterator[None]:
    """Have `generate` write every token with the implementation of the experts that the model was loaded with.

    On a GPU it writes all but the first with "batched_mm" in place of "grouped_mm". That suits one reply, but it copies
    the experts of each token: with 120 replies and 4 experts each, 24 GB in every layer of gpt-oss-20b.
    """
    generating = getattr(model, "get_base_model", lambda: model)()
    generating._optimize_model_for_decode = nullcontext
    try:
        yield
    finally:
        del generating._optimize_model_for_decode


def generate_reply(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", messages: Messages, max_new_tokens: int
) -> Reply:
    """Continue one conversation greedily; see `generate_replies`."""
    return generate_replies(model, tokenizer, [messages], max_new_tokens)[0]


class Score(NamedTuple):
    """How well a model predicts a given reply."""

    loss: float  # mean negative log-likelihood of the reply's tokens, in nats; NaN where there are none
    correct_tokens: int  # that the model itself would have written next
    tokens: int  # of the reply: reasoning, answer and markers


def score_replies(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Messages], max_length: int
) -> list[Score]:
    """Score the last message of several conversations at once; each is cut at `max_length` tokens, as in training."""
    import torch

    prompts = [_render(tokenizer, messages[:-1], add_generation_prompt=True) for messages in conversations]
    texts = [_render(tokenizer, messages) for messages in conversations]
    starts = torch.tensor([len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]])
    limits: dict[str, Any] = {"truncation": True, "max_length": max_length, "add_special_tokens": False}
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt", **limits)
    ends = inputs["attention_mask"].sum(dim=1)
    places = torch.arange(inputs["input_ids"].shape[1])
    # What is computed at one place predicts the token at the next.
    predicting = (places >= starts[:, None] - 1) & (places < ends[:, None] - 1)  # (conversations, places)
    counts = predicting.sum(dim=1).tolist()
    targets = inputs["input_ids"][:, 1:][predicting[:, :-1]].split(counts)
    with torch.inference_mode():
        hidden = model.get_decoder()(**inputs.to(model.device), use_cache=False).last_hidden_state
        # One reply at a time, without its prompt: over 201,088 tokens, the logits of all would fill a GPU.
        replies = hidden[predicting].split(counts)
        return [_score(model, *reply) for reply in zip(replies, targets, strict=True)]


def _score(model: "PreTrainedModel", hidden: Any, targets: Any) -> Score:
    """Score one reply: `hidden` (tokens, hidden size) predicts `targets` (tokens)."""
    from torch.nn.functional import cross_entropy

    logits = model.get_output_embeddings()(hidden).float()
    targets = targets.to(logits.device)
    correct = int((logits.argmax(dim=-1) == targets).sum())
    return Score(float(cross_entropy(logits, targets)), correct, len(targets))


def _render(tokenizer: "PreTrainedTokenizerBase", messages: Messages, add_generation_prompt: bool = False) -> str:
    return str(
        tokenizer.apply_chat_template(cast(Any, messages), add_generation_prompt=add_generation_prompt, tokenize=False)
    )
