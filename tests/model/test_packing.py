"""Batches without padding: rows that share a sequence compute what they compute alone, because of our masks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ftlib.model import packing

Logits = list[torch.Tensor]


@pytest.fixture(scope="module")
def rows(sample: Dataset, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Three rows, each longer than the sliding window."""
    return [tokenizer.apply_chat_template(messages)["input_ids"] for messages in sample["messages"][:3]]


def logits(model: Any, rows: list[list[int]], collator: Any = None) -> Logits:
    """Each row's logits from one batch, padded unless there is a collator."""
    batch = (collator or DataCollatorForLanguageModeling(pad_token_id=0))([{"input_ids": row} for row in rows])
    batch.pop("labels")
    with torch.no_grad():
        found = model(**batch).logits
    if collator:
        return list(found[0].split([len(row) for row in rows]))
    return [found[place, : len(row)] for place, row in enumerate(rows)]


def furthest(first: Logits, second: Logits) -> float:
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True))


def test_rows_end_to_end_compute_what_they_compute_padded(
    model: GptOssForCausalLM,
    with_adapter: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
    rows: list[list[int]],
) -> None:
    assert min(len(row) for row in rows) > model.config.sliding_window
    padded = logits(model, rows)
    row = torch.tensor([rows[0][:40]])
    masked = {"attention_mask": (row != rows[0][0]).long(), "position_ids": torch.arange(40)[None]}
    with torch.no_grad():
        expected = model(input_ids=row, **masked).logits

    peft_model = with_adapter(model)
    collator = packing.collator(peft_model, tokenizer, padding_free=True)
    assert furthest(logits(peft_model, rows, collator), padded) < 1e-4
    assert furthest(logits(peft_model, rows), padded) == 0, "padded batches stay as they are"
    with torch.no_grad():
        assert torch.equal(model(input_ids=row, **masked).logits, expected), "a mask that is given counts"


def test_without_our_masks_a_row_reads_the_one_before_it(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[list[int]]
) -> None:
    """Fails once transformers passes the positions on (huggingface/transformers#39997): then `packing` can go."""
    collator = packing.collator(torch.nn.Identity(), tokenizer, padding_free=True)
    assert furthest(logits(model, rows, collator)[1:], logits(model, rows)[1:]) > 0.1
