"""Records: what one notebook writes, the next one reads, whole or not at all."""

import json
from pathlib import Path

import pytest

from ftlib.errors import FtlibError
from ftlib.session import records


def test_what_is_written_is_read(tmp_path: Path) -> None:
    values = {"language_agreement": 0.975, "global_step": 63, "examples": [{"final": "Où ?"}], "hub_repo": None}
    path = records.write(tmp_path / "run/records", "04_train_lora", values)
    assert path == tmp_path / "run/records/04_train_lora.json"
    assert records.read(tmp_path / "run/records", "04_train_lora") == values
    assert "Où ?" in path.read_text(encoding="utf-8"), "people read this file, too"


def test_a_later_run_replaces_the_whole_record(tmp_path: Path) -> None:
    records.write(tmp_path, "03_load_model", {"old": 1})
    records.write(tmp_path, "03_load_model", {"new": 2})
    assert records.read(tmp_path, "03_load_model") == {"new": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["03_load_model.json"]


def test_what_cannot_be_written_leaves_the_earlier_record(tmp_path: Path) -> None:
    records.write(tmp_path, "03_load_model", {"agreement": 0.2})
    with pytest.raises(TypeError):
        records.write(tmp_path, "03_load_model", {"agreement": object()})
    assert records.read(tmp_path, "03_load_model") == {"agreement": 0.2}


def test_an_interrupted_write_leaves_the_earlier_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(tmp_path, "03_load_model", {"agreement": 0.2})
    write_text = Path.write_text

    def fill_the_disk(path: Path, text: str, **settings: str) -> int:
        write_text(path, text[:5], **settings)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        records.write(tmp_path, "03_load_model", {"agreement": 0.9})
    assert json.loads((tmp_path / "03_load_model.json").read_bytes()) == {"agreement": 0.2}


def test_a_missing_record_names_the_notebook_and_no_place_on_the_machine(tmp_path: Path) -> None:
    with pytest.raises(FtlibError) as raised:
        records.read(tmp_path / "outputs/tiny/records", "03_load_model")
    message = str(raised.value)
    assert "run 03_load_model.ipynb to its end first" in message
    assert "tiny/records" in message
    assert str(tmp_path) not in message
