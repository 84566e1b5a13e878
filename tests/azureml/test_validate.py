"""Shipped files are valid, and what they send is recorded; mistakes are named, and what people rightly have is not."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from azure.ai.ml._utils._asset_utils import get_ignore_file
from helpers import ROOT
from helpers.azure_mistakes import GONE, MISTAKES, TOKEN, VALID
from helpers.azure_workspace import run

from ftlib.azureml import files
from ftlib.azureml.validate import examine

RECORDED = ROOT / "tests/data/azure"
TWO_MACHINES = 'extends = "gpt-oss-20b"\nname = "gpt-oss-20b"\n[train]\nper_device_train_batch_size = 2\n'
VALUES: list[Any] = [None, "", "x", -1, 0.5, True, [], ["x"], {}, {"x": 1}, "${{x}}", "x" * 5000]
ROWS = [(name, *mistake) for name, mistakes in MISTAKES.items() for mistake in mistakes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files, in a project of their own, with profiles that a job is sent and others that it is not."""
    root = tmp_path / "project"
    shutil.copytree(files.FOLDER, root / "ftlib/azureml", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("environment.yml", ".amlignore"):
        shutil.copy(ROOT / name, root)
    for name in ("notebooks", "outputs"):
        (root / name).mkdir()
    (root / "two.toml").write_text(TWO_MACHINES)
    (root / "own.jsonl").write_text('{"messages": []}\n')
    for name, rows in {"own.toml": "own.jsonl", "no_rows.toml": "rows.jsonl"}.items():
        (root / name).write_text(f'extends = "tiny"\n[data]\ndataset = "{rows}"\n')
    for place in (root / "outputs", tmp_path):
        (place / "mine.toml").write_text('extends = "tiny"\n')
    return root / "ftlib/azureml"


@pytest.mark.parametrize("shipped", files.shipped())
def test_shipped_file_is_valid_and_dry_run_prints_what_was_recorded(
    shipped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """To record anew: `ftlib azure submit NAME --dry-run > tests/data/azure/NAME.json`, and look at what changed."""
    assert run("azure", "submit", shipped, "--dry-run") == 0
    printed = capsys.readouterr()
    sent = json.loads(printed.out)
    assert (printed.err, str(ROOT) in printed.out) == ("", False)
    if shipped == "environment":  # its text is environment.yml, which changes with every pin
        conda = yaml.safe_load((ROOT / "environment.yml").read_text())
        assert yaml.safe_load(sent["properties"].pop("condaFile"))["dependencies"] == conda["dependencies"]
    assert sent == json.loads((RECORDED / f"{shipped}.json").read_text())


@pytest.mark.parametrize(("name", "key", "value", "says"), ROWS, ids=lambda part: str(part)[:40])
def test_mistake_is_named_in_one_line(name: str, key: str, value: Any, says: str, folder: Path) -> None:
    path = folder / f"{name}.yml"
    data = section = yaml.safe_load(path.read_text())
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    if value is GONE:
        del section[last]
    path.write_text(yaml.safe_dump(data))
    lines, _ = examine(path)
    assert [line for line in lines if line.startswith(f"{name}.yml: ") and says in line], lines
    assert not [line for line in lines if len(line.splitlines()) > 1 or str(folder.parents[1]) in line]


@pytest.mark.parametrize(("name", "settings", "warned"), VALID.values(), ids=VALID)
def test_what_people_rightly_have_is_not_refused(
    name: str, settings: list[str], warned: list[str], folder: Path
) -> None:
    errors, warnings = examine(folder / f"{name}.yml", files.overrides(settings))
    assert errors == []
    assert len(warnings) == len(warned)
    for key, line in zip(warned, warnings, strict=True):
        assert line.startswith(f"{name}.yml: {key}")


def test_files_may_lie_elsewhere(folder: Path) -> None:
    elsewhere = folder.parents[1] / "mine"
    elsewhere.mkdir()
    text = (folder / "walkthrough.yml").read_text().replace("code: ../..", "code: ..").replace("ftlib-a100", "mine")
    (elsewhere / "job.yaml").write_text(text)
    (elsewhere / "gpus.yaml").write_text((folder / "cluster.yml").read_text().replace("ftlib-a100", "mine"))
    assert examine(elsewhere / "job.yaml") == ([], [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"type: command\ncode: [\n", "line 3: not valid YAML; fix it"),
        (b"<<<<<<< ours\ntype: command\n=======\n", "line 2: not valid YAML; fix it"),
        (b"type: command\n\tcode: x\n", "line 2: not valid YAML; fix it"),
        (b"\xff\xfe\x00", "line 1: not valid YAML; fix it"),
        (b"", "$schema: found 'no settings', expected Azure ML's address of one of"),
        (b"[1, 2]", "$schema: found 'no settings', expected Azure ML's address of one of"),
        (b"a: " * 3000, "line 1: not valid YAML; fix it"),
        (b"[" * 100_000, "cannot be read (RecursionError)"),
    ],
)
def test_broken_file_is_named(content: bytes, says: str, folder: Path) -> None:
    (folder / "walkthrough.yml").write_bytes(content)
    (line,), warnings = examine(folder / "walkthrough.yml")
    assert line.startswith(f"walkthrough.yml: {says}")
    assert warnings == []


def keys(values: Any, above: str = "") -> list[str]:
    """The dotted keys of nested values, those above before those below."""
    if not isinstance(values, dict):
        return []
    return [found for key, below in values.items() for found in (above + key, *keys(below, f"{above}{key}."))]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("walkthrough", [None, [], {"x": 1}]),
        *(
            pytest.param(name, VALUES, marks=pytest.mark.slow)
            for name in ("walkthrough", "pipeline", "cluster", "instance")
        ),
    ],
)
def test_no_value_at_any_key_is_answered_with_a_traceback(name: str, values: list[Any], folder: Path) -> None:
    path = folder / f"{name}.yml"
    for key, value in itertools.product(keys(yaml.safe_load(path.read_text())), values):
        errors, warnings = examine(path, {key: value})
        assert [line for line in errors + warnings if not line.startswith(f"{name}.yml: ") or "\n" in line] == []


