"""Runs notebooks headlessly with papermill, one after another, and the training notebook on several processes if asked.

Every run executes the same cells that a person sees. Of several ranks each executes them in a kernel of its own, which
inherits RANK, LOCAL_RANK and WORLD_SIZE, so that `Trainer` trains them together. `--nproc` starts the ranks of one
machine. For those of several machines, `ftlib run 04_train_lora` is what torchrun or Azure ML starts once a rank; all
of them write to one output folder, which every machine has mounted.

When a rank fails, none goes on without it: `--nproc` and torchrun end the others on its machine, and those on another
lose their connection to it; before they have one, torch waits for it for half an hour. A rank looks every second
whether its torchrun is still there, and a kernel whether its rank is.
"""

import contextlib
import difflib
import itertools
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.errors import FtlibError
from ftlib.machine import doctor, planner
from ftlib.profiles import Profile
from ftlib.session import device
from ftlib.session.redaction import redact
from ftlib.session.session import project_root

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

NOTEBOOKS = ("01_setup", "02_explore_dataset", "03_load_model", "04_train_lora", "05_push_and_infer")
TRAINING = "04_train_lora"
WITH_MODEL = ("03_load_model", TRAINING, "05_push_and_infer")
UNFINISHED = ".unfinished.ipynb"
LAST_RECORD = f"{NOTEBOOKS[-1]}.json"
SHUTDOWN_S = 10  # for the other ranks, once one has failed
LAST_WORDS_S = 5.0  # for the rank that this one has lost; it notices its kernel's end within a second or two
ADVICE = {
    "FailOnRecompileLimitHit": 'flex attention met too many shapes; set model.attn_implementation = "eager"',
    "OutOfMemoryError": "lower train.per_device_train_batch_size in your profile, or the batch sizes in [measure]",
}
"""What to do about an error of torch's, by its name."""
_GO_ON = "run it again to go on from the last checkpoint"
_LOST_RANK = re.compile(r"RuntimeError: .*gloo|Dist(Backend|Network|Store)Error: ")
"""How gloo, NCCL and torch's store say that another rank is gone."""


def run(
    notebooks: Sequence[str],
    profile: str,
    output_root: str,
    processes: int | None,
    resume: bool,
    console: Console,
) -> Path:
    """Execute notebooks in the given order; none given means all five.

    A training that was interrupted goes on. All five do not overwrite a run that they have finished: they go to a new
    folder.

    Args:
        notebooks: names or paths of notebooks.
        profile: a shipped profile's name or the path of a `.toml` file.
        output_root: parent of the run's folder; a relative path is taken from the project's folder.
        processes: how many processes train together, one a GPU; None for as many as there are GPUs for.
        resume: False trains again from the first update, in place of what is there.
        console: where a line is printed for each notebook.

    Returns:
        The run's folder. Each executed notebook is in its `notebooks/`, also when it failed.

    Raises:
        FtlibError: a name is unknown, `processes` makes no sense, there is no GPU or too little room on the disk, a
            data file cannot be read, or a cell failed, which is then named with the cause.
    """
    _join_ranks()
    names = [_name(notebook) for notebook in notebooks] or list(NOTEBOOKS)
    _check_processes(names, processes)
    loaded = profiles.load(profile)
    if not set(names).isdisjoint(WITH_MODEL):
        doctor.check_compute(loaded)
    processes = processes or _processes(names, loaded, console)
    if not notebooks and resume:
        output_root = _unfinished_root(output_root, loaded.name, console)
    output_dir = project_root() / output_root / loaded.name
    if TRAINING in names:
        _check_share(loaded, processes)
    doctor.check_disk(loaded, output_dir)
    prepare.source(loaded.data)  # or a person would learn only in notebook 02 that a file cannot be read
    if profile.endswith(".toml"):
        profile = os.path.relpath(profile, project_root())  # the kernels' working folder
    parameters = {"profile": profile, "output_root": output_root}
    for name in names:
        with _progress(name, console):
            if name == TRAINING and processes > 1:
                _launch(parameters, processes, resume)
            else:
                own = {"resume": resume} if name == TRAINING else {}
                _execute(name, parameters | own, output_dir / "notebooks")
    return output_dir


