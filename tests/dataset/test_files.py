"""Data files: each broken one is refused in a line that names file and place; each good one is read as it stands."""

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
from ftlib.dataset import files, prepare
from ftlib.errors import FtlibError
from ftlib.profiles import Data

ROWS = [{"prompt": "2 + 2?", "completion": "4"}, {"prompt": "And 3 + 3?", "completion": "6"}]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def parquet_bytes(rows: list[dict[str, Any]] | pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.Table.from_pylist(rows) if isinstance(rows, list) else rows
    parquet.write_table(table, sink, compression="none")
    return sink.getvalue().to_pybytes()


def without_its_footer() -> bytes:
    whole = parquet_bytes(ROWS)
    return whole[:4] + b"\xff" * (len(whole) - 12) + whole[-8:]


def with_a_broken_middle() -> bytes:
    whole = bytearray(parquet_bytes([{"prompt": f"{n} {'word ' * 50}"} for n in range(200)]))
    whole[100:4000] = b"\xff" * 3900
    return bytes(whole)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "somebodys-own"
    folder.mkdir()
    return folder


@pytest.fixture
def write(place: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[[Path], list[dict[str, Any]]]:
    """Reads a place as the notebooks do, in a cache of its own."""

    def rows(place: Path) -> list[dict[str, Any]]:
        loaded = load_dataset(**prepare.source(settings(place)), split="train", cache_dir=str(tmp_path / "cache"))
        return list(loaded)

    return rows


def settings(place: Path) -> Data:
    shipped = profiles.load("tiny").data.model_dump()
    return Data.model_validate(shipped | {"dataset": str(place), "revision": None})


def refusal(place: Path) -> str:
    with pytest.raises(FtlibError) as raised:
        prepare.source(settings(place))
    told = str(raised.value)
    assert "\n" not in told
    assert str(place.parent) not in told, "where a person keeps the data is nobody else's business"
    return told


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "empty jsonl": ("own.jsonl", "", "own.jsonl has no rows; expected at least one"),
    "blank lines only": ("own.jsonl", "\n  \n", "own.jsonl, line 1: found an empty line, expected a row in each; take"),
    "blank line at the end": ("own.jsonl", jsonl(ROWS) + "\u3000\n", "own.jsonl, line 3: found an empty line"),
    "no columns": ("own.jsonl", "{}\n{}\n", "own.jsonl has no columns; expected at least one"),
    "empty json": ("own.json", "", "own.json has no rows"),
    "empty list": ("own.json", "[]", "own.json has no rows"),
    "empty csv": ("own.csv", "", "own.csv has no rows"),
    "header only": ("own.csv", "prompt,completion\n", "own.csv has no rows"),
    "no rows in parquet": ("own.parquet", parquet_bytes([]), "own.parquet has no rows"),
    "cut line": (
        "own.jsonl",
        '{"prompt": "a"}\n{"prompt": "b"\n',
        "own.jsonl, line 2: not valid JSON (Expecting ',' delimiter, column",
    ),
    "byte order mark": ("own.jsonl", '\ufeff{"prompt": "a"}\n', "own.jsonl, line 1: not valid JSON (Unexpected UTF-8"),
    "not an object": (
        "own.jsonl",
        '{"prompt": "a"}\n["b", "c"]\n',
        'own.jsonl, line 2: found ["b", "c"], expected an object such as {"messages": […]}; mend it',
    ),
    "cut list": ("own.json", '[\n {"prompt": "a"},\n {"prompt": \n]', "own.json, line 4: not valid JSON"),
    "two lists": ("own.json", "[]\n[]\n", "own.json, line 2: not valid JSON (Extra data); mend the line"),
    "one object over several lines": ("own.json", '{\n "prompt": "a"\n}', "own.json, line 1: not valid JSON"),
    "blank before the list": ("own.json", f"\n {json.dumps(ROWS)}", "own.json, line 1: found a blank before the list"),
    "long number": (
        "own.jsonl",
        f'{{"prompt": "a"}}\n{{"prompt": -{"9" * 5000}}}\n',
        f"own.jsonl, line 2: found the number -{'9' * 29}, too long to be read; put quotes around it",
    ),
    "number of 65 bits": ("own.json", f'[{{"prompt": {2**64}}}]', f"own.json: found the number {2**64}, too long"),
    "lists without end": (
        "own.jsonl",
        '{"prompt": "a"}\n{"prompt": ' + "[" * 100_000 + "\n",
        "own.jsonl, line 2: found lists or objects in each other without end; mend the line",
    ),
    "number among texts that would be one": (
        "own.jsonl",
        jsonl([*ROWS, {"prompt": "a", "completion": 8}]),
        "own.jsonl, line 3: completion is no text, in own.jsonl, line 1 it is one; expected text in all rows, put quot",
    ),
    "number in a list": ("own.json", '[{"prompt": "a"}, 42]', "own.json, row 2: found 42, expected an object"),
    "half an emoji in a line": (
        "own.jsonl",
        '{"prompt": "a"}\n{"prompt": "b\\ud83d"}\n',
        "own.jsonl, line 2: found '\\ud83d', half a character; expected whole ones",
    ),
    "half an emoji in a list": ("own.json", '[{"prompt": "b\\uD83D"}]', "own.json: found '\\ud83d', half a character"),
    "too few values": (
        "own.csv",
        'prompt,completion\n"a\n\nb",c\nd\n',
        "own.csv, line 5: found 1 values, expected 2 as in the header; put quotes around",
    ),
    "too many values": ("own.csv", "prompt,completion\na,b,c\n", "own.csv, line 2: found 3 values, expected 2"),
    "repeated name": (
        "own.csv",
        "prompt,prompt\na,b\n",
        "own.csv: found the header ['prompt', 'prompt']; expected a name of its own for each column",
    ),
    "empty name": ("own.csv", "prompt, \na,b\n", "own.csv: found the header ['prompt', ' ']; expected a name"),
    "open quotes": ("own.csv", 'prompt,completion\na,"b\nc,d\n', "own.csv, line 3: not valid CSV (unexpected end"),
    "text after quotes": ("own.csv", 'prompt,completion\na,"b"c\n', "own.csv, line 2: not valid CSV ("),
    "UTF-16 jsonl": ("own.jsonl", jsonl(ROWS).encode("utf-16"), "own.jsonl is not UTF-8 text; save it again in"),
    "UTF-16 json": ("own.json", json.dumps(ROWS).encode("utf-16"), "own.json is not UTF-8 text"),
    "UTF-16 csv": ("own.csv", "prompt,completion\na,b\n".encode("utf-16"), "own.csv is not UTF-8 text"),
    "Latin-1": ("own.jsonl", '{"prompt": "año"}\n'.encode("latin-1"), "own.jsonl is not UTF-8 text"),
    "cut parquet": ("own.parquet", parquet_bytes(ROWS)[:60], "own.parquet is no readable parquet file (Parquet magic"),
    "parquet without its footer": (
        "own.parquet",
        without_its_footer(),
        "own.parquet is no readable parquet file (Couldn't deserialize thrift",
    ),
    "parquet with a broken middle": (
        "own.parquet",
        with_a_broken_middle(),
        "own.parquet is no readable parquet file (",
    ),
    "repeated name in parquet": (
        "own.parquet",
        parquet_bytes(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"])),
        "own.parquet: found the header ['prompt', 'prompt']; expected a name of its own for each column",
    ),
    "text that is called parquet": ("own.parquet", jsonl(ROWS), "own.parquet is no readable parquet file ("),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("in_a_folder", [False, True])
def test_a_broken_file_is_named_with_its_place(
    case: str, in_a_folder: bool, write: Callable[..., Path], place: Path
) -> None:
    name, content, expected = BROKEN[case]
    path = write(name, content)
    assert refusal(place if in_a_folder else path).startswith(expected)


def test_a_missing_file_is_told_with_the_nearest_name(write: Callable[..., Path], place: Path) -> None:
    write("questions.jsonl", jsonl(ROWS))
    told = refusal(place / "question.jsonl")
    assert told == "data.dataset question.jsonl: no such file or folder; did you mean 'questions.jsonl'?"


def test_a_missing_file_in_a_folder_without_any_is_told(write: Callable[..., Path], place: Path) -> None:
    write("notes.txt", "")
    assert refusal(place / "own.csv").endswith("no such file or folder; no data file is in that folder")
    assert refusal(place / "missing/own.csv").endswith("no data file is in that folder")


def test_a_file_of_another_kind_is_refused(write: Callable[..., Path]) -> None:
    told = refusal(write("own.txt", jsonl(ROWS)))
    assert told == "data.dataset own.txt: expected a file that ends in .jsonl, .json, .csv, .parquet"


def test_a_folder_without_data_files_is_refused(write: Callable[..., Path], place: Path) -> None:
    write("notes.txt", "")
    assert refusal(place) == (
        "data.dataset somebodys-own/: no data file is in it; expected .jsonl, .json, .csv, .parquet"
    )


def test_a_folder_with_files_of_two_kinds_is_refused(write: Callable[..., Path], place: Path) -> None:
    write("a.jsonl", jsonl(ROWS))
    write("b.csv", "prompt,completion\na,b\n")
    assert refusal(place) == ("data.dataset somebodys-own/: found .csv and .jsonl files; expected one kind in a folder")


@pytest.mark.parametrize("other", ["b.jsonl.gz", "B.JSONL"])
def test_a_file_of_a_folder_is_not_passed_over_in_silence(other: str, write: Callable[..., Path], place: Path) -> None:
    write(other, jsonl(ROWS))
    suffix = Path(other).suffix
    expected = ".jsonl, .json, .csv, .parquet"
    assert refusal(place) == f"data.dataset somebodys-own/: found {suffix} files; expected {expected}"
    write("a.jsonl", jsonl(ROWS))
    assert refusal(place).endswith(f"found {suffix} and .jsonl files; expected one kind in a folder")


def test_files_with_different_columns_are_refused(write: Callable[..., Path], place: Path) -> None:
    write("a.jsonl", jsonl(ROWS))
    write("b.jsonl", jsonl([{"prompt": "a", "response": "b"}]))
    assert refusal(place) == (
        "b.jsonl has columns ['prompt', 'response'], a.jsonl has ['prompt', 'completion']; "
        "expected the same in all files of the folder"
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_what_cannot_be_opened_is_told(suffix: str, place: Path) -> None:
    own = place / f"own{suffix}"
    own.mkdir()
    assert refusal(place) == f"own{suffix} cannot be read (Is a directory); check its rights"
    own.rmdir()
    own.symlink_to("gone")
    assert refusal(place) == f"own{suffix} cannot be read (No such file or directory); check its rights"


GOOD: dict[str, tuple[str, str | bytes]] = {
    "jsonl": ("own.jsonl", jsonl(ROWS)),
    "jsonl without a last line break": ("own.jsonl", jsonl(ROWS).rstrip()),
    "jsonl from Windows": ("own.jsonl", jsonl(ROWS).replace("\n", "\r\n")),
    "json list": ("own.json", json.dumps(ROWS, indent=2)),
    "json lines": ("own.json", jsonl(ROWS)),
    "csv": ("own.csv", "prompt,completion\n2 + 2?,4\nAnd 3 + 3?,6\n"),
    "csv with a byte order mark and empty lines": (
        "own.csv",
        "\ufeffprompt,completion\r\n2 + 2?,4\r\n\r\nAnd 3 + 3?,6\r\n\r\n",
    ),
    "parquet": ("own.parquet", parquet_bytes(ROWS)),
    "a name that looks like a pattern": ("own [v1]*.jsonl", jsonl(ROWS)),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_file_is_read(case: str, write: Callable[..., Path], rows_of: Callable[..., Any]) -> None:
    path = write(*GOOD[case])
    assert rows_of(path) == ROWS
    assert files.table(path)[:2] == (("prompt", "completion"), 2)


def test_a_csv_keeps_every_value_as_the_text_that_it_is(
    write: Callable[..., Path], rows_of: Callable[..., Any]
) -> None:
    path = write("own.csv", 'prompt,completion\nNA,42\n1e3,null\ntrue,2024-01-01\n" a\n\nb, ""c"" ",007\nempty,\n')
    assert [tuple(row.values()) for row in rows_of(path)] == [
        ("NA", "42"),
        ("1e3", "null"),
        ("true", "2024-01-01"),
        (' a\n\nb, "c" ', "007"),
        ("empty", ""),
    ]


def test_the_files_of_a_folder_are_read_in_the_order_of_their_names(
    write: Callable[..., Path], place: Path, rows_of: Callable[..., Any]
) -> None:
    write("b.csv", "completion,prompt\n6,And 3 + 3?\n")
    write("a.csv", "prompt,completion\n2 + 2?,4\n")
    write("README.md", "# not data")
    write("older/c.csv", "prompt,completion\nnot,read\n")
    assert rows_of(place) == ROWS


@pytest.mark.parametrize("name", ["own.jsonl", "own.json", "own.csv", "own.parquet"])
def test_a_changed_file_is_read_again(name: str, write: Callable[..., Path], rows_of: Callable[..., Any]) -> None:
    texts = {
        "own.jsonl": jsonl,
        "own.json": json.dumps,
        "own.csv": lambda rows: "prompt,completion\n" + "".join(f"{','.join(row.values())}\n" for row in rows),
        "own.parquet": parquet_bytes,
    }
    path = write(name, texts[name](ROWS))
    assert rows_of(path) == ROWS
    changed = [ROWS[0], {"prompt": "And 4 + 4?", "completion": "8"}, ROWS[1]]
    write(name, texts[name](changed))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))  # a clock may be too coarse for two writes
    assert rows_of(path) == changed
    assert files.table(path).rows == 3
    write(name, "")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 2_000_000_000))
    refusal(path)


TEXTS = [
    "42",
    "null",
    '"quoted"',
    "[1]",
    '{"a": 1}',
    " 1e3 ",
    "true",
    "2025-08-05",
    "2025-08-05T12:00:00",
    "a\u2028b\\n",
]


@pytest.mark.parametrize("texts", [TEXTS, *([text] for text in TEXTS)], ids=str)
@pytest.mark.parametrize("name", ["own.jsonl", "own.json"])
def test_a_text_stays_the_text_that_it_is(
    name: str, texts: list[str], write: Callable[..., Path], rows_of: Callable[..., Any]
) -> None:
    rows = [{"prompt": f"{n}?", "completion": text} for n, text in enumerate(texts)]
    assert rows_of(write(name, jsonl(rows) if name == "own.jsonl" else json.dumps(rows))) == rows


def test_types_of_columns_that_nobody_reads_do_not_matter(
    write: Callable[..., Path], rows_of: Callable[..., Any]
) -> None:
    rows = [{**row, "id": number} for row, number in zip(ROWS, ["42", 43], strict=True)]
    loaded = rows_of(write("own.jsonl", jsonl(rows)))
    assert [{"prompt": row["prompt"], "completion": row["completion"]} for row in loaded] == ROWS


BARE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "source": None}
RICH = {"messages": [BARE["messages"][0], {**BARE["messages"][1], "thinking": "c"}], "source": "mine"}


