"""The whole walkthrough, run for real on the tiny model: by `ftlib run`, by nbval and by papermill.

The notebooks run once, in a project of their own; each test then looks at what they left, or goes on from it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import HANGING_S, NOTEBOOKS, ROOT
from helpers.secret_search import find, occurs
from test_secrets import CACHED, PLANTED, log_in

from ftlib import profiles
from ftlib.rehearsal import ASSETS

OUTPUT = Path("outputs/tiny")
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"}
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}


@dataclass(frozen=True)
class Project:
    """A copy of the notebooks with the outputs that running them left."""

    root: Path
    printed: str = ""

    def record(self, notebook: str, profile: str = "tiny") -> dict[str, Any]:
        return json.loads((self.root / "outputs" / profile / "records" / f"{notebook}.json").read_text())


def run(
    *command: str, folder: Path, without: Collection[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=HANGING_S
    )


def ftlib(*arguments: str, folder: Path, **environment: str) -> str:
    result = run(sys.executable, "-m", "ftlib.cli", *arguments, folder=folder, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def copy_of(project: Project, folder: Path) -> Project:
    shutil.copytree(project.root, folder)
    return Project(folder)


@pytest.fixture(scope="session")
def walkthrough(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Run by a person who is logged in and whose environment holds more secrets."""
    root = tmp_path_factory.mktemp("walkthrough") / "project"
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    home = tmp_path_factory.mktemp("home")
    log_in(home)
    cache = str(home / ".cache/huggingface")
    return Project(root, ftlib("run", "--profile", "tiny", folder=root, HOME=str(home), HF_HOME=cache, **PLANTED))


@pytest.fixture(scope="session", params=["tiny", pytest.param("tiny-fast", marks=pytest.mark.slow)])
def record(request: pytest.FixtureRequest, walkthrough: Project) -> Callable[[str], dict[str, Any]]:
    """What a notebook measured, with the recipe that the walkthrough takes and with the fast one."""
    if request.param == "tiny-fast":
        ftlib("run", *NOTEBOOKS[2:], "--profile", request.param, folder=walkthrough.root)
    return lambda notebook: walkthrough.record(notebook, request.param)


def test_prints_a_line_for_each_notebook_and_the_result(walkthrough: Project) -> None:
    for name in NOTEBOOKS:
        assert name in walkthrough.printed
    after = walkthrough.record("05_push_and_infer")["after"]["agreement"]
    assert f"20% before → {after:.0%} after" in walkthrough.printed
    assert "outputs/tiny/report/index.html" in walkthrough.printed
    assert "make lab" in walkthrough.printed


def test_baseline_reasons_in_english(record: Callable[[str], dict[str, Any]]) -> None:
    found = record("03_load_model")
    assert found["agreement_low"] <= found["agreement"] <= 0.30
    assert found["questions"] >= 100
    assert found["unfinished"] == 0
    assert {row["language"] for row in found["by_language"]} == {"English", "Spanish", "French", "Italian", "German"}
    assert found["total_parameters"] == 1_256_096


def test_training_takes_the_planned_steps_with_every_adapter(record: Callable[[str], dict[str, Any]]) -> None:
    found = record("04_train_lora")
    assert found["global_step"] == 63
    assert found["adapted_expert_tensors"] == 8
    assert found["effective_batch_size"] == 16
    assert found["trainable_parameters"] == 110_592
    assert 0 < found["training_loss"] < 1
    for measured in ("samples_per_second", "train_runtime_s", "peak_memory_bytes"):
        assert found[measured] > 0


def test_tuned_model_reasons_in_the_language_asked_for(record: Callable[[str], dict[str, Any]]) -> None:
    found = record("05_push_and_infer")
    before, after = found["before"], found["after"]
    assert before["agreement"] == record("03_load_model")["agreement"]
    assert after["agreement"] >= 0.95
    assert after["agreement_low"] >= 0.90
    assert after["exact"] >= 0.80
    assert after["loss"] < before["loss"] / 2
    assert after["token_accuracy"] > before["token_accuracy"]
    assert found["merged_max_logit_difference"] <= 1e-4
    assert found["attached_adapter_tensors"] == 2 * (4 * 4 + 8)


def test_weights_are_of_the_pinned_commit_and_each_was_counted_once(walkthrough: Project) -> None:
    """The Hub's main has moved on since, and a folder of the repository holds weights for another program."""
    cache = walkthrough.root / OUTPUT / "huggingface/hub/models--rehearsal--gpt-oss-tiny"
    downloaded = [path.relative_to(cache / "snapshots").parts for path in cache.glob("snapshots/**/*.safetensors")]
    assert downloaded == [(profiles.load("tiny").hub.model_revision, "model.safetensors")]
    assert walkthrough.record("03_load_model")["base_bytes"] == (ASSETS / "model/model.safetensors").stat().st_size


def test_adapter_is_on_the_hub(walkthrough: Project) -> None:
    record = walkthrough.record("05_push_and_infer")
    assert record["hub_repo"] == "learner/gpt-oss-tiny-multilingual-reasoner"
    assert set(record["hub_files"]) == ADAPTER | TOKENIZER


