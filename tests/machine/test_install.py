"""The installation: real pip and uv, and an index in a folder that holds an empty torch and nothing else."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    packages = next(tmp_path.glob(".venv/lib/python*/site-packages"))
    for name in ("_distutils_hack", "pip", "setuptools", "uv"):
        (packages / name).symlink_to(next(path for path in map(Path, sys.path) if (path / name).is_dir()) / name)
    for name in TOOLS:  # copied, as uv does not see links
        record = importlib.metadata.distribution(name)._path
        shutil.copytree(record, packages / record.name)
    (tmp_path / ".venv/bin/uv").symlink_to(Path(sys.executable).with_name("uv"))
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {(tmp_path / 'index').as_uri()}\n")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
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


def test_own_links_decide_which_torch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torch(project / "links", "2.13.0+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(project / "links"))
    monkeypatch.setenv("PIP_INDEX_URL", NOBODY)
    monkeypatch.setenv("PIP_NO_INDEX", "yes")
    done = run_install()
    assert done.stderr == ""
    first, choice, last = done.stdout.splitlines()
    assert first == "Installing requirements.lock into .venv, once ..."
    assert choice == "torch 2.13.0+cpu: your own links or indexes have this build"
    assert last.startswith("Installed in ")
    assert last.endswith(" s, with torch 2.13.0+cpu")
    assert installed() == {"torch-2.13.0+cpu", "ftlib-0"}


def test_where_only_the_index_answers_torch_comes_from_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another index, which uv would ask first and last, knows torch as well."""
    write_torch(project / "extra" / "torch", "2.12.0")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (project / "extra").as_uri())
    done = run_install()
    assert (done.returncode, done.stderr) == (0, "")
    _, choice, last = done.stdout.splitlines()
    assert choice.startswith("torch 2.13.0, on Linux with gigabytes of CUDA: PyTorch's own index, which has other")
    assert "download.pytorch.org/whl/cpu/torch" in choice
    assert last.endswith(" s, with torch 2.13.0")
    assert run_install().stdout.splitlines()[1] == "torch is there already: it stays"


def test_where_uv_fails_pip_installs_the_lock(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv stops at a folder of links that is missing; pip does not mind."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(project / "missing"))
    done = run_install()
    assert (done.returncode, done.stderr) == (0, "")
    _, fallback, last = done.stdout.splitlines()
    assert fallback.startswith("uv cannot (Failed to read `--find-links` directory: ")
    assert last.endswith(" s, with torch 2.13.0")
    assert installed() == {"torch-2.13.0", "ftlib-0"}


def test_a_build_that_was_asked_for_is_not_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_TORCH_BACKEND", "cu126")
    done = run_install()
    assert done.returncode == 1
    assert done.stderr.startswith("requirements.lock could not be installed: Failed to fetch: ")
    assert "whl/cu126/torch" in done.stderr
    assert done.stderr.count("\n") == 1
    assert installed() == set()


def test_uv_is_told_what_pip_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pip.conf").write_text(
        "[global]\nindex-url = https://a.example/simple\nextra-index-url =\n  https://b.example\n  https://c.example\n"
        "find_links = first\ncert = /with space/ca.pem\nproxy = http://proxy.example:3128\nquiet = 1\n"
        "[install]\nfind-links = second third\ntrusted-host = d.example\n[download]\nfind-links = other\n"
    )
    monkeypatch.setenv("PIP_TRUSTED_HOST", "e.example f.example")
    monkeypatch.setenv("UV_INDEX_URL", "https://own.example/simple")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    told = install.uv_environment(install.pip_settings())
    expected = {
        "UV_EXTRA_INDEX_URL": "https://b.example https://c.example",
        "UV_FIND_LINKS": "second,third",
        "UV_INDEX_URL": "https://own.example/simple",
        "UV_INSECURE_HOST": "e.example f.example",
        "SSL_CERT_FILE": "/with space/ca.pem",
        "ALL_PROXY": "http://proxy.example:3128",
    }
    assert {name: told[name] for name in expected} == expected


def planning(*builds: str) -> Callable[..., str]:
    """A uv that plans one build without a backend and the other with one."""
    return lambda *options, **_: f"Would install 1 package\n + torch=={builds['--torch-backend' in options]}\n"


@pytest.mark.parametrize(
    ("driver", "build", "backend", "why"),
    [("", "2.13.0+cpu", "cpu", "no NVIDIA driver"), ("535.104", "2.13.0+cu126", "auto", "for NVIDIA driver 535.104")],
)
def test_pytorchs_index_gives_the_build_that_suits_the_machine(
    monkeypatch: pytest.MonkeyPatch, driver: str, build: str, backend: str, why: str
) -> None:
    monkeypatch.setattr(install, "nvidia_driver", lambda: driver)
    line, options = install.choose_torch(planning("2.13.0", build))
    assert line == f"torch {build} from PyTorch's own index: {why}"
    assert options == ("--torch-backend", backend)


def test_a_build_that_cannot_be_fetched_gives_way_to_the_index(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's index may answer where the files that it points to cannot be had."""
    ran = []

    def run(*command: str, **_: Any) -> str:
        ran.append(command)
        if "-r" in command and "--torch-backend" in command:
            raise install.CommandError("Failed to download torch")
        return planning("2.13.0", "2.13.0+cpu")(*command) if "--dry-run" in command else ""

    monkeypatch.setattr(install, "run", run)
    monkeypatch.setattr(install, "nvidia_driver", lambda: "")
    install.install_with_uv()
    assert "That build cannot be had (Failed to download torch)" in capsys.readouterr().out
    assert [command[-2:] for command in ran[-3:]] == [
        ("--torch-backend", "cpu"),
        ("-r", "requirements.lock"),
        ("-e", "."),
    ]