def _unfinished_root(output_root: str, run_name: str, console: Console) -> str:
    """Where a whole run goes: the given place, or a new one beside it for as long as a finished run is there."""
    roots = itertools.chain([output_root], (f"{output_root}/run-{number}" for number in itertools.count(2)))
    free = next(root for root in roots if not (project_root() / root / run_name / "records" / LAST_RECORD).is_file())
    if free != output_root:
        console.print(
            f"{output_root}/{run_name} holds a finished run, which stays: this one goes to {free}/{run_name}",
            highlight=False,
            soft_wrap=True,
        )
    return free


def shown(path: Path) -> str:
    """A path as it is shown to a person: from the project's folder where it lies in there."""
    root = project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _name(notebook: str) -> str:
    name = Path(notebook).name.removesuffix(".ipynb")
    if name not in NOTEBOOKS:
        close = difflib.get_close_matches(name, NOTEBOOKS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(NOTEBOOKS)}"
        raise FtlibError(f"no notebook is called {notebook!r}; {hint}")
    return name


def _join_ranks() -> None:
    """As one of several ranks, take this one's share of the machine's cores, and end when who started them is gone."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if on_this_machine > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // on_this_machine)))
    if "TORCHELASTIC_RUN_ID" in os.environ:  # who else starts them need not wait for them
        from ipykernel.parentpoller import ParentPollerUnix

        ParentPollerUnix(os.getppid()).start()  # type: ignore[no-untyped-call]


def _processes(names: list[str], profile: Profile, console: Console) -> int:
    """As many as share the GPUs that are here; one on a CPU, or where the ranks are started already."""
    if TRAINING not in names or profile.train.use_cpu or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return 1
    gpus = device.gpus()
    found = planner.processes(profile, gpus)
    if gpus > 1:
        console.print(f"training on {found} of {gpus} GPUs; --nproc asks for another number")
    return found


def _check_processes(names: list[str], processes: int | None) -> None:
    if processes is not None and (processes < 1 or (processes > 1 and TRAINING not in names)):
        raise FtlibError(f"--nproc {processes}: expected 1, or more for a run that includes {TRAINING}")
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and ((processes or 1) > 1 or set(names) != {TRAINING}):
        raise FtlibError(
            f"found {ranks} processes started together (WORLD_SIZE); expected them to run {TRAINING} alone, without "
            "--nproc; run the other notebooks in one process"
        )
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if ranks > 1 and missing:
        raise FtlibError(
            f"found WORLD_SIZE = {ranks} in the environment without {', '.join(missing)}; expected all that torchrun "
            "and Azure ML set for a rank: let one of them start it, or unset WORLD_SIZE and use --nproc"
        )


def _check_share(profile: Profile, processes: int) -> None:
    """That the work can be shared out, and that there is a GPU for each process; alone it uses what there is."""
    together = max(processes, int(os.environ.get("WORLD_SIZE", 1)))
    profile.accumulation_steps(together)
    here = max(processes, int(os.environ.get("LOCAL_RANK", 0)) + 1)
    if together > 1 and not profile.train.use_cpu and here > (found := device.gpus()):
        raise FtlibError(
            f"{here} processes on this machine: found {found} GPUs, expected one for each; start as many as there are"
        )


@contextlib.contextmanager
def _progress(name: str, console: Console) -> Iterator[None]:
    """Show the time that passes, on a terminal, and leave a line behind in any case."""
    started, mark = time.monotonic(), "✗"
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            progress.add_task(name, total=None)
            yield
        mark = "✓"
    finally:
        console.print(f"{name:<20}{mark} {time.monotonic() - started:4.0f} s", highlight=False)


def _launch(parameters: dict[str, str], processes: int, resume: bool) -> None:
    """Run this very command once a rank, as torchrun does, which ends all of them as soon as one has failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    log = logging.getLogger("torch.distributed.elastic")  # what it logs of a failure, the error says
    log.propagate, log.handlers = False, [logging.NullHandler()]
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
            signals_to_handle="SIGTERM,SIGINT",  # and not SIGHUP, which nohup has it ignore
            shutdown_timeout=SHUTDOWN_S,
        )
        try:
            elastic_launch(config, sys.executable)(*_command_of_a_rank(parameters, resume))
        except ChildFailedError as error:
            raise FtlibError(_first_failure(error, Path(printed))) from None
        except SignalException as error:
            raise FtlibError(f"stopped by {error.sigval.name}; {_GO_ON}") from None


def _command_of_a_rank(parameters: dict[str, str], resume: bool) -> list[str]:
    options = ["--profile", parameters["profile"], "--output-root", parameters["output_root"]]
    return ["-m", "ftlib.cli", "run", TRAINING, *options, "--resume" if resume else "--no-resume"]


