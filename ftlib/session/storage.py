"""Where files lie: on this machine's own disk, or on a volume that is mounted over a network, such as Azure ML's."""

import os
from pathlib import Path

SCRATCH = Path("/mnt/ftlib")  # on a compute instance's temporary disk; instance-setup.sh makes it
NETWORK = ("fuse", "cifs", "nfs", "nfs4", "smb3", "smbfs")


def kind(folder: Path) -> str:
    """The file system of the volume that holds a folder, such as "ext4" or "cifs"; "" if it is not known."""
    import psutil

    holding = [found for found in psutil.disk_partitions(all=True) if folder.is_relative_to(found.mountpoint)]
    return max(holding, key=lambda found: len(found.mountpoint)).fstype if holding else ""


def is_network(folder: Path) -> bool:
    """Whether a folder lies on a mounted volume: it may know no free space, no locks and no shared memory."""
    return kind(folder.resolve()).partition(".")[0] in NETWORK


def has_scratch() -> bool:
    """Whether this machine has a temporary disk that has been prepared for downloads."""
    return os.access(SCRATCH, os.W_OK)


def rehearsal_cache(output_dir: Path) -> Path:
    """Where a rehearsal keeps its downloads: with the outputs, or on a local disk where a mount would refuse them."""
    if not is_network(output_dir):
        return output_dir / "huggingface"
    return (SCRATCH if has_scratch() else Path.home() / ".cache/ftlib") / "rehearsal"
