"""The installation: real pip and uv, and an index in a folder that holds an empty torch and nothing else."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT

from ftlib.machine import install

TOOLS = ("pip", "setuptools", "uv")
NOBODY = "http://127.0.0.1:9"
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
# Builds an empty ftlib with the standard library alone.
BACKEND = """
import zipfile

def build_editable(folder, *options):
    with zipfile.ZipFile(f"{folder}/ftlib-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ftlib-0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: ftlib\\nVersion: 0\\n")
        wheel.writestr("ftlib-0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("ftlib-0.dist-info/RECORD", "")
    return "ftlib-0-py3-none-any.whl"
"""


def write_torch(folder: Path, version: str, tag: str = "py3-none-any") -> None:
    """Write a wheel of an empty torch, and a page that makes `folder` a project's in an index."""
    folder.mkdir(parents=True)
    info = f"torch-{version}.dist-info"
    path = folder / f"torch-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{path.name}">{path.name}</a>')


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that locks uv and torch, its .venv, an index with torch's plain build, and nobody else to ask."""
    own = ("PIP_", "UV_", "MAKE")
    for name in [name for name in os.environ if name.startswith(own) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    write_torch(tmp_path / "index" / "torch", "2.13.0")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "ftlib"\nversion = "0"\n[tool.setuptools]\npackages = []\n'
    )
    pins = f"torch==2.13.0  # via ftlib\nuv=={importlib.metadata.version('uv')}  # via ftlib\n"
    (tmp_path / "requirements.lock").write_text(pins)
    uv = f"uv=={importlib.metadata.version('uv')} \\\n    --hash=sha256:{'0' * 64}\n"
    (tmp_path / "requirements.hashes").write_text(uv)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    packages = next(tmp_path.glob(".venv/lib/python*/site-packages"))
    for name in ("_distutils_hack", "pip", "setuptools", "uv"):
        (packages / name).symlink_to(next(path for path in map(Path, sys.path) if (path / name).is_dir()) / name)
    for name in TOOLS:  # copied, as uv does not see links
        record = importlib.metadata.distribution(name)._path
        shutil.copytree(record, packages / record.name)
    (tmp_path / ".venv/bin/uv").symlink_to(Path(sys.executable).with_name("uv"))
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {(tmp_path / 'index').as_uri()}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("HTTPS_PROXY", NOBODY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def outsider(tmp_path: Path) -> str:
    """The Python of another environment: without pip, so that nothing can be installed into it by mistake."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
    return str(tmp_path / "other/bin/python")


def run_install(python: str = ".venv/bin/python") -> subprocess.CompletedProcess[str]:
    command = [python, "-P", ROOT / "ftlib/machine/install.py"]
    return subprocess.run(command, capture_output=True, text=True)


def installed() -> set[str]:
    """What was installed into the project's .venv."""
    found = {path.name for path in Path().glob(".venv/lib/python*/site-packages/*.dist-info")}
    return {name.removesuffix(".dist-info") for name in found if name.partition("-")[0] not in TOOLS}


def test_uv_follows_pips_settings(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own links decide which torch is installed, and no index is asked; a second run leaves torch alone."""
    write_torch(project / "links", "2.13.0+cpu")
    write_torch(project / "newer", "2.14.0+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{project / 'links'} {project / 'newer'}")
    monkeypatch.setenv("PIP_INDEX_URL", NOBODY)
    monkeypatch.setenv("PIP_NO_INDEX", "yes")
    done = run_install()
    assert done.stderr == ""
    first, choice, last = done.stdout.splitlines()
    assert first == "Installing requirements.lock into .venv, once ..."
    assert choice == "torch 2.13.0+cpu: your own links or indexes have this build"
    assert last.endswith(" s, with torch 2.13.0+cpu")
    assert installed() == {"torch-2.13.0+cpu", "ftlib-0"}
    assert run_install().stdout.splitlines()[1] == "torch is installed already and stays"


def test_pip_installs_the_lock_if_uv_cannot(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv stops at a missing folder of links, and pip does not."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(project / "missing"))
    done = run_install()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith("uv cannot (Failed to read `--find-links` directory: ")
    assert installed() == {"torch-2.13.0", "ftlib-0"}


def test_a_file_that_is_not_the_one_that_was_locked_is_not_installed(project: Path) -> None:
    """Neither by uv nor by pip, which tries it next."""
    with (project / "requirements.hashes").open("a") as hashes:
        hashes.write(f"torch==2.13.0 \\\n    --hash=sha256:{'1' * 64}\n")
    done = run_install()
    assert done.returncode == 1
    assert "uv cannot (Failed to download `torch==2.13.0` cause: Hash mismatch" in done.stdout
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert installed() == set()


def test_build_that_was_asked_for_is_not_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_TORCH_BACKEND", "cu126")
    done = run_install()
    assert done.returncode == 1
    assert done.stderr.startswith("requirements.lock could not be installed: Failed to fetch: ")
    assert done.stderr.count("\n") == 1
    assert installed() == set()


def test_pips_settings_are_translated_for_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        "global.cert='/with space/ca.pem'\nglobal.extra-index-url='\\nhttps://b.example\\nhttps://c.example'\n"
        "install.find-links='second third'\nglobal.find-links='first'\n:env:.index-url='https://a.example'\n"
        "download.find-links='other'\n:env:.trusted-host='e.example f.example'\n"
    )
    monkeypatch.setattr(install, "run", lambda *_, **__: listed)
    monkeypatch.setenv("UV_INDEX_URL", "https://own.example/simple")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    expected = {
        "UV_EXTRA_INDEX_URL": "https://b.example https://c.example",
        "UV_FIND_LINKS": "second,third",
        "UV_INDEX_URL": "https://own.example/simple",
        "UV_INSECURE_HOST": "e.example f.example",
        "SSL_CERT_FILE": "/with space/ca.pem",
    }
    assert install.uv_environment(install.pip_settings()).items() >= expected.items()


def test_pytorchs_index_gives_the_build_that_suits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def uv(answers: bool, *asked: str, timeout: float | None) -> str:
        if "--torch-backend" in asked and not answers:
            raise install.CommandError("silent")
        build = f"+{asked[-1]}" if "--torch-backend" in asked else ""
        return f"Would install 1 package\n + torch==2.13.0{build}\n"

    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    for nvidia, answers, choice, options in (
        (None, True, "2.13.0+cpu from PyTorch's own index: no NVIDIA driver", ("--torch-backend", "cpu")),
        ("smi", True, "2.13.0+auto from PyTorch's own index: for the NVIDIA driver", ("--torch-backend", "auto")),
        (None, False, "2.13.0, on Linux with gigabytes of CUDA: PyTorch's own index does not answer (silent)", ()),
    ):
        monkeypatch.setattr(shutil, "which", lambda name, found=nvidia: found)
        assert install.choose_torch(partial(uv, answers)) == (f"torch {choice}", options)


def test_what_a_bundle_brings_is_all_that_is_used(project: Path) -> None:
    """No index is asked, in which there is a build that would be preferred."""
    write_torch(project / "wheels", "2.13.0", f"{TAG}-none-linux_x86_64")
    shutil.rmtree(project / "index/torch")
    write_torch(project / "index/torch", "2.13.0+cu130")
    done = run_install()
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == "torch 2.13.0: your own links or indexes have this build"
    assert installed() == {"torch-2.13.0", "ftlib-0"}
    assert (project / ".venv/.installed").exists()


def test_it_makes_the_venv_and_names_the_command(project: Path, outsider: str) -> None:
    """Also one that was left unfinished, by a Python that belongs to another environment."""
    write_torch(project / "wheels", "2.13.0", f"{TAG}-none-linux_x86_64")
    for name, text in (("lock", "torch==2.13.0\n"), ("hashes", "")):  # no uv: pip does it all
        (project / f"requirements.{name}").write_text(text)
    (project / "backend.py").write_text(BACKEND)
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (project / "pyproject.toml").write_text(system)
    packages = next(project.glob(".venv/lib/python*/site-packages"))
    (packages / "pip").unlink()
    done = run_install(outsider)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "Installing requirements.lock into .venv, once ..."
    assert done.stdout.splitlines()[-1] == "Run the walkthrough: .venv/bin/ftlib run"
    assert installed() == {"torch-2.13.0", "ftlib-0"}


def test_a_python_that_a_bundle_has_no_wheels_for_makes_no_venv(project: Path, outsider: str) -> None:
    write_torch(project / "wheels", "2.13.0", f"{TAG}-none-win_amd64")
    shutil.rmtree(project / ".venv")
    done = run_install(outsider)
    assert done.returncode == 1
    assert done.stderr.endswith(f" on linux, but torch-2.13.0-{TAG}-none-win_amd64.whl; use another Python\n")
    assert not (project / ".venv").exists()


def test_windows_has_its_own_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requirements.lock").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(install, "BY_MAKE", False)
    ran: list[list[Any]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command) or SimpleNamespace(returncode=0))
    install.main()
    assert ran[0][1:] == ["-m", "venv", Path(".venv")]
    assert ran[1][0] == Path(".venv/Scripts/python.exe")
    long, command = capsys.readouterr().out.splitlines()
    assert long.startswith(f"This folder's path has {len(str(tmp_path))} characters.")
    assert command == "Run the walkthrough: .venv/Scripts/ftlib run"


@pytest.mark.parametrize(
    ("system", "machine", "version", "by_make", "why"),
    [
        ("darwin", "x86_64", (3, 12, 1), False, "torch has no build for Intel Macs, .*the container: `docker build"),
        ("darwin", "arm64", (3, 12, 1), False, "$"),
        (
            "darwin",
            "arm64",
            (3, 9, 6),
            False,
            r".* gives 'Python 3\.9\.6', .* 3\.11 or later is needed: python3\.12 it$",
        ),
        ("linux", "x86_64", (3, 9, 6), True, r".* needed: make walkthrough PYTHON=python3\.12$"),
        ("win32", "AMD64", (3, 10, 0), False, r".* needed: py -3\.12 it$"),
    ],
)
def test_a_python_without_torch_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, version: tuple[int, ...], by_make: bool, why: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "argv", ["it"])
    monkeypatch.setattr(install, "BY_MAKE", by_make)
    assert re.match(why, install.refusal())
