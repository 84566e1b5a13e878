"""Runs notebooks headlessly with papermill: the same cells that a person sees, one notebook after another."""

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.errors import FtlibError, nearest
from ftlib.machine import doctor
from ftlib.runner import cells, ranks
from ftlib.runner.ranks import TRAINING
from ftlib.session.processes import place
from ftlib.session.redaction import redact
from ftlib.session.session import from_root, open_output_dir, project_root

NOTEBOOKS = ("01_setup", "02_explore_dataset", "03_load_model", TRAINING, "05_push_and_infer", "06_export_and_serve")
WITH_MODEL = NOTEBOOKS[2:]
UNFINISHED = ".unfinished.ipynb"
LAST_RECORD = f"{NOTEBOOKS[-1]}.json"
# What to do about an error of torch's.
ADVICE = {
    "FailOnRecompileLimitHit": 'flex attention met too many shapes; set model.attn_implementation = "eager"',
    "CellExecutionError": "the kernel could not say why; is there too little memory?",  # as papermill calls it
    "OutOfMemoryError": "lower train.per_device_train_batch_size in your profile, or the batch sizes in [measure]",
}


def run(
    notebooks: Sequence[str], profile: str, output_root: str, processes: int | None, resume: bool, console: Console
) -> Path:
    """Execute notebooks in the given order, all six by default; an interrupted training goes on.

    All six never overwrite a finished run: they go to a new folder. `processes` train together, one for each GPU; None
    is for as many as there are GPUs. Without `resume`, training begins again and replaces what is there. Returns the
    run's folder; `notebooks/` in it holds each executed notebook, also one that failed.

    Raises:
        FtlibError: something is wrong before the start, or a cell failed: which one, and why.
    """
    ranks.join()
    names = [_name(notebook) for notebook in notebooks] or list(NOTEBOOKS)
    ranks.check(names, processes)
    loaded = profiles.load(profile)
    for name in names:
        cells.load(_source(name))
    if not set(names).isdisjoint(WITH_MODEL):
        doctor.check_compute(loaded)
    processes = processes or ranks.default_processes(names, loaded, console)
    if not notebooks and resume:
        output_root = _unfinished_root(output_root, loaded.name, console)
    output_dir = project_root() / output_root / loaded.name
    if TRAINING in names:
        ranks.check_share(loaded, processes)
    open_output_dir(output_dir, output_root)
    doctor.check_disk(loaded, output_dir, exports=NOTEBOOKS[-1] in names)
    prepare.source(loaded.data)  # an unreadable data file is refused now and not in notebook 02
    if profile.endswith(".toml"):
        profile = from_root(profiles.path_of(profile))  # the kernels' working folder
    parameters = {"profile": profile, "output_root": output_root}
    for name in names:
        with _progress(name, console):
            if name == TRAINING and processes > 1:
                ranks.launch(parameters, processes, resume)
            else:
                own = {"resume": resume} if name == TRAINING else {}
                _execute(name, parameters | own, output_dir / "notebooks")
    return output_dir


def _unfinished_root(output_root: str, run_name: str, console: Console) -> str:
    """Where a whole run goes: the given folder, or a new one beside it if that holds a finished run."""
    roots = itertools.chain([output_root], (f"{output_root}/run-{number}" for number in itertools.count(2)))
    free = next(root for root in roots if not (project_root() / root / run_name / "records" / LAST_RECORD).is_file())
    if free != output_root:
        text = f"{output_root}/{run_name} holds a finished run, which stays: this one goes to {free}/{run_name}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    return free


def shown(path: Path) -> str:
    """A path as people are shown it: relative to the project's folder if it lies there."""
    root = project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _name(notebook: str) -> str:
    name = Path(notebook).name.removesuffix(".ipynb")
    if name not in NOTEBOOKS:
        raise FtlibError(f"no notebook is called {notebook!r}; {nearest(name, list(NOTEBOOKS))}")
    return name


