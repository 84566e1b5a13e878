"""Is this machine ready? One row for each thing that would go wrong later, with how to fix it."""

import os
import platform
import shutil
import sysconfig
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ftlib.errors import FtlibError
from ftlib.machine import OK, Check, azure, install, planner, workshop
from ftlib.machine.planner import gb
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.session import device, hub_client, storage
from ftlib.session.session import project_root

if TYPE_CHECKING:
    import pandas as pd


def report(profile: Profile, output_dir: Path, is_instructor: bool = False) -> "pd.DataFrame":
    """Look at everything that a run needs: columns check, found, and verdict, which is "ok" or what to do.

    For an instructor, also at what a room of learners needs.
    """
    import pandas as pd

    python = Check("Python", platform.python_version(), install.refusal() or OK)
    first = [python, _packages(), *azure.rows()]
    compute_rows = _compute(profile)
    ready = all(row.verdict == OK for row in compute_rows)  # or SFTConfig would say the same in other words
    needed = [*compute_rows, *([_arguments(profile)] * ready)]
    hub = _hub(profile)
    rows = [*first, *needed, *_room(profile, output_dir, hub[0].verdict), *hub]
    rows += list(workshop.rows()) if is_instructor else []
    return pd.DataFrame(rows, columns=list(Check._fields))


def check_disk(profile: Profile, output_dir: Path, exports: bool = False) -> None:
    """Raise an FtlibError if there is too little room for what a run will download and write, in notebook 6 as well."""
    for check in _disk(profile, output_dir, exports):
        if check.verdict != OK:
            raise FtlibError(f"{check.check}: found {check.found}, expected more; {check.verdict}")


def check_compute(profile: Profile) -> None:
    """Raise an FtlibError if the profile needs a GPU and torch finds none, or Triton would find no compiler."""
    for check in _compute(profile):
        if check.verdict != OK:
            raise FtlibError(f"profile {profile.name} computes on a GPU: found {check.found}; {check.verdict}")


