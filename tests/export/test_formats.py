"""What is written: the base's own bytes where nothing was trained, whole files or none, and what was there stays."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from export.conftest import Merged
from safetensors.torch import load_file

from ftlib.errors import FtlibError
from ftlib.export import formats
from ftlib.rehearsal import ASSETS, mxfp4
from ftlib.session import manifest


def test_mxfp4_keeps_the_bases_bytes_and_packs_what_was_adapted(exported: Path, merged: Merged) -> None:
    base, written = (load_file(path / "model.safetensors") for path in (ASSETS / "model", exported / "mxfp4"))
    assert {name: tensor.dtype for name, tensor in written.items()} == {name: base[name].dtype for name in base}
    packed = {name for name in base if name.endswith(("_blocks", "_scales"))}
    changed = {name for name in packed if not torch.equal(base[name], written[name])}
    adapted = {f"model.layers.{name}" for name in merged.adapted}
    assert changed
    assert {name.rpartition("_")[0] for name in changed} == adapted
    for name in adapted:
        weight = merged.model.state_dict()[name]
        unpacked = mxfp4.unpack(written[f"{name}_blocks"], written[f"{name}_scales"])
        assert (unpacked - weight).norm() < 0.15 * weight.norm()


def test_gguf_is_written_whole_or_not_at_all(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(FtlibError, match=r"^found GGUF type 'q5', expected one of f32, bf16, q8_0, auto$"):
        convert(exported / "merged", file, "q5")
    with monkeypatch.context() as patched:
        patched.setattr("gguf.GGUFWriter.write_tensors_to_file", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(exported / "merged", file, "q8_0")
    with pytest.raises(FtlibError, match="refused"):
        convert(exported / "merged", file, "q8_0", check=Mock(side_effect=FtlibError("refused")))
    assert list(tmp_path.iterdir()) == []
    convert(exported / "merged", file, "q8_0")
    assert file.read_bytes()[:4] == b"GGUF"
    assert capfd.readouterr() == ("", "")


def convert(folder: Path, file: Path, kind: str, check: Callable[[Path], object] = id) -> None:
    with formats.converting(folder, file, kind) as unfinished:
        check(unfinished)


def write(folder: Path, text: str, size: float = 1) -> None:
    with formats.replacing(folder, size) as unfinished:
        (unfinished / "weights").write_text(text)


@pytest.mark.parametrize("moment", ["writing", "sealing", "first rename", "second rename", "clearing up"])
def test_kill_at_any_moment_loses_nothing_that_was_finished(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "merged"
    write(folder, "first")
    renames = iter(["first rename", "second rename"])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        rename, remove = Path.rename, shutil.rmtree
        patched.setattr(Path, "rename", lambda path, to: killed() if next(renames) == moment else rename(path, to))
        if moment == "sealing":
            patched.setattr(manifest, "write", killed)
        if moment == "clearing up":
            patched.setattr(shutil, "rmtree", lambda path, **_: killed() if path.exists() else remove(path, **_))
        if moment == "writing":
            patched.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            write(folder, "second")
    found = [path for path in (folder, folder.with_name("merged.old")) if manifest.is_complete(path)]
    assert (found[0] / "weights").read_text() == ("second" if moment == "clearing up" else "first")
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write", killed)  # killed once more, at the next attempt
        with pytest.raises(KeyboardInterrupt):
            write(folder, "third")
    assert manifest.is_complete(folder)
    write(folder, "fourth")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (folder / "weights").read_text() == "fourth"


def test_two_exports_do_not_write_at_once(tmp_path: Path) -> None:
    with (
        formats.replacing(tmp_path / "export/merged", 1),
        pytest.raises(FtlibError, match=r"^another process is writing to export/; wait until it has ended$"),
    ):
        write(tmp_path / "export/mxfp4", "")


def test_a_file_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GptOssForCausalLM"]}')
    with formats.replacing(tmp_path / "export/merged", 1):
        (tmp_path / "export/q8_0.gguf.part").touch()
        with (
            pytest.raises(FtlibError, match=r"^another process"),
            formats.converting(tmp_path, tmp_path / "export/q8_0.gguf", "q8_0"),
        ):
            pass
        assert (tmp_path / "export/q8_0.gguf.part").exists()


def test_what_a_killed_export_left_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "merged.part"
    left.mkdir()
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: SimpleNamespace(total=10**12, free=1e9 if left.exists() else 50e9)
    )
    write(tmp_path / "merged", "", 42e9)


def test_too_small_a_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10**12, free=10**9))
    with pytest.raises(FtlibError, match=r"^merged takes 42\.0 GB, and the disk has 1\.0 GB free; make room"):
        write(tmp_path / "merged", "", 42e9)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=0, free=0))
    write(tmp_path / "merged", "on Azure's mount, which knows no sizes", 42e9)
