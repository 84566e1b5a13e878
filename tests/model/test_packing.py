"""Batches without padding: rows that share a sequence say what they would say alone, and the guard is what does it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ftlib.model.packing import isolate_rows

Logits = list[torch.Tensor]


@pytest.fixture(scope="module")
def rows(sample: Dataset, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Three rows, each longer than the sliding window."""
    return [tokenizer.apply_chat_template(messages)["input_ids"] for messages in sample["messages"][:3]]


def logits(model: Any, rows: list[list[int]], padding_free: bool) -> Logits:
    """Each row's logits, from one batch of all rows."""
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
    batch = collator([{"input_ids": row} for row in rows])
    batch.pop("labels")
    with torch.no_grad():
        found = model(**batch).logits
    if padding_free:
        return list(found[0].split([len(row) for row in rows]))
    return [found[place, : len(row)] for place, row in enumerate(rows)]


def furthest(first: Logits, second: Logits) -> float:
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True))


def test_rows_end_to_end_say_what_they_say_padded(model: GptOssForCausalLM, rows: list[list[int]]) -> None:
    padded = logits(model, rows, padding_free=False)
    isolate_rows(model)
    assert furthest(logits(model, rows, padding_free=True), padded) < 1e-4
    assert min(len(row) for row in rows) > model.config.sliding_window


def test_a_row_does_not_see_the_one_before_it(model: GptOssForCausalLM, rows: list[list[int]]) -> None:
    isolate_rows(model)
    _, second, third = logits(model, rows, padding_free=True)
    changed = [list(reversed(rows[0])), *rows[1:]]
    assert furthest(logits(model, changed, padding_free=True)[1:], [second, third]) < 1e-4


def test_without_the_guard_it_would(model: GptOssForCausalLM, rows: list[list[int]]) -> None:
    """Fails once transformers passes the positions on (huggingface/transformers#39997): then `packing` may go."""
    _, second, third = logits(model, rows, padding_free=True)
    changed = [list(reversed(rows[0])), *rows[1:]]
    assert furthest(logits(model, changed, padding_free=True)[1:], [second, third]) > 0.1


def test_it_works_inside_a_peft_model(
    model: GptOssForCausalLM, with_adapter: Callable[..., Any], rows: list[list[int]]
) -> None:
    padded = logits(model, rows, padding_free=False)
    peft_model = with_adapter(model)
    isolate_rows(peft_model)
    assert furthest(logits(peft_model, rows, padding_free=True), padded) < 1e-4


def test_padded_batches_and_generation_pass_as_they_are(model: GptOssForCausalLM, rows: list[list[int]]) -> None:
    padded = logits(model, rows, padding_free=False)
    prompt = torch.tensor([rows[0][:40]])
    reply = model.generate(prompt, max_new_tokens=8, do_sample=False)
    isolate_rows(model)
    assert furthest(logits(model, rows, padding_free=False), padded) == 0
    assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), reply)
