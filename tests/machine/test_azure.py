"""On Azure ML's machines the doctor checks more, and elsewhere it does not."""

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from huggingface_hub import constants

from ftlib.machine import azure as azure_machine
from ftlib.session import device
from ftlib.session.device import InstalledGpu

FREE, BUSY = InstalledGpu("A100", "580", 81920, 81000), InstalledGpu("A100", "580", 81920, 40000)
MOUNTS = [
    SimpleNamespace(mountpoint=place, fstype=kind)
    for place, kind in {"/": "ext4", "/mnt/run": "fuse", "/mnt/share": "cifs"}.items()
]


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A job's machine with four A100s, as it should be; a test may change it."""
    monkeypatch.setenv("AZUREML_RUN_ID", "brave")
    monkeypatch.delenv("CI_NAME", raising=False)
    monkeypatch.setattr(azure_machine, "FILE_SHARE", tmp_path / "none")
    monkeypatch.setattr(sys, "prefix", "/azureml-envs/azureml_0a1b")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/tmp/huggingface/hub")
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: MOUNTS)
    monkeypatch.setattr(device, "installed_gpus", lambda: [FREE] * 4)
    return monkeypatch


def test_only_azures_machines_get_rows(azure: pytest.MonkeyPatch) -> None:
    assert azure_machine.rows() == [
        ("Azure environment", "azureml_0a1b", "ok"),
        ("GPUs", "4, 99% of memory free", "ok"),
        ("cache of downloads", "ext4", "ok"),
    ]
    azure.delenv("AZUREML_RUN_ID")
    assert azure_machine.rows() == []


def test_what_is_wrong_is_named_on_an_instance_known_by_its_file_share(
    azure: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    azure.delenv("AZUREML_RUN_ID")
    azure.setattr(azure_machine, "FILE_SHARE", tmp_path)
    azure.setattr(sys, "prefix", "/anaconda/envs/azureml_py310_sdkv2")
    azure.setattr(device, "installed_gpus", lambda: [FREE, BUSY])
    azure.setattr(constants, "HF_HUB_CACHE", "/mnt/share/hf/hub")
    environment, gpus, cache = azure_machine.rows()
    assert environment[2].startswith("choose the kernel 'Python (ftlib)'")
    assert gpus[1:] == ("2, 49% of memory free", gpus[2])
    assert gpus[2].startswith("another kernel")
    assert cache[1:] == ("cifs", cache[2])
    assert cache[2].startswith("set HF_HUB_CACHE to a folder on a local disk before")
