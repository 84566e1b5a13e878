"""Install requirements.lock and ftlib beside the Python that runs this: `.venv/bin/python -P ftlib/machine/install.py`.

`make` runs it before anything else is there, so it imports the standard library alone. pip fetches uv, and uv the
rest, in a fraction of the time; where uv cannot, pip does it all.
"""

import ast
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

LOCK = "requirements.lock"
FTLIB = ("--no-deps", "--no-build-isolation", "-e", ".")
PIP = (sys.executable, "-m", "pip")
UV = (sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--color", "never")
# What uv calls a setting of pip. The indexes go by their older names: uv lets the newer ones win, where you set those.
UV_NAMES = {
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "constraint": "UV_CONSTRAINT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_INDEX_URL",
    "proxy": "ALL_PROXY",
    "retries": "UV_HTTP_RETRIES",
    "timeout": "UV_HTTP_TIMEOUT",
    "trusted-host": "UV_INSECURE_HOST",
}
SEPARATORS = {"constraint": " ", "extra-index-url": " ", "find-links": ",", "trusted-host": " "}
# pip asks every index for the release that is pinned, where uv stops at the first that knows the name, and believes the
# certificates that the system believes.
LIKE_PIP = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"}
# What the notebooks and their kernels import. uv compiles nothing that it installs: to import this once compiles it, on
# two cores, for the first walkthrough and every later one. To compile all that is installed takes five times as long.
IMPORTED = (
    "trl.trainer.sft_trainer",
    "datasets, matplotlib.pyplot, papermill, nbconvert, trackio, ipykernel.kernelapp",
)
PATIENCE = 30.0  # seconds for PyTorch's index: it can save gigabytes, but a firewall may swallow the question

say = partial(print, flush=True)


class CommandError(Exception):
    """A command failed; the message is what it said, in one line."""


def run(*command: str, env: dict[str, str] | None = None, timeout: float | None = None) -> str:
    """Run `command`, for `timeout` seconds at most, and return all that it printed.

    Raises:
        CommandError: it failed, took too long, or is not there.
    """
    try:
        done = subprocess.run(
            command, env=env, timeout=timeout, capture_output=True, encoding="utf-8", errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"no answer in {timeout:.0f} s") from None
    except OSError as error:
        raise CommandError(str(error)) from None
    if done.returncode:
        said = re.split(r"(?i)\berror: ", done.stderr, maxsplit=1)[-1]
        raise CommandError(textwrap.shorten(said, 200, placeholder=" ..."))
    return done.stdout + done.stderr


def pin(name: str) -> str:
    """What the lock says of the package `name`, such as `uv==0.13.9`."""
    lines = Path(LOCK).read_text(encoding="utf-8").splitlines()
    return next(line.split()[0] for line in lines if line.startswith(f"{name}=="))


def pip_settings() -> dict[str, str]:
    """What pip's files and PIP_* variables say of an installation; of two that differ, the one that pip obeys."""
    listed = run(*PIP, "config", "list", env={**os.environ, "PIP_QUIET": "0"})
    told = re.findall(r"^(global|install|:env:)\.([\w-]+)=(.*)$", listed, re.MULTILINE)
    told.sort(key=lambda setting: ("global", "install", ":env:").index(setting[0]))
    return {name: ast.literal_eval(value) for _, name, value in told}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment in which uv does what `settings` tell pip. What is set for uv itself stays as it is."""
    told = {
        UV_NAMES[name]: SEPARATORS[name].join(value.split()) if name in SEPARATORS else value
        for name, value in settings.items()
        if name in UV_NAMES
    }
    return LIKE_PIP | told | dict(os.environ)


def nvidia_driver() -> str:
    """The version of the NVIDIA driver; empty where there is none."""
    try:
        return next(iter(run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()), "")
    except CommandError:
        return ""


def planned_torch(uv: Callable[..., str], *options: str, timeout: float | None = None) -> str:
    """The torch that uv would install, such as `torch 2.13.0+cpu`; empty where torch is there already."""
    said = uv("--dry-run", "--no-deps", pin("torch"), *options, timeout=timeout)
    return "".join(re.findall(r"^ \+ (torch==\S+)", said, re.MULTILINE)).replace("==", " ")


def choose_torch(uv: Callable[..., str]) -> tuple[str, tuple[str, ...]]:
    """Choose the build of torch, before anything is downloaded.

    Returns:
        The choice and its reason, empty where torch is there already; and the options with which uv follows it.
    """
    torch = planned_torch(uv)
    if not torch:
        return "", ()
    if backend := os.environ.get("UV_TORCH_BACKEND"):
        return f"{torch}: UV_TORCH_BACKEND is {backend}", ()
    if "+" in torch:
        return f"{torch}: your own links or indexes have this build", ()
    if sys.platform == "darwin":
        return f"{torch}: a Mac has one build", ()
    driver = nvidia_driver()
    # Without a driver `auto` will not do: it takes the graphics chip of an Intel laptop for a GPU, worth gigabytes.
    options = ("--torch-backend", "auto" if driver else "cpu")
    try:
        built = planned_torch(uv, *options, timeout=PATIENCE)
    except CommandError as error:
        size = ", on Linux with gigabytes of CUDA" if sys.platform == "linux" else ""
        return f"{torch}{size}: PyTorch's own index, which has other builds, does not answer ({error})", ()
    why = f"for NVIDIA driver {driver}" if driver else "no NVIDIA driver"
    return f"{built} from PyTorch's own index: {why}", options


def install_with_uv() -> None:
    """Install the lock and ftlib with uv, which pip installs first."""
    settings = pip_settings()
    run(*PIP, "install", pin("uv"))
    # uv has no variable for this one.
    no_index = ("--no-index",) if settings.get("no-index", "").lower() in ("1", "on", "t", "true", "y", "yes") else ()
    uv = partial(run, *UV, *no_index, env=uv_environment(settings))
    choice, options = choose_torch(uv)
    say(choice or "torch is there already: it stays")
    try:
        uv("-r", LOCK, *options)
    except CommandError as error:
        if not options:
            raise
        say(f"That build cannot be had ({error}): torch comes from where pip finds it, on Linux with gigabytes of CUDA")
        uv("-r", LOCK)
    commands = [[sys.executable, "-c", f"import {modules}"] for modules in IMPORTED]
    compiling = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    uv(*FTLIB)
    for process in compiling:
        process.wait()


def install_with_pip() -> None:
    """Install the lock and ftlib with pip alone, the newest there is: a new environment may hold an old one."""
    run(*PIP, "install", "--upgrade", "pip")
    run(*PIP, "install", "-r", LOCK)
    run(*PIP, "install", *FTLIB)


def main() -> None:
    """Install, and say what is being done, what was chosen and what came of it."""
    began = time.monotonic()
    say(f"Installing {LOCK} into {Path(sys.prefix).name}, once ...")
    try:
        try:
            install_with_uv()
        except CommandError as error:
            if "UV_TORCH_BACKEND" in os.environ:  # pip would not follow it
                raise
            say(f"uv cannot ({error}): pip installs the same, in minutes")
            install_with_pip()
    except CommandError as error:
        sys.exit(f"{LOCK} could not be installed: {error}. Fix that and run make again; `rm -r .venv` begins anew")
    say(f"Installed in {time.monotonic() - began:.0f} s, with torch {importlib.metadata.version('torch')}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once, without a traceback
    main()
