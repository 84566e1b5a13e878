"""Starts commands with all their processes, finds one of them, and leaves none behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psutil

from helpers import HANGING_S, ROOT

TRAIN = ["-m", "ftlib.cli", "run", "04_train_lora"]
LAUNCHED: list["Launch"] = []


@dataclass
class Launch:
    """A command with all the processes that it has started, including those that have outlived their parents."""

    command: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._mark = {"FTLIB_TEST_LAUNCH": uuid4().hex}
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.environment, **self._mark}
        LAUNCHED.append(self)
        self._process = subprocess.Popen(
            [sys.executable, *self.command],
            cwd=self.folder,
            env=os.environ | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> Iterator[tuple[psutil.Process, dict[str, str], list[str]]]:
        """Those that are running, with their environment and command line."""
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.items() >= self._mark.items() and process.status() != psutil.STATUS_ZOMBIE:
                    yield process, environment, process.cmdline()
            except (psutil.Error, OSError):  # it has just ended, or is somebody else's
                continue

    def find(self, program: str, rank: int) -> psutil.Process | None:
        """The process of a rank that runs `ftlib.cli` or, once it has begun, `ipykernel_launcher`."""
        found = (
            each
            for each, environment, line in self.processes()
            if environment.get("RANK") == str(rank) and program in line
        )
        return next(found, None)

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End everything at once, as when a machine is taken away."""
        while left := [process for process, *_ in self.processes()]:
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(left, timeout=1)
        self._process.wait()

    def end(self) -> tuple[int, str]:
        """Wait until it is over and no process is left; returns its exit code and what it said of an error."""
        latest = time.monotonic() + HANGING_S
        said = self._process.communicate(timeout=HANGING_S)[1]
        while left := list(self.processes()):
            assert time.monotonic() < latest, left
            time.sleep(0.1)
        return self._process.returncode, said

    def succeed(self) -> None:
        assert self.end() == (0, "")


def kill_all() -> None:
    """End whatever a test that failed has left."""
    while LAUNCHED:
        LAUNCHED.pop().kill()


def ranks(folder: Path, *options: str) -> Launch:
    """Two ranks of this machine, started by `--nproc`."""
    return Launch([*TRAIN, "--nproc", "2", *options], folder)


def nodes(folder: Path, *options: str) -> list[Launch]:
    """Two machines of one rank each, both this one, started by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    at = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    return [Launch([*torchrun, *at, f"--node-rank={rank}", *TRAIN, *options], folder) for rank in range(2)]


def azure_ml(*folders: Path, **environment: str) -> list[Launch]:
    """The command itself once a rank, each on a machine with a folder of its own, as Azure ML starts it."""
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [Launch(TRAIN, folder, {**shared, **environment, "RANK": str(rank)}) for rank, folder in enumerate(folders)]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
