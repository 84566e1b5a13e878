"""What `ftlib doctor` checks besides on the machine of an Azure ML job and on a compute instance."""

import os
import sys
from pathlib import Path

from ftlib.session import device, storage

OK = "ok"
FILE_SHARE = Path("/home/azureuser/cloudfiles")
Row = tuple[str, str, str]


def rows() -> list[Row]:
    """Check, found and verdict, which is "ok" or how to fix it; nothing on a machine that is not Azure ML's."""
    azures = "AZUREML_RUN_ID" in os.environ or "CI_NAME" in os.environ or FILE_SHARE.is_dir()
    return [_environment(), _free(), _cache()] if azures else []


def _environment() -> Row:
    """A compute instance's own kernels, called azureml_py…, lack our packages and come first in the menu."""
    name = Path(sys.prefix).name
    verdict = "choose the kernel 'Python (ftlib)'; ftlib/azureml/instance-setup.sh makes it"
    return "Azure environment", name, verdict if name.startswith("azureml_py") else OK


def _free() -> Row:
    gpus = device.installed_gpus()
    share = min((gpu.free / gpu.memory for gpu in gpus if gpu.memory), default=1.0)
    busy = "another kernel or process holds memory: find it with `nvidia-smi` and shut it down"
    return "GPUs", f"{len(gpus)}, {share:.0%} of memory free", OK if share > 0.95 else busy


def _cache() -> Row:
    """The Hub's downloads stall on a volume that is mounted over the network."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    verdict = (
        "set HF_HUB_CACHE to a folder on a local disk before the kernel starts: downloads stall on a mounted volume"
    )
    return "cache of downloads", storage.kind(cache) or "not known", verdict if storage.is_network(cache) else OK
