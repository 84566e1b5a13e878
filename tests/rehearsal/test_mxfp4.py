"""MXFP4 as transformers reads it, and the shipped checkpoint in the published layout."""

import hashlib
import json
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from trl.chat_template_utils import gptoss_chat_template

from ftlib import profiles
from ftlib.rehearsal import ASSETS, build, hub, mxfp4

MANIFEST = json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))
CONFIG = json.loads((ASSETS / "model/config.json").read_text(encoding="utf-8"))


@pytest.fixture
def weight() -> torch.Tensor:
    """Experts as a model holds them: `[experts, in, out]`."""
    return torch.randn(3, 96, 40, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    with safe_open(ASSETS / "model/model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_transformers_reads_what_is_packed(weight: torch.Tensor) -> None:
    blocks, scales = mxfp4.pack(weight)
    assert (blocks.shape, scales.shape) == ((3, 40, 3, 16), (3, 40, 3))
    assert torch.equal(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32), mxfp4.unpack(blocks, scales))
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 1, 16)
    for scale in (90, 127, 150):
        scales = torch.full((1, 16, 1), scale, dtype=torch.uint8)
        assert torch.equal(convert_moe_packed_tensors(codes, scales, dtype=torch.float32), mxfp4.unpack(codes, scales))


def test_a_block_takes_the_better_of_two_scales(weight: torch.Tensor) -> None:
    """Never worse than the specification's rule, which looks only at the largest value and clips it."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    exponent = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
    scaled = groups * torch.exp2(-exponent)
    nearest = mxfp4.MAGNITUDES[(scaled.abs().unsqueeze(-1) - mxfp4.MAGNITUDES).abs().argmin(-1)] * scaled.sign()
    by_the_rule = (nearest * torch.exp2(exponent) - groups).square().sum(-1)
    packed = mxfp4.unpack(*mxfp4.pack(weight)).transpose(1, 2).unflatten(-1, (-1, 32))
    ours = (packed - groups).square().sum(-1)
    assert (ours <= by_the_rule + 1e-9).all()
    assert ours.sum() < 0.97 * by_the_rule.sum()


def test_the_checkpoint_has_packed_experts_and_loads_as_they_unpack(
    checkpoint: dict[str, torch.Tensor], base_model: GptOssForCausalLM
) -> None:
    for layer in range(4):
        for name in ("gate_up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp.experts.{name}"
            ours = mxfp4.unpack(checkpoint[f"{prefix}_blocks"], checkpoint[f"{prefix}_scales"])
            assert torch.equal(getattr(base_model.model.layers[layer].mlp.experts, name), ours)
    rest = [tensor.dtype for name, tensor in checkpoint.items() if not name.endswith(("_blocks", "_scales"))]
    assert set(rest) == {torch.bfloat16}
    assert set(base_model.generation_config.eos_token_id) == {1, 2, 8}


def test_the_config_is_that_of_a_small_gpt_oss() -> None:
    assert (CONFIG["model_type"], CONFIG["quantization_config"]["quant_method"]) == ("gpt_oss", "mxfp4")
    assert CONFIG["router_aux_loss_coef"] == 0.9, "the published value, or the rehearsal would not meet the trap"
    assert (CONFIG["sliding_window"], CONFIG["layer_types"]) == (128, ["sliding_attention", "full_attention"] * 2)


def test_the_tokenizer_speaks_harmony_and_is_what_is_built_today(shipped_tokenizer: PreTrainedTokenizerFast) -> None:
    assert shipped_tokenizer.chat_template == gptoss_chat_template
    assert shipped_tokenizer.convert_ids_to_tokens(range(9)) == build.SPECIAL_TOKENS
    built = build.train_tokenizer(build.Recipe())
    assert built.get_vocab() == shipped_tokenizer.get_vocab(), "the assets are stale: make assets"


def test_the_manifest_and_the_profile_name_what_is_shipped() -> None:
    files = {path.relative_to(ASSETS).as_posix(): path for path in ASSETS.rglob("*") if path.is_file()}
    del files["manifest.json"]
    assert MANIFEST["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert MANIFEST["recipe"] == asdict(build.Recipe()), "the assets are stale: make assets"
    tiny = profiles.load("tiny")
    assert (tiny.hub.model, tiny.data.dataset) == (hub.MODEL_ID, hub.DATASET_ID)
    found = (tiny.hub.model_revision, tiny.data.revision)
    assert found == (hub.revision("model"), hub.revision("dataset")), "write the new revisions into tiny.toml"
