"""A folder counts as finished only where every file is what the manifest says; no kill leaves one that looks right."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ftlib.errors import FtlibError
from ftlib.session import manifest

FILES = {"adapter_config.json": b"{}\n", "adapter_model.safetensors": bytes(range(256)) * 40}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    manifest.write(folder, FILES)
    return folder


def test_it_lists_checksum_and_size_of_what_was_named_and_nothing_else(finished: Path) -> None:
    listed = json.loads((finished / "manifest.json").read_text())
    assert listed == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in FILES.items()
    }
    (finished / "README.md").write_text("written later")
    manifest.write(finished, [path.name for path in finished.iterdir()])  # the manifest itself is among these
    assert manifest.is_complete(finished)


def test_a_file_that_was_changed_is_named_where_its_size_is_the_same(finished: Path) -> None:
    (finished / "adapter_config.json").write_bytes(b"[]\n")
    with pytest.raises(FtlibError, match=r"^adapter/adapter_config.json: found 3 bytes, expected the file as manifest"):
        manifest.verify(finished)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"a": 1}', '{"adapter_config.json": {"size": 3}}', "\xff", "[" * 10_000, '{"/a": {}}']
)
def test_a_manifest_that_is_malformed_is_an_error(finished: Path, text: str) -> None:
    (finished / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FtlibError, match=r"^(found )?adapter/"):
        manifest.verify(finished)


@pytest.mark.parametrize("name", ["../outside", "..\\outside", "sub/../../outside", "{folder}/outside"])
def test_a_path_that_leads_out_of_the_folder_is_an_error(finished: Path, name: str) -> None:
    data = b"right in every byte"
    outside = finished / name.format(folder=finished.parent)
    outside.write_bytes(data) if "sub" not in name else None
    listed = {str(outside) if "{" in name else name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    (finished / "manifest.json").write_text(json.dumps(listed))
    with pytest.raises(FtlibError, match=r"^found adapter/manifest.json unreadable"):
        manifest.verify(finished)


def test_a_file_that_is_missing_when_it_is_written_is_an_error(finished: Path) -> None:
    (finished / "adapter_config.json").unlink()
    with pytest.raises(FtlibError, match=r"adapter/ lacks \['adapter_config.json'\]"):
        manifest.write(finished, FILES)
    assert not manifest.is_complete(finished)


def test_no_kill_leaves_a_manifest_that_looks_right(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one goes first, and a new one comes when all that it lists is on the disk, whole and in one step."""
    happened: list[str] = []

    def recording(name: str, do: Any) -> Any:
        def instead(path: Path, *args: Any, **kwargs: Any) -> Any:
            happened.append(f"{name} {path.name}")
            return do(path, *args, **kwargs)

        return instead

    for owner, name in ((Path, "unlink"), (Path, "write_bytes"), (Path, "replace"), (manifest, "_flush")):
        monkeypatch.setattr(owner, name, recording(name, getattr(owner, name)))
    manifest.write(finished, FILES)
    flushed = [f"_flush {name}" for name in (*FILES, "manifest.part")]
    begun = ["unlink manifest.json", "write_bytes manifest.part"]
    assert happened == [*begun, *flushed, "replace manifest.part", "_flush adapter"]
