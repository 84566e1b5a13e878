"""MXFP4 as transformers reads it, and the shipped checkpoint in the published layout."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

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

# The tensors of one layer of openai/gpt-oss-20b, as its model.safetensors.index.json names them.
PUBLISHED_LAYER = {
    "input_layernorm.weight",
    "mlp.experts.down_proj_bias",
    "mlp.experts.down_proj_blocks",
    "mlp.experts.down_proj_scales",
    "mlp.experts.gate_up_proj_bias",
    "mlp.experts.gate_up_proj_blocks",
    "mlp.experts.gate_up_proj_scales",
    "mlp.router.bias",
    "mlp.router.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.bias",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.q_proj.weight",
    "self_attn.sinks",
    "self_attn.v_proj.bias",
    "self_attn.v_proj.weight",
}
PUBLISHED_REST = {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}


@pytest.fixture
def weight() -> torch.Tensor:
    """Experts as a model holds them: `[experts, in, out]`."""
    return torch.randn(3, 96, 40, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    with safe_open(ASSETS / "model/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def relative_error(weight: torch.Tensor) -> float:
    packed = mxfp4.unpack(*mxfp4.pack(weight))
    return ((packed - weight).abs().mean() / weight.abs().mean()).item()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_layout_is_the_published_one(weight: torch.Tensor) -> None:
    blocks, scales = mxfp4.pack(weight)
    assert (blocks.shape, blocks.dtype) == ((3, 40, 3, 16), torch.uint8)
    assert (scales.shape, scales.dtype) == ((3, 40, 3), torch.uint8)
    assert mxfp4.unpack(blocks, scales).shape == weight.shape
    assert mxfp4.unpack(blocks, scales).dtype == torch.float32


def test_transformers_reads_what_is_packed(weight: torch.Tensor) -> None:
    blocks, scales = mxfp4.pack(weight)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(theirs, mxfp4.unpack(blocks, scales))


def test_unpacking_agrees_with_transformers_on_every_code_and_scale() -> None:
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 1, 16)
    for scale in (90, 126, 127, 128, 150):
        scales = torch.full((1, 16, 1), scale, dtype=torch.uint8)
        theirs = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
        assert torch.equal(theirs, mxfp4.unpack(codes, scales))


def test_first_of_two_values_is_in_the_low_half() -> None:
    weight = torch.zeros(1, 32, 1)
    weight[0, :3, 0] = torch.tensor([0.5, -6.0, 3.0])
    blocks, scales = mxfp4.pack(weight)
    assert blocks[0, 0, 0, :3].tolist() == [0xF1, 0x05, 0x00]
    assert scales.item() == 127, "2 to the power of 0"


def test_blocks_run_along_the_input() -> None:
    """Of 64 inputs, the first 32 share a scale and the next 32 another."""
    weight = torch.cat([torch.full((1, 32, 2), 6.0), torch.full((1, 32, 2), 6.0 * 2**-9)], dim=1)
    _, scales = mxfp4.pack(weight)
    assert scales.tolist() == [[[127, 118], [127, 118]]]


def test_what_mxfp4_can_hold_comes_back_exactly() -> None:
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    block = torch.cat([values, -values, values, -values])
    weight = torch.stack([block * 2.0**power for power in range(-20, 20)], dim=1).unsqueeze(0)
    assert torch.equal(mxfp4.unpack(*mxfp4.pack(weight)), weight)


def test_packing_a_second_time_changes_nothing(weight: torch.Tensor) -> None:
    once = mxfp4.unpack(*mxfp4.pack(weight))
    assert torch.equal(mxfp4.unpack(*mxfp4.pack(once)), once)


def test_every_value_goes_to_the_nearest_that_there_is() -> None:
    """In a block whose scale is 1, which the 6 sees to."""
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    for value in torch.linspace(-6, 6, 101):
        weight = torch.full((1, 32, 1), 6.0)
        weight[0, 0, 0] = value
        found = mxfp4.unpack(*mxfp4.pack(weight))[0, 0, 0]
        assert (found - value).abs() <= (magnitudes - value.abs()).abs().min() + 1e-6


def test_zeros_and_extremes_survive() -> None:
    assert torch.equal(mxfp4.unpack(*mxfp4.pack(torch.zeros(1, 32, 2))), torch.zeros(1, 32, 2))
    for size in (1e-20, 1e20):
        assert relative_error(torch.full((1, 64, 2), size)) < 0.3


def test_packing_costs_a_tenth_of_the_weights_size(weight: torch.Tensor) -> None:
    assert 0.05 < relative_error(weight) < 0.12


def test_a_block_takes_the_better_of_two_scales(weight: torch.Tensor) -> None:
    """Never worse than the specification's rule, which looks at the largest value alone and clips it."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    exponent = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    scaled = groups * torch.exp2(-exponent)
    nearest = grid[(scaled.abs().unsqueeze(-1) - grid).abs().argmin(-1)] * scaled.sign()
    by_the_rule = (nearest * torch.exp2(exponent) - groups).square().sum(-1)
    packed = mxfp4.unpack(*mxfp4.pack(weight)).transpose(1, 2).unflatten(-1, (-1, 32))
    ours = (packed - groups).square().sum(-1)
    assert (ours <= by_the_rule + 1e-9).all()
    assert ours.sum() < 0.97 * by_the_rule.sum()


