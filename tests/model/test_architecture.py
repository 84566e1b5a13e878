"""The shapes that are known without a download, and what a token costs on them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GptOssConfig, GptOssForCausalLM

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import adapters, architecture
from ftlib.model.architecture import Shape
from ftlib.profiles import Hub
from ftlib.rehearsal import ASSETS

OTHER = {"model": "somebody/another", "model_revision": "0" * 40}


@pytest.fixture
def published() -> Shape:
    return architecture.shape_of(profiles.load("gpt-oss-20b").hub)


@pytest.fixture
def another() -> Hub:
    return profiles.load("gpt-oss-20b").hub.model_copy(update=OTHER)


def test_useful_flops_are_those_of_a_token_and_its_experts(published: Shape) -> None:
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


@pytest.mark.parametrize("targets", ["all-linear", r".*\.[0-3]\.self_attn\.(q|v)_proj"])
@pytest.mark.parametrize("name", ["tiny", "gpt-oss-20b"])
def test_parameters_are_counted_as_transformers_and_peft_count_them(name: str, targets: str) -> None:
    profile = profiles.load(name)
    lora = profile.lora.model_copy(update={"target_modules": targets})
    recipe = profile.recipe.model_copy(update={"expert_layers": (1, 3)})
    profile = profile.model_copy(update={"lora": lora, "recipe": recipe})
    shape = architecture.shape_of(profile.hub)
    few = shape._replace(num_hidden_layers=4)  # layers are alike, and four are enough to count
    config = GptOssConfig(**few._asdict() | {"layer_types": None})
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
        names = adapters.expert_target_parameters(recipe.expert_layers, few.num_hidden_layers)
        adapter = LoraConfig(r=lora.r, target_modules=targets, target_parameters=names)
        trainable, total = get_peft_model(model, adapter).get_nb_trainable_parameters()
    assert architecture.parameters(few) == total - trainable
    assert architecture.adapter_parameters(few, profile) == trainable


def test_the_published_adapter_and_base_are_counted_without_a_model(published: Shape) -> None:
    lora = profiles.load("gpt-oss-20b").lora
    assert architecture.adapter_parameters(published, lora) == 15_040_512
    assert architecture.parameters(published) + 15_040_512 == 20_929_797_696


def test_what_is_downloaded_is_the_file_that_is_loaded() -> None:
    file = (ASSETS / "model/model.safetensors").stat().st_size
    shape = architecture.shape_of(profiles.load("tiny").hub)
    assert architecture.bytes_on_disk(shape) == pytest.approx(file, rel=0.01)


def test_the_cache_of_growing_replies_is_as_large_as_transformers_makes_it(base_model: GptOssForCausalLM) -> None:
    shape, rows, tokens = architecture.shape_of(profiles.load("tiny").hub), 3, 150
    ids = torch.zeros((rows, tokens), dtype=torch.long)
    with torch.inference_mode():
        cache = base_model(ids, use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert architecture.cache_bytes(shape, rows, tokens, "float32") == pytest.approx(kept, rel=0.01)


def test_the_tiny_shape_is_that_of_the_shipped_model(base_model: GptOssForCausalLM) -> None:
    shape = architecture.shape_of(profiles.load("tiny").hub)
    sizes = {name: getattr(base_model.config, name) for name in Shape._fields if name != "is_packed"}
    assert shape == Shape(**sizes, is_packed=True)


def test_another_model_needs_the_hub(another: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_answers(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", nobody_answers)
    with pytest.raises(FtlibError, match=r"hub\.model somebody/another: its config\.json is neither known here"):
        architecture.shape_of(another)


def test_another_architecture_is_refused(another: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: config)
    with pytest.raises(FtlibError, match=r"somebody/another: found a llama, and only a gpt_oss is known here"):
        architecture.shape_of(another)
