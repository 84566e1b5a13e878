"""On Azure ML's machines the doctor looks at more, each row with its mend, and elsewhere at nothing of it."""

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from ftlib import profiles
from ftlib.azureml import compute
from ftlib.machine import doctor
from ftlib.session import device

Usage = namedtuple("Usage", "total used free")
A100 = "NVIDIA A100 80GB PCIe, 580.95.05, 81920, 81000"
MOUNTS = """/dev/root / ext4 rw 0 0
tmpfs /dev tmpfs rw 0 0
blobfuse2 /mnt/run fuse rw 0 0
//s/code /mnt/share cifs rw 0 0
"""


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A job's machine with four A100s, as it should be; a test may change it."""
    monkeypatch.setenv("AZUREML_RUN_ID", "brave")
    monkeypatch.setattr(compute, "FILE_SHARE", tmp_path / "none")
    monkeypatch.setattr(sys, "prefix", "/azureml-envs/azureml_0a1b")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(256e9, 56e9, 200e9))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/tmp/huggingface/hub")
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.setattr(compute, "MOUNTS", tmp_path / "mounts")
    listed(monkeypatch, *[A100] * 4)
    return monkeypatch


def listed(monkeypatch: pytest.MonkeyPatch, *gpus: str) -> None:
    """What nvidia-smi says."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="".join(f"{gpu}\n" for gpu in gpus)))


def found() -> dict[str, tuple[str, str]]:
    return {check: (said, verdict) for check, said, verdict in compute.rows()}


def test_a_machine_as_it_should_be_is_ok(azure: pytest.MonkeyPatch) -> None:
    assert found() == {
        "Azure environment": ("azureml_0a1b, on a job", "ok"),
        "GPUs": ("4, 99% of memory free", "ok"),
        "temporary disk": ("200 GB free", "ok"),
        "cache of downloads": ("ext4", "ok"),
    }


def test_elsewhere_nothing_of_it_is_looked_at(azure: pytest.MonkeyPatch) -> None:
    azure.delenv("AZUREML_RUN_ID")
    azure.delenv("CI_NAME", raising=False)
    assert compute.rows() == []


def test_a_compute_instance_is_known_without_the_shells_variables(azure: pytest.MonkeyPatch, tmp_path: Path) -> None:
    azure.delenv("AZUREML_RUN_ID")
    azure.delenv("CI_NAME", raising=False)
    azure.setattr(compute, "FILE_SHARE", tmp_path)
    azure.setattr(sys, "prefix", "/anaconda/envs/azureml_py310_sdkv2")
    said, verdict = found()["Azure environment"]
    assert said == "azureml_py310_sdkv2, on a compute instance"
    assert verdict.startswith("choose the kernel 'Python (ftlib)'")


def test_a_busy_gpu_is_named(azure: pytest.MonkeyPatch) -> None:
    listed(azure, A100, "NVIDIA A100 80GB PCIe, 580.95.05, 81920, 40000")
    said, verdict = found()["GPUs"]
    assert said == "2, 49% of memory free"
    assert verdict.startswith("another kernel or process holds memory")


def test_without_gpus_the_quota_is_hinted_at(azure: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    azure.setattr(subprocess, "run", missing)
    assert found()["GPUs"] == (
        "none",
        "use a GPU size; where Azure refuses it, ask for quota in the studio: it starts at 0",
    )


def test_a_small_disk_and_a_mounted_cache_are_named(azure: pytest.MonkeyPatch) -> None:
    azure.setattr(shutil, "disk_usage", lambda folder: Usage(64e9, 54e9, 10e9))
    assert found()["temporary disk"][1].startswith("make room for 16 GB of downloads")
    for folder, kind in (("/mnt/run/huggingface", "fuse"), ("/mnt/share/hf/hub", "cifs")):
        azure.setattr(constants, "HF_HUB_CACHE", folder)
        said, verdict = found()["cache of downloads"]
        assert (said, verdict.split(" before")[0]) == (kind, "set HF_HOME=/tmp/huggingface")


def test_the_doctor_shows_these_rows(azure: pytest.MonkeyPatch, tmp_path: Path) -> None:
    azure.setenv("HF_TOKEN", "")
    azure.setattr(device, "gpus", lambda: 0)
    frame = doctor.report(profiles.load("tiny"), tmp_path)
    assert {"Azure environment", "GPUs", "temporary disk", "cache of downloads"} <= set(frame["check"])
