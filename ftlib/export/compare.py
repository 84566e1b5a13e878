"""One row for each engine that answered the same questions: how well, how fast, and how large the model is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftlib.dataset.harmony import Reply
from ftlib.model import evaluation

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def row(
    engine: str,
    size: int,
    questions: "Dataset",
    replies: Sequence[Reply],
    seconds: float,
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Any]:
    """Engine, bytes, agreement, exact and faithful (shares), and tokens a second over all replies together."""
    found = evaluation.shares(evaluation.judge(questions, replies))
    tokens = sum(map(len, tokenizer([reply.analysis + reply.final for reply in replies])["input_ids"]))
    measured = {key: found[key] for key in ("agreement", "exact", "faithful")}
    return {"engine": engine, "bytes": size, **measured, "tokens_per_second": tokens / seconds}
