"""The shapes that are known without a download, and what a token costs on them."""

import pytest
from transformers import GptOssForCausalLM

from ftlib import architecture
from ftlib.errors import FtlibError

LARGE, TINY = "openai/gpt-oss-20b", "rehearsal/gpt-oss-tiny"


def test_a_token_of_the_published_shape() -> None:
    config = architecture.config_of(LARGE)
    assert architecture.active_matrix_parameters(config) == pytest.approx(3.607e9, rel=1e-4)
    assert architecture.training_flops_per_token(config) == pytest.approx(14.43e9, rel=1e-3)


def test_active_parameters_are_those_of_the_matrices_that_a_token_meets(base_model: GptOssForCausalLM) -> None:
    config = base_model.config
    idle = 1 - config.num_experts_per_tok / config.num_local_experts
    matrices = {name: p for name, p in base_model.named_parameters() if p.ndim > 1 and "bias" not in name}
    met = sum(p.numel() * (1 - idle * ("experts" in name)) for name, p in matrices.items() if "embed" not in name)
    assert architecture.active_matrix_parameters(config) == met


def test_the_tiny_shape_is_that_of_the_shipped_model(base_model: GptOssForCausalLM) -> None:
    config = architecture.config_of(TINY)
    for name in architecture.PUBLISHED:
        assert getattr(config, name) == getattr(base_model.config, name)
    assert not hasattr(config, "quantization_config")


def test_another_models_shape_is_not_guessed() -> None:
    with pytest.raises(FtlibError, match=r"'other/model' has a shape that is not known here"):
        architecture.config_of("other/model")
