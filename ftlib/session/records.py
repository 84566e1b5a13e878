"""What was measured, kept as JSON for the next notebook, the report and the tests."""

import json
from pathlib import Path
from typing import Any

from ftlib.errors import FtlibError
from ftlib.session.redaction import redact


def write(folder: Path, name: str, values: dict[str, Any]) -> Path:
    """Write a record to `folder/<name>.json`, without secrets, and whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(redact(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")
    return unfinished.replace(path)


def read(folder: Path, name: str) -> dict[str, Any]:
    """Read the record that a notebook left; FtlibError if it has not run to its end, or the record is damaged."""
    path, place = folder / f"{name}.json", f"{folder.parent.name}/{folder.name}"
    if not path.is_file():
        raise FtlibError(f"no record of {name} in {place}; run {name}.ipynb to its end first")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        wrong = "" if isinstance(values, dict) else f"found a {type(values).__name__}, expected an object"
    except (OSError, ValueError, RecursionError) as error:
        wrong = getattr(error, "strerror", "") or str(error)
    if wrong:
        raise FtlibError(f"{place}/{path.name} is not readable ({wrong}); delete it, and run again what wrote it")
    return dict(values)
