"""A room without a network: what `make bundle` packs, and that a laptop installs it and runs a notebook."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import HANGING_S, ROOT

NOWHERE = "http://127.0.0.1:9"
PYTHON = "{}.{}".format(*sys.version_info)
LINUX = "manylinux_2_28_x86_64"
OWN = "cp{}{}-none".format(*sys.version_info)
LOCK = """# a remark
azure-thing==1.0
everywhere==1.0  # via ftlib
in-windows==1.0 ; sys_platform == 'win32'
torch==2.13.0  # via ftlib
twice==1.0 ; python_full_version < '3.{minor}.5'
twice==2.0 ; python_full_version >= '3.{minor}.5'
""".format(minor=sys.version_info[1])
PROJECT = """
[project]
name = "ftlib"
version = "0"
dependencies = ["everywhere", "torch", "twice", "in-windows ; sys_platform == 'win32'"]
[project.optional-dependencies]
azure = ["azure-thing"]
"""


def write_wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any") -> str:
    """Write an empty wheel; returns its pin with its hash."""
    path, info = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{sha256}\n"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project in git, and a folder of wheels that is all that pip may ask."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    links, clone = tmp_path / "links", tmp_path / "clone"
    links.mkdir()
    (clone / "notebooks").mkdir(parents=True)
    pins = [write_wheel(links, name, "1.0") for name in ("azure_thing", "everywhere", "in_windows", "twice")]
    pins.append(write_wheel(links, "twice", "2.0"))
    for version, platform in (("+cpu", LINUX), ("+cu130", LINUX), ("", "win_amd64")):
        write_wheel(links, "torch", f"2.13.0{version}", f"{OWN}-{platform}")
    (clone / "requirements.lock").write_text(LOCK)
    (clone / "requirements.hashes").write_text("".join(pins))
    (clone / "pyproject.toml").write_text(PROJECT)
    (clone / "notebooks/1 für alle.ipynb").write_text("{}")
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    subprocess.run(["git", "add", "."], cwd=clone, check=True)
    (clone / "mine.toml").write_text("token = 1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return clone


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftlib.machine.bundle", PYTHON], cwd=folder, capture_output=True, text=True
    )


def test_it_packs_what_learners_need_for_each_system_that_has_wheels(clone: Path) -> None:
    done = make(clone)
    assert (done.returncode, done.stderr) == (1, "")  # torch has no wheel for macOS here
    linux, macos, windows, last = done.stdout.splitlines()
    assert linux.startswith(f"Linux x86_64, Python {PYTHON}: 4 wheels, ")
    assert macos == f"macOS arm64, Python {PYTHON}: left out (No matching distribution found for torch==2.13.0)"
    assert windows.startswith(f"Windows amd64, Python {PYTHON}: 5 wheels, ")
    assert last.startswith("outputs/bundle: ")
    packed = {path.relative_to(clone / "outputs/bundle").as_posix() for path in (clone / "outputs/bundle").rglob("*.*")}
    assert packed == {
        *("install.py", "notebooks/1 für alle.ipynb", "pyproject.toml", "requirements.hashes", "requirements.lock"),
        *("wheels/everywhere-1.0-py3-none-any.whl", "wheels/in_windows-1.0-py3-none-any.whl"),
        *(f"wheels/torch-2.13.0+cpu-{OWN}-{LINUX}.whl", f"wheels/torch-2.13.0-{OWN}-win_amd64.whl"),
        *("wheels/twice-1.0-py3-none-any.whl", "wheels/twice-2.0-py3-none-any.whl"),
    }
    locked = (clone / "outputs/bundle/requirements.lock").read_text()
    assert locked == LOCK.replace("# a remark\nazure-thing==1.0\n", "")


def test_a_wheel_that_is_not_the_one_that_was_locked_is_not_packed(clone: Path) -> None:
    with zipfile.ZipFile(clone.parent / "links/everywhere-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("more.py", "")
    done = make(clone)
    assert done.returncode == 1
    assert done.stdout.count("left out (THESE PACKAGES DO NOT MATCH THE HASHES") == 2
    assert not list(clone.glob("outputs/bundle/wheels/*"))


def test_without_git_nothing_is_packed(clone: Path) -> None:
    shutil.rmtree(clone / ".git")
    done = make(clone)
    assert done.stderr == "error: found no git here, expected a clone of the project; bundle from one\n"
    assert not (clone / "outputs").exists()


@pytest.mark.slow
def test_a_laptop_installs_it_and_runs_a_notebook_without_a_network(tmp_path: Path) -> None:
    """The real wheels, from wherever pip's settings say; then nothing but the bundle, and nobody to ask."""
    subprocess.run([sys.executable, "-m", "ftlib.machine.bundle"], cwd=ROOT, capture_output=True)
    laptop = tmp_path / "laptop"
    shutil.copytree(ROOT / "outputs/bundle", laptop)
    alone = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE}
    for command in ([sys.executable, "install.py"], [laptop / ".venv/bin/ftlib", "run", "01_setup"]):
        done = subprocess.run(command, cwd=laptop, env=alone, capture_output=True, text=True, timeout=HANGING_S)
        assert (done.returncode, done.stderr) == (0, "")
    assert (laptop / "outputs/tiny/records/01_setup.json").is_file()
