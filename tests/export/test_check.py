"""An export that is the model it should be passes; each way in which people lost theirs is named."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from export.conftest import DATE, Merged
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ftlib.errors import FtlibError
from ftlib.export import check, formats
from ftlib.rehearsal import ASSETS


@pytest.mark.parametrize(("layout", "distance"), [("merged", 1e-6), ("mxfp4", 1.0)])
def test_export_is_the_model_that_it_came_from(layout: str, distance: float, exported: Path, merged: Merged) -> None:
    found = check.folder(exported / layout, merged.answers, merged.untrained, DATE)
    assert check.distance(found, merged.answers) <= distance
    assert check.is_packed(exported / layout) == (layout == "mxfp4")


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path, Merged], None]:
    """Change the tensors of an exported file."""

    def damage(folder: Path, merged: Merged) -> None:
        loaded = load_file(folder / "model.safetensors")
        change(loaded)
        save_file(loaded, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def swap_experts(loaded: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    loaded[name] = loaded[name].flip(0).contiguous()


def lose_experts(loaded: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    for name in loaded:
        if name.endswith(("gate_up_proj", "down_proj")):
            torch.nn.init.normal_(loaded[name], std=loaded[name].std().item())


def test_gguf_file_answers_as_the_model_that_it_came_from(
    gguf: Path, folder: Path, merged: Merged, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_french = tokenizer.encode(
        "<|channel|>analysis<|message|>L'utilisateur demande la capitale de l'Australie.", add_special_tokens=False
    )
    check.gguf(gguf, merged.answers, tokenizer)
    with pytest.raises(
        FtlibError, match=r"^mxfp4\.gguf answers differently .* its reply begins 'analysisThe user asks"
    ):
        check.gguf(gguf, replace(merged.answers, reply=in_french), tokenizer)
    with monkeypatch.context() as patched:
        patched.setattr(check, "_alike", lambda *_: 0)  # as if the texts parted at once: the tokens do not
        check.gguf(gguf, merged.answers, tokenizer)
    tensors(lose_experts)(folder, merged)
    with pytest.raises(FtlibError, match="answers differently"), formats.converting(folder, gguf, "f32") as random:
        check.gguf(random, merged.answers, tokenizer)


@pytest.mark.parametrize(("behind", "is_a_tie"), [(0.5, True), (3.0, False)])
def test_words_that_are_nearly_as_likely_may_differ(behind: float, is_a_tie: bool) -> None:
    likely = [{"id": 5, "logprob": -0.6}, {"id": 6, "logprob": -0.6 - behind}]
    told = SimpleNamespace(content=[{"id": 1, "top_logprobs": []}, {"id": 5, "top_logprobs": likely}])
    assert check._part_at_a_tie(told, [1, 6, 7]) == is_a_tie
    assert not check._part_at_a_tie(told, [2, 5])


def text(name: str, old: str, new: str) -> Callable[[Path, Merged], None]:
    def damage(folder: Path, merged: Merged) -> None:
        file = folder / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return damage


def save_in_the_original_format(folder: Path, merged: Merged) -> None:
    merged.model.save_pretrained(folder)


def save_an_adapter(folder: Path, merged: Merged) -> None:
    get_peft_model(copy.deepcopy(merged.model), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)


def take_another_models_tokenizer(folder: Path, merged: Merged) -> None:
    """One with the same words under other numbers."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    (first, one), (second, two) = [(word, number) for word, number in words.items() if word in ("a", "e")]
    words |= {first: two, second: one}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def cut(folder: Path, merged: Merged) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _only_biases(
    loaded: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {name: change(tensor) for name, tensor in loaded.items() if "experts" in name and name.endswith("_bias")}


def lose_the_adapter(folder: Path, merged: Merged) -> None:
    """The base itself, in four bits, where more rounding is allowed."""
    for name in ("model.safetensors", "config.json"):
        shutil.copy(ASSETS / "model" / name, folder)


def claim_to_be_packed(folder: Path, merged: Merged) -> None:
    base, config = (json.loads((path / "config.json").read_text()) for path in (ASSETS / "model", folder))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": base["quantization_config"]}))


def forget_how_it_is_packed(folder: Path, merged: Merged) -> None:
    formats.save_mxfp4(merged.model, ASSETS / "model", merged.adapted, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def list_a_shard_that_is_not_there(folder: Path, merged: Merged) -> None:
    index = {"weight_map": {"lm_head.weight": "model.safetensors", "model.norm.bias": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            save_in_the_original_format,
            r"_blocks holds F32, which is not packed, .*; save it with `save_pretrained",
        ),
        (save_an_adapter, "holds an adapter, expected a merged model"),
        (tensors(lambda loaded: loaded.update({"lora_A": torch.zeros(1)})), "holds adapter tensors such as lora_A"),
        (tensors(swap_experts), "answers differently from the model that was exported"),
        (tensors(lambda loaded: loaded.pop("model.norm.weight")), "has 1 missing tensors, such as model.norm.weight"),
        (tensors(lambda loaded: loaded.update({"x": torch.zeros(1)})), "has 1 unexpected tensors, such as x"),
        (tensors(lambda loaded: loaded["lm_head.weight"].fill_(torch.nan)), "answers differently"),
        (cut, r"model\.safetensors is not whole"),
        (tensors(lambda loaded: loaded.update(_only_biases(loaded, torch.zeros_like))), "answers differently"),
        (lose_the_adapter, "answers differently from the model that was exported: .* apart, .* from those of the base"),
        (claim_to_be_packed, "config.json has quantization_config, and no tensor is packed"),
        (text("config.json", '"dtype": "float32"', '"dtype": "auto"'), "found dtype 'auto', expected one of float32"),
        (lambda folder, merged: (folder / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
        (forget_how_it_is_packed, r"config\.json lacks quantization_config, and the experts are packed"),
        (list_a_shard_that_is_not_there, r"lacks model\.norm\.bias, which model\.safetensors\.index\.json lists"),
        (text("chat_template.jinja", "<|channel|>final", "<|channel|>answer"), "its tokenizer or chat template writes"),
        (text("chat_template.jinja", "developer", "system"), "its tokenizer or chat template writes"),
        (text("tokenizer.json", '"a": ', '"a_": '), r"cannot be loaded|its tokenizer or chat template writes"),
        (take_another_models_tokenizer, "its tokenizer or chat template writes"),
        (text("config.json", '"model_type": "gpt_oss"', '"model_type": "gpt_'), r"config\.json cannot be read"),
        (lambda folder, merged: (folder / "model.safetensors").unlink(), r"found no \.safetensors file in merged/"),
        (lambda folder, merged: (folder / "config.json").unlink(), r"config\.json cannot be read \(FileNotFoundError"),
    ],
)
def test_lost_model_is_named(damage: Callable[[Path, Merged], Any], says: str, folder: Path, merged: Merged) -> None:
    damage(folder, merged)
    with pytest.raises(FtlibError, match=says) as raised:
        check.folder(folder, merged.answers, merged.untrained, DATE)
    assert len(str(raised.value).splitlines()) == 1
    assert str(folder.parent) not in str(raised.value)


def test_sealed_folder_is_compared_with_its_checksums(exported: Path, folder: Path, merged: Merged) -> None:
    (folder / "manifest.json").write_bytes((exported / "merged/manifest.json").read_bytes())
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FtlibError, match=r"^merged/tokenizer\.json: found 2 bytes"):
        check.files(folder)
