"""The GPU or CPU that this process computes on, and how much memory it has and used."""

import gc
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate, takewhile
from pathlib import Path
from typing import NamedTuple

import psutil

from ftlib.errors import FtlibError

VISIBLE = "CUDA_VISIBLE_DEVICES"
QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits"]
OLDEST_DRIVER = {12: 525, 13: 580}  # for each major version of CUDA, from NVIDIA's page on compatibility
RECOMPILE_LIMIT = 64  # shapes that flex attention may be compiled for: training meets 6 to 8, and torch stops after 8


class InstalledGpu(NamedTuple):
    """A GPU as the driver reports it, with its memory in MiB, 0 if unknown. torch may not be able to use it."""

    name: str
    driver: str
    memory: int
    free: int


def installed_gpus() -> list[InstalledGpu]:
    """The GPUs that nvidia-smi reports; none without it."""
    try:
        listed = subprocess.run(QUERY, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in listed.splitlines()]
    return [InstalledGpu(row[0], row[1], *(int(mib) if mib.isdecimal() else 0 for mib in row[2:])) for row in rows]


def visible_gpus() -> list[str]:
    """The GPUs that CUDA shows this process, by index or id; without nvidia-smi torch is asked how many there are."""
    installed = len(installed_gpus())
    indices = [str(index) for index in range(installed or gpus())]
    names = [name.strip() for name in os.environ.get(VISIBLE, ",".join(indices)).split(",")]
    if not installed:
        return names[: len(indices)]
    # CUDA stops reading at the first name that is no GPU.
    return list(takewhile(lambda name: name in indices or name.startswith(("GPU-", "MIG-")), names))


def use_one_gpu() -> list[str]:
    """Leave this process the first of its GPUs, before Trainer spreads each batch over all; returns what there were."""
    found = visible_gpus()
    if len(found) > 1:
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            raise FtlibError("torch already uses several GPUs; restart the kernel and run start(...) first")
        os.environ[VISIBLE] = found[0]
    return found


def gpus() -> int:
    """How many CUDA GPUs torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def driver() -> tuple[str, str]:
    """The driver and torch's CUDA, in words; and what to do where torch cannot use a GPU, "" where it can."""
    import torch

    installed, cuda = installed_gpus(), torch.version.cuda
    version = installed[0].driver if installed else ""
    found = f"driver {version or 'none'}, torch {torch.__version__} for {f'CUDA {cuda}' if cuda else 'CPUs'}"
    if gpus():
        return found, ""
    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]), 0) if cuda else 0
    build = "`rm -r .venv && UV_TORCH_BACKEND={} make walkthrough`"
    if not installed:
        return found, "use a machine with an NVIDIA GPU and its driver, or rehearse with profile tiny"
    if not cuda:
        return found, f"install torch's CUDA build: {build.format('auto')}"
    if int(version.split(".")[0]) < oldest:
        in_a_job = "`make lock CUDA=cu126`, then `ftlib azure submit environment`"
        older = in_a_job if "AZUREML_RUN_ID" in os.environ else build.format("cu126")
        return found, f"CUDA {cuda} needs driver {oldest}: update it, or {older}"
    visible = os.environ.get(VISIBLE, "not set")
    return found, f"{VISIBLE} is {visible!r}; unset it, or name a GPU that `nvidia-smi` lists"


def compile_for_many_shapes() -> None:
    """Let flex attention fail where it is no longer compiled: it would keep every attention score in memory."""
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def describe(use_cpu: bool = False, count: int = 1) -> str:
    """Name what `count` processes compute on, such as "4 × NVIDIA A100 80GB PCIe" or "2 cores of AMD EPYC"."""
    if not use_cpu and gpus():
        import torch

        return f"{count} × {torch.cuda.get_device_name(0)}"
    cpuinfo = Path("/proc/cpuinfo")
    known = re.search(
        r"^model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else "", re.MULTILINE
    )
    return f"{os.cpu_count()} cores of {known[1] if known else platform.machine()}"


def memory_bytes(use_cpu: bool = False) -> int:
    """The memory to compute in: of one GPU or, without one or with `use_cpu`, of the machine."""
    if not use_cpu and gpus():
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


def peak_memory_bytes() -> int:
    """The most memory in use so far: torch's on this process's GPU if it used one, else this process's."""
    import torch

    on_gpu = torch.cuda.max_memory_reserved() if gpus() else 0
    if on_gpu or sys.platform == "win32":
        return int(on_gpu or psutil.Process().memory_info().peak_wset)
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024  # of macOS and of Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_above(work: Callable[[], object], use_cpu: bool = False) -> int:
    """The most memory that torch takes for tensors while `work` runs, above what it held before, in bytes."""
    import torch

    gc.collect()  # or garbage that is freed while the work runs would be taken off its peak
    if gpus() and not use_cpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    # On a CPU nobody keeps count, so the profiler's record of every allocation is added up.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it prints that it begins and ends
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(int(size) for _, size in changes))
