"""Records: what one notebook writes, the next one reads, whole or not at all."""

from pathlib import Path

import pytest

from ftlib.errors import FtlibError
from ftlib.session import records

OLD, NAME = {"old": 1}, "03_load_model"


def test_a_write_that_fails_leaves_the_earlier_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(tmp_path, NAME, OLD)
    write_text = Path.write_text

    def fill_the_disk(path: Path, text: str, **settings: str) -> int:
        write_text(path, text[:5], **settings)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        records.write(tmp_path, NAME, {"new": 2})
    assert records.read(tmp_path, NAME) == OLD


@pytest.mark.parametrize("text", [b"", b'{"cut": ', b"[1]", b"null", b'{"a": "\xff"}', b"[" * 10_000])
def test_a_damaged_record_names_itself_and_the_notebook_that_writes_it(tmp_path: Path, text: bytes) -> None:
    (tmp_path / f"{NAME}.json").write_bytes(text)
    with pytest.raises(
        FtlibError, match=rf"/{NAME}\.json is not readable \(.+\); delete it, and run again what wrote it$"
    ):
        records.read(tmp_path, NAME)
