"""The same releases everywhere: pyproject.toml, requirements.lock, environment.yml and what is installed agree."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRA, GROUP = PROJECT["project"]["optional-dependencies"]["azure"], PROJECT["dependency-groups"]["dev"]
EVERY = [Requirement(text) for text in PROJECT["project"]["dependencies"] + EXTRA + GROUP]
DECLARED = [requirement for requirement in EVERY if requirement.marker is None or requirement.marker.evaluate()]
LOCK = [
    Requirement(line.partition("#")[0])
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if not line.startswith("#")
]
PYTORCH = "--extra-index-url https://download.pytorch.org/whl/cu126"
AZURE_ML = {"python_full_version": "3.12.0", "python_version": "3.12", "sys_platform": "linux", "os_name": "posix"}


def pins(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The lock's version of each distribution that `environment` (default: the running one) installs."""
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in LOCK
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def is_cuda(name: str) -> bool:
    """Whether torch's CUDA build brings the distribution `name`."""
    return name.startswith(("cuda-", "nvidia-")) or name == "triton"


def test_lock_pins_every_line_exactly() -> None:
    """A range, a wildcard or a URL would let two machines differ, and CUDA's packages belong to torch's CUDA build."""
    assert [str(pin) for pin in LOCK if not re.fullmatch(r"==[\w.]+", str(pin.specifier)) or pin.url] == []
    assert [pin.name for pin in LOCK if is_cuda(pin.name)] == []


def test_locked_and_installed_versions_are_in_the_declared_ranges() -> None:
    """Up to a local label: torch 2.13.0+cpu is torch 2.13.0."""
    for requirement in DECLARED:
        locked = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(locked), requirement
        assert Version(importlib.metadata.version(requirement.name)).public == locked, requirement


def test_lock_holds_all_that_the_declared_need() -> None:
    """Follow the requirements of what is installed: each is a line of the lock, CUDA's apart."""
    seen: set[tuple[str, str]] = set()
    queue = [(requirement.name, "") for requirement in DECLARED]
    while queue:
        name, extra = queue.pop()
        if (canonicalize_name(name), extra) in seen or is_cuda(name):
            continue
        seen.add((canonicalize_name(name), extra))
        needs = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        holding = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
        queue += [(need.name, wanted) for need in holding for wanted in ("", *need.extras)]
    assert {name for name, _ in seen} == set(pins())


def test_environment_yml_repeats_the_lock_for_its_python() -> None:
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == ["python=3.12", "pip"]
    locked = pins(AZURE_ML) | {"torch": f"{pins()['torch']}+cu126"}
    assert pip["pip"] == [PYTORCH, *(f"{name}=={version}" for name, version in sorted(locked.items()))]


def test_every_pin_but_torchs_has_its_hashes() -> None:
    text = (ROOT / "requirements.hashes").read_text()
    hashed = re.findall(r"^([\w.-]+==[\w.]+).*\\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert hashed == [f"{pin.name}{pin.specifier}" for pin in LOCK if pin.name != "torch"]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements.hashes", "environment.yml", "pyproject.toml"])
def test_no_registry_is_named(name: str) -> None:
    """Where packages come from is the machine's own setting; PyTorch alone has the build that Azure's drivers need."""
    text = (ROOT / name).read_text().replace(PYTORCH, "")
    assert re.findall(r".*(?:://|--\w*index|--find-links).*", text) == []


def test_wheel_carries_every_file_of_ftlib(tmp_path: Path) -> None:
    """The profiles, the tiny model and the sample data set are files that setuptools packs only when told."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "ftlib", tmp_path / "ftlib", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(next((tmp_path / "dist").glob("ftlib-*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("ftlib/")}
    assert packed == {str(path.relative_to(tmp_path)) for path in (tmp_path / "ftlib").rglob("*") if path.is_file()}


def test_a_container_holds_what_its_commands_need(tmp_path: Path) -> None:
    """Its COPY lines are followed into a folder, in which make can do what its RUN and CMD, and VS Code's, say."""
    lines = re.findall(r"^(COPY|RUN|CMD) (.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for *sources, target in [text.split()[1:] for instruction, text in lines if instruction == "COPY"]:
        for source in sources:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, tmp_path / target)
    vscode = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert f"AS {vscode['build']['target']}\n" in (ROOT / "Dockerfile").read_text()
    run, command = next(text for _, text in lines if text.startswith("make")), json.loads(lines[-1][1])
    assert vscode["onCreateCommand"] == run
    for asked, ip in ((command, "0.0.0.0"), (vscode["postAttachCommand"].split(), "127.0.0.1")):
        planned = subprocess.run([*asked, "-n"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert "python3 ftlib/machine/install.py" in planned
        assert f"jupyter lab --ip {ip} " in planned
    assert (tmp_path / "ftlib/machine/install.py").is_file()
    assert (tmp_path / "notebooks/01_setup.ipynb").is_file()


def test_make_refuses_an_old_python_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python"
    pretend = f"import runpy, sys; sys.version_info = (3, 9, 2); sys.executable = '{old}'"
    run = "runpy.run_path('$1', run_name='__main__')"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}; {run}"\n')
    old.chmod(0o755)
    (tmp_path / "ftlib/machine").mkdir(parents=True)
    for name in ("Makefile", "ftlib/machine/install.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "requirements.lock", "requirements.hashes"):
        (tmp_path / name).touch()
    done = subprocess.run(["make", "walkthrough", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    refusal = f"{old} gives 'Python 3.9.2', but Python 3.11 or later is needed: make walkthrough PYTHON=python3.12"
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == refusal
    assert not (tmp_path / ".venv").exists()
