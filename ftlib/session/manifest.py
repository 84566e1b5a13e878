"""`manifest.json`: the checksums that show whether a folder's files are complete and unchanged.

It is written last and in one step, so a folder whose writing was interrupted has none.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from ftlib.errors import FtlibError

NAME = "manifest.json"


class Entry(BaseModel, frozen=True, extra="forbid"):
    """What a file must be: its SHA-256 and its size in bytes."""

    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.size:,} bytes with SHA-256 {self.sha256[:12]}…"


_LISTED = TypeAdapter(dict[str, Entry])


def write(folder: Path, names: Iterable[str]) -> None:
    """Write `folder/manifest.json` for the named files, once they are safely on the disk."""
    listed = sorted({*names} - {NAME})
    path = folder / NAME
    path.unlink(missing_ok=True)  # an earlier one may describe other contents
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        raise FtlibError(f"{folder.name}/ lacks {missing}, expected them there for its {NAME}; write them first")
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(_LISTED.dump_json({name: _describe(folder / name) for name in listed}, indent=2) + b"\n")
    for written in (*(folder / name for name in listed), unfinished):
        _flush(written)
    unfinished.replace(path)
    _flush(folder)


def verify(folder: Path) -> None:
    """Compare every file that the manifest lists with what it says; FtlibError names the first that differs."""
    try:
        listed = _LISTED.validate_json((folder / NAME).read_bytes())
    except OSError:
        raise FtlibError(f"found no {NAME} in {folder.name}/, so it is not finished; write it again") from None
    except ValidationError:
        raise FtlibError(f"found {folder.name}/{NAME} unreadable; write the folder again") from None
    for name, expected in listed.items():
        found = _describe(folder / name) if (folder / name).is_file() else "nothing"
        if found != expected:
            told = f"{folder.name}/{name}: found {found}, expected {expected}"
            raise FtlibError(f"{told}, as {NAME} has it; write the folder again")


def is_complete(folder: Path) -> bool:
    """Whether the folder has a manifest, and every file in it is there and unchanged."""
    try:
        verify(folder)
    except FtlibError:
        return False
    return True


def _describe(path: Path) -> Entry:
    data = path.read_bytes()
    return Entry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _flush(path: Path) -> None:
    """Write a file through to the disk, so that no power cut leaves a manifest without the files it lists."""
    handle = os.open(path, os.O_RDONLY)  # a folder cannot be opened in another way
    os.fsync(handle)
    os.close(handle)
