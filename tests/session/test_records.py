"""Records: what one notebook writes, the next one reads, whole or not at all."""

from pathlib import Path

import pytest

from ftlib.session import records

OLD, NAME = {"old": 1}, "03_load_model"


def test_what_is_written_is_read_and_replaces_what_was_there(tmp_path: Path) -> None:
    values = {"agreement": 0.975, "global_step": 63, "examples": [{"final": "Où ?"}], "hub_repo": None}
    records.write(tmp_path / "records", NAME, OLD)
    path = records.write(tmp_path / "records", NAME, values)
    assert records.read(tmp_path / "records", NAME) == values
    assert "Où ?" in path.read_text(encoding="utf-8"), "people read this file, too"
    assert list(path.parent.iterdir()) == [path]


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
