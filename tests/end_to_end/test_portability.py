"""macOS and Windows, as far as Linux can play them: what ftlib imports lacks what those systems lack.

Run as a program, this file plays one walkthrough's surroundings on Windows first, and then measures as on macOS.
"""

import builtins
import contextlib
import importlib
import json
import ntpath
import os
import pkgutil
import platform
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import HANGING_S, ROOT

MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}  # of POSIX alone, as is all below
LACKING = {
    "ipykernel.parentpoller": {"ParentPollerUnix"},
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "confstr", "fchmod", "fchown", "fork"),
        *("getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice", "openpty"),
        *("posix_fadvise", "posix_fallocate", "pread", "pwrite", "sched_getaffinity", "sched_setaffinity", "sendfile"),
        *("setsid", "setuid", "statvfs", "sync", "sysconf", "uname", "wait3", "wait4", "WIFEXITED", "WIFSIGNALED"),
    },
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "alarm", "setitimer"},
    "socket": {"AF_UNIX"},
    "time": {"tzset"},
}
WINDOWS = {
    ("sys", "platform"): "win32",
    ("os", "name"): "nt",
    ("platform", "machine"): lambda: "AMD64",
    ("os", "open"): lambda path, *options: _open_file(path, *options),
}
MACOS = {("sys", "platform"): "darwin", ("platform", "machine"): lambda: "arm64"}
PEAK = 123_456_789
played: dict[tuple[str, str], Any] = WINDOWS


def _open_file(path: Path, *options: Any) -> int:
    """Open a file, and no folder."""
    if os.path.isdir(path):  # noqa: PTH112
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, *options)


class Veil(types.ModuleType):
    """A module as it is on the system that is played."""

    def __init__(self, module: types.ModuleType) -> None:
        vars(self).clear()
        vars(self)["module"] = module

    def __getattr__(self, name: str) -> Any:
        module = vars(self)["module"]
        if played is WINDOWS and name in LACKING.get(module.__name__, ()):
            raise AttributeError(f"Windows has no {module.__name__}.{name}")
        return played.get((module.__name__, name), getattr(module, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["module"], name, value)


def veil() -> None:
    """Let ftlib, and nobody else, import the modules as they are on the system that is played."""
    real = builtins.__import__

    def importing(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        found = real(name, globals, locals, fromlist, level)
        if level or not (globals or {}).get("__name__", "").startswith("ftlib"):
            return found
        if name in MODULES and played is WINDOWS:
            raise ModuleNotFoundError(f"Windows has no module {name}")
        veiled = Veil(found) if found.__name__ in {*LACKING, "platform", "sys"} else found
        return veiled

    builtins.__import__ = importing
    for method in ("open", "stat"):
        setattr(Path, method, without_proc(getattr(Path, method)))


def without_proc(method: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse /proc to a method of Path, by which psutil does not look there."""

    def refusing(self: Path, *options: Any, **named: Any) -> Any:
        if str(self).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return method(self, *options, **named)

    return refusing


def play() -> dict[str, Any]:
    """Do what surrounds a walkthrough; returns what a learner is shown."""
    global played
    import ftlib

    warnings.filterwarnings("error", category=EncodingWarning, module="ftlib")
    os.environ |= {"TORCHELASTIC_RUN_ID": "1", "MY_TOKEN": "a secret of mine"}
    Path("my own").mkdir()
    Path("my own/own.toml").write_text('extends = "tiny"\n', encoding="utf-8")
    session = ftlib.start("my own/own.toml")
    for module in pkgutil.walk_packages(ftlib.__path__, "ftlib."):
        if not module.name.startswith("ftlib.azureml."):
            importlib.import_module(module.name)
    from ftlib.machine import doctor
    from ftlib.runner import ranks
    from ftlib.session import device, manifest, records, redaction
    from ftlib.session.session import from_root, project_root

    ranks.join()
    session.claim_training()
    Path("notebooks/01_setup.ipynb").touch()
    with contextlib.chdir("my own"):
        from_below = project_root() == session.project_root
    folder = session.output_dir / "sealed"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    manifest.write(folder, ["weights"])
    psutil.Process.memory_info = lambda self: types.SimpleNamespace(peak_wset=PEAK)
    record = records.write(session.output_dir, "record", {"text": f"日本 {redaction.redact('a secret of mine')}"})
    os.path.relpath = ntpath.relpath
    shown: dict[str, Any] = {
        "checks": doctor.report(session.profile, session.output_dir).to_dict("records"),
        "command": session.command("push"),
        "device": device.describe(use_cpu=True),
        "record": record.read_text(encoding="utf-8"),
        "sealed": sorted(manifest.verify(folder)),
        "peak": device.peak_memory_bytes(),
        "from below": from_below,
        "memory": device.memory_bytes(use_cpu=True),
        "other drive": from_root("D:/own.toml"),
    }
    played = MACOS
    return shown | {"peak on macOS": device.peak_memory_bytes(), "device on macOS": device.describe(use_cpu=True)}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems play themselves")
def test_what_surrounds_a_walkthrough_is_there_on_every_system(project: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=project,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNDEFAULTENCODING": "1"},
        capture_output=True,
        text=True,
        timeout=HANGING_S,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    verdicts = {row["check"]: row["verdict"] for row in shown.pop("checks")}
    assert verdicts.pop("packages").startswith("run from the project's folder")
    assert set(verdicts.values()) == {"ok"}
    assert shown.pop("memory") > 1e8
    assert shown.pop("peak on macOS") < 1e8  # unchanged: Linux counts in KiB, and macOS in bytes
    cores = os.cpu_count()
    assert shown == {
        "command": 'ftlib push --profile "my own/own.toml"',
        "device": f"{cores} cores of AMD64",
        "device on macOS": f"{cores} cores of arm64",
        "from below": True,
        "other drive": "D:/own.toml",
        "peak": PEAK,
        "record": '{\n  "text": "日本 [secret removed]"\n}\n',
        "sealed": ["weights"],
    }


def test_a_folder_on_a_drive_of_windows_is_a_path_and_no_hub_id() -> None:
    from ftlib.profiles.schema import is_local_path

    assert is_local_path("C:\\Users\\me\\rows")
    assert not is_local_path("rehearsal/rows")


def test_doctor_says_first_that_torch_has_no_build_for_an_intel_mac(tmp_path: Path, monkeypatch: Any) -> None:
    from ftlib import profiles
    from ftlib.machine import doctor

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(doctor, "_hub", lambda profile: [doctor.Check("model", "", doctor.OK)])
    first = doctor.report(profiles.load("tiny"), tmp_path).iloc[0]
    assert first.check == "Python"
    assert first.verdict.startswith("torch has no build for Intel Macs")


if __name__ == "__main__":
    veil()
    print(json.dumps(play()))
