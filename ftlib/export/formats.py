"""Writes a merged model as MXFP4, as the base was published, and as GGUF, for llama.cpp and what is built on it."""

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ftlib.errors import FtlibError
from ftlib.rehearsal import mxfp4
from ftlib.session import manifest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# By the converter's names; auto: as the folder has it, so MXFP4 stays MXFP4.
GGUF_TYPES = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "auto": "GUESSED"}
PACKED = ("_blocks", "_scales")


@contextlib.contextmanager
def replacing(folder: Path, size: float) -> Iterator[Path]:
    """Yield a folder to write `size` bytes into; at the end, sealed with checksums, it replaces `folder`.

    A kill before that leaves what was there. An FtlibError says that the disk has too little room.
    """
    with _alone(folder):
        unfinished, earlier = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.old")
        if earlier.exists() and not folder.exists():  # a kill came between the two renames below
            earlier.rename(folder)
        for left in (unfinished, earlier):
            shutil.rmtree(left, ignore_errors=True)
        _check_room(folder, size)
        unfinished.mkdir()
        yield unfinished
        manifest.write(unfinished, [path.name for path in unfinished.iterdir()])
        if folder.exists():
            folder.rename(earlier)
        unfinished.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)


def _check_room(target: Path, size: float) -> None:
    disk = shutil.disk_usage(target.parent)
    if disk.total and disk.free < size:  # a mounted volume may know no sizes
        found = f"{target.name} takes {size / 1e9:.1f} GB, and the disk has {disk.free / 1e9:.1f} GB free"
        raise FtlibError(f"{found}; make room, or name another output_root")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep others from writing beside a file or folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FtlibError(f"another process is writing to {target.parent.name}/; wait until it has ended") from None
    try:
        yield
    finally:
        lock.release()


def save_mxfp4(merged: "PreTrainedModel", base: Path, adapted: list[str], folder: Path) -> None:
    """Write a merged model in the layout of the base that it came from, whose experts are packed in MXFP4.

    What no adapter changed keeps the base's own bytes, so nothing is rounded twice. Tensors are packed expert by expert
    on their own device, and one file of the base is in memory at a time.

    Args:
        merged: the model after `merge_and_unload`, unpacked.
        base: the folder of the base's snapshot.
        adapted: the expert tensors that the adapter trained, such as "1.mlp.experts.gate_up_proj".
        folder: where the files go, with the names that the base's have.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    changed, packed = {f"model.layers.{name}" for name in adapted}, set()
    tensors = merged.state_dict()
    for source in sorted(base.glob("*.safetensors")):
        written: dict[str, torch.Tensor] = {}
        with safe_open(source, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # the file is not a mapping
                stem = name.removesuffix(PACKED[0]).removesuffix(PACKED[1])
                if stem == name:
                    kept = file.get_slice(name).get_dtype()
                    written[name] = tensors[name].to("cpu", _dtype(kept)).contiguous()
                elif stem not in changed:
                    written[name] = file.get_tensor(name)
                elif stem not in packed:
                    packed.add(stem)
                    written |= dict(zip((stem + ending for ending in PACKED), _pack(tensors[stem]), strict=True))
        save_file(written, folder / source.name, metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        if (base / name).is_file():
            shutil.copy(base / name, folder)


def _dtype(name: str) -> "torch.dtype":
    import torch

    return {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[name]


def _pack(weight: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    parts = [mxfp4.pack(expert.unsqueeze(0)) for expert in weight]
    blocks, scales = (torch.cat([part[index].cpu() for part in parts]) for index in (0, 1))
    return blocks, scales


@contextlib.contextmanager
def converting(folder: Path, file: Path, kind: str) -> Iterator[Path]:
    """Convert a folder to one GGUF file, with llama.cpp's own converter, and yield it; at the end it replaces `file`.

    Args:
        folder: a model, unpacked or in MXFP4, with its tokenizer.
        file: what is written, whole or not at all.
        kind: one of `GGUF_TYPES`.
    """
    import gguf
    import torch
    from conversion import get_model_class
    from conversion.base import TextModel

    if kind not in GGUF_TYPES:
        raise FtlibError(f"found GGUF type {kind!r}, expected one of {', '.join(GGUF_TYPES)}")
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    unfinished = file.with_name(f"{file.name}.part")
    size = sum(shard.stat().st_size for shard in folder.glob("*.safetensors"))
    with _alone(file):
        unfinished.unlink(missing_ok=True)  # of a run that was killed
        _check_room(file, size)
        try:
            with _quiet_converter(TextModel), torch.inference_mode():
                converter: Any = get_model_class(architecture)
                converter(folder, getattr(gguf.LlamaFileType, GGUF_TYPES[kind]), unfinished).write()
            yield unfinished
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet_converter(text_model: Any) -> Iterator[None]:
    """Keep the converter quiet, and let it take the rehearsal's tokenizer, which it does not know, for GPT-2's.

    Both are byte-level BPE.
    """
    known, level = text_model.get_vocab_base_pre, logging.root.manager.disable

    def find(model: Any, tokenizer: Any) -> str:
        try:
            return str(known(model, tokenizer))
        except NotImplementedError:
            return "gpt-2"

    logging.disable(logging.WARNING)
    text_model.get_vocab_base_pre = find
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            yield
    finally:
        text_model.get_vocab_base_pre = known
        logging.disable(level)