def test_writes_these_files_and_no_others(walkthrough: Project) -> None:
    output = walkthrough.root / "outputs/tiny"
    assert {path.name for path in output.iterdir()} == {
        "adapter", "checkpoints", "hub", "huggingface", "notebooks", "profile.json", "records", "report", "trackio",
        "training.lock",
    }  # fmt: skip
    written = {
        folder: {path.name for path in (output / folder).iterdir()} for folder in ("records", "notebooks", "report")
    }
    assert written["records"] == {f"{name}.json" for name in NOTEBOOKS}
    assert written["notebooks"] == {f"{name}.ipynb" for name in NOTEBOOKS}
    assert written["report"] == {"index.html", *(f"{name}.html" for name in NOTEBOOKS)}
    assert {path.name for path in (output / "adapter").iterdir()} == ADAPTER | TOKENIZER
    assert {path.name for path in (output / "checkpoints").iterdir()} == {"README.md", "checkpoint-60", "checkpoint-63"}
    assert {path.name for path in walkthrough.root.iterdir()} == {"notebooks", "outputs"}


def test_executed_notebooks_show_no_warning_and_no_place(walkthrough: Project) -> None:
    for path in (walkthrough.root / "outputs/tiny/notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            shown = json.dumps(
                [output for output in cell.get("outputs", []) if "image/png" not in output.get("data", {})]
            )
            assert "Warning" not in shown
            assert str(walkthrough.root) not in shown


def test_nothing_that_was_written_or_printed_holds_a_secret(walkthrough: Project) -> None:
    for secret in (*PLANTED.values(), *CACHED.values()):
        assert find(secret, walkthrough.root) == []
        assert not occurs(secret, walkthrough.printed)


def with_seed(walkthrough: Project, folder: Path, seed: int) -> Project:
    """The finished walkthrough as one of another profile, whose training has yet to be run."""
    project = copy_of(walkthrough, folder)
    (project.root / "outputs/tiny").rename(project.root / f"outputs/seed-{seed}")
    (project.root / f"seed-{seed}.toml").write_text(f'extends = "tiny"\n[train]\nseed = {seed}\n')
    return project


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_gives_the_same_effect(walkthrough: Project, tmp_path: Path, seed: int) -> None:
    """The second is trained by papermill alone, from the project's root."""
    project = with_seed(walkthrough, tmp_path / "project", seed)
    profile = f"seed-{seed}.toml"
    if seed == 1:
        ftlib("run", "04_train_lora", "--profile", profile, "--no-resume", folder=project.root)
    else:
        result = papermill("-p", "profile", profile, "-p", "resume", "False", folder=project.root)
        assert result.returncode == 0, result.stderr
    ftlib("run", "05_push_and_infer", "--profile", profile, folder=project.root)
    after = project.record("05_push_and_infer", profile.removesuffix(".toml"))["after"]
    assert after["agreement"] >= 0.95
    assert after["exact"] >= 0.80
    own, first = project.record("04_train_lora", f"seed-{seed}"), walkthrough.record("04_train_lora")
    assert own["training_loss"] != first["training_loss"]


def papermill(*given: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "papermill", "notebooks/04_train_lora.ipynb", "out.ipynb", *given, folder=folder)


def nbval(*notebooks: str, folder: Path) -> None:
    own = [name for name in os.environ if name.startswith("PYTEST_")]
    result = run(
        sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", *notebooks,
        folder=folder, without=own,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def test_what_the_committed_notebooks_show_is_what_came_out(walkthrough: Project) -> None:
    """What nbval compares, in the notebooks that have just been executed."""
    compared = 0
    for name in NOTEBOOKS:
        paths = [folder / f"{name}.ipynb" for folder in (ROOT / "notebooks", walkthrough.root / OUTPUT / "notebooks")]
        committed, executed = (checked_outputs(path) for path in paths)
        assert executed == committed
        compared += len(committed)
    assert compared >= 10


def checked_outputs(path: Path) -> dict[str, list[Any]]:
    """Source and outputs, without pictures, of the cells whose outputs are checked."""
    found = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if "nbval-check-output" in cell.metadata.get("tags", []):
            # What is printed comes in one piece or in several.
            printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            shown = [output.data for output in cell.outputs if "image/png" not in output.get("data", {"image/png": ""})]
            found[cell.source] = [printed, *shown]
    return found


def test_nbval_passes_and_a_finished_training_is_not_done_again(walkthrough: Project, tmp_path: Path) -> None:
    """In the notebooks' own folder, as Jupyter runs them."""
    project = copy_of(walkthrough, tmp_path / "project")
    adapter = project.root / OUTPUT / "adapter"
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    (project.root / OUTPUT / "records/04_train_lora.json").unlink()
    nbval("notebooks/04_train_lora.ipynb", folder=project.root)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    again, first = (each.record("04_train_lora") for each in (project, walkthrough))
    for measured in ("global_step", "training_loss", "train_runtime_s", "samples_per_second"):
        assert again[measured] == first[measured]


@pytest.mark.slow
def test_nbval_passes_on_all_notebooks(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    nbval("notebooks", folder=tmp_path)


def test_papermill_alone_refuses_what_it_would_let_through(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    result = papermill("-p", "resume", "false", folder=tmp_path)
    assert result.returncode != 0
    assert "FtlibError: parameter resume = 'false': found str, expected True or False" in result.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_push_without_training_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    result = run(sys.executable, "-m", "ftlib.cli", "run", "05_push_and_infer", "--profile", "tiny", folder=tmp_path)
    assert result.returncode != 0
    assert "run 03_load_model.ipynb to its end first" in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert (tmp_path / "outputs/tiny/notebooks/05_push_and_infer.unfinished.ipynb").is_file()
