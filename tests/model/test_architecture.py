"""The shapes that are known without a download, counted as the libraries count them."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GptOssConfig, GptOssForCausalLM

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import adapters, architecture
from ftlib.rehearsal import ASSETS

LARGE = profiles.load("gpt-oss-20b")
PUBLISHED, TINY = architecture.shape_of(LARGE.hub), architecture.shape_of(profiles.load("tiny").hub)
ANOTHER = LARGE.hub.model_copy(update={"model": "somebody/another"})


def test_the_published_model_is_counted_without_it() -> None:
    assert architecture.adapter_parameters(PUBLISHED, LARGE) == 15_040_512
    assert architecture.parameters(PUBLISHED) + 15_040_512 == 20_929_797_696
    assert architecture.useful_flops(PUBLISHED, tokens=1) == pytest.approx(14.43e9, rel=1e-3)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "self_attn.v_proj", "2.self_attn.o_proj"], []])
def test_parameters_are_counted_as_transformers_and_peft_count_them(targets: str | list[str]) -> None:
    lora = LARGE.lora.model_copy(update={"target_modules": targets})
    recipe = LARGE.recipe.model_copy(update={"expert_layers": (1, 3)})
    profile = LARGE.model_copy(update={"lora": lora, "recipe": recipe})
    few = PUBLISHED._replace(num_hidden_layers=4)  # layers are alike, and four are enough to count
    with torch.device("meta"):
        model = GptOssForCausalLM(GptOssConfig(**few._asdict()))
        names = adapters.expert_target_parameters(recipe.expert_layers, few.num_hidden_layers)
        adapter = LoraConfig(r=lora.r, target_modules=targets, target_parameters=names)
        trainable, total = get_peft_model(model, adapter).get_nb_trainable_parameters()
    assert architecture.parameters(few) == total - trainable
    assert architecture.adapter_parameters(few, profile) == trainable


def test_the_tiny_model_is_counted_as_it_is(base_model: GptOssForCausalLM) -> None:
    config = base_model.config
    sizes = {name: getattr(config, name) for name in TINY._fields if name != "is_packed"}
    assert architecture.Shape(**sizes, is_packed=True) == TINY
    file = (ASSETS / "model/model.safetensors").stat().st_size
    assert architecture.bytes_on_disk(TINY) == pytest.approx(file, rel=0.01)

    idle = 1 - config.num_experts_per_tok / config.num_local_experts
    matrices = {name: p for name, p in base_model.model.layers.named_parameters() if p.ndim > 1 and "bias" not in name}
    active = sum(p.numel() * (1 - idle * ("experts" in name)) for name, p in matrices.items())
    assert architecture.active_matrices(TINY) == active

    rows, tokens = 3, 150
    with torch.inference_mode():
        cache = base_model(torch.zeros((rows, tokens), dtype=torch.long), use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert architecture.cache_bytes(TINY, rows, tokens, "float32") == pytest.approx(kept, rel=0.01)


def test_another_model_is_looked_up_and_another_architecture_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=[OSError, config]))
    with pytest.raises(FtlibError, match=r"hub\.model somebody/another: found its config\.json neither in the cache"):
        architecture.shape_of(ANOTHER)
    with pytest.raises(FtlibError, match=r"somebody/another: found a llama, expected a gpt_oss"):
        architecture.shape_of(ANOTHER)
