"""Install requirements.lock and ftlib into .venv, which is made first: `python3 ftlib/machine/install.py`.

`make` runs it before anything else is installed, so it imports only the standard library. pip fetches uv, and uv
installs the rest in a fraction of pip's time; if uv cannot, pip does it all. Where `make bundle` has put `wheels/`,
everything comes from there and nothing from a network.
"""

from __future__ import annotations  # or an older Python could not read this, and say that it is too old

import ast
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

LOCK = "requirements.lock"
HASHES = "requirements.hashes"  # of every file of what is locked, but torch's: pip and uv install no other file
FTLIB = ("--no-deps", "--no-build-isolation", "-e", ".")
PIP = (sys.executable, "-m", "pip")
UV = (sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--color", "never")
SYSTEMS = {"linux": "linux", "darwin": "macosx", "win32": "win"}  # as the names of wheels call them
# uv's name for each of pip's settings, and what uv separates several values with. The indexes go by their older names,
# so that the newer ones win if you set them.
UV_NAMES = {
    "cert": ("SSL_CERT_FILE", ""),
    "constraint": ("UV_CONSTRAINT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", ""),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_INDEX_URL", ""),
    "proxy": ("ALL_PROXY", ""),
    "timeout": ("UV_HTTP_TIMEOUT", ""),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}
# Like pip, look for a pinned release in every index, not only in the first that has the package, and trust the
# system's certificates.
LIKE_PIP = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"}
# uv compiles nothing. Importing this compiles what the notebooks import; compiling everything takes five times as long.
IMPORTED = (
    "trl.trainer.sft_trainer",
    "datasets, matplotlib.pyplot, papermill, nbconvert, trackio, ipykernel.kernelapp",
)
VENV = Path(".venv")
BY_MAKE = "MAKELEVEL" in os.environ
WHEELS = Path("wheels")  # what `make bundle` has downloaded
LONGEST_FOLDER = 38  # characters: the longest path below takes 221 more, and Windows as it comes allows 259
PATIENCE = 30.0  # seconds for PyTorch's index: it can save gigabytes, but a firewall may never let it answer


class CommandError(Exception):
    """A command failed; the message is its output in one line."""


def run(*command: str, env: dict[str, str] | None = None, timeout: float | None = None) -> str:
    """Return everything that a command printed; a CommandError if it failed or took too long."""
    try:
        done = subprocess.run(
            command, env=env, timeout=timeout, capture_output=True, encoding="utf-8", errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"no answer in {timeout:.0f} s") from None
    if done.returncode:
        said = re.split(r"(?im)^error: ", done.stderr)[-1]
        raise CommandError(textwrap.shorten(said, 200, placeholder=" ..."))
    return done.stdout + done.stderr


def pip_settings() -> dict[str, str]:
    """Pip's settings for an installation: from PIP_* variables, else the files' [install], else their [global]."""
    listed = run(*PIP, "config", "list", env={**os.environ, "PIP_QUIET": "0"})
    settings = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", listed, re.MULTILINE)
    settings.sort(key=lambda setting: ("global", "install", ":env:").index(setting[0]))
    return {name: ast.literal_eval(value) for _, name, value in settings}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment in which uv follows pip's settings; your own settings for uv win."""
    known = {UV_NAMES[name]: value for name, value in settings.items() if name in UV_NAMES}
    translated = {name: between.join(value.split()) if between else value for (name, between), value in known.items()}
    return LIKE_PIP | translated | dict(os.environ)


def no_index(settings: dict[str, str]) -> tuple[str, ...]:
    """The option that keeps uv from asking any index, where pip's settings do; uv has no variable for it."""
    return ("--no-index",) * (settings.get("no-index", "").lower() in ("1", "on", "t", "true", "y", "yes"))


def choose_torch(uv: Callable[..., str]) -> tuple[str, tuple[str, ...]]:
    """Choose torch's build before anything is downloaded: the choice with its reason, and options for uv."""

    def planned(*options: str, timeout: float | None = None) -> str:
        said = uv("--dry-run", "--no-deps", "-c", LOCK, "torch", *options, timeout=timeout)
        return "".join(re.findall(r"^ \+ (torch==\S+)", said, re.MULTILINE)).replace("==", " ")

    torch = planned()
    if not torch:
        return "torch is installed already and stays", ()
    if backend := os.environ.get("UV_TORCH_BACKEND"):
        return f"{torch}: UV_TORCH_BACKEND is {backend}", ()
    if "+" in torch or WHEELS.is_dir():
        return f"{torch}: your own links or indexes have this build", ()
    # Without NVIDIA's driver, `auto` would take an Intel laptop's graphics for a GPU and download gigabytes.
    nvidia = shutil.which("nvidia-smi")
    options = ("--torch-backend", "auto" if nvidia else "cpu")
    try:
        built = planned(*options, timeout=PATIENCE)
    except CommandError as error:
        return f"{torch}, on Linux with gigabytes of CUDA: PyTorch's own index does not answer ({error})", ()
    return f"{built} from PyTorch's own index: {'for the' if nvidia else 'no'} NVIDIA driver", options


def install_with_uv() -> None:
    """Install the lock and ftlib with uv, which pip installs first."""
    settings = pip_settings()
    only_uv = Path(sys.prefix, "uv.hashes")
    hashes = Path(HASHES).read_text(encoding="utf-8")
    only_uv.write_text("".join(re.findall(r"^uv==(?:.*\\\n)*.*\n", hashes, re.MULTILINE)), encoding="utf-8")
    run(*PIP, "install", "-r", str(only_uv))
    uv = partial(run, *UV, *no_index(settings), env=uv_environment(settings))
    choice, options = choose_torch(uv)
    print(choice, flush=True)
    uv("-r", LOCK, "-c", HASHES, *options)
    uv(*FTLIB)
    python = partial(subprocess.Popen, stderr=subprocess.DEVNULL)
    for process in [python([sys.executable, "-c", f"import {modules}"]) for modules in IMPORTED]:
        process.wait()


def refusal() -> str:
    """Why nothing can be installed into this Python, and what to do; "" where it can."""
    version, again = ".".join(map(str, sys.version_info[:3])), "py -3.12" if sys.platform == "win32" else "python3.12"
    if sys.version_info < (3, 11):  # noqa: UP036 (it has to be found out)
        again = "make walkthrough PYTHON=python3.12" if BY_MAKE else f"{again} {sys.argv[0]}"
        return f"{sys.executable} gives 'Python {version}', but Python 3.11 or later is needed: {again}"
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        otherwise = "use a Python for Apple silicon or, on an Intel Mac, the container: `docker build -t ftlib .`"
        return f"torch has no build for Intel Macs, and this Python is made for one; {otherwise}"
    found = sorted(path.name for path in WHEELS.glob("torch-*.whl"))
    python, system = "-cp{}{}-".format(*sys.version_info), SYSTEMS.get(sys.platform, sys.platform)
    if WHEELS.is_dir() and not any(python in name and system in name for name in found):
        return f"{WHEELS}/ has no torch for Python {version} on {system}, but {', '.join(found)}; use another Python"
    return ""


def make_venv() -> Path:
    """Make .venv where it is not there or was left unfinished; returns its Python."""
    python = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists() or subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        if why := refusal():
            sys.exit(why)
        shutil.rmtree(VENV, ignore_errors=True)
        if code := subprocess.run([sys.executable, "-m", "venv", VENV]).returncode:
            sys.exit(code)  # it has said why
    return python


def main() -> None:
    """Install with the Python of .venv, and say what runs the walkthrough."""
    if not Path(LOCK).is_file():
        sys.exit(f"found no {LOCK} in the working folder; change to the project's folder first")
    if VENV.is_dir() and VENV.samefile(sys.prefix):
        return install()
    if sys.platform == "win32" and (length := len(str(Path.cwd()))) > LONGEST_FOLDER:
        print(f"This folder's path has {length} characters. If a file is not found later, use a shorter one: C:\\ftlib")
    python = make_venv()
    if code := subprocess.run([python, "-P", __file__]).returncode:
        sys.exit(code)
    if not BY_MAKE:  # which goes on by itself
        print(f"Run the walkthrough: {python.with_name('ftlib')} run")


def install() -> None:
    """Install, and say what is being done, what was chosen and what came of it."""
    began = time.monotonic()
    if why := refusal():
        sys.exit(why)
    if WHEELS.is_dir():
        os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
    print(f"Installing {LOCK} into {Path(sys.prefix).name}, once ...", flush=True)
    try:
        try:
            install_with_uv()
        except CommandError as error:
            if "UV_TORCH_BACKEND" in os.environ:  # pip would not follow it
                raise
            print(f"uv cannot ({error}): pip installs the same, in minutes", flush=True)
            run(*PIP, "install", "--no-deps", "-r", HASHES)
            run(*PIP, "install", "-r", LOCK)
            run(*PIP, "install", *FTLIB)
    except CommandError as error:
        sys.exit(f"{LOCK} could not be installed: {error}. Fix that and try again; without .venv it starts afresh")
    Path(sys.prefix, ".installed").touch()  # for make
    print(f"Installed in {time.monotonic() - began:.0f} s, with torch {importlib.metadata.version('torch')}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once, without a traceback
    main()
