"""The whole walkthrough on the tiny model, run for real: by `ftlib run`, by nbval and by papermill.

The notebooks run once, in a project of their own; each test looks at the results or goes on from them.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import HANGING_S, NOTEBOOKS, ROOT
from helpers.launching import Launch, leave_nobody_behind  # noqa: F401  # for every test
from helpers.secret_search import CACHED, PLANTED, find, log_in, occurs

from ftlib import profiles
from ftlib.rehearsal import ASSETS

OUTPUT = Path("outputs/tiny")
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"}
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}


@dataclass(frozen=True)
class Project:
    """A copy of the notebooks with the outputs of running them."""

    root: Path
    printed: str = ""

    def record(self, notebook: str, profile: str = "tiny") -> dict[str, Any]:
        return json.loads((self.root / "outputs" / profile / "records" / f"{notebook}.json").read_text())


def run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=HANGING_S,
    )


def ftlib(*arguments: str, folder: Path, **environment: str) -> str:
    result = run("ftlib.cli", *arguments, folder=folder, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="session")
def walkthrough(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Run by a person who is logged in and whose environment holds more secrets."""
    root = tmp_path_factory.mktemp("walkthrough") / "project"
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    home = tmp_path_factory.mktemp("home")
    cache = home / ".cache/huggingface"
    cache.mkdir(parents=True)
    log_in(cache)
    return Project(root, ftlib("run", "--profile", "tiny", folder=root, HOME=str(home), HF_HOME=str(cache), **PLANTED))


@pytest.fixture
def copy(walkthrough: Project, tmp_path: Path) -> Project:
    shutil.copytree(walkthrough.root, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="session", params=["tiny", pytest.param("tiny-fast", marks=pytest.mark.slow)])
def record(request: pytest.FixtureRequest, walkthrough: Project) -> Callable[[str], dict[str, Any]]:
    """What a notebook measured, with the walkthrough's recipe and with the fast one."""
    if request.param == "tiny-fast":
        ftlib("run", *NOTEBOOKS[2:], "--profile", request.param, folder=walkthrough.root)
    return lambda notebook: walkthrough.record(notebook, request.param)


def test_training_has_the_effect(record: Callable[[str], dict[str, Any]]) -> None:
    base, training, last = (record(name) for name in NOTEBOOKS[2:5])
    assert base["agreement_low"] <= base["agreement"] <= 0.30, "it reasons in English"
    assert (base["questions"], base["unfinished"], base["total_parameters"]) == (120, 0, 1_256_096)
    assert {row["language"] for row in base["by_language"]} == {"English", "Spanish", "French", "Italian", "German"}

    assert (training["global_step"], training["effective_batch_size"]) == (63, 16)
    assert (training["adapted_expert_tensors"], training["trainable_parameters"]) == (8, 110_592)
    for measured in ("training_loss", "samples_per_second", "train_runtime_s", "peak_memory_bytes"):
        assert training[measured] > 0

    before, after = last["before"], last["after"]
    assert before["agreement"] == base["agreement"]
    assert before["faithful"] >= 0.95, "its English reasoning leads to its answers"
    assert 0.60 <= after["faithful"] < 1, "the example of notebook 5 is one that does not"
    assert after["agreement"] >= 0.95
    assert after["agreement_low"] >= 0.90
    assert after["exact"] >= 0.80
    assert after["loss"] < before["loss"] / 2
    assert after["token_accuracy"] > before["token_accuracy"]
    assert last["merged_max_logit_difference"] <= 1e-4
    assert last["attached_adapter_tensors"] == 2 * (4 * 4 + 8)
    assert last["hub_repo"].startswith("learner/gpt-oss-tiny-multilingual-reasoner")
    assert set(last["hub_files"]) == ADAPTER | TOKENIZER


def test_the_trained_model_answers_alike_in_every_format(walkthrough: Project) -> None:
    engines = {row["engine"]: row for row in walkthrough.record("06_export_and_serve")["engines"]}
    untrained = engines.pop("llama.cpp, untrained base")
    assert set(engines) == {"transformers", "llama.cpp, f32", "llama.cpp, Q8_0", "llama.cpp, MXFP4"}
    for engine in engines.values():
        assert engine["agreement"] >= 0.95
        assert engine["exact"] >= 0.80
    assert untrained["agreement"] <= 0.3
    assert engines["llama.cpp, MXFP4"]["bytes"] < engines["llama.cpp, f32"]["bytes"] / 3


def test_an_export_is_checked_from_the_command_line(walkthrough: Project) -> None:
    folder = f"{OUTPUT}/export/mxfp4"
    assert f"{folder} is the model of {OUTPUT}/adapter: logits lie" in ftlib(
        "export", "--check", folder, folder=walkthrough.root
    )


