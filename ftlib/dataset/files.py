"""Data files on this machine: which they are, and whether `load_dataset` will be able to read them.

`load_dataset` tells of a broken file in many lines and without its row; here file, line and mend are named first.
"""

import csv
import glob
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlib.errors import FtlibError, nearest
from ftlib.profiles import DATA_SUFFIXES

if TYPE_CHECKING:
    from datasets import Features

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class Table(NamedTuple):
    """What a data file holds.

    Attributes:
        columns: names of its columns.
        rows: how many rows it has.
        kinds: of a JSON file, the kinds of values that each column has, and where the first of each is.
    """

    columns: tuple[str, ...]
    rows: int
    kinds: dict[str, dict[str, str]]


def load_arguments(place: Path, wanted: set[str]) -> dict[str, Any]:
    """What `load_dataset` needs to read a file, or all data files of a folder.

    Args:
        place: the file or folder.
        wanted: names of columns whose values must come as they are; others may be there.

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
    builder = BUILDERS[paths[0].suffix]
    arguments = {"path": builder, "data_files": escaped}
    # Without types `load_dataset` would guess them from the first rows, and stumble over later ones.
    if builder == "csv":
        return arguments | _csv_arguments(first)
    if builder == "json":
        return arguments | {"features": _json_features([table(path) for path in paths], wanted)}
    return arguments | ({"features": _parquet_features(paths)} if len(paths) > 1 else {})


def _csv_arguments(first: Table) -> dict[str, Any]:
    """Every value as the text that it is: 42 is an answer, and so is NA."""
    from datasets import Features, Value

    return {"features": Features({name: Value("string") for name in first.columns}), "keep_default_na": False}


def _json_features(tables: list[Table], wanted: set[str]) -> "Features":
    """Types that leave every value as it is.

    The type `Json` does, but for a text that is JSON itself: 42 would come as a number. The type of texts does, but
    for dates alone, which are read as such.
    """
    from datasets import Features, Json, Value

    features = Features()
    for column in tables[0].columns:
        kinds = {kind: place for file in reversed(tables) for kind, place in file.kinds[column].items()}
        if "JSON" in kinds and "no text" in kinds and column in wanted:
            raise FtlibError(
                f"{kinds['no text']}: {column} is no text, in {kinds['JSON']} it is one; expected text in all rows, "
                "put quotes around it"
            )
        features[column] = Value("string") if "JSON" in kinds and "no text" not in kinds else Json()
    return features


def _parquet_features(paths: list[Path]) -> "Features":
    """Types that hold what is in all files: what is empty in one may be text in another."""
    from datasets import Features
    from pyarrow import ArrowException, parquet, unify_schemas

    schemas = [parquet.read_schema(path).remove_metadata() for path in paths]
    merged = schemas[0]
    for path, schema in zip(paths, schemas, strict=True):
        try:
            merged = unify_schemas([merged, schema], promote_options="permissive")
        except ArrowException as error:
            reason = " ".join(str(error).split())
            raise FtlibError(f"{path.name} does not go with {paths[0].name} ({reason}); give both one type") from None
    return Features.from_arrow_schema(merged)


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
    # A packed rows.jsonl.gz or a ROWS.CSV is meant to be read, too: better refused than passed over in silence.
    found = [path for path in sorted(place.iterdir()) if {*DATA_SUFFIXES} & {end.lower() for end in path.suffixes}]
    if not found:
        raise FtlibError(f"data.dataset {place.name}/: no data file is in it; expected {', '.join(DATA_SUFFIXES)}")
    kinds = sorted({path.suffix for path in found})
    if len(kinds) > 1:
        raise FtlibError(
            f"data.dataset {place.name}/: found {' and '.join(kinds)} files; expected one kind in a folder"
        )
    if kinds[0] not in DATA_SUFFIXES:
        raise FtlibError(f"data.dataset {place.name}/: found {kinds[0]} files; expected {', '.join(DATA_SUFFIXES)}")
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
    if not read.rows or not read.columns:
        raise FtlibError(f"{path.name} has no {'columns' if read.rows else 'rows'}; expected at least one")
    return read


@lru_cache(maxsize=1024)
def _table(path: Path, changed: int) -> Table:
    return {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[path.suffix](path)


def _jsonl(path: Path) -> Table:
    with path.open(encoding="utf-8") as lines:
        places = ((f"{path.name}, line {number}", line) for number, line in enumerate(lines, start=1))
        return _json_table((place, _json_object(line, place)) for place, line in places)


def _json_table(rows: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    kinds: dict[str, dict[str, str]] = {}
    count = 0
    for place, row in rows:
        count += 1
        for name, value in row.items():
            kinds.setdefault(name, {}).setdefault(_kind(value), place)
    return Table(tuple(kinds), count, kinds)


def _kind(value: Any) -> str:
    from datasets.utils.json import ujson_loads

    if not isinstance(value, str):
        return "nothing" if value is None else "no text"
    try:
        ujson_loads(value)  # as `load_dataset` does to find out
    except ValueError:
        return "text"
    return "JSON"


def _json_object(text: str, place: str) -> dict[str, Any]:
    if not text.strip():
        raise FtlibError(f"{place}: found an empty line, expected a row in each; take it out")
    try:
        value = _loads(text, place)
    except json.JSONDecodeError as error:
        raise FtlibError(f"{place}: not valid JSON ({error.msg}, column {error.colno}); mend the line") from None
    _check_characters(text, value, place)
    if not isinstance(value, dict):
        raise FtlibError(f'{place}: found {text.strip()[:60]}, expected an object such as {{"messages": […]}}; mend it')
    return value


def _loads(text: str, place: str) -> Any:
    """JSON as far as `load_dataset` reads it."""
    try:
        return json.loads(text, parse_int=_int64)
    except OverflowError as error:
        raise FtlibError(f"{place}: found the number {error}, too long to be read; put quotes around it") from None
    except RecursionError:
        raise FtlibError(f"{place}: found lists or objects in each other without end; mend the line") from None


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise OverflowError(digits[:30])
    return int(digits)


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
    if text[0] != "[":
        raise FtlibError(f"{path.name}, line 1: found a blank before the list, expected [ at once; take it out")
    try:
        values = _loads(text, path.name)
    except json.JSONDecodeError as error:
        raise FtlibError(f"{path.name}, line {error.lineno}: not valid JSON ({error.msg}); mend the line") from None
    _check_characters(text, values, path.name)
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise FtlibError(f"{path.name}, row {number}: found {str(value)[:60]}, expected an object; mend the row")
    return _json_table((f"{path.name}, row {number}", value) for number, value in enumerate(values, start=1))


def _csv(path: Path) -> Table:
    csv.field_size_limit(2**31 - 1)  # by default a long text is taken for a mistake
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, strict=True)
        try:
            header = next(rows, [])
            _check_names(path, header)
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
    return Table(tuple(header), count, {})


def _check_names(path: Path, header: list[str]) -> None:
    if any(header.count(name) > 1 or not name.strip() for name in header):
        raise FtlibError(f"{path.name}: found the header {header}; expected a name of its own for each column")


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet

    with path.open("rb") as file:
        try:
            content = parquet.ParquetFile(file)
            rows = sum(batch.num_rows for batch in content.iter_batches())  # all of it, or only the end were checked
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:80]
            raise FtlibError(f"{path.name} is no readable parquet file ({reason}); write it again") from None
    _check_names(path, content.schema_arrow.names)
    return Table(tuple(content.schema_arrow.names), rows, {})
