"""An export is a base again: loaded by notebook 03's own cells, trained on, and exported once more."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from export.conftest import DATE
from transformers import PreTrainedTokenizerFast

from ftlib import profiles
from ftlib.export import check, formats
from ftlib.model import adapters
from ftlib.session import hub_client


def test_export_in_four_bits_is_loaded_trained_on_and_exported_again(
    exported: Path,
    notebooks: Any,
    with_adapter: Any,
    tokenizer: PreTrainedTokenizerFast,
    shipped_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_client, "check_download", lambda *_: None)  # it comes from no Hub
    profile = profiles.load("tiny")
    hub = profile.hub.model_copy(update={"model": str(shutil.copytree(exported / "mxfp4", tmp_path / "base"))})
    session = SimpleNamespace(device="cpu")
    given = {"profile": profile.model_copy(update={"hub": hub}), "session": session}
    base = notebooks.run("03_load_model", "model", given)
    untrained = check.ask(base, tokenizer)
    adapted_model = with_adapter(base)
    adapted = adapters.adapted_expert_tensors(adapted_model)

    rows = tokenizer(["The capital of France is Paris."], return_tensors="pt")
    optimizer = torch.optim.AdamW([weight for weight in adapted_model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = adapted_model(**rows, labels=rows["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    merged = adapted_model.merge_and_unload()
    answers = check.ask(merged, tokenizer)
    with formats.replacing(tmp_path / "again", 1e6) as unfinished:
        formats.save_mxfp4(merged, tmp_path / "base", adapted, unfinished)
        shipped_tokenizer.save_pretrained(unfinished)
        check.folder(unfinished, answers, untrained, DATE)
    assert check.is_packed(tmp_path / "again")
