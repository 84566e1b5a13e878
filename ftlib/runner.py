"""Runs notebooks headlessly with papermill, one after another, and the training notebook on several processes if asked.

Every run executes the same cells that a person sees. Under torchrun each rank executes them in a kernel of its own,
which inherits RANK, LOCAL_RANK and WORLD_SIZE, so that `Trainer` trains them together.
"""

import contextlib
import difflib
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ftlib import data, doctor, profiles
from ftlib.errors import FtlibError
from ftlib.redaction import redact
from ftlib.session import project_root

NOTEBOOKS = ("01_setup", "02_explore_dataset", "03_load_model", "04_train_lora", "05_push_and_infer")
TRAINING = "04_train_lora"
UNFINISHED = ".unfinished.ipynb"
LAST_RECORD = f"{NOTEBOOKS[-1]}.json"


def run(
    notebooks: Sequence[str], profile: str, output_root: str, processes: int, resume: bool, console: Console
) -> Path:
    """Execute notebooks in the given order; none given means all five.

    A training that was interrupted goes on. All five do not overwrite a run that they have finished: they go to a new
    folder.

    Args:
        notebooks: names or paths of notebooks.
        profile: a shipped profile's name or the path of a `.toml` file.
        output_root: parent of the run's folder; a relative path is taken from the project's folder.
        processes: how many processes train together, one a GPU.
        resume: False trains again from the first update, in place of what is there.
        console: where a line is printed for each notebook.

    Returns:
        The run's folder. Each executed notebook is in its `notebooks/`, also when it failed.

    Raises:
        FtlibError: a name is unknown, `processes` makes no sense, the disk has too little room, a data file cannot be
            read, or a cell failed, which is then named with the cause.
    """
    names = [_name(notebook) for notebook in notebooks] or list(NOTEBOOKS)
    _check_processes(names, processes)
    loaded = profiles.load(profile)
    if not notebooks and resume:
        output_root = _unfinished_root(output_root, loaded.name, console)
    output_dir = project_root() / output_root / loaded.name
    doctor.check_disk(loaded, output_dir)
    data.source(loaded.data)  # or a person would learn only in notebook 02 that a file cannot be read
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


def _check_processes(names: list[str], processes: int) -> None:
    if processes < 1 or (processes > 1 and TRAINING not in names):
        raise FtlibError(f"--nproc {processes}: expected 1, or more for a run that includes {TRAINING}")
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and (processes > 1 or set(names) != {TRAINING}):
        raise FtlibError(
            f"found {ranks} processes started together (WORLD_SIZE); expected them to run {TRAINING} alone, without "
            "--nproc; run the other notebooks in one process"
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
    """Run this very command once a rank, under torchrun."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
        *("-m", "ftlib.cli", "run", TRAINING),
        *("--profile", parameters["profile"], "--output-root", parameters["output_root"]),
        "--resume" if resume else "--no-resume",
    ]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    result = subprocess.run(command, cwd=project_root(), env=environment, capture_output=True, text=True)
    if result.returncode:
        # torchrun reports the failure of a rank at length; the rank itself has said it in one line.
        said = [line.removeprefix("error: ") for line in result.stderr.splitlines() if line.startswith("error: ")]
        last_words = " ".join(result.stderr.split()[-40:])
        raise FtlibError(said[0] if said else f"torchrun ended with exit code {result.returncode}: … {last_words}")


def _execute(name: str, parameters: dict[str, Any], folder: Path) -> None:
    """Execute one notebook in this process's rank, and keep it; of a rank other than 0 only a failure is kept.

    Until it has run to its end it is called `<name>.unfinished.ipynb`, and an earlier one that had stays beside it.
    """
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
        raise FtlibError(f"{_place(name, kept)}: {_cause(error.ename, error.evalue)}; see {shown(kept)}") from None
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
    return f"{name}: {lines[-1]}"
