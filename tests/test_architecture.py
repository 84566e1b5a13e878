"""The shapes that are known without a download, and what a token costs on them."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GptOssConfig, GptOssForCausalLM

from ftlib import architecture, profiles
from ftlib.errors import FtlibError
from ftlib.profiles import Hub

OTHER = {"model": "somebody/another", "model_revision": "0" * 40}


@pytest.fixture
def published() -> GptOssConfig:
    return architecture.config_of(profiles.load("gpt-oss-20b").hub)


@pytest.fixture
def another() -> Hub:
    return profiles.load("gpt-oss-20b").hub.model_copy(update=OTHER)


def test_useful_flops_are_those_of_a_token_and_its_experts(published: GptOssConfig) -> None:
    head = published.vocab_size * published.hidden_size
    assert architecture.active_matrices(published) + head == pytest.approx(3.607e9, rel=1e-4)
    assert architecture.useful_flops(published, tokens=1) == pytest.approx(14.43e9, rel=1e-3)
    assert architecture.useful_flops(published, tokens=1, recompute=True) == pytest.approx(20.48e9, rel=1e-3)


def test_active_parameters_are_those_of_the_matrices_that_a_token_meets(base_model: GptOssForCausalLM) -> None:
    config = base_model.config
    idle = 1 - config.num_experts_per_tok / config.num_local_experts
    matrices = {name: p for name, p in base_model.model.layers.named_parameters() if p.ndim > 1 and "bias" not in name}
    met = sum(p.numel() * (1 - idle * ("experts" in name)) for name, p in matrices.items())
    assert architecture.active_matrices(config) == met


def test_the_tiny_shape_is_that_of_the_shipped_model(base_model: GptOssForCausalLM) -> None:
    config = architecture.config_of(profiles.load("tiny").hub)
    assert (config.num_hidden_layers, config.vocab_size) == (4, 1024)
    assert config.layer_types == base_model.config.layer_types


def test_another_model_needs_the_hub(another: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_answers(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", nobody_answers)
    with pytest.raises(FtlibError, match=r"hub\.model somebody/another: its config\.json is neither known here"):
        architecture.config_of(another)


def test_another_architecture_is_refused(another: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: SimpleNamespace(model_type="llama"))
    with pytest.raises(FtlibError, match=r"somebody/another: found a llama, and only a gpt_oss is known here"):
        architecture.config_of(another)
