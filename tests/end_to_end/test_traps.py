"""What our notebooks must not lose: settings whose default would train, ask or show something else without a word."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import NOTEBOOKS
from transformers import GptOssForCausalLM, Mxfp4Config, PreTrainedTokenizerFast, pipeline

from ftlib import profiles
from ftlib.dataset import harmony
from ftlib.profiles import Profile
from ftlib.session import hub_client

WITH_A_MODEL = {
    "03_load_model": "model",
    "04_train_lora": "model",
    "05_push_and_infer": "base",
    "06_export_and_serve": "base",
}


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.fixture(params=profiles.shipped())
def profile(request: pytest.FixtureRequest) -> Profile:
    return profiles.load(request.param)


def test_every_load_is_pinned_unpacked_and_says_how_it_computes(
    notebooks: Any, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that is still packed takes no expert adapters; a pickle can run anything; defaults are another recipe.

    And one that was damaged in the cache gives false results, so each is compared with the Hub's checksums first.
    """
    checked: list[tuple[str, str]] = []
    loads: dict[str, dict[str, Any]] = {}

    def keep(name: str, **settings: Any) -> SimpleNamespace:
        assert checked or notebook == "04_train_lora"  # where a cell above does it
        loads[notebook] = settings | {"name": name}
        return SimpleNamespace()

    given = {
        **{"profile": profile, "session": SimpleNamespace(device="cpu"), "repo": "learner/adapter", "set_seed": int},
        **{"torch": torch, "Mxfp4Config": Mxfp4Config, "AutoModelForCausalLM": SimpleNamespace(from_pretrained=keep)},
        "PeftModel": SimpleNamespace(from_pretrained=lambda base, name: base),
    }
    monkeypatch.setattr("transformers.AutoModelForCausalLM", given["AutoModelForCausalLM"])
    monkeypatch.setattr(hub_client, "check_download", lambda *asked: checked.append(asked))
    given["hub_client"] = hub_client
    for notebook, variable in WITH_A_MODEL.items():
        notebooks.run(notebook, variable, given.copy())
        assert checked[:1] in ([], [(profile.hub.model, profile.hub.model_revision)])
        checked.clear()
        settings = loads[notebook]
        computes = profile.model if notebook == "04_train_lora" else profile.measure
        unpacked = settings.pop("quantization_config")
        assert isinstance(unpacked, Mxfp4Config)
        assert unpacked.dequantize
        assert settings.pop("use_cache", False) is False
        assert settings == {
            "name": profile.hub.model,
            "revision": profile.hub.model_revision,
            "dtype": getattr(torch, profile.model.dtype),
            "attn_implementation": computes.attn_implementation,
            "experts_implementation": computes.experts_implementation,
            "device_map": "cpu",
            "use_safetensors": True,
        }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_else_is_loaded_or_generated_by_another_way(notebooks: Any, name: str) -> None:
    """`pipeline` with a name would load another model; a tokenizer without a revision could change overnight."""
    assert len(notebooks.calls(name, "AutoModelForCausalLM.from_pretrained")) == (name in WITH_A_MODEL)
    assert {keywords(call)["model"] for call in notebooks.calls(name, "pipeline")} <= {"peft_model"}
    for call in notebooks.calls(name, "AutoTokenizer.from_pretrained"):
        pinned = "profile.hub.model, revision=profile.hub.model_revision"
        assert ast.unparse(call) in (f"AutoTokenizer.from_pretrained({pinned})", "AutoTokenizer.from_pretrained(repo)")
    for call in notebooks.calls(name, ".generate"):
        assert (call.args, keywords(call)[None]) == ([], "inputs")
        assert keywords(call)["max_new_tokens"] == "profile.measure.max_new_tokens"


@pytest.mark.parametrize("name", NOTEBOOKS[1:])
def test_every_notebook_that_renders_pins_the_date(notebooks: Any, name: str) -> None:
    """The template prints today's date: lengths, losses and greedy answers would change overnight."""
    pins = [
        node.lineno
        for node in ast.walk(notebooks.tree(name))
        if isinstance(node, ast.Assign)
        and ast.unparse(node).startswith("tokenizer.chat_template = harmony.pin_date(")
        and ast.unparse(node).endswith(", profile.data.template_date)")
    ]
    rendering = ("apply_chat_template", "pipeline", "generate_reply", "evaluate", "token_lengths", "SFTTrainer", "ask")
    uses = [call.lineno for ending in rendering for call in notebooks.calls(name, ending)]
    assert len(pins) == 1
    assert pins[0] < min(uses)


def test_what_is_pushed_is_the_template_as_published(notebooks: Any) -> None:
    """Others would otherwise be told for ever that it is August 2025."""
    cell = notebooks.cell_with("04_train_lora", "published_tokenizer.save_pretrained(folder)")
    loaded = "AutoTokenizer.from_pretrained(profile.hub.model, revision=profile.hub.model_revision)"
    assert cell.startswith(f"published_tokenizer = {loaded}\nwith checkpoints.replacing(session) as folder:\n")
    assert cell.index("trainer.save_model(folder)") < cell.index("published_tokenizer.save"), "its own is pinned"


def test_inference_asks_for_what_was_trained_and_keeps_the_channels_apart(
    notebooks: Any, base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The blog post's question had no system message; `pipeline` glues the channels together unless told not to."""
    generator = pipeline("text-generation", model=base_model, tokenizer=tokenizer)
    settings = {"max_new_tokens": 80, "do_sample": False, "return_full_text": False}
    given = {"generator": generator, "settings": settings, "question": "What is 2 plus 3?", "harmony": harmony}
    cell = notebooks.cell_with("05_push_and_infer", "skip_special_tokens")
    exec(cell, given)
    assert '{"role": "system", "content": "reasoning language: ' in cell
    assert given["reply"].analysis.startswith("The user")
    assert (given["reply"].final, given["reply"].complete) == ("2 plus 3 is 5.", True)


def test_curves_open_no_dashboard_and_no_space_and_training_pushes_nothing(
    notebooks: Any, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a kernel, trackio embeds a dashboard whose address carries a write token; pushing would make a Space."""
    import trackio

    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(trackio, "init", lambda **settings: begun.append(settings))
    monkeypatch.setattr(trackio, "finish", lambda: None)
    monkeypatch.setattr("trl.SFTConfig", dict)
    run = {"profile": profile, "checkpoints_dir": tmp_path / "checkpoints", "trackers": ["trackio"]}
    session = SimpleNamespace(world_size=1, is_main=True, **run)
    arguments = notebooks.run("04_train_lora", "training_args", {"profile": profile, "session": session})
    expected = {"project": arguments["project"], "name": arguments["run_name"], "embed": False, "resume": "allow"}
    assert begun == [expected]
    assert arguments["report_to"] == ["trackio"]
    assert arguments["trackio_static_space_id"] is False
    assert not arguments.get("push_to_hub", False)
    assert arguments["router_aux_loss_coef"] == 0.0, "TRL would add the router's loss"
    assert arguments["ddp_find_unused_parameters"] is False


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_is_imported_before_start(notebooks: Any, name: str) -> None:
    """The Hugging Face libraries read their settings, the Hub's address among them, when they are imported."""
    start, *_ = notebooks.calls(name, "start")
    imports = [node for node in ast.walk(notebooks.tree(name)) if isinstance(node, ast.Import | ast.ImportFrom)]
    early = [node for node in imports if node.lineno < start.lineno]
    assert [ast.unparse(node) for node in early] == ["from ftlib import start"]
