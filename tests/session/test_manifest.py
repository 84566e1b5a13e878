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


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        (
            "adapter_model.safetensors",
            b"\1" + FILES["adapter_model.safetensors"][1:],
            "found 10240 bytes, expected the",
        ),
        ("manifest.json", b"[]", "found adapter/manifest.json unreadable"),
        ("manifest.json", b'{"README.md": {"size": 3}}', "adapter/README.md: found no bytes"),
    ],
)
def test_what_was_changed_is_named(finished: Path, name: str, content: bytes, found: str) -> None:
    (finished / name).write_bytes(content)
    with pytest.raises(FtlibError, match=found) as raised:
        manifest.verify(finished)
    assert str(finished.parent) not in str(raised.value)


def test_a_file_that_is_missing_when_it_is_written_is_an_error(finished: Path) -> None:
    (finished / "adapter_config.json").unlink()
    with pytest.raises(FtlibError, match=r"adapter/ lacks \['adapter_config.json'\]"):
        manifest.write(finished, FILES)
    assert not manifest.is_complete(finished)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", range(8))
def test_a_kill_at_any_step_of_writing_leaves_no_manifest_that_looks_right(
    finished: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whatever is written and renamed goes through these functions; the process ends in the step-th of them."""
    (finished / "adapter_config.json").write_text("[]")
    happened = []

    def ending(name: str, do: Any) -> Any:
        def instead(path: Path, *args: Any, **kwargs: Any) -> Any:
            if len(happened) == step:
                if name == "write_bytes":  # half of it
                    do(path, args[0][: len(args[0]) // 2])
                raise Killed
            happened.append(name)
            return do(path, *args, **kwargs)

        return instead

    for owner, name in ((Path, "unlink"), (Path, "write_bytes"), (Path, "replace"), (manifest, "_flush")):
        monkeypatch.setattr(owner, name, ending(name, getattr(owner, name)))
    order = ["unlink", "write_bytes", "_flush", "_flush", "_flush", "replace", "_flush"]
    if step >= len(order):
        manifest.write(finished, FILES)
    else:
        with pytest.raises(Killed):
            manifest.write(finished, FILES)
    assert happened == order[:step], "files reach the disk before the manifest does"
    assert manifest.is_complete(finished) is (step >= 6)
