"""`manifest.json`: checksums, written last and in one step, that show whether a folder is complete and unchanged."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from ftlib.errors import FtlibError

NAME = "manifest.json"


def write(folder: Path, names: Iterable[str]) -> None:
    """Write `folder/manifest.json` for the named files, once they are safely on the disk."""
    listed = sorted({*names} - {NAME})
    path = folder / NAME
    path.unlink(missing_ok=True)  # an earlier one may describe other contents
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise FtlibError(f"{folder.name}/ lacks {missing}, expected them there for its {NAME}; write them first")
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(json.dumps({name: _describe(folder / name) for name in listed}, indent=2).encode() + b"\n")
    for written in (*(folder / name for name in listed), unfinished):
        _flush(written)
    unfinished.replace(path)
    _flush(folder)


def verify(folder: Path) -> set[str]:
    """Compare every file that the manifest lists with what it says, and return their names.

    Raises:
        FtlibError: names the first file that differs, or says that there is no manifest to compare with.
    """
    try:
        listed = json.loads((folder / NAME).read_bytes())
    except OSError:
        raise FtlibError(f"found no {NAME} in {folder.name}/, so it is not finished; write it again") from None
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, dict) or not listed or any(_leads_out(name) for name in listed):
        expected = "expected the files of the folder with their checksums"
        raise FtlibError(f"found {folder.name}/{NAME} unreadable, {expected}; write the folder again")
    for name, expected in listed.items():
        found = _describe(folder / name) if (folder / name).is_file() else {}
        if found != expected:
            told = f"{folder.name}/{name}: found {found.get('size', 'no')} bytes"
            raise FtlibError(f"{told}, expected the file as {NAME} has it; write the folder again")
    return set(listed)


def is_complete(folder: Path, *names: str) -> bool:
    """Whether the folder has a manifest that lists these names, and every file in it is there and unchanged."""
    with suppress(FtlibError):
        return set(names) <= verify(folder)
    return False


def _leads_out(name: str) -> bool:
    path = PureWindowsPath(name)  # which knows both kinds of separator
    return bool(path.anchor) or ".." in path.parts


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:  # of weights that may not fit into memory a second time
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


def _flush(path: Path) -> None:
    """Write a file through to the disk, so that no power cut leaves a manifest without the files it lists."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows cannot open one
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    os.fsync(handle)
    os.close(handle)
