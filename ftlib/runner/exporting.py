"""`ftlib export`: the cells of notebook 06 that write one format, or that check a folder, without Jupyter."""

import contextlib
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from ftlib.errors import FtlibError, nearest
from ftlib.export import check
from ftlib.model import publish
from ftlib.runner import cells
from ftlib.runner.execution import NOTEBOOKS
from ftlib.session.session import Session

NOTEBOOK = f"{NOTEBOOKS[-1]}.ipynb"
# The folder of each format, and what the cell that writes it leaves.
FOLDERS = {"safetensors": ("merged", "distance"), "mxfp4": ("mxfp4", "packed_distance")}
FORMATS = (*FOLDERS, "gguf")


def write(session: Session, kind: str, console: Console) -> list[Path]:
    """Write the merged model as `kind`, one of `FORMATS`; returns the folder, or for GGUF the files.

    GGUF is made of both folders, which are written first. The console shows what is being written.

    Raises:
        FtlibError: there is no finished adapter, the disk is too small, or the export is not the model it should be.
    """
    if kind not in FORMATS:
        raise FtlibError(f"--to {kind}: found no such format; {nearest(kind, list(FORMATS))}")
    publish.check_adapter(session.adapter_dir, session.profile)
    namespace = _namespace(session)
    with console.status("loading and merging"):
        _run("answers", session, namespace)
    for name in FOLDERS if kind == "gguf" else [kind]:
        with console.status(f"writing {name}, and checking it"):
            _run(FOLDERS[name][1], session, namespace)
    if kind == "gguf":
        with console.status("writing GGUF files, and asking each"):
            return [file for _, file, *_ in _run("gguf", session, namespace).values()]
    return [folder(session, kind)]


def folder(session: Session, kind: str) -> Path:
    """Where the export of one of the `FOLDERS` lies, or will."""
    if kind not in FOLDERS:
        raise FtlibError(f"found no folder of format {kind!r}; {nearest(kind, list(FOLDERS))}")
    return session.output_dir / "export" / FOLDERS[kind][0]


def compare(session: Session, exported: Path) -> float:
    """Check anybody's folder against the run's base and adapter; returns how far a typical token's logits lie apart."""
    if not exported.is_dir():
        raise FtlibError(f"--check {exported}: found no such folder, expected one with a model's files")
    exported = exported.resolve()  # "." has no name
    check.files(exported)
    publish.check_adapter(session.adapter_dir, session.profile)
    namespace = _namespace(session)
    answers = _run("answers", session, namespace)
    found = check.folder(exported, answers, namespace["untrained"], session.profile.data.template_date)
    return check.distance(found, answers)


def _namespace(session: Session) -> dict[str, Any]:
    return {"session": session, "profile": session.profile}


def _run(variable: str, session: Session, namespace: dict[str, Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # what the cells print is for a reader of the notebook
        return cells.run(variable, session.project_root / "notebooks" / NOTEBOOK, namespace)