def test_shipped_tensors_have_the_published_names(checkpoint: dict[str, torch.Tensor]) -> None:
    layers = {f"model.layers.{layer}.{name}" for layer in range(4) for name in PUBLISHED_LAYER}
    assert set(checkpoint) == layers | PUBLISHED_REST


def test_shipped_experts_are_packed_and_the_rest_is_bfloat16(checkpoint: dict[str, torch.Tensor]) -> None:
    experts, hidden, intermediate = (CONFIG[key] for key in ("num_local_experts", "hidden_size", "intermediate_size"))
    shapes = {"gate_up_proj": (2 * intermediate, hidden // 32), "down_proj": (hidden, intermediate // 32)}
    for layer in range(4):
        for name, (rows, blocks) in shapes.items():
            prefix = f"model.layers.{layer}.mlp.experts.{name}"
            assert checkpoint[f"{prefix}_blocks"].shape == (experts, rows, blocks, 16)
            assert checkpoint[f"{prefix}_scales"].shape == (experts, rows, blocks)
            assert checkpoint[f"{prefix}_bias"].shape == (experts, rows)
    for name, tensor in checkpoint.items():
        packed = name.endswith(("_blocks", "_scales"))
        assert tensor.dtype == (torch.uint8 if packed else torch.bfloat16), name


def test_loaded_experts_are_the_unpacked_ones(
    checkpoint: dict[str, torch.Tensor], base_model: GptOssForCausalLM
) -> None:
    for layer in range(4):
        experts = base_model.model.layers[layer].mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp.experts.{name}"
            ours = mxfp4.unpack(checkpoint[f"{prefix}_blocks"], checkpoint[f"{prefix}_scales"])
            assert torch.equal(getattr(experts, name), ours)


def test_shipped_config_is_that_of_a_small_gpt_oss() -> None:
    assert CONFIG["architectures"] == ["GptOssForCausalLM"]
    assert CONFIG["model_type"] == "gpt_oss"
    assert CONFIG["quantization_config"]["quant_method"] == "mxfp4"
    assert CONFIG["quantization_config"]["modules_to_not_convert"] == [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ]
    assert CONFIG["router_aux_loss_coef"] == 0.9, "the published value, or the rehearsal would not meet the trap"
    assert CONFIG["sliding_window"] == 128
    assert CONFIG["layer_types"] == ["sliding_attention", "full_attention"] * 2
    rope = CONFIG["rope_parameters"]
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("yarn", 150_000, 32)


def test_shipped_model_is_of_the_size_that_is_told(base_model: GptOssForCausalLM) -> None:
    assert 1_000_000 < base_model.num_parameters() < 1_500_000
    assert set(base_model.generation_config.eos_token_id) == {1, 2, 8}


def test_shipped_tokenizer_speaks_harmony(shipped_tokenizer: PreTrainedTokenizerFast) -> None:
    assert shipped_tokenizer.chat_template == gptoss_chat_template
    assert shipped_tokenizer.convert_ids_to_tokens(range(9)) == build.SPECIAL_TOKENS
    assert set(shipped_tokenizer.all_special_ids) == {0, 1, 2}
    for token in build.SPECIAL_TOKENS:
        assert len(shipped_tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    text = "¿Qué? «L'été» — ça coûte 5 €, größer als ñandú 🙂"
    assert shipped_tokenizer.decode(shipped_tokenizer(text)["input_ids"]) == text


def test_shipped_tokenizer_is_what_is_built_today(shipped_tokenizer: PreTrainedTokenizerFast) -> None:
    built = build.train_tokenizer(build.Recipe())
    assert built.get_vocab() == shipped_tokenizer.get_vocab(), "the assets are stale: make assets"


def test_manifest_lists_every_file_with_its_checksum() -> None:
    files = {path.relative_to(ASSETS).as_posix(): path for path in ASSETS.rglob("*") if path.is_file()}
    assert set(MANIFEST["files"]) == set(files) - {"manifest.json"}
    for name, checksum in MANIFEST["files"].items():
        assert sha256(files[name]) == checksum, name


def test_manifest_tells_how_the_assets_were_made() -> None:
    assert MANIFEST["recipe"] == asdict(build.Recipe()), "the assets are stale: make assets"
    assert MANIFEST["command"] == "python -m ftlib.rehearsal.build"
    for key in ("final_loss", "seconds", "made_on", "machine"):
        assert MANIFEST[key]
    assert MANIFEST["libraries"]["transformers"] == version("transformers")


def test_assets_are_small_and_hold_no_pickle() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    allowed = {".jinja", ".json", ".jsonl", ".md", ".parquet", ".safetensors"}
    assert {path.suffix for path in files} == allowed


def test_tiny_profile_pins_what_is_shipped() -> None:
    profile = profiles.load("tiny")
    tiny, data = profile.hub, profile.data
    assert (tiny.model, data.dataset) == (hub.MODEL_ID, hub.DATASET_ID)
    assert tiny.model_revision == hub.model_revision(), "write the new revision into tiny.toml"
    assert data.revision == hub.dataset_revision(), "write the new revision into tiny.toml"
