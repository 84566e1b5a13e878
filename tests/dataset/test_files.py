"""Data files: a broken one is refused in a line that names file and place, and a good one is read as it stands."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import load_dataset
from pyarrow import parquet

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.errors import FtlibError
from ftlib.profiles import Data

ROWS = [{"prompt": "2 + 2?", "completion": "4"}, {"prompt": "And 3 + 3?", "completion": "6"}]
Write = Callable[[str, str | bytes], Path]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "somebodys-own"
    folder.mkdir()
    return folder


@pytest.fixture
def write(place: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def settings(place: Path, **changes: Any) -> Data:
    shipped = profiles.load("tiny").data.model_dump()
    return Data.model_validate(shipped | {"dataset": str(place), "revision": None} | changes)


def rows_of(place: Path) -> list[dict[str, Any]]:
    """The rows as the notebooks load them."""
    return list(load_dataset(**prepare.source(settings(place)), split="train"))


def refusal(place: Path) -> str:
    with pytest.raises(FtlibError) as raised:
        prepare.source(settings(place))
    told = str(raised.value)
    assert "\n" not in told
    assert str(place.parent) not in told, "where a person keeps the data is nobody else's business"
    return told


WHOLE = parquet_bytes([{"prompt": f"{number} {'word ' * 50}"} for number in range(200)])
BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "no columns": ("own.jsonl", "{}\n{}\n", "own.jsonl has no rows"),
    "empty list": ("own.json", "[]", "own.json has no rows"),
    "csv with a header only": ("own.csv", "prompt,completion\n", "own.csv has no rows"),
    "parquet without rows": ("own.parquet", parquet_bytes([]), "own.parquet has no rows"),
    "cut list": ("own.json", '[\n {"prompt": "a"},\n {"prompt": \n]', "own.json, line 4: not valid JSON"),
    "no object in a list": ("own.json", '[{"prompt": "a"}, 7]', "own.json, row 2: found 7, expected an object"),
    "endless nesting": ("own.jsonl", '{"prompt": ' + "[" * 100_000, "own.jsonl, line 1: not valid JSON (maximum rec"),
    "half an emoji": ("own.jsonl", '{"prompt": "b\\ud83d"}\n', "own.jsonl holds half a character, such as \\ud83d; t"),
    "too few values": ("own.csv", 'p,c\n"a\n\nb",c\nd\n', "own.csv, line 5: found 1 values, expected 2 as in the head"),
    "a key twice": (
        "own.jsonl",
        '{"a": 1}\n{"a": 1, "a": 2}\n',
        "own.jsonl, line 2: not valid JSON (an object has 'a' tw",
    ),
    "a key twice in a list": (
        "own.json",
        '[{"a": 1},\n {"a": 1, "a": 2}]',
        "own.json: not valid JSON (an object has 'a' t",
    ),
    "separators in quotes": ("own.csv", '"a;b;c",d\n1\n', "own.csv, line 2: found 1 values, expected 2 as in the head"),
    "bytes": ("own.parquet", parquet_bytes([{"prompt": b"\xff"}]), "own.parquet holds bytes that are not UTF-8 text; "),
    "broken parquet": ("own.parquet", WHOLE[:60] + b"\xff" * 40 + WHOLE[100:], "own.parquet is not a readable Parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_its_place(case: str, write: Write) -> None:
    name, content, expected = BROKEN[case]
    assert refusal(write(name, content)).startswith(expected)


def test_what_is_not_there_or_cannot_be_read_is_told(write: Write, place: Path) -> None:
    assert refusal(place / "own.csv").endswith("no such file or folder; no data file is in that folder")
    assert refusal(write("own.txt", "")).startswith("data.dataset own.txt: found no data files, expected one kind of")
    (place / "gone.jsonl").symlink_to("nowhere")
    (place / "own.txt").unlink()
    assert refusal(place) == "gone.jsonl cannot be read (No such file or directory); check its permissions"


@pytest.mark.parametrize(
    "name", ["rows.jsonl.gz", "ROWS.CSV", "rows.txt", "older/rows.jsonl", "older.jsonl/rows.jsonl"]
)
def test_no_file_of_a_folder_is_passed_over_in_silence(name: str, write: Write, place: Path) -> None:
    write("a.jsonl", jsonl(ROWS))
    write(name, "")
    found = name.removesuffix("rows.jsonl") if "/" in name else name
    endings = ".jsonl, .json, .csv or .parquet"
    assert refusal(place) == f"data.dataset somebodys-own: found {found}, expected only files that end in {endings}"


GOOD: dict[str, tuple[str, str | bytes]] = {
    "jsonl": ("own.jsonl", jsonl(ROWS)),
    "jsonl from Windows with empty lines": ("own.jsonl", "\ufeff" + jsonl(ROWS).replace("\n", "\r\n\r\n")),
    "json list": ("own.json", json.dumps(ROWS, indent=2)),
    "json lines": ("own.json", jsonl(ROWS)),
    "csv from Windows": ("own.csv", "\ufeffprompt,completion\r\n2 + 2?,4\r\n\r\nAnd 3 + 3?,6\r\n"),
    "two files in one, each with its mark": (
        "own.jsonl",
        "\ufeff" + jsonl(ROWS[:1]) + "\ufeff" + jsonl(ROWS[1:]),
    ),
    "csv with semicolons": ("own.csv", 'prompt;"completion"\n2 + 2?;4\nAnd 3 + 3?;6\n'),
    "csv with tabs": ("own.csv", "\ufeffprompt\tcompletion\n2 + 2?\t4\nAnd 3 + 3?\t6\n"),
    "parquet of bytes": ("own.parquet", parquet_bytes([{k: v.encode() for k, v in row.items()} for row in ROWS])),
    "parquet": ("own.parquet", parquet_bytes(ROWS)),
    "a name that looks like a pattern": ("own [v1]*.jsonl", jsonl(ROWS)),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_file_is_read(case: str, write: Write) -> None:
    assert rows_of(write(*GOOD[case])) == ROWS


def test_a_text_stays_the_text_that_it_is(write: Write) -> None:
    texts = ["42", "null", "NA", "1e3", "true", "2025-08-05", '{"a": 1}', '"quoted"', " a\n\nb ", "a\u2028b", "", "007"]
    rows = [{"prompt": f"{n}?", "completion": text} for n, text in enumerate(texts)]
    assert rows_of(write("own.jsonl", jsonl(rows))) == rows
    assert rows_of(write("own.json", json.dumps(rows))) == rows
    quoted = "".join('{},"{}"\n'.format(row["prompt"], row["completion"].replace('"', '""')) for row in rows)
    assert rows_of(write("own.csv", f"prompt,completion\n{quoted}")) == rows
    mixed: list[dict[str, Any]] = [*rows, {"prompt": "13?", "completion": 42}, {"prompt": "14?", "completion": 2**70}]
    assert rows_of(write("own.jsonl", jsonl(mixed)))[:-1] == mixed[:-1], "beside values of other types, too"
    long = [{"prompt": "a", "completion": "x" * 200_000}]
    assert rows_of(write("own.csv", f"prompt,completion\na,{long[0]['completion']}\n")) == long


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names(write: Write, place: Path) -> None:
    write("b.csv", "completion,prompt\n6,And 3 + 3?\n")
    write("a.csv", "prompt,completion\n2 + 2?,4\n")
    for name in ("README.md", "LICENSE", ".DS_Store", "._a.csv"):
        write(name, "not data")
    assert rows_of(place) == ROWS


def test_a_file_is_read_once_and_again_when_it_has_changed(write: Write) -> None:
    own = settings(path := write("own.jsonl", jsonl(ROWS)))
    assert prepare.source(own) == prepare.source(own), "each reading makes a file of its own"
    write("own.jsonl", jsonl(ROWS[:1]))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))  # a clock may be too coarse for two writes
    assert rows_of(path) == ROWS[:1]


BARE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "source": None}
RICH = {"messages": [BARE["messages"][0], {**BARE["messages"][1], "thinking": "c"}], "source": "mine"}


@pytest.mark.parametrize(("suffix", "to_file"), [(".jsonl", jsonl), (".parquet", parquet_bytes)])
def test_the_rows_of_several_files_need_not_be_alike(
    suffix: str, to_file: Any, write: Write, place: Path, tmp_path: Path
) -> None:
    write(f"a{suffix}", to_file([BARE]))
    write(f"b{suffix}", to_file([RICH]))
    assert [row["source"] for row in rows_of(place)] == [None, "mine"]
    loaded = load_dataset(**prepare.source(settings(place)), split="train")
    assert prepare.conversations(loaded, settings(place), tmp_path)["analysis"][:] == ["", "c"]


def test_values_of_several_types_are_bad_rows_and_no_crash(write: Write, tmp_path: Path) -> None:
    values: list[Any] = ["text", 42, None, ["a", 1], {"b": 2}, True, [{"role": "assistant", "content": "four"}]]
    path = write("own.jsonl", jsonl([{"prompt": f"{n}?", "completion": value} for n, value in enumerate(values)]))
    own = settings(path, on_bad_row="drop")
    loaded = load_dataset(**prepare.source(own), split="train")
    bad, _ = prepare.check(loaded, own, 216)
    assert bad["row"].tolist() == [2, 3, 4, 5, 6]
    assert bad["found"].tolist() == ["42", "nothing", "['a', 1]", "{'b': 2}", "True"]
    assert prepare.conversations(loaded, own, tmp_path)["final"][:] == ["text", "four"]
