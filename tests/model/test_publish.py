"""What goes up: the adapter and a card that the Hub takes, and nothing else of the folder; and whether it may."""

import ast
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import publish
from ftlib.session import manifest

TRAINING = {"global_step": 63, "training_loss": 1.13874}
RESULTS = {"Reasons in the language asked for": "100.0%, before 20.0%"}


def card(name: str = "tiny", repo: str = "learner/adapter", **changes: Any) -> ModelCard:
    profile = profiles.load(name)
    data = profile.data.model_copy(update=changes)
    return publish.model_card(profile.model_copy(update={"data": data}), repo, TRAINING, RESULTS)


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    """A folder as the notebooks leave it, and a little more."""
    folder = tmp_path / "adapter"
    (folder / "checkpoint-63").mkdir(parents=True)
    names = ("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name in names:
        (folder / name).write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(bytes(1000))
    manifest.write(folder, [*names, "adapter_model.safetensors"])
    for name in ("training_args.bin", "notes.txt", "checkpoint-63/optimizer.pt"):
        (folder / name).write_text("{}")
    card().save(folder / "README.md")
    return folder


def test_only_the_adapter_its_card_and_its_tokenizer_go_up(adapter_dir: Path) -> None:
    """`training_args.bin` is a pickle: opening it can run anything."""
    table = publish.files_to_push(adapter_dir)
    assert set(table.index) == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md", "manifest.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
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


def test_a_file_that_changed_since_it_was_saved_does_not_go_up(adapter_dir: Path) -> None:
    (adapter_dir / "README.md").write_text("with the results")  # the card may
    publish.files_to_push(adapter_dir)
    (adapter_dir / "adapter_model.safetensors").write_bytes(bytes(999))
    with pytest.raises(FtlibError, match=r"^adapter/adapter_model.safetensors: found 999 bytes"):
        publish.files_to_push(adapter_dir)


@pytest.mark.parametrize("name", profiles.shipped())
def test_metadata_names_the_profiles_own_base_and_data(name: str) -> None:
    """The seed's card named its author's data set, whatever was trained on."""
    profile = profiles.load(name)
    metadata = card(name).data
    assert metadata.base_model == profile.hub.model
    assert metadata.datasets == [profile.data.dataset]
    assert (metadata.library_name, metadata.pipeline_tag) == ("peft", "text-generation")
    assert metadata.license == "apache-2.0"
    assert "lora" in metadata.tags


@pytest.mark.parametrize("name", profiles.shipped())
def test_text_tells_how_to_make_it_again(name: str) -> None:
    profile, text = profiles.load(name), card(name).text
    assert f"{profile.hub.model} at {profile.hub.model_revision}" in text
    assert f"{profile.data.dataset} at {profile.data.revision}" in text
    assert f"experts of layers {list(profile.recipe.expert_layers)}" in text
    assert "63 steps of 16 rows" in text
    assert f"learning rate {profile.train.learning_rate:g}" in text
    assert f"seed {profile.train.seed}" in text
    assert "mean loss 1.1387" in text
    assert "Reasons in the language asked for: 100.0%, before 20.0%" in text
    for library in ("torch", "transformers", "trl", "peft", "datasets"):
        assert f"- {library}: {version(library)}" in text


def test_text_tells_what_of_a_conversation_was_trained_on() -> None:
    assert "whole conversations (assistant_only_loss false), up to 216 tokens" in card().text
    assert "the assistant turns only (assistant_only_loss true)" in card(assistant_only_loss=True).text


def test_a_local_data_set_is_named_without_its_place() -> None:
    """Where it lies is nobody's business, and nobody finds it on the Hub."""
    local = card(dataset="/home/ada/secret/mine.jsonl", revision=None, held_out_share=0.1)
    assert "Data set: mine.jsonl, a local file" in local.text
    assert local.data.datasets is None
    assert "datasets" not in local.data.to_dict()
    assert "/home/ada" not in str(local)


def numbers_and_text() -> dict[str, Any]:
    import numpy

    return {
        "Reasons in the language asked for": numpy.float64(0.98333333),
        "Held-out loss": 1,
        "Answers exactly as the reference": None,
        "Measured on": "120 held-out questions",
    }


@pytest.mark.parametrize(
    ("share", "where"),
    [(0.0, ("held-out", None)), (0.1, ("rehearsal/multilingual-thinking-sample", profiles.load("tiny").data.revision))],
)
def test_numbers_go_into_the_metadata_text_does_not_and_what_was_not_measured_is_left_out(
    tmp_path: Path, share: float, where: tuple[str, str | None]
) -> None:
    profile = profiles.load("tiny")
    profile = profile.model_copy(update={"data": profile.data.model_copy(update={"held_out_share": share})})
    made = publish.model_card(profile, "learner/adapter", TRAINING, numbers_and_text())
    made.save(tmp_path / "README.md")
    metadata = ModelCard.load(tmp_path / "README.md").data
    assert metadata.model_name == "adapter"
    assert [(found.metric_name, found.metric_type, found.metric_value) for found in metadata.eval_results] == [
        ("Reasons in the language asked for", "reasons_in_the_language_asked_for", 0.98333333),
        ("Held-out loss", "held_out_loss", 1.0),
    ]
    assert {(found.dataset_type, found.dataset_revision) for found in metadata.eval_results} == {where}
    assert metadata.to_dict() == made.data.to_dict()
    assert "- Reasons in the language asked for: 0.9833\n- Held-out loss: 1\n- Measured on: 120 held" in made.text
    assert "exactly" not in made.text
    assert "numpy" not in str(made)


def test_without_numbers_there_is_no_index_of_results() -> None:
    assert not {"model-index", "model_name"} & set(card().data.to_dict())


def test_usage_is_python_that_loads_the_pinned_base_unpacked_and_keeps_the_channels_apart() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", card(repo="somebody/my-adapter").text, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    keywords = {keyword.arg: ast.unparse(keyword.value) for call in calls for keyword in call.keywords}
    named = {ast.unparse(call.func): [ast.unparse(argument) for argument in call.args] for call in calls}
    hub = profiles.load("tiny").hub
    assert named["AutoModelForCausalLM.from_pretrained"] == [f"'{hub.model}'"]
    assert keywords["revision"] == f"'{hub.model_revision}'"
    assert named["PeftModel.from_pretrained"] == ["base", "'somebody/my-adapter'"]
    assert named["AutoTokenizer.from_pretrained"] == ["'somebody/my-adapter'"]
    assert (keywords["model"], keywords["dequantize"], keywords["skip_special_tokens"]) == ("model", "True", "False")
    assert "trust_remote_code" not in keywords
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
    files, metadata, commits, torch_is_loaded = run_python(f"""
import json, sys
from ftlib import publish, start
session = start("tiny")
from huggingface_hub import HfApi, ModelCard
from pathlib import Path
api = HfApi()
repo = "learner/" + session.profile.hub.push_target
card = publish.model_card(session.profile, repo, {TRAINING}, {{"Results": "to follow"}})
card.validate()
publish.push(session.profile, Path({str(adapter_dir)!r}), session.command("push"))
torch_is_loaded = "torch" in sys.modules
commits = [commit.title for commit in api.list_repo_commits(repo)]
card = publish.model_card(session.profile, repo, {TRAINING}, {{**{RESULTS}, "Held-out loss": 0.5}})
card.validate()
card.push_to_hub(repo)
pushed = ModelCard.load(repo)
assert "100.0%" in pushed.text and "to follow" not in pushed.text
print(json.dumps([api.list_repo_files(repo), pushed.data.to_dict(), commits, torch_is_loaded]))
""")
    assert set(files) == set(publish.ADAPTER_FILES)
    assert metadata["base_model"] == "rehearsal/gpt-oss-tiny"
    assert metadata["datasets"] == ["rehearsal/multilingual-thinking-sample"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert len(commits) == 2, "the empty repository's own, and one for all files, so that it is never there in part"
    assert not torch_is_loaded, "a push needs none of what training needs"


def test_pushing_where_nothing_was_trained_is_told_in_one_line(run_python: Callable[..., Any], project: Path) -> None:
    message = run_python("""
import json
from typer.testing import CliRunner
from ftlib import cli
result = CliRunner().invoke(cli.app, ["push", "--profile", "tiny"])
print(json.dumps(str(result.exception)))
""")
    assert message.startswith("adapter/ lacks ['adapter_config.json', ")
    assert "run 04_train_lora.ipynb to its end first" in message
    assert "\n" not in message
