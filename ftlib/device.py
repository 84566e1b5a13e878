"""What the notebooks compute on, and how much memory they took."""

import os
import platform
import resource
from pathlib import Path


def gpus() -> int:
    """How many CUDA GPUs torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def describe(use_cpu: bool = False) -> str:
    """Name the processor in a few words, such as "4 × NVIDIA A100 80GB PCIe" or "2 cores of AMD EPYC".

    Args:
        use_cpu: name the CPU even where there is a GPU, as for a profile that leaves it idle.
    """
    import torch

    if gpus() and not use_cpu:
        return f"{gpus()} × {torch.cuda.get_device_name(0)}"
    return f"{os.cpu_count()} cores of {_processor()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_bytes(use_cpu: bool = False) -> int:
    """Memory to compute in: of one GPU where there is one, else, or with `use_cpu`, of the machine."""
    import torch

    if gpus() and not use_cpu:
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory_bytes() -> int:
    """The most memory that was in use so far: torch's on this process's GPU if it used one, else this process's."""
    import torch

    on_gpu = torch.cuda.max_memory_allocated() if gpus() else 0
    return on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
