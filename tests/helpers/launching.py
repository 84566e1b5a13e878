"""Starts commands with all their processes, finds one of them, and leaves none behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from helpers import HANGING_S, ROOT

TRAIN = ["-m", "ftlib.cli", "run", "04_train_lora"]
MARK = "FTLIB_TEST_LAUNCH"
LAUNCHED: list["Launch"] = []


class Launch:
    """A command with all the processes that it has started, including those that have outlived their parents."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self._id = uuid4().hex
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment, MARK: self._id}
        LAUNCHED.append(self)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Those that are running; one that has just ended shows no environment."""
        every = psutil.process_iter(["environ", "cmdline"])
        return [process for process in every if (process.info["environ"] or {}).get(MARK) == self._id]

    def find(self, program: str, rank: int) -> psutil.Process:
        """The process of a rank that runs `ftlib.cli` or, once it has begun, `ipykernel_launcher`."""
        of_rank = [process for process in self.processes() if process.info["environ"].get("RANK") == str(rank)]
        return next(process for process in of_rank if program in process.info["cmdline"])

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End everything at once, as when a machine is taken away."""
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        self._process.wait()

    def end(self) -> tuple[int, str]:
        """Wait until it is over and no process is left; returns its exit code and what it said of an error."""
        latest = time.monotonic() + HANGING_S
        said = self._process.communicate(timeout=HANGING_S)[1]
        while left := self.processes():
            assert time.monotonic() < latest, left
            time.sleep(0.1)
        return self._process.returncode, said

    def succeed(self) -> None:
        code, said = self.end()
        assert (code, said) == (0, ""), said


@pytest.fixture(autouse=True)
def leave_nobody_behind() -> Iterator[None]:
    """Importing this fixture ends what a failed test has left running."""
    yield
    while LAUNCHED:
        LAUNCHED.pop().kill()


def ranks(folder: Path, *options: str) -> Launch:
    """Two ranks of this machine, started by `--nproc`."""
    return Launch([*TRAIN, "--nproc", "2", *options], folder)


def azure_ml(folder: Path, *options: str, **environment: str) -> list[Launch]:
    """The command itself once a rank, as Azure ML starts it on two machines; both are this one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
    return [Launch([*TRAIN, *options], folder, RANK=rank, **shared) for rank in ("0", "1")]
