"""The installation: real pip and uv, and an index in a folder that holds an empty torch and nothing else."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
from helpers import ROOT

from ftlib.machine import install

TOOLS = ("pip", "setuptools", "uv")
NOBODY = "http://127.0.0.1:9"


def write_torch(folder: Path, version: str) -> None:
    """Write a wheel of an empty torch, and a page that makes `folder` a project's in an index."""
    folder.mkdir(parents=True)
    info = f"torch-{version}.dist-info"
    path = folder / f"torch-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{path.name}">{path.name}</a>')


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that locks uv and torch, its .venv, an index with torch's plain build, and nobody else to ask."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy")]:
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


def run_install() -> subprocess.CompletedProcess[str]:
    command = [".venv/bin/python", "-P", ROOT / "ftlib/machine/install.py"]
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
