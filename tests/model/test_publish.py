"""What goes up: the adapter and a card that the Hub takes, and nothing else of the folder.

`test_bad_inputs` has the adapters that are refused.
"""

import ast
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import pytest
from huggingface_hub import ModelCard

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import publish, recipe
from ftlib.profiles import Profile
from ftlib.session import manifest

TRAINING = {"global_step": 63, "training_loss": 1.13874}
MODULES = [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")]
RESULTS = {"Reasons in the language asked for": "100.0%, before 20.0%"}


def training(profile: Profile) -> dict[str, Any]:
    """A record of notebook 04 whose trainer was given what the profile asks for."""
    layers = [f"{layer}.mlp.experts.down_proj" for layer in profile.recipe.expert_layers]
    adapted = {"lora.target_modules": MODULES, "lora.target_parameters": layers}
    return TRAINING | {"recipe": recipe.asked(profile.model_dump()) | adapted}


def card(name: str = "tiny", repo: str = "learner/adapter", results: Any = RESULTS, **changes: Any) -> ModelCard:
    profile = profiles.load(name)
    data = profile.data.model_copy(update=changes)
    return publish.model_card(profile.model_copy(update={"data": data}), repo, training(profile), results)


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    """A folder as the notebooks leave it, and a little more."""
    folder = tmp_path / "adapter"
    (folder / "checkpoint-63").mkdir(parents=True)
    for name in {*publish.ADAPTER_FILES, "training_args.bin", "checkpoint-63/optimizer.pt"}:
        (folder / name).write_text("{}")
    hub = profiles.load("tiny").hub
    config = {"base_model_name_or_path": hub.model, "revision": hub.model_revision}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    manifest.write(folder, {*publish.ADAPTER_FILES} - {"README.md"})
    (tmp_path / "profile.json").write_text(profiles.load("tiny").model_dump_json())
    card().save(folder / "README.md")
    return folder


@pytest.mark.parametrize("name", profiles.shipped())
def test_the_card_names_the_profiles_own_base_data_and_recipe(name: str) -> None:
    profile, made = profiles.load(name), card(name)
    assert made.data.base_model == profile.hub.model
    assert made.data.datasets == [profile.data.dataset]
    assert (made.data.library_name, made.data.pipeline_tag) == ("peft", "text-generation")
    text = " ".join(made.text.split())
    for expected in (
        f"{profile.hub.model} at {profile.hub.model_revision}",
        f"{profile.data.dataset} at {profile.data.revision}",
        f"r {profile.lora.r}, alpha {profile.lora.lora_alpha}, on `q_proj`, `v_proj`; experts of layers",
        f"experts of layers {', '.join(map(str, profile.recipe.expert_layers))} - Trained on",
        f"whole conversations (assistant_only_loss false), up to {profile.train.max_length} tokens",
        "63 steps of 16 rows, cosine_with_min_lr",
        f"learning rate {profile.train.learning_rate:g}, warm-up 0.03, mean loss 1.1387, seed {profile.train.seed}",
        "## Measured - Reasons in the language asked for: 100.0%, before 20.0% ## Recipe",
        f"trl {version('trl')}, peft {version('peft')}",
    ):
        assert expected in text


def test_a_local_data_set_is_named_without_its_place() -> None:
    """Where it lies is nobody's business, and nobody finds it on the Hub."""
    local = card(dataset="/home/ada/secret/mine.jsonl", revision=None, held_out_share=0.1)
    assert "Data set: mine.jsonl, a local file" in local.text
    assert local.data.datasets is None
    assert "/home/ada" not in str(local)


@pytest.mark.parametrize(
    ("share", "where"),
    [(0.0, ("held-out", None)), (0.1, ("rehearsal/multilingual-thinking-sample", profiles.load("tiny").data.revision))],
)
def test_numbers_go_into_the_metadata_and_what_was_not_measured_nowhere(
    tmp_path: Path, share: float, where: tuple[str, str | None]
) -> None:
    results = {"Reasons as asked": numpy.float64(0.98333333), "Loss": 1, "Exact": None, "Measured on": "120 questions"}
    made = card(results=results, held_out_share=share)
    made.save(tmp_path / "README.md")
    metadata = ModelCard.load(tmp_path / "README.md").data
    assert [(found.metric_name, found.metric_type, found.metric_value) for found in metadata.eval_results] == [
        ("Reasons as asked", "reasons_as_asked", 0.98333333),
        ("Loss", "loss", 1.0),
    ]
    assert {(found.dataset_type, found.dataset_revision) for found in metadata.eval_results} == {where}
    assert "- Reasons as asked: 0.9833\n- Loss: 1\n- Measured on: 120 questions\n" in made.text
    assert "Exact" not in str(made)


def test_usage_loads_the_pinned_base_unpacked_and_keeps_the_channels_apart() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", card(repo="somebody/my-adapter").text, re.DOTALL)
    ast.parse(snippet)
    hub = profiles.load("tiny").hub
    for expected in (
        f'AutoModelForCausalLM.from_pretrained(\n    "{hub.model}",\n    revision="{hub.model_revision}",\n',
        "quantization_config=Mxfp4Config(dequantize=True)",
        'PeftModel.from_pretrained(base, "somebody/my-adapter")',
        'model=model, tokenizer=AutoTokenizer.from_pretrained("somebody/my-adapter")',
        "skip_special_tokens=False",
    ):
        assert expected in snippet


def test_the_rehearsal_hub_takes_the_card_and_gets_no_more_than_it_should(
    run_python: Callable[..., Any], adapter_dir: Path
) -> None:
    """As notebook 05 pushes it: once with the adapter, once more with the results."""
    files, metadata, commits, torch_is_loaded = run_python(f"""
import json, sys
from pathlib import Path
from ftlib import start
from ftlib.model import publish, recipe
from ftlib.profiles import Profile
session = start("tiny")
from huggingface_hub import HfApi, ModelCard
api, repo = HfApi(), "learner/" + session.profile.hub.push_target
publish.push(session.profile, Path({str(adapter_dir)!r}), session.command("push"))
torch_is_loaded = "torch" in sys.modules
commits = [commit.title for commit in api.list_repo_commits(repo)]
training = json.loads({json.dumps(training(profiles.load("tiny")))!r})
card = publish.model_card(session.profile, repo, training, {{**{RESULTS}, "Held-out loss": 0.5}})
card.validate()
card.push_to_hub(repo)
print(json.dumps([api.list_repo_files(repo), ModelCard.load(repo).data.to_dict(), commits, torch_is_loaded]))
""")
    assert set(files) == set(publish.ADAPTER_FILES), "no pickle among them: to open one can run anything"
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert len(commits) == 2, "the empty repository's own, and one for all files, so that it is never there in part"
    assert not torch_is_loaded, "a push needs nothing that training needs"


def test_a_card_that_is_no_text_is_not_pushed(adapter_dir: Path) -> None:
    (adapter_dir / "README.md").write_bytes(b"# A card\n\xff")
    with pytest.raises(FtlibError, match=r"^adapter/README\.md: byte 9 is no UTF-8 text, .*; correct it, or run 04"):
        publish.files_to_push(adapter_dir, profiles.load("tiny"))


def test_the_card_of_an_export_names_its_base_and_how_it_was_checked() -> None:
    profile = profiles.load("gpt-oss-20b")
    card = publish.exported_card(profile, 0.8612)
    assert (card.data.base_model, card.data.library_name) == (profile.hub.model, "transformers")
    assert profile.hub.model_revision in card.text
    assert "lie 0.86 from those of base and adapter" in card.text
