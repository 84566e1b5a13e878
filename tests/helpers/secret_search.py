"""Searches files for a secret as someone would who looks for one: as it is, encoded, packed and compressed."""

import base64
import gzip
import html
import io
import json
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

DEPTH = 4  # how far to look into archives that are in archives
LARGEST = 1 << 28  # bytes that a stream may unpack to


def find(secret: str, *folders: Path) -> list[Path]:
    """The files below the folders that hold the secret, in their name or in any form inside."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    return [path for path in files if secret in path.name or occurs(secret, path.read_bytes())]


def occurs(secret: str, data: bytes | str) -> bool:
    """Whether the secret is in the data, in any form."""
    forms = _forms(secret)
    layers = _layers(data.encode() if isinstance(data, str) else data, DEPTH)
    return any(form in layer for layer in layers for form in forms)


def _forms(secret: str) -> set[bytes]:
    data = secret.encode()
    texts = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), html.escape(secret), repr(secret)[1:-1]}
    texts |= {data.hex(), data.hex().upper()}
    for _ in range(2):  # JSON, and JSON in JSON
        texts |= {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in texts for ascii_only in (True, False)}
    forms = {secret.encode("utf-16-le"), secret.encode("utf-16-be"), *(text.encode() for text in texts)}
    for before in range(3):
        # Groups of four characters that hold nothing of what stands beside the secret.
        whole = data[(3 - before) % 3 :]
        encoded = base64.b64encode(whole[: len(whole) // 3 * 3])
        forms |= {encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))}
    return forms


def _layers(data: bytes, depth: int) -> Iterator[bytes]:
    yield data
    if depth:
        for content in _unpacked(data):
            yield from _layers(content, depth - 1)


def _unpacked(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"\x1f\x8b"):
        with suppress(OSError, EOFError, zlib.error):
            yield gzip.decompress(data)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    if data.startswith(b"SQLite format 3\0"):
        yield from _joined(_rows(data))
    if data.startswith(b"PAR1"):
        from pyarrow import parquet

        table = parquet.read_table(io.BytesIO(data))
        yield from _joined([table.to_pylist(), table.schema.metadata])
    # A zlib stream has no end mark to look for and may begin anywhere, as in a PNG or a pickle.
    for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data):
        with suppress(zlib.error):
            yield zlib.decompressobj().decompress(data[start.start() :], LARGEST)


def _rows(data: bytes) -> Iterator[Any]:
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(data[:18] + b"\1\1" + data[20:])  # not in WAL mode, which memory does not have
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            with suppress(sqlite3.Error):  # a virtual table, of an extension that is not here
                yield from database.execute(f'select * from "{table}"').fetchall()


def _joined(values: Iterable[Any]) -> Iterator[bytes]:
    """All text and bytes in rows as one, and each that is itself packed on its own."""
    leaves = [leaf for value in values for leaf in _leaves(value)]
    yield b"\n".join(leaves)
    yield from (leaf for leaf in leaves if leaf.startswith((b"\x1f\x8b", b"PK", b"\x78", b"PAR1")))


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, str | bytes):
        yield value.encode() if isinstance(value, str) else value
    elif isinstance(value, dict):
        yield from _leaves([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
