"""Runs notebooks headlessly with papermill, one after another, and the training notebook on several processes if asked.

Every run executes the same cells that a person sees. Under torchrun each rank executes them in a kernel of its own,
which inherits RANK, LOCAL_RANK and WORLD_SIZE, so that `Trainer` trains them together.
"""

import difflib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.session import project_root

NOTEBOOKS = ("01_setup", "02_explore_dataset", "03_load_model", "04_train_lora", "05_push_and_infer")
TRAINING = "04_train_lora"


def run(notebooks: Sequence[str], profile: str, output_root: str, processes: int, console: Console) -> Path:
    """Execute notebooks in the given order; none given means all five.

    Args:
        notebooks: names or paths of notebooks.
        profile: a shipped profile's name or the path of a `.toml` file.
        output_root: parent of the run's folder; a relative path is taken from the project's folder.
        processes: how many processes train together, one a GPU.
        console: where a line is printed for each notebook.

    Returns:
        The run's folder. Each executed notebook is in its `notebooks/`, also when it failed.

    Raises:
        FtlibError: a name is unknown, `processes` makes no sense, or a cell failed, which is then named with the cause.
    """
    names = [_name(notebook) for notebook in notebooks] or list(NOTEBOOKS)
    if processes < 1 or (processes > 1 and TRAINING not in names):
        raise FtlibError(f"--nproc {processes}: expected 1, or more for a run that includes {TRAINING}")
    output_dir = project_root() / output_root / profiles.load(profile).name
    if profile.endswith(".toml"):
        profile = os.path.relpath(profile, project_root())  # the kernels' working folder
    for name in names:
        started = time.monotonic()
        with console.status(f"{name} …"):
            if name == TRAINING and processes > 1:
                _launch(name, profile, output_root, processes)
            else:
                _execute(name, profile, output_root, output_dir / "notebooks")
        console.print(f"{name:<20} {time.monotonic() - started:4.0f} s", highlight=False)
    return output_dir


def _name(notebook: str) -> str:
    name = Path(notebook).stem
    if name not in NOTEBOOKS:
        close = difflib.get_close_matches(name, NOTEBOOKS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(NOTEBOOKS)}"
        raise FtlibError(f"no notebook is called {notebook!r}; {hint}")
    return name


def _launch(name: str, profile: str, output_root: str, processes: int) -> None:
    """Run this very command once a rank, under torchrun."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
        *("-m", "ftlib.cli", "run", name, "--profile", profile, "--output-root", output_root),
    ]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        # torchrun reports the failure of a rank at length; the rank itself has said it in one line.
        said = [line.removeprefix("error: ") for line in result.stderr.splitlines() if line.startswith("error: ")]
        last_words = " ".join(result.stderr.split()[-40:])
        raise FtlibError(said[0] if said else f"torchrun ended with exit code {result.returncode}: … {last_words}")


def _execute(name: str, profile: str, output_root: str, folder: Path) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    root, rank = project_root(), int(os.environ.get("RANK", 0))
    source = root / "notebooks" / f"{name}.ipynb"
    if not source.is_file():
        raise FtlibError(f"found no notebooks/{name}.ipynb; run this in the project's folder")
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / (f"{name}.rank{rank}.ipynb" if rank else f"{name}.ipynb")
    try:
        papermill.execute_notebook(
            str(source),
            str(executed),
            parameters={"profile": profile, "output_root": output_root},
            cwd=str(root),
            progress_bar=False,
            # Or each kernel warns on the terminal that it could be listened to.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except PapermillExecutionError as error:
        shown = executed.relative_to(root) if executed.is_relative_to(root) else executed
        cause = _cause(error.ename, error.evalue)
        raise FtlibError(f"{name}, cell [{error.exec_count}]: {cause}; see {shown}") from None
    if rank:
        executed.unlink()  # it shows what rank 0's shows; only a failure is worth keeping


def _cause(name: str, message: str) -> str:
    lines = message.strip().splitlines() or [""]
    return lines[0] if name == FtlibError.__name__ else f"{name}: {lines[-1]}"
