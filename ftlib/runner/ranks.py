"""Trains on several GPUs: a process, called a rank, for each, and each executes the training notebook in a kernel.

`--nproc` starts the ranks of one machine. On several machines torchrun or Azure ML starts `ftlib run 04_train_lora`
once for each rank; all ranks write to one output folder, which every machine mounts.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ftlib.errors import FtlibError
from ftlib.machine import planner
from ftlib.profiles import Profile
from ftlib.session import device
from ftlib.session.processes import place
from ftlib.session.session import project_root

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

TRAINING = "04_train_lora"
LAST_WORDS_S = 5.0  # for a lost rank to report its own error, which comes within a second or two
GO_ON = "run it again to go on from the last checkpoint"
# How gloo, NCCL and torch's store say that another rank is gone.
_LOST_RANK = re.compile(r"RuntimeError: .*gloo|Dist(Backend|Network|Store)Error: ")


def join() -> None:
    """In one of several ranks: take a fair share of the machine's cores, and end when torchrun ends."""
    on_this_machine = os.environ.get("LOCAL_WORLD_SIZE", "")
    if on_this_machine.isdecimal() and int(on_this_machine) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(on_this_machine))))
    if "TORCHELASTIC_RUN_ID" in os.environ and os.name == "posix":  # other launchers need not outlive their ranks
        from ipykernel.parentpoller import ParentPollerUnix

        ParentPollerUnix(os.getppid()).start()  # type: ignore[no-untyped-call]


def check(names: list[str], processes: int | None) -> None:
    """Refuse an `--nproc`, or ranks that have been started, where these notebooks cannot use them."""
    if processes is not None and (processes < 1 or (processes > 1 and TRAINING not in names)):
        raise FtlibError(f"--nproc {processes}: expected 1, or more for a run that includes {TRAINING}")
    ranks = place().world_size
    if ranks > 1 and ((processes or 1) > 1 or set(names) != {TRAINING}):
        raise FtlibError(
            f"found {ranks} processes started together (WORLD_SIZE); expected them to run {TRAINING} alone, without "
            "--nproc; run the other notebooks in one process"
        )


def default_processes(names: list[str], profile: Profile, console: Console) -> int:
    """One process for each GPU that can share the work; one on a CPU, or where the ranks have been started."""
    if TRAINING not in names or profile.train.use_cpu or place().world_size > 1:
        return 1
    gpus = device.gpus()
    found = planner.processes(profile, gpus)
    if gpus > 1:
        console.print(f"training on {found} of {gpus} GPUs; --nproc asks for another number")
    return found


def check_share(profile: Profile, processes: int) -> None:
    """Refuse a number of ranks that cannot share an update evenly or have no GPU each."""
    started = place()
    together = max(processes, started.world_size)
    profile.accumulation_steps(together)
    here = max(processes, started.local_rank + 1)
    if together > 1 and not profile.train.use_cpu and here > (found := device.gpus()):
        raise FtlibError(f"found {found} GPUs for {here} processes here, expected one for each; start fewer processes")


def launch(parameters: dict[str, str], processes: int, resume: bool) -> None:
    """Run this command once for each rank with torchrun's launcher, which ends all of them when one fails."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    log = logging.getLogger("torch.distributed.elastic")
    log.propagate, log.handlers = False, [logging.NullHandler()]  # the error says what it logs of a failure
    options = [f"--profile={parameters['profile']}", f"--output-root={parameters['output_root']}"]
    command = ["-m", "ftlib.cli", "run", TRAINING, *options, "--resume" if resume else "--no-resume"]
    with tempfile.TemporaryDirectory() as printed, contextlib.chdir(project_root()):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            logs_specs=DefaultLogsSpecs(printed, redirects=Std.ALL),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            signals_to_handle="SIGTERM,SIGINT",  # not SIGHUP, which nohup ignores
            shutdown_timeout=10,  # seconds for the other ranks to end once one has failed
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            raise FtlibError(_first_failure(error, Path(printed))) from None
        except SignalException as error:
            raise FtlibError(f"stopped by {error.sigval.name}; {GO_ON}") from None


def _first_failure(error: "ChildFailedError", printed: Path) -> str:
    """The one-line error of the rank that failed first, or how that rank ended."""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        ended_by = signal.Signals(-failure.exitcode).name
        return f"rank {rank} was ended by {ended_by} (out of memory?); {GO_ON}"
    stderr = next(printed.glob(f"*/*/{failure.local_rank}/stderr.log")).read_text(encoding="utf-8", errors="replace")
    said = [line.removeprefix("error: ") for line in stderr.splitlines() if line.startswith("error: ")]
    return said[0] if said else f"rank {rank} ended with exit code {failure.exitcode}: … {stderr[-300:].strip()}"


def explain_lost(cause: str) -> str:
    """An error as it is, or, where it only says that another rank is gone, after that rank has had time to report."""
    if not _LOST_RANK.match(cause):
        return cause
    time.sleep(LAST_WORDS_S)
    return f"lost the connection to another rank, whose own error says why ({cause.split('. ')[0]})"
