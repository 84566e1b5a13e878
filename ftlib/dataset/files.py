"""Data files on this machine: found, read once, and passed to `load_dataset` as Parquet.

JSON and CSV leave types open, and `load_dataset` would guess them: a text might come back as a number or a date. Here
every value stays as it was written, rows need not be alike, and a broken file is named with its line.
"""

import atexit
import csv
import json
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from ftlib.dataset.shapes import listed, shortened
from ftlib.errors import FtlibError, nearest
from ftlib.profiles import DATA_SUFFIXES

Row = dict[str, Any]


def convert(place: Path) -> tuple[Path, dict[str, int]]:
    """Read a data file, or all data files of a folder in the order of their names, into one Parquet file.

    It lies in a temporary folder that goes when Python ends. Files that have not changed are not read again.

    Returns:
        The Parquet file, and how many of its rows come from each data file, in order.
    """
    paths = _find(place)
    try:
        return _convert(tuple(paths), tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths))
    except UnicodeEncodeError:
        raise FtlibError(f"{place.name} holds half a character, such as \\ud83d; take it out") from None
    except UnicodeDecodeError:
        raise FtlibError(f"{place.name} holds bytes that are not UTF-8 text; write them as text") from None


def _find(place: Path) -> list[Path]:
    if not place.exists():
        there = [path.name for path in sorted(place.parent.glob("*")) if path.suffix in DATA_SUFFIXES]
        hint = nearest(place.name, there) if there else "no data file is in that folder"
        raise FtlibError(f"data.dataset {place.name}: no such file or folder; {hint}")
    entries = [place] if place.is_file() else [path for path in sorted(place.iterdir()) if path.name[0] != "."]
    found = [path for path in entries if path.suffix in DATA_SUFFIXES and not path.is_dir()]
    others = [path.name + "/" * path.is_dir() for path in entries if path not in found]
    others = [name for name in others if not name.startswith(("README", "LICENSE"))]
    kinds = sorted({path.suffix for path in found})
    accepted = f"{', '.join(DATA_SUFFIXES[:-1])} or {DATA_SUFFIXES[-1]}"
    if len(kinds) != 1:
        kind = " and ".join(kinds) or "no data"
        raise FtlibError(f"data.dataset {place.name}: found {kind} files, expected one kind of {accepted}")
    if others:  # such as rows.jsonl.gz, which nobody would miss until after training
        raise FtlibError(f"data.dataset {place.name}: found {others[0]}, expected only files that end in {accepted}")
    return found


@lru_cache(maxsize=8)
def _convert(paths: tuple[Path, ...], changed: tuple[int, ...]) -> tuple[Path, dict[str, int]]:
    import pyarrow
    from datasets import Features, Json, Value
    from pyarrow import parquet

    read = {path.name: _read(path) for path in paths}
    columns = _columns(read)
    rows = [row for found in read.values() for row in found]
    features, arrays = Features(), []
    for column in columns:
        values = [row.get(column) for row in rows]
        features[column] = Value("string")
        if any(value is not None and not isinstance(value, str) for value in values):
            features[column] = Json()
            values = [None if value is None else _dumped(value) for value in values]
        arrays.append(pyarrow.array(values, features[column]()))
    folder = Path(tempfile.mkdtemp(prefix="ftlib-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=features.arrow_schema), file)
    return file, {name: len(found) for name, found in read.items()}


def _dumped(value: Any) -> str:
    """As JSON. Parquet has other types, too; a text is bytes there if nothing else was said of it."""
    return json.dumps(value, ensure_ascii=False, default=lambda odd: odd.decode() if type(odd) is bytes else str(odd))


def _read(path: Path) -> list[Row]:
    try:
        return _READERS[path.suffix](path)
    except UnicodeDecodeError:
        raise FtlibError(f"{path.name} is not UTF-8 text; save it again in that encoding") from None
    except OSError as error:
        raise FtlibError(f"{path.name} cannot be read ({error.strerror}); check its permissions") from None


def _columns(read: dict[str, list[Row]]) -> list[str]:
    """The columns of all files, which must be the same."""
    columns = {name: list(dict.fromkeys(column for row in rows for column in row)) for name, rows in read.items()}
    (first, expected), *_ = columns.items()
    for name, found in columns.items():
        if not found:
            raise FtlibError(f"{name} has no rows; expected at least one")
        if set(found) != set(expected):
            told = f"{name} has columns {listed(found)}, {first} has {listed(expected)}"
            raise FtlibError(f"{told}; expected the same in all files of the folder")
    return expected


def _json(path: Path) -> list[Row]:
    """A list of objects, or one object a line."""
    text = path.read_text(encoding="utf-8-sig")
    is_list = text.lstrip().startswith("[")
    rows: list[Any] = []
    for number, part in enumerate([text] if is_list else text.split("\n"), start=1):
        try:
            if line := part.strip().lstrip("\ufeff"):  # a file appended to another brings its byte-order mark
                rows.append(json.loads(line, parse_int=_number, object_pairs_hook=_object))
        except (ValueError, RecursionError) as error:
            reason, at = getattr(error, "msg", error), number - 1 + getattr(error, "lineno", 1)
            place = f", line {at}" if hasattr(error, "lineno") or not is_list else ""
            raise FtlibError(f"{path.name}{place}: not valid JSON ({reason}); fix it") from None
    rows = rows[0] if is_list else rows
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            found = json.dumps(row, ensure_ascii=False)[:60]
            raise FtlibError(f'{path.name}, row {number}: found {found}, expected an object: {{"messages": […]}}')
    return rows


def _number(digits: str) -> float:
    return int(digits) if len(digits) < 19 else float(digits)  # 64 bits can be held


def _object(pairs: list[tuple[str, Any]]) -> Row:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"an object has {shortened(max(names, key=names.count))!r} twice")
    return dict(pairs)


def _csv(path: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # by default a long text is an error
    found = []
    with path.open(encoding="utf-8-sig", newline="") as lines:
        unquoted = re.sub('"[^"]*"', "", lines.readline())
        lines.seek(0)
        rows = csv.reader(lines, strict=True, delimiter=max(",;\t", key=unquoted.count))
        try:
            header = next(rows, [])
            _check_header(path, header)
            for row in filter(None, rows):
                if len(row) != len(header):
                    raise FtlibError(
                        f"{path.name}, line {rows.line_num}: found {len(row)} values, expected {len(header)} as in the "
                        "header; put quotes around a text with commas or line breaks in it"
                    )
                found.append(dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise FtlibError(f"{path.name}, line {rows.line_num}: not valid CSV ({error}); fix the line") from None
    return found


def _check_header(path: Path, header: list[str]) -> None:
    if len(set(header)) < len(header):
        raise FtlibError(f"{path.name}: found the header {listed(header)}, expected a name of its own for each column")


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet

    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file).read()
            _check_header(path, table.column_names)
            rows: list[Row] = table.to_pylist()
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:80]
            raise FtlibError(f"{path.name} is not a readable Parquet file ({reason}); write it again") from None
    return rows


_READERS = {".jsonl": _json, ".json": _json, ".csv": _csv, ".parquet": _parquet}