@pytest.mark.parametrize("first", [BARE, RICH], ids=["bare", "rich"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_what_is_empty_in_one_file_may_be_text_in_the_next(
    suffix: str, first: dict[str, Any], write: Callable[..., Path], place: Path, tmp_path: Path
) -> None:
    to_file = {".jsonl": jsonl, ".json": json.dumps, ".parquet": parquet_bytes}[suffix]
    write(f"a{suffix}", to_file([first]))
    write(f"b{suffix}", to_file([RICH if first is BARE else BARE]))
    own = settings(place)
    loaded = load_dataset(**prepare.source(own), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["source"] for row in loaded] == [None, "mine"][:: 1 if first is BARE else -1]
    analyses = prepare.conversations(loaded, own, tmp_path)["analysis"][:]
    assert analyses == ["", "c"][:: 1 if first is BARE else -1]


def test_a_row_far_down_may_have_what_those_before_had_not(
    write: Callable[..., Path], rows_of: Callable[..., Any]
) -> None:
    """`load_dataset` reads ten million bytes at a time."""
    rows = [{"messages": [{"role": "user", "content": "x" * 1_000_000}]} for _ in range(11)]
    assert rows_of(write("own.jsonl", jsonl([*rows, RICH])))[-1] == RICH


def test_parquet_files_of_different_libraries_go_together(
    write: Callable[..., Path], place: Path, rows_of: Callable[..., Any]
) -> None:
    write("a.parquet", parquet_bytes(ROWS[:1]))
    large = pyarrow.schema([("prompt", pyarrow.large_string()), ("completion", pyarrow.large_string())])
    write("b.parquet", parquet_bytes(pyarrow.Table.from_pylist(ROWS[1:], schema=large)))
    assert rows_of(place) == ROWS


def test_parquet_files_of_types_that_do_not_go_together_are_refused(write: Callable[..., Path], place: Path) -> None:
    write("a.parquet", parquet_bytes([{"prompt": "a"}]))
    write("b.parquet", parquet_bytes([{"prompt": ["a"]}]))
    told = refusal(place)
    assert told.startswith("b.parquet does not go with a.parquet (Unable to merge: Field prompt has incompatible types")
    assert told.endswith("; give both one type")


def test_a_long_text_in_a_csv_is_no_mistake(write: Callable[..., Path], rows_of: Callable[..., Any]) -> None:
    long = "x" * 200_000
    assert rows_of(write("own.csv", f"prompt,completion\na,{long}\n")) == [{"prompt": "a", "completion": long}]


def test_values_of_several_types_are_bad_rows_and_no_crash(
    write: Callable[..., Path], rows_of: Callable[..., Any], tmp_path: Path
) -> None:
    mixed: list[Any] = ["text", 42, None, ["a", 1], {"b": 2}, True, [{"role": "assistant", "content": "four"}]]
    path = write("own.jsonl", jsonl([{"prompt": f"{n}?", "completion": value} for n, value in enumerate(mixed)]))
    own = settings(path)
    loaded = load_dataset(**prepare.source(own), split="train", cache_dir=str(tmp_path / "cache"))
    bad, _ = prepare.check(loaded, own, 216)
    assert bad["row"].tolist() == [2, 3, 4, 5, 6]
    assert bad["found"].tolist() == ["42", "nothing", "['a', 1]", "{'b': 2}", "True"]
    kept = prepare.conversations(loaded, own.model_copy(update={"on_bad_row": "drop"}), tmp_path)
    assert kept["final"][:] == ["text", "four"]


def test_messages_of_several_types_are_bad_rows_and_no_crash(write: Callable[..., Path], tmp_path: Path) -> None:
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    wrong = [{"role": "user", "content": "a"}, {"role": "assistant", "content": {"text": "b"}}]
    own = settings(write("own.jsonl", jsonl([{"messages": value} for value in (wrong, "a: b", good, [1])])))
    loaded = load_dataset(**prepare.source(own), split="train", cache_dir=str(tmp_path / "cache"))
    bad, _ = prepare.check(loaded, own, 216)
    assert bad[["row", "field"]].values.tolist() == [[1, "messages[1].content"], [2, "messages"], [4, "messages"]]