@contextlib.contextmanager
def _progress(name: str, console: Console) -> Iterator[None]:
    """Show on a terminal that something runs, and print one line at the end."""
    started, failed = time.monotonic(), True
    try:
        with console.status(name):
            yield
        failed = False
    except KeyboardInterrupt:
        raise FtlibError(f"{name} was stopped by hand; {ranks.GO_ON}") from None
    finally:
        mark = ("✓✗" if console.encoding.startswith("utf") else "+x")[failed]
        console.print(f"{name:<20}{mark} {time.monotonic() - started:4.0f} s", highlight=False, soft_wrap=True)


def _execute(name: str, parameters: dict[str, Any], folder: Path) -> None:
    """Execute one notebook and keep it; a rank other than 0 keeps only a notebook that failed.

    Until it finishes it is called `<name>.unfinished.ipynb`, so an earlier finished one stays as it is.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the error says what it logs of a failure
    root, rank = project_root(), place().rank
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{name}{f'.rank{rank}' if rank else ''}{UNFINISHED}"
    _keep_no_secrets()
    try:
        # papermill writes both paths into the notebook, so both are relative to the project's folder.
        with contextlib.chdir(root):
            source, target = (_for_papermill(shown(path)) for path in (_source(name), kept))
            papermill.execute_notebook(source, target, parameters, progress_bar=False, **_kernel())
    except PapermillExecutionError as error:
        cause = ranks.explain_lost(_cause(error.ename, error.evalue))
        raise FtlibError(f"{_place(name, kept)}: {cause}; see {shown(kept)}") from None
    except RuntimeError as error:  # from nbclient: the kernel died or did not start
        lost = ", or another process lost" if place().world_size > 1 else ""
        cause = f"{error} (out of memory, or of open files{lost}?)"
        raise FtlibError(f"{_place(name, kept)}: {cause}; see {shown(kept)}") from None
    if rank:
        kept.unlink()
    else:
        kept.replace(folder / f"{name}.ipynb")


def _source(name: str) -> Path:
    return project_root() / "notebooks" / f"{name}.ipynb"


def _for_papermill(path: str) -> str:
    """A path that papermill takes for one: it fills in what stands in braces, and writes to the terminal for "-"."""
    escaped = path.replace("{", "{{").replace("}", "}}")
    return f"./{escaped}" if path.startswith("-") else escaped


def _keep_no_secrets() -> None:
    """Redact every notebook that papermill writes, while it runs and when it stops."""
    from papermill.iorw import LocalHandler, papermill_io

    files = papermill_io.get_handler("local")
    files.write = lambda notebook, path: LocalHandler.write(files, redact(notebook), path)


def _kernel() -> dict[str, Any]:
    """A kernel of this Python, whichever kernel the notebook was saved with."""
    from traitlets.config import Config

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a user-level kernel may belong to another environment
    return {
        "kernel_name": "python3",
        "config": Config({"KernelManager": {"transport_encryption": "auto"}}),  # or it warns that it has none
        "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],  # or it warns when shut down after an error
        "shutdown_kernel": "immediate",  # or Python takes 2 s or more to unload torch
    }


def _place(name: str, kept: Path) -> str:
    """The cell that started last: its number, as Jupyter shows it, and its first line of code."""
    try:
        content = cells.load(kept)
    except FtlibError:  # the disk may be full
        return name
    started = [cell for cell in content["cells"] if cell["metadata"].get("papermill", {}).get("start_time")]
    sources = ["".join(cell["source"]) for cell in started if cell["cell_type"] == "code"]
    executed = [source for source in sources if source.strip()]
    if not executed:
        return name
    lines = [line.strip() for line in executed[-1].splitlines() if line.strip()]
    code = next((line for line in lines if not line.startswith("#")), "")
    return f"{name}, cell [{len(executed)}] `{code}`"


def _cause(name: str, message: str) -> str:
    lines = message.strip().splitlines() or [""]
    if name == FtlibError.__name__:
        return lines[0]
    advice = f"; {ADVICE[name]}" if name in ADVICE else ""
    return f"{name}: {lines[-1]}{advice}"
