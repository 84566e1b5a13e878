"""What `ftlib doctor` also checks on the machine of an Azure ML job and on a compute instance."""

import os
import sys
from pathlib import Path

from ftlib.machine import OK, Check
from ftlib.session import device, storage

FILE_SHARE = Path("/home/azureuser/cloudfiles")


def rows() -> list[Check]:
    """What has to be right there; nothing on a machine that is not Azure ML's."""
    azures = "AZUREML_RUN_ID" in os.environ or "CI_NAME" in os.environ or FILE_SHARE.is_dir()
    return [_environment(), _free(), _cache()] if azures else []


def _environment() -> Check:
    """A compute instance's own kernels, called azureml_py…, lack our packages and come first in the menu."""
    name = Path(sys.prefix).name
    verdict = "choose the kernel 'Python (ftlib)'; ftlib/azureml/instance-setup.sh makes it"
    return Check("Azure environment", name, verdict if name.startswith("azureml_py") else OK)


def _free() -> Check:
    gpus = device.installed_gpus()
    share = min((gpu.free / gpu.memory for gpu in gpus if gpu.memory), default=1.0)
    busy = "another kernel or process holds memory: find it with `nvidia-smi` and shut it down"
    return Check("GPUs", f"{len(gpus)}, {share:.0%} of memory free", OK if share > 0.95 else busy)


def _cache() -> Check:
    """The Hub's downloads stall on a volume that is mounted over the network."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    verdict = (
        "set HF_HUB_CACHE to a folder on a local disk before the kernel starts: downloads stall on a mounted volume"
    )
    kind = storage.kind(cache) or "not known"
    return Check("cache of downloads", kind, verdict if storage.is_network(cache) else OK)
