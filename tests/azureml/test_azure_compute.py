"""On Azure ML's machines the doctor checks more, and elsewhere it does not."""

import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from ftlib.azureml import compute
from ftlib.session import device
from ftlib.session.device import InstalledGpu

FREE, BUSY = InstalledGpu("A100", "580", 81920, 81000), InstalledGpu("A100", "580", 81920, 40000)
MOUNTS = "/dev/root / ext4 rw 0 0\nblobfuse2 /mnt/run fuse rw 0 0\n//s/code /mnt/share cifs rw 0 0\n"


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A job's machine with four A100s, as it should be; a test may change it."""
    monkeypatch.setenv("AZUREML_RUN_ID", "brave")
    monkeypatch.delenv("CI_NAME", raising=False)
    monkeypatch.setattr(compute, "FILE_SHARE", tmp_path / "none")
    monkeypatch.setattr(sys, "prefix", "/azureml-envs/azureml_0a1b")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/tmp/huggingface/hub")
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.setattr(compute, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(device, "installed_gpus", lambda: [FREE] * 4)
    return monkeypatch


def found() -> dict[str, tuple[str, str]]:
    return {check: (said, verdict) for check, said, verdict in compute.rows()}


def test_machine_as_it_should_be_is_ok(azure: pytest.MonkeyPatch) -> None:
    assert found() == {
        "Azure environment": ("azureml_0a1b", "ok"),
        "GPUs": ("4, 99% of memory free", "ok"),
        "cache of downloads": ("ext4", "ok"),
    }


def test_other_machines_get_no_rows(azure: pytest.MonkeyPatch) -> None:
    azure.delenv("AZUREML_RUN_ID")
    assert compute.rows() == []


def test_compute_instance_is_known_without_the_shells_variables(azure: pytest.MonkeyPatch, tmp_path: Path) -> None:
    azure.delenv("AZUREML_RUN_ID")
    azure.setattr(compute, "FILE_SHARE", tmp_path)
    azure.setattr(sys, "prefix", "/anaconda/envs/azureml_py310_sdkv2")
    assert found()["Azure environment"][1].startswith("choose the kernel 'Python (ftlib)'")


def test_busy_gpus_are_named(azure: pytest.MonkeyPatch) -> None:
    azure.setattr(device, "installed_gpus", lambda: [FREE, BUSY])
    said, verdict = found()["GPUs"]
    assert said == "2, 49% of memory free"
    assert verdict.startswith("another kernel")


@pytest.mark.parametrize(("folder", "kind"), [("/mnt/run/huggingface", "fuse"), ("/mnt/share/hf/hub", "cifs")])
def test_cache_on_a_mounted_volume_is_named(azure: pytest.MonkeyPatch, folder: str, kind: str) -> None:
    azure.setattr(constants, "HF_HUB_CACHE", folder)
    said, verdict = found()["cache of downloads"]
    assert (said, verdict.split(" before")[0]) == (kind, "set HF_HOME=/tmp/huggingface")
