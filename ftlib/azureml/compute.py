"""What is looked at on an Azure ML job's machine or compute instance alone, for `ftlib doctor`."""

import os
import shutil
import sys
from pathlib import Path

from ftlib.session import device

OK = "ok"
FILE_SHARE = Path("/home/azureuser/cloudfiles")
TEMPORARY = Path("/tmp")
TEMPORARY_BYTES = 16e9
MOUNTS = Path("/proc/mounts")
MOUNTED = ("fuse", "cifs", "nfs")
Row = tuple[str, str, str]


def where() -> str:
    """On what of Azure ML's this runs: "job", "compute instance", or "" for neither."""
    if "AZUREML_RUN_ID" in os.environ:
        return "job"
    return "compute instance" if "CI_NAME" in os.environ or FILE_SHARE.is_dir() else ""


def rows() -> list[Row]:
    """Check, found and verdict, which is "ok" or how to mend it; none where this is not Azure ML's machine."""
    if not where():
        return []
    from huggingface_hub import constants

    return [_environment(), _free(), _temporary_disk(), _cache(Path(constants.HF_HUB_CACHE))]


def _environment() -> Row:
    """A compute instance's own kernels, called azureml_py…, lack our packages and come first in the menu."""
    name = Path(sys.prefix).name
    verdict = "choose the kernel 'Python (ftlib)'; `ftlib-setup` in a terminal makes it"
    return "Azure environment", f"{name}, on a {where()}", verdict if name.startswith("azureml_py") else OK


def _free() -> Row:
    gpus = device.installed_gpus()
    if not gpus:
        return "GPUs", "none", "use a GPU size; where Azure refuses it, ask for quota in the studio: it starts at 0"
    share = min((gpu.free / gpu.memory for gpu in gpus if gpu.memory), default=1.0)
    found = f"{len(gpus)}, {share:.0%} of memory free"
    busy = "another kernel or process holds memory: shut it down, `nvidia-smi` names it"
    return "GPUs", found, OK if share > 0.95 else busy


def _temporary_disk() -> Row:
    free = shutil.disk_usage(TEMPORARY).free
    verdict = f"make room for {TEMPORARY_BYTES / 1e9:.0f} GB of downloads, or take a size with a larger temporary disk"
    return "temporary disk", f"{free / 1e9:.0f} GB free", OK if free >= TEMPORARY_BYTES else verdict


def _cache(folder: Path) -> Row:
    """The Hub's downloads stall on a volume that is mounted over the network."""
    kind = _filesystem(folder)
    verdict = "set HF_HOME=/tmp/huggingface before the kernel starts: downloads stall on a mounted volume"
    return "cache of downloads", kind, verdict if kind.startswith(MOUNTED) else OK


def _filesystem(folder: Path) -> str:
    """The kind of the file system that holds a folder: the deepest mount above it."""
    mounts = [line.split()[1:3] for line in MOUNTS.read_text(encoding="utf-8").splitlines()]
    above = [(place, kind) for place, kind in mounts if folder.is_relative_to(place)]
    return max(above, key=lambda mount: len(mount[0]))[1]