@pytest.mark.slow
@pytest.mark.timeout(2 * HANGING_S)
def test_an_export_killed_at_ten_moments_keeps_what_was_there(copy: Project) -> None:
    """Each later than the one before, by how often the folder has changed; then as many as it takes to the end."""
    export, command = copy.root / OUTPUT / "export", ["-m", "ftlib.cli", "export", "--to", "gguf"]

    def seen() -> set[tuple[str, int]]:
        with contextlib.suppress(OSError):  # a file that is gone by now
            return {(path.name, path.stat().st_size) for path in export.rglob("*")}
        return set()

    def wait_for_changes(launch: Launch, number: int) -> None:
        last = seen()
        while number and not launch.is_over:
            if (now := seen()) != last:
                last, number = now, number - 1

    def finished() -> dict[str, str]:
        """Checksums by place; after a kill between two renames, the earlier folder has another name for a while."""
        files = {path.relative_to(export).as_posix(): path for path in export.rglob("*") if path.is_file()}
        whole = {name: path for name, path in files.items() if ".part" not in name}
        return {
            name.replace(".old/", "/"): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in whole.items()
        }

    Launch(command, copy.root).succeed()
    before, killed = finished(), 0
    for number in range(10):
        launch = Launch(command, copy.root)
        wait_for_changes(launch, number + 1)
        killed += not launch.is_over
        launch.kill()
        assert finished() == before, f"after kill {number}"
    assert killed >= 5, killed
    Launch(command, copy.root).succeed()
    assert finished() == before
    assert not list(export.glob("*.part")) + list(export.glob("*.old"))


@pytest.mark.slow
def test_an_attempt_trains_and_measures_as_the_notebooks_do(copy: Project) -> None:
    printed = ftlib("try", "tiny", folder=copy.root)
    attempt = json.loads((copy.root / "outputs/attempts/tiny/records/attempt.json").read_text())
    measured = copy.record("05_push_and_infer")["after"] | copy.record("04_train_lora")
    for name in ("agreement", "exact", "faithful", "trainable_parameters"):
        assert attempt[name] == measured[name]
    assert attempt["loss"] == pytest.approx(measured["loss"], abs=1e-3)
    assert re.search(r"the base.* 20\.0%", printed), "measured by notebook 3, and not again"


@pytest.mark.slow
@pytest.mark.timeout(2 * HANGING_S)
def test_the_solutions_of_all_exercises_run(copy: Project) -> None:
    for solved in sorted((copy.root / "notebooks/exercises/solutions").glob("*.ipynb")):
        done = run("nbconvert", "--to", "notebook", "--execute", "--inplace", str(solved), folder=copy.root)
        assert done.returncode == 0, done.stderr


def test_an_export_goes_to_the_hub_whole(walkthrough: Project) -> None:
    printed = ftlib("push", "--exported", "mxfp4", folder=walkthrough.root)
    name = f"{profiles.load('tiny').hub.push_target}-mxfp4"
    assert printed.strip().endswith(f"learner/{name}")
    pushed = json.loads((walkthrough.root / OUTPUT / f"hub/models/learner/{name}.json").read_text())["commits"][0]
    exported = {path.name for path in (walkthrough.root / OUTPUT / "export/mxfp4").iterdir()}
    assert set(pushed["files"]) == exported >= {"README.md", "manifest.json", "model.safetensors", "tokenizer.json"}


def test_all_of_the_base_is_of_the_pinned_commit_and_its_weights_were_counted_once(walkthrough: Project) -> None:
    """The Hub's main has moved on, and a folder of the repository holds weights for other programs."""
    cache = walkthrough.root / OUTPUT / "huggingface/hub/models--rehearsal--gpt-oss-tiny"
    downloaded = [path.relative_to(cache / "snapshots").parts for path in cache.glob("snapshots/**/*.safetensors")]
    assert downloaded == [(profiles.load("tiny").hub.model_revision, "model.safetensors")]
    assert [path.name for path in cache.glob("snapshots/*")] == [profiles.load("tiny").hub.model_revision]
    assert walkthrough.record("03_load_model")["base_bytes"] == (ASSETS / "model/model.safetensors").stat().st_size


