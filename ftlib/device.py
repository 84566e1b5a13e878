"""What the notebooks compute on, and how much memory they took."""

import gc
import os
import platform
import resource
from collections.abc import Callable
from itertools import accumulate
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


def peak_above(work: Callable[[], object], use_cpu: bool = False) -> int:
    """The most memory that torch takes for tensors while something runs, above what it held before, in bytes.

    On a GPU torch's allocator keeps count. On a CPU nobody does, so its profiler's record of every allocation is added
    up, which slows the work down a little and is exact: the same work gives the same number.

    Args:
        work: what to run.
        use_cpu: look at the CPU's memory even where there is a GPU.
    """
    import torch

    gc.collect()  # or what is garbage by now may be freed while the work runs, and would be taken off its peak
    if gpus() and not use_cpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells the terminal that it begins and ends
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(int(size) for _, size in changes))
