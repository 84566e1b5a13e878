"""Data files on this machine: which they are, and whether `load_dataset` will be able to read them.

`load_dataset` tells of a broken file in many lines and without its row; here file, line and mend are named first.
"""

import csv
import glob
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ftlib.errors import FtlibError
from ftlib.profiles import DATA_SUFFIXES, nearest

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class Table(NamedTuple):
    """What a data file holds.

    Attributes:
        columns: names of its columns.
        rows: how many rows it has.
    """

    columns: tuple[str, ...]
    rows: int


def load_arguments(place: Path) -> dict[str, Any]:
    """What `load_dataset` needs to read a file, or all data files of a folder.

    Raises:
        FtlibError: there is no such file, or one that cannot be read: which, at which line, and what to do.
    """
    paths = files(place)
    first = table(paths[0])
    for path in paths[1:]:
        if set(table(path).columns) != set(first.columns):
            raise FtlibError(
                f"{path.name} has columns {list(table(path).columns)}, {paths[0].name} has {list(first.columns)}; "
                "expected the same in all files of the folder"
            )
    escaped = [glob.escape(str(path)) for path in paths]  # `load_dataset` takes paths as patterns
    arguments = {"path": BUILDERS[paths[0].suffix], "data_files": escaped}
    return arguments | (_csv_arguments(first) if paths[0].suffix == ".csv" else {})


def _csv_arguments(first: Table) -> dict[str, Any]:
    """Every value as the text that it is: 42 is an answer, and so is NA."""
    from datasets import Features, Value

    return {"features": Features({name: Value("string") for name in first.columns}), "keep_default_na": False}


def files(place: Path) -> list[Path]:
    """The data files at a place, in the order of their names; a file is its only one.

    Raises:
        FtlibError: there is none, or they are of several kinds.
    """
    if place.is_file():
        if place.suffix not in DATA_SUFFIXES:
            raise FtlibError(f"data.dataset {place.name}: expected a file that ends in {', '.join(DATA_SUFFIXES)}")
        return [place]
    if not place.is_dir():
        there = [path.name for path in sorted(place.parent.glob("*")) if path.suffix in DATA_SUFFIXES]
        hint = nearest(place.name, there) if there else "no data file is in that folder"
        raise FtlibError(f"data.dataset {place.name}: no such file or folder; {hint}")
    found = [path for path in sorted(place.iterdir()) if path.suffix in DATA_SUFFIXES]
    if not found:
        raise FtlibError(f"data.dataset {place.name}/: no data file is in it; expected {', '.join(DATA_SUFFIXES)}")
    kinds = sorted({path.suffix for path in found})
    if len(kinds) > 1:
        raise FtlibError(
            f"data.dataset {place.name}/: found {' and '.join(kinds)} files; expected one kind in a folder"
        )
    return found


def table(path: Path) -> Table:
    """Read a data file once through.

    Raises:
        FtlibError: it is empty, broken, or not what its ending says.
    """
    try:
        read = _table(path, path.stat().st_mtime_ns)
    except UnicodeDecodeError:
        raise FtlibError(f"{path.name} is not UTF-8 text; save it again in that encoding") from None
    except OSError as error:
        raise FtlibError(f"{path.name} cannot be read ({error.strerror}); check its rights") from None
    if not read.rows:
        raise FtlibError(f"{path.name} has no rows; expected at least one")
    return read


@lru_cache(maxsize=1024)
def _table(path: Path, changed: int) -> Table:
    return {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[path.suffix](path)


def _jsonl(path: Path) -> Table:
    columns: dict[str, None] = {}
    rows = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                columns |= dict.fromkeys(_json_object(line, f"{path.name}, line {number}"))
                rows += 1
    return Table(tuple(columns), rows)


def _json_object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise FtlibError(f"{place}: not valid JSON ({error.msg}, column {error.colno}); mend the line") from None
    _check_characters(text, value, place)
    if not isinstance(value, dict):
        raise FtlibError(f'{place}: found {text.strip()[:60]}, expected an object such as {{"messages": […]}}; mend it')
    return value


def _check_characters(text: str, value: Any, place: str) -> None:
    """Half a character, as where an emoji was cut in two, is valid JSON, but `load_dataset` cannot read it."""
    if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start : error.start + 1])
            raise FtlibError(f"{place}: found {half}, half a character; expected whole ones, take it out") from None


def _json(path: Path) -> Table:
    """A list of objects; an object a line is welcome, too."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip()[:1] != "[":
        return _jsonl(path)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise FtlibError(f"{path.name}, line {error.lineno}: not valid JSON ({error.msg}); mend the line") from None
    _check_characters(text, values, path.name)
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise FtlibError(f"{path.name}, row {number}: found {str(value)[:60]}, expected an object; mend the row")
    return Table(tuple(dict.fromkeys(key for value in values for key in value)), len(values))


def _csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, strict=True)
        try:
            header = next(rows, [])
            repeated = {name for name in header if header.count(name) > 1 or not name.strip()}
            if repeated:
                raise FtlibError(f"{path.name}: found the header {header}; expected a name of its own for each column")
            count = 0
            for row in filter(None, rows):  # pandas skips empty lines, too
                if len(row) != len(header):
                    raise FtlibError(
                        f"{path.name}, line {rows.line_num}: found {len(row)} values, expected {len(header)} as in the "
                        "header; put quotes around a text with commas or line breaks in it"
                    )
                count += 1
        except csv.Error as error:
            raise FtlibError(f"{path.name}, line {rows.line_num}: not valid CSV ({error}); mend the line") from None
    return Table(tuple(header), count)


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet

    with path.open("rb") as file:
        try:
            metadata = parquet.read_metadata(file)
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:80]
            raise FtlibError(f"{path.name} is no readable parquet file ({reason}); write it again") from None
    return Table(tuple(metadata.schema.to_arrow_schema().names), metadata.num_rows)