def _packages() -> Check:
    """Compare what is installed with the lock; `==` ignores a build tag such as torch's "+cpu"."""
    lock = project_root() / install.LOCK
    if not lock.is_file():
        return Check("packages", f"no {install.LOCK} here", "run from the project's folder to compare versions")
    lines = [line.partition("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    pins = [pin for pin in map(Requirement, filter(None, lines)) if pin.marker is None or pin.marker.evaluate()]
    found: dict[str, str] = {canonicalize_name(package.name): package.version for package in distributions()}
    differing = [
        f"{pin.name} {found.get(pin.name, 'missing')}"
        for pin in pins
        if not pin.specifier.contains(found.get(pin.name, ""))
    ]
    if differing:
        named = ", ".join(differing[:5]) + (", …" if differing[5:] else "")
        return Check(
            "packages", f"{len(differing)} of {len(pins)} differ: {named}", f"run `pip install -r {install.LOCK}`"
        )
    return Check("packages", f"{len(pins)} as in {install.LOCK}", OK)


def _compute(profile: Profile) -> list[Check]:
    """What the profile computes on and, for a GPU, what its kernels are built with."""
    if profile.train.use_cpu:
        return [Check("device", device.describe(use_cpu=True), OK)]
    installed, (found, advice) = device.installed_gpus(), device.driver()
    named = f"{len(installed)} × {installed[0].name}" if installed else "no GPU"
    if not installed and device.gpus():  # as in a container without nvidia-smi
        named = device.describe(count=device.gpus())
    return [Check("device", f"{named}, {found}", advice or OK), _compiler()]


def _compiler() -> Check:
    """Triton, in which the loss is written, compiles a launcher for each kernel; if CC is set, with nothing else."""
    chosen = os.environ.get("CC")
    name = next(filter(shutil.which, ["gcc", "clang"] if chosen is None else [chosen]), None)
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    missing = "no C compiler" if chosen is None else f"CC={chosen!r}, which is no program"
    found = f"{name or missing}, {'with' if headers else 'without'} Python's headers"
    advice = "install both, as with `apt install build-essential python3-dev`"
    advice = advice if name or chosen is None else "unset CC, or let it name a program"
    return Check("C compiler", found, OK if name and headers else advice)


def _arguments(profile: Profile) -> Check:
    """Do the libraries take the profile's arguments here? Notebook 4 would find out after it has loaded the model."""
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig

    try:
        SFTConfig(**dict(profile.train), output_dir=os.devnull)
        LoraConfig(**dict(profile.lora))
        return Check("arguments", "as SFTConfig and LoraConfig take them", OK)
    except Exception as error:  # theirs are of many kinds
        return Check("arguments", f"{type(error).__name__} in [train] or [lora]", " ".join(str(error).split()))


def _room(profile: Profile, output_dir: Path, hub: str) -> list[Check]:
    """Memory and disk, by the model's config.json, which is not waited for where the Hub is out of reach."""
    try:
        if hub.startswith(hub_client.OUT_OF_REACH) and profile.hub.model not in architecture.PUBLISHED:
            raise FtlibError(hub)
        return [_memory(profile), *_disk(profile, output_dir, exports=True)]
    except FtlibError as error:  # of a model whose size is unknown, or that lacks a layer
        return [Check("memory and disk", "not known", str(error))]


def _memory(profile: Profile) -> Check:
    on_gpu, shape = not profile.train.use_cpu, architecture.shape_of(profile.hub)
    needed = sum(planner.memory(profile, shape, on_gpu).values())
    memory = device.memory_bytes(not on_gpu) if device.gpus() or not on_gpu else 0
    advice = f"training is planned to take {gb(needed)}; lower train.per_device_train_batch_size or train.max_length"
    return Check("memory", gb(memory) if memory else "no GPU", OK if memory >= needed else advice)


def _disk(profile: Profile, output_dir: Path, exports: bool) -> list[Check]:
    """Room for what is still to be downloaded and for what the run writes; on one volume, for the sum."""
    from huggingface_hub import constants

    cache = storage.rehearsal_cache(output_dir) if profile.hub.is_rehearsal else Path(constants.HF_HUB_CACHE)
    shape = architecture.shape_of(profile.hub)
    exported = exports * planner.export_bytes(profile, shape)
    written = planner.bytes_to_write(profile, shape) + exported
    uses = {
        "downloads": (_existing(cache), _to_download(profile), "set HF_HUB_CACHE to a folder on a larger local disk"),
        "outputs": (_existing(output_dir), written, "choose another --output-root"),
    }
    checks = []
    for what, (folder, _, otherwise) in uses.items():
        beside = {use: size for use, (other, size, _) in uses.items() if _volume(other) == _volume(folder)}
        usage, room = shutil.disk_usage(folder), sum(beside.values())
        verdict = f"make room for {gb(room)} of {' and '.join(beside)}, or {otherwise}"
        if exports and "outputs" in beside:
            verdict += f", or leave out notebook 6, which writes {gb(exported)}"
        # A volume that is mounted over the network may not know its size and say 0.
        verdict = verdict if usage.total and usage.free < room else OK
        found = f"{usage.free / 1e9:.1f} GB free" if usage.total else "not known"
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            found, verdict = f"none that may be written ({error.strerror})", f"change its permissions, or {otherwise}"
        checks.append(Check(f"disk for {what}", found, verdict))
    return checks


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _volume(folder: Path) -> int:
    return folder.stat().st_dev


def _to_download(profile: Profile) -> float:
    """Bytes of weights, at the pinned revision, that are not in the Hub's cache; its folders hold what nobody loads."""
    from huggingface_hub import constants, file_download

    repo = file_download.repo_folder_name(repo_id=profile.hub.model, repo_type="model")
    snapshot = Path(constants.HF_HUB_CACHE, repo, "snapshots", profile.hub.model_revision)
    cached = sum(path.stat().st_size for path in snapshot.glob("*.safetensors"))
    return max(0, architecture.bytes_on_disk(architecture.shape_of(profile.hub)) - cached)


def _hub(profile: Profile) -> list[Check]:
    """Does the Hub have the model and the data set, and may the adapter be pushed there?"""
    from huggingface_hub import HfApi

    hub, data = profile.hub, profile.data
    asked = {"model": (hub.model, hub.model_revision)}
    asked |= {"data set": (data.dataset, data.revision)} if data.revision else {}
    where = "a rehearsal Hub on this machine" if hub.endpoint == "rehearsal" else hub.endpoint
    checks = []
    for what, (repo, revision) in asked.items():
        kind = what.replace(" ", "")
        try:
            HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=hub_client.TIMEOUT_S)
            checks.append(Check(what, f"{repo}, {where}", OK))
        except Exception as error:  # whatever the network does, it is a row and not a traceback
            said = hub_client.explain(error) or f"it cannot be used ({type(error).__name__}); check the network"
            checks.append(Check(what, f"{repo}, {where}", said))
            if said.startswith(hub_client.OUT_OF_REACH):  # the next question would wait as long again
                return checks
    try:
        return [*checks, Check("push target", hub_client.check_access(hub), OK)]
    except FtlibError as error:
        return [*checks, Check("push target", hub.push_target, str(error))]
