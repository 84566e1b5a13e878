"""Adapters on the experts: they are there, all of a saved one is attached, and merging changes nothing."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from ftlib.errors import FtlibError
from ftlib.model import adapters

WithAdapter = Callable[..., PeftModel]
Tensors = dict[str, torch.Tensor]
EXPERT_TENSORS = [
    "1.mlp.experts.gate_up_proj",
    "1.mlp.experts.down_proj",
    "3.mlp.experts.gate_up_proj",
    "3.mlp.experts.down_proj",
]
# A and B for four attention projections in four layers, and for two tensors of experts in two.
SAVED_TENSORS = 2 * (4 * 4 + 2 * 2)
ALTERED = "base_model.model.model.layers.3.mlp.experts.lora_B.weight"


def train(peft_model: PeftModel) -> PeftModel:
    """As if it had learned something: its B is not zero any more."""
    torch.manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return peft_model


@pytest.fixture(scope="module")
def saved(base_model: GptOssForCausalLM, with_adapter: WithAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    train(with_adapter(copy.deepcopy(base_model))).save_pretrained(folder)
    return folder


def test_expert_tensors_are_named_layer_by_layer_and_are_all_adapted(
    model: GptOssForCausalLM, with_adapter: WithAdapter
) -> None:
    assert adapters.expert_target_parameters([1, 3], 4) == EXPERT_TENSORS
    assert adapters.adapted_expert_tensors(with_adapter(model)) == EXPERT_TENSORS
    with pytest.raises(FtlibError, match=r"recipe.expert_layers names \[7, 4\], but the model has layers 0 to 3"):
        adapters.expert_target_parameters([7, 3, 4], 4)


def test_a_name_that_matches_nothing_is_refused(model: GptOssForCausalLM, with_adapter: WithAdapter) -> None:
    """PEFT says nothing as long as another name matches."""
    peft_model = with_adapter(model, ["1.mlp.experts.down_proj", "7.mlp.experts.up_proj"])
    with pytest.raises(FtlibError, match=r"1 of 2 expert tensors have no adapter, such as 7\.mlp\.experts\.up_proj"):
        adapters.adapted_expert_tensors(peft_model)


@pytest.mark.parametrize("names", ["q_proj", "", "nothing", ["q_proj", "nothing"], "mlp", [r".*q_proj"]])
def test_target_modules_that_name_nothing_to_adapt_are_refused(base_model: GptOssForCausalLM, names: Any) -> None:
    """PEFT adapts the experts alone, and says nothing."""
    with pytest.raises(
        FtlibError, match=r"^lora\.target_modules: '.*' names no linear layers of the model; write 'all-l"
    ):
        adapters.check_targets(base_model, LoraConfig(target_modules=names))


@pytest.mark.parametrize("names", ["all-linear", ".*q_proj", ["q_proj", "v_proj"], []])
def test_other_target_modules_are_not(base_model: GptOssForCausalLM, names: Any) -> None:
    adapters.check_targets(base_model, LoraConfig(target_modules=names))


def test_parameter_table_accounts_for_every_parameter(model: GptOssForCausalLM, with_adapter: WithAdapter) -> None:
    base = adapters.parameter_table(model).set_index("block")
    assert base["parameters"].sum() == base["trainable"].sum() == model.num_parameters()
    assert base["share"].sum() == pytest.approx(1)
    assert base["parameters"].is_monotonic_decreasing
    assert base.loc["norms", "parameters"] == (4 * 2 + 1) * 128
    assert base.loc["embeddings", "parameters"] == 2 * model.config.vocab_size * 128

    trainable = adapters.parameter_table(with_adapter(model)).set_index("block")["trainable"]
    experts, attention = 2 * 4 * 8 * (128 + 256 + 128 + 128), 4 * 8 * (256 + 192 + 192 + 256)
    assert trainable[trainable > 0].to_dict() == {"experts": experts, "attention": attention}


def test_all_of_a_saved_adapter_is_attached(model: GptOssForCausalLM, saved: Path) -> None:
    assert adapters.check_attached(PeftModel.from_pretrained(model, saved), saved) == SAVED_TENSORS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors[ALTERED].view(-1)[-1].add_(1e-3), f"{ALTERED} differs from the saved one"),
        (lambda tensors: tensors.pop(ALTERED), f"{ALTERED} is missing in the saved adapter"),
        # As when the base is still packed: transformers keeps packed weights where PEFT does not look.
        (lambda tensors: tensors.update(more=torch.ones(1)), r"more has no place .* Mxfp4Config\(dequantize=True\)"),
    ],
)
def test_one_tensor_that_is_not_as_saved_is_named(
    model: GptOssForCausalLM, saved: Path, tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    peft_model = PeftModel.from_pretrained(model, saved)
    tensors = load_file(saved / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(FtlibError, match=message):
        adapters.check_attached(peft_model, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_changes_nothing_but_rounding(
    dtype: torch.dtype, model: GptOssForCausalLM, with_adapter: WithAdapter
) -> None:
    adapted = train(with_adapter(model.to(dtype)))
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        with adapted.disable_adapter():
            without = adapted(ids).logits
        unmerged = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert 0 < adapters.check_merged(unmerged, merged) < 0.05 * unmerged.abs().max()
    merged[0, 7] = without[0, 7]
    moved = (merged - unmerged)[0, 7].abs().max().item()
    assert adapters.check_merged(unmerged, merged) == moved > 0.05 * unmerged.abs().max(), "one token's experts"
    without[0, 8] = unmerged[0, 8]
    for wrong in (without, merged * float("nan")):
        with pytest.raises(FtlibError, match=r"the merged model answers differently: found .* expected at most"):
            adapters.check_merged(unmerged, wrong)
