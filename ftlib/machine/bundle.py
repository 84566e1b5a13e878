"""Packs a room without a network: `make bundle` writes this project with the wheels that its learners' laptops install.

The installer finds `wheels/` and takes everything from there. Azure's packages and those for development stay out.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from packaging.requirements import Requirement

from ftlib.errors import FtlibError
from ftlib.machine import install
from ftlib.machine.install import HASHES, LOCK, PIP, WHEELS, CommandError

BUNDLE = Path("outputs/bundle")
INSTALLERS = {"setuptools", "uv"}  # of the packages for development, these install the others
PIN = re.compile(r"^([\w.-]+)==.*\n", re.MULTILINE)


class System(NamedTuple):
    """A kind of laptop: its name, what wheels for it are called, and its answers to a requirement's marker."""

    name: str
    platforms: tuple[str, ...]
    markers: dict[str, str]


GLIBC = tuple(f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1))  # 2.35 is Ubuntu 22.04's
SYSTEMS = (
    System(
        "Linux x86_64",
        (*GLIBC, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    ),
    System(
        "macOS arm64",
        ("macosx_14_0_arm64",),  # the oldest that torch has a build for
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
    ),
    System(
        "Windows amd64",
        ("win_amd64",),
        {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64", "os_name": "nt"},
    ),
)


def main(
    pythons: Annotated[
        list[str] | None, typer.Argument(help="The laptops' versions of Python; by default this.")
    ] = None,
) -> None:
    """Write outputs/bundle; exit code 1 if the wheels for a system cannot be downloaded."""
    try:
        missing = bundle(pythons or [f"{sys.version_info[0]}.{sys.version_info[1]}"])
    except (FtlibError, CommandError) as error:
        sys.exit(f"error: {error}")
    size = sum(path.stat().st_size for path in BUNDLE.rglob("*")) / 1e6
    print(f"{BUNDLE}: {size:,.0f} MB. Copy it to a laptop and run there: python3 install.py (Windows: py install.py)")
    raise typer.Exit(int(missing))


def bundle(pythons: list[str]) -> bool:
    """Write the project and its wheels, and say how large they are by system; True if any cannot be downloaded."""
    copy_project()
    lock = learners_lock()
    (BUNDLE / LOCK).write_text(lock, encoding="utf-8")
    (BUNDLE / WHEELS).mkdir()
    missing = False
    for system in SYSTEMS:
        for python in pythons:
            shown = f"{system.name}, Python {python}: "
            try:
                sizes = download(lock, system, python)
                print(f"{shown}{len(sizes)} wheels, {sum(sizes) / 1e6:,.0f} MB", flush=True)
            except CommandError as error:
                missing = True
                print(f"{shown}left out ({error})", flush=True)
    return missing


def copy_project() -> None:
    """Copy what git tracks, as it is now, and nothing else that lies here."""
    try:
        tracked = install.run("git", "-c", "core.quotePath=off", "ls-files").splitlines()
    except (CommandError, OSError):
        raise FtlibError("found no git here, expected a clone of the project; bundle from one") from None
    shutil.rmtree(BUNDLE, ignore_errors=True)
    for name in filter(lambda name: Path(name).is_file(), tracked):
        (BUNDLE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, BUNDLE / name)
    shutil.copy2(install.__file__, BUNDLE)


def learners_lock() -> str:
    """The lock without what only Azure and development need."""
    settings = install.pip_settings()
    uv = (sys.executable, "-m", "uv", "pip", "compile", "-q", "pyproject.toml", "-c", LOCK, *install.no_index(settings))
    universal = ("--universal", "--python-version", "3.11", "--no-header", "--no-annotate")
    resolved = install.run(*uv, *universal, env=install.uv_environment(settings))
    names = {*PIN.findall(resolved), *INSTALLERS}
    return "".join(found[0] for found in PIN.finditer(Path(LOCK).read_text(encoding="utf-8")) if found[1] in names)


def pins(lock: str, system: System, python: str) -> list[str]:
    """What a lock installs on a system with a full version of Python, such as torch==2.13.0."""
    answers: Any = system.markers | {"python_version": python.rpartition(".")[0], "python_full_version": python}
    every = [Requirement(line.partition("#")[0]) for line in lock.splitlines()]
    return [f"{pin.name}{pin.specifier}" for pin in every if pin.marker is None or pin.marker.evaluate(answers)]


def download(lock: str, system: System, python: str) -> list[int]:
    """Add the wheels for a system and a Python to the bundle, all or none; returns their sizes."""
    names: list[str] = []
    with tempfile.TemporaryDirectory(dir=BUNDLE) as folder:
        for version in (f"{python}.0", f"{python}.99"):  # between which some pins differ
            more = [name for name in pins(lock, system, version) if name not in names]
            _fetch(more, system, version, Path(folder))
            names += more
        wheels = list(Path(folder).glob("*.whl"))
        sizes = [path.stat().st_size for path in wheels]
        for path in wheels:
            path.replace(BUNDLE / WHEELS / path.name)
    return sizes


def _fetch(names: list[str], system: System, python: str, folder: Path) -> None:
    """Download wheels with the hashes that were locked.

    torch has none. On Linux it is the CPU's build, which pip finds where its settings name PyTorch's index or a folder.
    """
    platforms = [word for name in system.platforms for word in ("--platform", name)]
    target = ("--python-version", python, "--implementation", "cp", *platforms)
    command = (*PIP, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), *target)
    build = "+cpu" if system.markers["sys_platform"] == "linux" else ""
    text = Path(HASHES).read_text(encoding="utf-8")
    blocks = re.findall(r"^([\w.-]+==[\w.]+).*((?:\\\n    --hash=\S+ ?)+)", text, re.MULTILINE)
    hashed = [f"{name} {hashes}\n" for name, hashes in blocks if name in names]
    for name in {*names} - {name for name, _ in blocks}:
        install.run(*command, f"{name}{build}")
    if hashed:
        listed = folder / HASHES
        listed.write_text("".join(hashed), encoding="utf-8")
        install.run(*command, "-r", str(listed))


if __name__ == "__main__":
    typer.run(main)
