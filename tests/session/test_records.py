"""Records: what one notebook writes, the next one reads, whole or not at all."""

from pathlib import Path

import pytest

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
