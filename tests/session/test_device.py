"""Which GPUs a process is left with."""

import os
from pathlib import Path

import pytest
import torch

from ftlib.errors import FtlibError
from ftlib.session import device
from ftlib.session.device import InstalledGpu


@pytest.mark.parametrize(
    ("variable", "found", "left"),
    [
        ("0,1,2,3", ["0", "1", "2", "3"], "0"),
        ("2,3", ["2", "3"], "2"),
        ("GPU-8a,GPU-9b,-1,0", ["GPU-8a", "GPU-9b"], "GPU-8a"),
        ("", [], ""),
        ("7", [], "7"),
        ("-1,0", [], "-1,0"),
    ],
)
def test_a_process_is_left_one_of_the_gpus_that_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, found: list[str], left: str
) -> None:
    program = tmp_path / "nvidia-smi"
    row = "NVIDIA A100 80GB PCIe, 580.95.05, 81920, [N/A]"
    program.write_text(f"#!/bin/sh\nfor gpu in 0 1 2 3; do echo '{row}'; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + ":" + os.environ["PATH"])
    monkeypatch.setenv(device.VISIBLE, variable)
    assert device.installed_gpus()[0] == InstalledGpu("NVIDIA A100 80GB PCIe", "580.95.05", 81920, 0)
    assert device.use_one_gpu() == found
    assert os.environ[device.VISIBLE] == left


def test_without_nvidia_smi_torch_knows_how_many_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "installed_gpus", list)
    monkeypatch.setattr(device, "gpus", lambda: 2)
    monkeypatch.setenv(device.VISIBLE, "2,3")
    assert device.use_one_gpu() == ["2", "3"]


def test_it_is_too_late_once_torch_uses_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(FtlibError, match=r"torch already uses several GPUs; restart the kernel"):
        device.use_one_gpu()