def test_machine_that_is_too_small_for_the_profile_is_refused(folder: Path) -> None:
    cluster = folder / "cluster.yml"
    for size, says in {
        "Standard_NV36ads_A10_v5": "expected a smaller profile, or a larger machine than Standard_NV36ads_A10_v5",
        "Standard_D4s_v5": "expected one that computes on a CPU, such as tiny: Standard_D4s_v5 has no GPU",
    }.items():
        cluster.write_text((files.FOLDER / "cluster.yml").read_text().replace("Standard_NC96ads_A100_v4", size))
        (line,), _ = examine(folder / "walkthrough.yml")
        assert says in line


def test_validate_exits_with_1_if_a_file_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("azure", "validate", "pipeline", "cluster") == 0
    assert run("azure", "validate", "cluster", "--set", "min_instances=1") == 0
    assert "warning: cluster.yml: min_instances: found 1; expected 0" in capsys.readouterr().out
    assert run("azure", "validate", "walkthrough", "--set", f"environment_variables.X={TOKEN}") == 1
    printed = capsys.readouterr().out
    assert "found a secret" in printed
    assert TOKEN not in printed


def test_job_sends_the_project_and_nothing_personal() -> None:
    assert Path(files.load(files.find("walkthrough"))._base_path).joinpath("../..").resolve() == ROOT
    ignored = get_ignore_file(ROOT)
    kept = ("ftlib/cli.py", "ftlib/rehearsal/assets/model/config.json", "notebooks/01_setup.ipynb", "pyproject.toml")
    left_out = (".git/config", "config.json", ".venv/bin/python", "outputs/tiny/profile.json", "tests/conftest.py")
    assert [name for name in kept if ignored.is_file_excluded(ROOT / name)] == []
    assert [name for name in left_out if not ignored.is_file_excluded(ROOT / name)] == []
