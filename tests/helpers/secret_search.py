"""Searches files for a secret as someone would who looks for one: as it is, encoded, and in compressed files."""

import base64
import gzip
import html
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

# Of no known shape but the first: what is found is found by its value.
PLANTED = {
    "HF_TOKEN": "hf_pLaNtEdInThEeNvIrOnMeNtByThIsTeSt",
    "AZUREML_TOKEN": "planted+for/azure==4e8b1c",
    "MY_API_KEY": "planted 'with' \"every\" <odd> & character\\é",
}
CACHED = {"token": "planted-in-the-cached-log-in", "refresh_token": "planted-beside-the-cached-log-in"}


def log_in(cache: Path) -> None:
    """Leave the tokens of a log-in in huggingface_hub's cache."""
    (cache / "token").write_text(CACHED["token"])
    (cache / "stored_tokens").write_text("[mine]\nrefresh_token = {refresh_token}\n".format(**CACHED))


def find(secret: str, *folders: Path) -> list[Path]:
    """The files below the folders that hold the secret, in their name or in any form inside."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if secret in path.name or any(occurs(secret, text) for text in _contents(path))]


def occurs(secret: str, text: bytes) -> bool:
    """Whether the secret is in a text, in any form."""
    forms = {secret, quote(secret, safe=""), quote(secret), html.escape(secret), repr(secret)[1:-1]}
    for _ in range(2):  # JSON, and JSON in JSON
        forms |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (True, False)}
    for before in range(3):
        whole = secret.encode()[(3 - before) % 3 :]  # groups that hold nothing of what stands beside the secret
        forms.add(base64.b64encode(whole[: len(whole) // 3 * 3]).decode())
    return any(form.encode() in text for form in forms)


def _contents(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    if data.startswith(b"SQLite format 3\0"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database, suppress(sqlite3.Error):
            yield "\n".join(database.iterdump()).encode()
