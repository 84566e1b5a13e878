"""What a notebook measured, kept as JSON for the next notebook, the report and the tests."""

import json
from pathlib import Path
from typing import Any

from ftlib.errors import FtlibError
from ftlib.session.redaction import redact


def write(folder: Path, notebook: str, values: dict[str, Any]) -> Path:
    """Write a notebook's record to `folder/<notebook>.json`, without secrets, and whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{notebook}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(redact(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")
    return unfinished.replace(path)


def read(folder: Path, notebook: str) -> dict[str, Any]:
    """Read the record that a notebook left; FtlibError if it has not run to its end, or the record is damaged."""
    path = folder / f"{notebook}.json"
    if not path.is_file():
        place = f"{folder.parent.name}/{folder.name}"
        raise FtlibError(f"no record of {notebook} in {place}; run {notebook}.ipynb to its end first")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        wrong = "" if isinstance(values, dict) else f"found a {type(values).__name__}, expected an object"
    except (OSError, ValueError, RecursionError) as error:
        wrong = getattr(error, "strerror", "") or str(error)
    if wrong:
        raise FtlibError(f"{folder.name}/{path.name} is not readable ({wrong}); run {notebook}.ipynb again")
    return dict(values)
