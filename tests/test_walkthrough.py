"""The whole walkthrough, run for real on the tiny model: by `ftlib run`, by papermill, by nbval and on two ranks.

The notebooks run once, in a project of their own; each test then looks at what they left.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from secret_search import find, occurs
from test_secrets import CACHED, PLANTED, log_in

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ["01_setup", "02_explore_dataset", "03_load_model", "04_train_lora", "05_push_and_infer"]
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"}
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}


@dataclass(frozen=True)
class Project:
    """A copy of the notebooks with the outputs that running them left."""

    root: Path
    printed: str = ""

    def record(self, notebook: str, profile: str = "tiny") -> dict[str, Any]:
        return json.loads((self.root / "outputs" / profile / "records" / f"{notebook}.json").read_text())


def run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=500
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


@pytest.fixture(scope="session", params=["tiny", "tiny-fast"])
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
    assert found["effective_batch"] == 16
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


def test_two_ranks_train_the_same(walkthrough: Project, tmp_path: Path) -> None:
    project = copy_of(walkthrough, tmp_path / "project")
    (project.root / "outputs/tiny/records/04_train_lora.json").unlink()
    shutil.rmtree(project.root / "outputs/tiny/adapter")
    ftlib("run", "--profile", "tiny", "--nproc", "2", "--no-resume", "04_train_lora", folder=project.root)
    two, one = project.record("04_train_lora"), walkthrough.record("04_train_lora")
    assert two["world_size"] == 2
    assert (two["global_step"], two["effective_batch"]) == (one["global_step"], one["effective_batch"])
    assert two["training_loss"] == pytest.approx(one["training_loss"], rel=0.02)
    kept = {path.name for path in (project.root / "outputs/tiny/notebooks").iterdir()}
    assert kept == {f"{name}.ipynb" for name in NOTEBOOKS}


def check_seed(project: Project, walkthrough: Project, name: str) -> None:
    record = project.record("05_push_and_infer", name)
    assert record["after"]["agreement"] >= 0.95
    assert record["after"]["exact"] >= 0.80
    losses = [
        where.record("04_train_lora", of)["training_loss"] for where, of in ((project, name), (walkthrough, "tiny"))
    ]
    assert losses[0] != losses[1]


def with_seed(walkthrough: Project, folder: Path, seed: int) -> Project:
    """The finished walkthrough as one of another profile, whose training has yet to be run."""
    project = copy_of(walkthrough, folder)
    (project.root / "outputs/tiny").rename(project.root / f"outputs/seed-{seed}")
    (project.root / f"seed-{seed}.toml").write_text(f'extends = "tiny"\n[train]\nseed = {seed}\n')
    return project


def test_another_seed_gives_the_same_effect(walkthrough: Project, tmp_path: Path) -> None:
    project = with_seed(walkthrough, tmp_path / "project", 1)
    own = ("--profile", "seed-1.toml")
    ftlib("run", "04_train_lora", "05_push_and_infer", *own, "--no-resume", folder=project.root)
    check_seed(project, walkthrough, "seed-1")


def test_papermill_alone_runs_training_from_the_root_and_a_third_seed_gives_the_same_effect(
    walkthrough: Project, tmp_path: Path
) -> None:
    project = with_seed(walkthrough, tmp_path / "project", 2)
    asked = ["-p", "profile", "seed-2.toml", "-p", "resume", "False"]
    papermill = [sys.executable, "-m", "papermill", "notebooks/04_train_lora.ipynb", "out.ipynb", *asked]
    result = run(*papermill, folder=project.root)
    assert result.returncode == 0, result.stderr
    ftlib("run", "05_push_and_infer", "--profile", "seed-2.toml", folder=project.root)
    check_seed(project, walkthrough, "seed-2")


def test_a_finished_training_is_not_done_again_and_nothing_of_it_changes(walkthrough: Project, tmp_path: Path) -> None:
    project = copy_of(walkthrough, tmp_path / "project")
    adapter = project.root / "outputs/tiny/adapter"
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    ftlib("run", "04_train_lora", "--profile", "tiny", folder=project.root)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    assert "going on from checkpoint-63" in (project.root / "outputs/tiny/notebooks/04_train_lora.ipynb").read_text()
    again, first = (each.record("04_train_lora") for each in (project, walkthrough))
    for measured in ("global_step", "training_loss", "train_runtime_s", "samples_per_second"):
        assert again[measured] == first[measured]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-p", "resume", "false"], "FtlibError: parameter resume = 'false': found str, expected True or False"),
        (["-p", "learning_rate", "1e-4"], "it is a value of the profile: write it into a .toml file below [train]"),
    ],
)
def test_papermill_alone_refuses_what_it_would_let_through(tmp_path: Path, given: list[str], message: str) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    result = run(
        sys.executable, "-m", "papermill", "notebooks/04_train_lora.ipynb", "out.ipynb", *given, folder=tmp_path
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_push_without_training_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    result = run(sys.executable, "-m", "ftlib.cli", "run", "05_push_and_infer", "--profile", "tiny", folder=tmp_path)
    assert result.returncode != 0
    assert "run 03_load_model.ipynb to its end first" in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert (tmp_path / "outputs/tiny/notebooks/05_push_and_infer.unfinished.ipynb").is_file()