def _first_failure(error: "ChildFailedError", printed: Path) -> str:
    """What the rank that failed first has said in one line, or how it came to its end."""
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        ended_by = signal.Signals(-failure.exitcode).name
        return f"rank {rank} was ended by {ended_by} (out of memory?); {_GO_ON}"
    stderr = next(printed.glob(f"*/*/{failure.local_rank}/stderr.log")).read_text(encoding="utf-8", errors="replace")
    said = [line.removeprefix("error: ") for line in stderr.splitlines() if line.startswith("error: ")]
    last_words = " ".join(stderr.split()[-40:])
    return said[0] if said else f"rank {rank} ended with exit code {failure.exitcode}: … {last_words}"


def _execute(name: str, parameters: dict[str, Any], folder: Path) -> None:
    """Execute one notebook in this process's rank, and keep it; of a rank other than 0 only a failure is kept.

    Until it has run to its end it is called `<name>.unfinished.ipynb`, and an earlier one that had stays beside it.
    """
    # Or jsonschema builds the grammar of addresses, in 1.7 s, for a check that no notebook has.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it logs of a failure, the error says
    root, rank = project_root(), int(os.environ.get("RANK", 0))
    source = root / "notebooks" / f"{name}.ipynb"
    if not source.is_file():
        raise FtlibError(f"found no notebooks/{name}.ipynb; run this in the project's folder")
    folder.mkdir(parents=True, exist_ok=True)
    own_name = f"{name}.rank{rank}" if rank else name
    kept = folder / f"{own_name}{UNFINISHED}"
    _keep_no_secrets()
    try:
        # papermill writes both paths into the notebook, so they are given as seen from the project's folder.
        with contextlib.chdir(root):
            papermill.execute_notebook(shown(source), shown(kept), parameters, progress_bar=False, **_kernel())
    except PapermillExecutionError as error:
        cause = _cause(error.ename, error.evalue)
        if _LOST_RANK.match(cause):
            time.sleep(LAST_WORDS_S)
            cause = f"lost the connection to another rank, whose own error says why ({cause.split('. ')[0]})"
        raise FtlibError(f"{_place(name, kept)}: {cause}; see {shown(kept)}") from None
    except RuntimeError as error:  # nbclient's, where the kernel itself came to an end or never began
        raise FtlibError(f"{_place(name, kept)}: {error} (out of memory?); see {shown(kept)}") from None
    if rank:
        kept.unlink()
    else:
        kept.replace(folder / f"{name}.ipynb")


def _keep_no_secrets() -> None:
    """Let every notebook that papermill writes, while it runs and when it stops, pass `redact`."""
    from papermill.iorw import LocalHandler, papermill_io

    files = papermill_io.get_handler("local")
    files.write = lambda notebook, path: LocalHandler.write(files, redact(notebook), path)


def _kernel() -> dict[str, Any]:
    """The kernel of the Python that runs this, whichever one the notebook was last opened with."""
    from traitlets.config import Config

    # A user-level kernel of the same name may belong to another environment.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    return {
        "kernel_name": "python3",
        # Or each kernel warns on the terminal that it could be listened to,
        "config": Config({"KernelManager": {"transport_encryption": "auto"}}),
        # and now and then that it was interrupted, when it is only shut down after an error.
        "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],
        # Its last cell has run, so there is nothing to wait for: Python takes 2 s and more to take torch down.
        "shutdown_kernel": "immediate",
    }


def _place(name: str, kept: Path) -> str:
    """The cell that was begun last: its number as Jupyter shows it and its first line of code."""
    cells = json.loads(kept.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "code" and _begun(cell)]
    executed = [source for source in sources if source]
    if not executed:
        return name
    lines = [line.strip() for line in executed[-1].splitlines()]
    code = next((line for line in lines if line and not line.startswith("#")), "")
    return f"{name}, cell [{len(executed)}] `{code}`"


def _begun(cell: dict[str, Any]) -> bool:
    return bool(cell["metadata"].get("papermill", {}).get("start_time"))


def _cause(name: str, message: str) -> str:
    lines = message.strip().splitlines()
    if name == FtlibError.__name__ or not lines:
        return lines[0] if lines else name
    advice = f"; {ADVICE[name]}" if name in ADVICE else ""
    return f"{name}: {lines[-1]}{advice}"
