"""A trained adapter, merged into the shipped model, and the folder that it is exported to."""

import copy
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib.export import check, formats
from ftlib.model import adapters
from ftlib.rehearsal import ASSETS

DATE = "2025-08-05"


class Merged(NamedTuple):
    """One model of base and adapter, the expert tensors that the adapter changed, and what it answers."""

    model: GptOssForCausalLM
    adapted: list[str]
    answers: check.Answers
    untrained: check.Answers  # what the base answers


@pytest.fixture(scope="session")
def merged(base_model: GptOssForCausalLM, with_adapter: Any, tokenizer: PreTrainedTokenizerFast) -> Merged:
    adapted_model = with_adapter(copy.deepcopy(base_model))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted = adapters.adapted_expert_tensors(adapted_model)
    model = adapted_model.merge_and_unload()
    return Merged(model, adapted, check.ask(model, tokenizer), check.ask(base_model, tokenizer))


@pytest.fixture(scope="session")
def exported(
    merged: Merged, shipped_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The merged model in both layouts: `merged` and `mxfp4`, to be looked at and never changed."""
    folder = tmp_path_factory.mktemp("export")
    with formats.replacing(folder / "merged", 1e6) as unfinished:
        merged.model.save_pretrained(unfinished, save_original_format=False)
        shipped_tokenizer.save_pretrained(unfinished)
    with formats.replacing(folder / "mxfp4", 1e6) as unfinished:
        formats.save_mxfp4(merged.model, ASSETS / "model", merged.adapted, unfinished)
        shipped_tokenizer.save_pretrained(unfinished)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the unpacked export, without its seal, that a test may damage."""
    copied = tmp_path / "merged"
    shutil.copytree(exported / "merged", copied, ignore=shutil.ignore_patterns("manifest.json"))
    return copied


@pytest.fixture(scope="session")
def gguf(exported: Path) -> Path:
    file = exported / "mxfp4.gguf"
    with formats.converting(exported / "mxfp4", file, "auto"):
        pass
    return file
