"""What goes up: the adapter and a card that the Hub takes, and nothing else of the folder."""

import ast
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from ftlib import profiles, publish
from ftlib.errors import FtlibError

TRAINING = {"global_step": 63, "training_loss": 1.13874}
RESULTS = {"Reasons in the language asked for": "100.0%, before 20.0%"}


def card(name: str = "tiny", repo: str = "learner/adapter") -> ModelCard:
    return publish.model_card(profiles.load(name), repo, TRAINING, RESULTS)


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    """A folder as the trainer leaves it, and a little more."""
    folder = tmp_path / "adapter"
    (folder / "checkpoint-63").mkdir(parents=True)
    names = ("adapter_config.json", "tokenizer.json", "training_args.bin", "notes.txt", "checkpoint-63/optimizer.pt")
    for name in names:
        (folder / name).write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(bytes(1000))
    card().save(folder / "README.md")
    return folder


def test_only_the_adapter_and_its_card_go_up(adapter_dir: Path) -> None:
    """`training_args.bin` is a pickle: opening it can run anything."""
    table = publish.files_to_push(adapter_dir)
    assert set(table.index) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert table.loc["adapter_model.safetensors", "bytes"] == 1000
    assert set(publish.ADAPTER_FILES) == set(table.index)


@pytest.mark.parametrize("name", publish.ADAPTER_FILES)
def test_a_missing_file_is_named(adapter_dir: Path, name: str) -> None:
    (adapter_dir / name).unlink()
    with pytest.raises(FtlibError) as raised:
        publish.files_to_push(adapter_dir)
    assert f"adapter/ lacks ['{name}']" in str(raised.value)
    assert "04_train_lora.ipynb" in str(raised.value)
    assert str(adapter_dir.parent) not in str(raised.value)


@pytest.mark.parametrize("name", profiles.shipped())
def test_metadata_names_the_profiles_own_base_and_data(name: str) -> None:
    """The seed's card named its author's data set, whatever was trained on."""
    hub = profiles.load(name).hub
    metadata = card(name).data
    assert metadata.base_model == hub.model
    assert metadata.datasets == [hub.dataset]
    assert (metadata.library_name, metadata.pipeline_tag) == ("peft", "text-generation")
    assert metadata.license == "apache-2.0"
    assert "lora" in metadata.tags


@pytest.mark.parametrize("name", profiles.shipped())
def test_text_tells_how_to_make_it_again(name: str) -> None:
    profile, text = profiles.load(name), card(name).text
    assert f"{profile.hub.model} at {profile.hub.model_revision}" in text
    assert f"{profile.hub.dataset} at {profile.hub.dataset_revision}" in text
    assert f"experts of layers {list(profile.lora.expert_layers)}" in text
    assert "63 steps of 16 rows" in text
    assert f"learning rate {profile.train.learning_rate:g}" in text
    assert f"seed {profile.train.seed}" in text
    assert "mean loss 1.1387" in text
    assert "Reasons in the language asked for: 100.0%, before 20.0%" in text
    for library in ("torch", "transformers", "trl", "peft", "datasets"):
        assert f"- {library}: {version(library)}" in text


def test_usage_is_python_that_loads_the_base_unpacked_and_keeps_the_channels_apart() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", card(repo="somebody/my-adapter").text, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    keywords = {keyword.arg: ast.unparse(keyword.value) for call in calls for keyword in call.keywords}
    assert keywords["model"] == "'somebody/my-adapter'"
    assert keywords["dequantize"] == "True"
    assert keywords["skip_special_tokens"] == "False"
    assert "reasoning language: French" in snippet


def test_card_survives_being_saved_and_read(tmp_path: Path) -> None:
    card().save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == card().data.to_dict()
    assert again.text.strip() == card().text.strip()
    assert again.text.strip().startswith("# adapter\n")


def test_the_rehearsal_hub_takes_the_card_and_gets_no_more_than_it_should(
    run_python: Callable[..., Any], adapter_dir: Path
) -> None:
    """As notebook 05 pushes it: once with the adapter, once more with the results."""
    files, metadata = run_python(f"""
import json
from ftlib import publish, start
session = start("tiny")
from huggingface_hub import HfApi, ModelCard
api = HfApi()
repo = api.create_repo("adapter").repo_id
card = publish.model_card(session.profile, repo, {TRAINING}, {{"Results": "to follow"}})
card.validate()
api.upload_folder(repo_id=repo, folder_path={str(adapter_dir)!r}, allow_patterns=list(publish.ADAPTER_FILES))
publish.model_card(session.profile, repo, {TRAINING}, {RESULTS}).push_to_hub(repo)
pushed = ModelCard.load(repo)
assert "100.0%" in pushed.text and "to follow" not in pushed.text
print(json.dumps([api.list_repo_files(repo), pushed.data.to_dict()]))
""")
    assert set(files) == set(publish.ADAPTER_FILES)
    assert metadata["base_model"] == "rehearsal/gpt-oss-tiny"
    assert metadata["datasets"] == ["rehearsal/multilingual-thinking-sample"]