def test_it_writes_these_files_and_no_others_and_prints_the_result(walkthrough: Project) -> None:
    output = walkthrough.root / OUTPUT
    written = {folder: {path.name for path in (output / folder).iterdir()} for folder in (
        ".", "records", "notebooks", "report", "adapter", "checkpoints", "export", "../..",
    )}  # fmt: skip
    assert written == {
        ".": {
            "adapter", "checkpoints", "export", "export.lock", "hub", "huggingface", "notebooks", "profile.json",
            "records", "report", "trackio", "training.lock",
        },
        "records": {f"{name}.json" for name in NOTEBOOKS},
        "notebooks": {f"{name}.ipynb" for name in NOTEBOOKS},
        "report": {"index.html", *(f"{name}.html" for name in NOTEBOOKS)},
        "adapter": ADAPTER | TOKENIZER,
        "checkpoints": {"README.md", "checkpoint-60", "checkpoint-63"},
        "export": {"base.gguf", "f32.gguf", "merged", "mxfp4", "mxfp4.gguf", "q8_0.gguf"},
        "../..": {"notebooks", "outputs"},
    }  # fmt: skip
    after = walkthrough.record("05_push_and_infer")["after"]["agreement"]
    for expected in (*NOTEBOOKS, f"20% before → {after:.0%} after", "outputs/tiny/report/index.html", "make lab"):
        assert expected in walkthrough.printed


def test_nothing_shows_a_secret_a_warning_or_a_place(walkthrough: Project) -> None:
    for secret in (*PLANTED.values(), *CACHED.values()):
        assert find(secret, walkthrough.root) == []
        assert not occurs(secret, walkthrough.printed.encode())
    for path in (walkthrough.root / OUTPUT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            outputs = [output for output in cell.get("outputs", []) if "image/png" not in output.get("data", {})]
            assert "Warning" not in json.dumps(outputs)
            assert str(walkthrough.root) not in json.dumps(outputs)


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
    """Source and outputs, without pictures, of the cells whose outputs nbval checks."""
    found = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if "nbval-check-output" in cell.metadata.get("tags", []):
            printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            shown = [output.data for output in cell.outputs if "image/png" not in output.get("data", {"image/png": ""})]
            found[cell.source] = [printed, *shown]
    return found


def test_nbval_passes_and_a_finished_training_is_not_repeated(walkthrough: Project, copy: Project) -> None:
    """In the notebooks' own folder, as Jupyter runs them."""
    adapter = copy.root / OUTPUT / "adapter"
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    (copy.root / OUTPUT / "records/04_train_lora.json").unlink()
    nbval = ("pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider")
    result = run(*nbval, "notebooks/04_train_lora.ipynb", folder=copy.root)
    assert result.returncode == 0, result.stdout[-3000:]
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    again, first = (each.record("04_train_lora") for each in (copy, walkthrough))
    for measured in ("global_step", "training_loss", "train_runtime_s", "samples_per_second"):
        assert again[measured] == first[measured]


def test_before_and_after_are_compared_only_with_the_same_settings(copy: Project) -> None:
    """Told before anything is pushed or asked."""
    (copy.root / OUTPUT).rename(copy.root / "outputs/brief")
    (copy.root / "brief.toml").write_text('extends = "tiny"\n[measure]\nmax_new_tokens = 100\n')
    before = copy.record("05_push_and_infer", "brief")
    result = run("ftlib.cli", "run", "05_push_and_infer", "--profile", "brief.toml", folder=copy.root)
    assert result.returncode == 1
    told = "measure.max_new_tokens was 128 when 03_load_model.ipynb measured the base and is 100 now"
    assert told in " ".join((result.stdout + result.stderr).split())
    assert "cell [4] `from ftlib.dataset import prepare`" in result.stdout + result.stderr
    assert copy.record("05_push_and_infer", "brief") == before


def papermill(*given: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run("papermill", "notebooks/04_train_lora.ipynb", "out.ipynb", *given, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_gives_the_same_effect(walkthrough: Project, copy: Project, seed: int) -> None:
    """Seed 1 on two ranks; seed 2 by papermill alone."""
    name, profile = f"seed-{seed}", f"seed-{seed}.toml"
    (copy.root / OUTPUT).rename(copy.root / f"outputs/{name}")
    (copy.root / profile).write_text(f'extends = "tiny"\n[train]\nseed = {seed}\n')
    if seed == 1:
        ftlib("run", "04_train_lora", "--profile", profile, "--no-resume", "--nproc", "2", folder=copy.root)
    else:
        result = papermill("-p", "profile", profile, "-p", "resume", "False", folder=copy.root)
        assert result.returncode == 0, result.stderr
    ftlib("run", "05_push_and_infer", "--profile", profile, folder=copy.root)
    after = copy.record("05_push_and_infer", name)["after"]
    assert after["agreement"] >= 0.95
    assert after["exact"] >= 0.80
    first = walkthrough.record("04_train_lora")
    assert copy.record("04_train_lora", name)["training_loss"] != first["training_loss"]


def test_papermill_alone_refuses_a_parameter_of_the_wrong_type(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    result = papermill("-p", "resume", "false", folder=tmp_path)
    assert result.returncode != 0
    assert "FtlibError: parameter resume = 'false': found str, expected True or False" in result.stderr
    assert not (tmp_path / "outputs").exists()
