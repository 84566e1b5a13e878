"""Adapters on the experts: that they are there, that all of a saved one arrives, and what PEFT would not have said."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib.errors import FtlibError
from ftlib.model import adapters

WithAdapter = Callable[..., PeftModel]
EXPERT_TENSORS = [
    "1.mlp.experts.gate_up_proj",
    "1.mlp.experts.down_proj",
    "3.mlp.experts.gate_up_proj",
    "3.mlp.experts.down_proj",
]
# A and B for four attention projections in four layers, and for two tensors of experts in two.
SAVED_TENSORS = 2 * (4 * 4 + 2 * 2)


@pytest.fixture(scope="module")
def saved(base_model: GptOssForCausalLM, with_adapter: WithAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter that has learned something: its B is not zero any more."""
    folder = tmp_path_factory.mktemp("adapter")
    peft_model = with_adapter(copy.deepcopy(base_model))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    peft_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def probe(tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    return tokenizer("The capital of Australia is", return_tensors="pt")


def logits(model: torch.nn.Module, probe: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**probe).logits


def changed_copy(saved: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(saved / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_expert_tensors_are_named_layer_by_layer() -> None:
    assert adapters.expert_target_parameters([1, 3], 4) == EXPERT_TENSORS
    assert adapters.expert_target_parameters([7, 15, 23], 24) == [
        "7.mlp.experts.gate_up_proj",
        "7.mlp.experts.down_proj",
        "15.mlp.experts.gate_up_proj",
        "15.mlp.experts.down_proj",
        "23.mlp.experts.gate_up_proj",
        "23.mlp.experts.down_proj",
    ]
    assert adapters.expert_target_parameters([], 4) == []


def test_a_layer_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(FtlibError, match=r"recipe.expert_layers names \[7, 4\], but there are layers 0 to 3"):
        adapters.expert_target_parameters([7, 3, 4], 4)


def test_every_expert_tensor_that_was_named_is_adapted(model: GptOssForCausalLM, with_adapter: WithAdapter) -> None:
    assert adapters.adapted_expert_tensors(with_adapter(model)) == EXPERT_TENSORS


def test_no_expert_tensors_are_none(model: GptOssForCausalLM, with_adapter: WithAdapter) -> None:
    assert adapters.adapted_expert_tensors(with_adapter(model, [])) == []


@pytest.mark.parametrize("wrong", ["7.mlp.experts.gate_up_proj", "1.mlp.experts.up_proj", "1.mlp.gate_up_proj"])
def test_peft_passes_over_a_name_that_matches_nothing_and_we_do_not(
    model: GptOssForCausalLM, with_adapter: WithAdapter, wrong: str
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*target_parameters")
        peft_model = with_adapter(model, ["1.mlp.experts.down_proj", wrong])
    assert sum("experts" in name and "lora_A" in name for name, _ in peft_model.named_parameters()) == 1
    with pytest.raises(FtlibError) as raised:
        adapters.adapted_expert_tensors(peft_model)
    assert f"1 of 2 expert tensors have no adapter, such as {wrong}" in str(raised.value)


def test_names_that_all_match_nothing_are_refused(model: GptOssForCausalLM, with_adapter: WithAdapter) -> None:
    """As when the names of the 20B model's layers are used on four."""
    with pytest.warns(RuntimeWarning, match="no parameter was matched"):
        peft_model = with_adapter(model, ["7.mlp.experts.gate_up_proj", "7.mlp.experts.down_proj"])
    assert not any("experts" in name for name, p in peft_model.named_parameters() if p.requires_grad)
    with pytest.raises(FtlibError, match="2 of 2 expert tensors have no adapter"):
        adapters.adapted_expert_tensors(peft_model)


def test_parameter_table_accounts_for_every_parameter(model: GptOssForCausalLM, with_adapter: WithAdapter) -> None:
    base = adapters.parameter_table(model).set_index("block")
    assert set(base.index) == {"experts", "attention", "router", "embeddings", "norms"}
    assert base["parameters"].sum() == base["trainable"].sum() == model.num_parameters()
    assert base["share"].sum() == pytest.approx(1)
    assert base["parameters"].is_monotonic_decreasing
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert base.loc["experts", "parameters"] == experts
    assert base.loc["norms", "parameters"] == (4 * 2 + 1) * 128
    assert base.loc["embeddings", "parameters"] == 2 * model.config.vocab_size * 128

    peft_model = with_adapter(model)
    table = adapters.parameter_table(peft_model).set_index("block")
    trainable, total = peft_model.get_nb_trainable_parameters()
    assert (table["trainable"].sum(), table["parameters"].sum()) == (trainable, total)
    adapter = pd.Series({"experts": 2 * 4 * 8 * (128 + 256 + 128 + 128), "attention": 4 * 8 * (256 + 192 + 192 + 256)})
    assert table["trainable"][adapter.index].to_dict() == adapter.to_dict()
    assert table["trainable"].drop(adapter.index).sum() == 0
    assert (table["parameters"] - table["trainable"])[base.index].tolist() == base["parameters"].tolist()


def test_a_fresh_adapter_changes_nothing(
    model: GptOssForCausalLM, base_model: GptOssForCausalLM, with_adapter: WithAdapter, probe: dict[str, torch.Tensor]
) -> None:
    assert torch.equal(logits(with_adapter(model), probe), logits(base_model, probe))


def test_all_of_a_saved_adapter_arrives(model: GptOssForCausalLM, saved: Path) -> None:
    assert adapters.check_attached(PeftModel.from_pretrained(model, saved), saved) == SAVED_TENSORS


def test_a_fresh_adapter_is_not_the_saved_one(model: GptOssForCausalLM, with_adapter: WithAdapter, saved: Path) -> None:
    with pytest.raises(FtlibError, match="differs from the saved one"):
        adapters.check_attached(with_adapter(model), saved)


@pytest.mark.parametrize("part", ["self_attn.q_proj.lora_A", "mlp.experts.lora_B"])
def test_one_altered_tensor_is_noticed_and_named(
    model: GptOssForCausalLM, saved: Path, tmp_path: Path, part: str
) -> None:
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"base_model.model.model.layers.3.{part}.weight"].view(-1)[-1] += 1e-3

    peft_model = PeftModel.from_pretrained(model, saved)
    with pytest.raises(FtlibError, match=rf"layers\.3\.{part}\.weight differs"):
        adapters.check_attached(peft_model, changed_copy(saved, tmp_path, nudge))


def test_a_tensor_that_found_no_place_is_noticed_and_named(
    model: GptOssForCausalLM, saved: Path, tmp_path: Path
) -> None:
    """A configuration that names fewer experts than the weights hold: PEFT passes over the rest."""
    config = json.loads((saved / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_parameters": EXPERT_TENSORS[2:]}))
    peft_model = PeftModel.from_pretrained(model, changed_copy(saved, tmp_path, lambda tensors: None))
    with pytest.raises(FtlibError, match=r"layers\.1\.mlp\.experts\..* found no place"):
        adapters.check_attached(peft_model, saved)


def test_a_base_that_is_still_packed_takes_no_expert_adapters_and_we_say_so(
    model: GptOssForCausalLM, saved: Path, probe: dict[str, torch.Tensor]
) -> None:
    """On a GPU, transformers keeps packed weights as plain attributes; PEFT looks among the parameters."""
    for layer in model.model.layers:
        for name in adapters.EXPERT_PARAMETERS:
            packed = getattr(layer.mlp.experts, name).data
            delattr(layer.mlp.experts, name)
            setattr(layer.mlp.experts, name, packed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = PeftModel.from_pretrained(model, saved)
    assert logits(peft_model, probe).isfinite().all(), "it generates as if nothing were wrong"
    with pytest.raises(FtlibError) as raised:
        adapters.check_attached(peft_model, saved)
    assert "mlp.experts" in str(raised.value)
    assert "Mxfp4Config(dequantize=True)" in str(raised.value)


def test_merging_changes_nothing_but_the_last_digits(
    model: GptOssForCausalLM, base_model: GptOssForCausalLM, saved: Path, probe: dict[str, torch.Tensor]
) -> None:
    peft_model = PeftModel.from_pretrained(model, saved)
    unmerged = logits(peft_model, probe)
    merged = peft_model.merge_and_unload()
    assert (logits(merged, probe) - unmerged).abs().max() <= 1e-4
    assert (unmerged - logits(base_model, probe)).abs().max() > 0.1, "the adapter does something"
    assert not any("lora" in name for name, _ in merged.named_parameters())
    before, after = (each.model.layers[3].mlp.experts.down_proj for each in (base_model, merged))
    assert not torch.equal(before, after), "the experts were merged, too"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_answers_the_same_up_to_rounding(
    dtype: torch.dtype, model: GptOssForCausalLM, with_adapter: WithAdapter
) -> None:
    adapted = with_adapter(model.to(dtype))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        with adapted.disable_adapter():
            without = adapted(ids).logits
        unmerged = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert 0 < adapters.check_merged(unmerged, merged) < 0.05 * unmerged.abs().max()
    with pytest.raises(
        FtlibError, match=r"the merged model answers otherwise: found logits .* apart, expected at most"
    ):
        adapters.check_merged(unmerged, without)
