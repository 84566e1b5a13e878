"""Is this machine ready? A row for each thing that would go wrong later, with how to fix it."""

import os
import shutil
import sys
import sysconfig
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import Requirement

from ftlib.azureml import compute
from ftlib.errors import FtlibError
from ftlib.machine import planner
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.session import device, hub_client
from ftlib.session.session import project_root

if TYPE_CHECKING:
    import pandas as pd

OK = "ok"
LOCK = "requirements.lock"


class Check(NamedTuple):
    """One thing that was looked at."""

    check: str
    found: str
    verdict: str


def report(profile: Profile, output_dir: Path) -> "pd.DataFrame":
    """Look at everything that the walkthrough needs; never asks, never raises for a machine that is not ready.

    Args:
        profile: what would be run.
        output_dir: where the run would write.

    Returns:
        Columns check, found and verdict, which is "ok" or what to do.
    """
    import pandas as pd

    checks = [
        _python(),
        _packages(),
        *(Check(*row) for row in compute.rows()),
        *_compute(profile),
        *([_flex_attention()] if profile.model.attn_implementation == "flex_attention" else []),
        _memory(profile),
        *_disk(profile, output_dir),
        _hub(profile),
        *_token(profile),
    ]
    return pd.DataFrame(checks, columns=list(Check._fields))


def check_disk(profile: Profile, output_dir: Path) -> None:
    """Make sure, before anything starts, that there is room for what a run will download and write.

    Args:
        profile: what will be run.
        output_dir: where the run will write.

    Raises:
        FtlibError: a volume has too little room: how much, and for how much it must have.
    """
    for check in _disk(profile, output_dir):
        if check.verdict != OK:
            raise FtlibError(f"{check.check}: found {check.found}, expected more; {check.verdict}")


def check_compute(profile: Profile) -> None:
    """Make sure, before anything is downloaded, that there is what the profile computes on.

    Raises:
        FtlibError: the profile wants a GPU and torch finds none, or Triton would find no compiler.
    """
    for check in _compute(profile):
        if check.verdict != OK:
            raise FtlibError(f"profile {profile.name} computes on a GPU: found {check.found}; {check.verdict}")


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", found, OK if sys.version_info >= (3, 11) else "install Python 3.11 or later")


def _packages() -> Check:
    """Compare what is installed with the lock; `==` overlooks a build tag such as torch's "+cpu"."""
    lock = project_root() / LOCK
    if not lock.is_file():
        return Check("packages", f"no {LOCK} here", "run from the project's folder to compare versions")
    lines = [line.partition("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    pins = [Requirement(line) for line in lines if line]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    installed = {pin: _installed(pin.name) for pin in here}
    differing = [f"{pin.name} {found or 'missing'}" for pin, found in installed.items() if not _fits(pin, found)]
    if differing:
        named = ", ".join(differing[:5]) + (", …" if differing[5:] else "")
        return Check("packages", f"{len(differing)} of {len(here)} differ: {named}", f"run `pip install -r {LOCK}`")
    return Check("packages", f"{len(here)} as in {LOCK}", OK)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _fits(pin: Requirement, found: str | None) -> bool:
    return found is not None and pin.specifier.contains(found)


def _compute(profile: Profile) -> list[Check]:
    """What the profile computes on and, for a GPU, what its kernels are built with."""
    if profile.train.use_cpu:
        return [Check("device", device.describe(use_cpu=True), OK)]
    return [_gpu(), _compiler()]


def _gpu() -> Check:
    installed, (found, advice) = device.installed_gpus(), device.driver()
    named = f"{len(installed)} × {installed[0].name}" if installed else "no GPU"
    if not installed and device.gpus():  # as in a container without nvidia-smi
        named = device.describe(count=device.gpus())
    return Check("device", f"{named}, {found}", advice or OK)


def _compiler() -> Check:
    """Triton, which the loss is written in, compiles a launcher for each of its kernels."""
    name = next((name for name in (os.environ.get("CC"), "gcc", "clang") if name and shutil.which(name)), None)
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    found = f"{name or 'no C compiler'}, {'with' if headers else 'without'} Python's headers"
    advice = "install both, as with `apt install build-essential python3-dev`"
    return Check("C compiler", found, OK if name and headers else advice)


def _flex_attention() -> Check:
    from torch._dynamo import config

    ready = config.fail_on_recompile_limit_hit and config.recompile_limit >= device.RECOMPILE_LIMIT
    found = f"compiled for up to {config.recompile_limit} shapes"
    return Check("flex attention", found, OK if ready else "run start(profile) first: it raises the limit")


def _memory(profile: Profile) -> Check:
    shape, batch = architecture.shape_of(profile.hub), planner.Batch.of(profile)
    needed = sum(planner.memory(profile, shape, batch, on_gpu=not profile.train.use_cpu).values())
    if not profile.train.use_cpu and not device.gpus():
        return Check("memory", "no GPU", f"training is planned to take {_gb(needed)} of a GPU's memory")
    memory = device.memory_bytes(profile.train.use_cpu)
    advice = (
        f"training is planned to take {_gb(needed)}; first lower train.per_device_train_batch_size and train.max_length"
    )
    return Check("memory", _gb(memory), OK if memory >= needed else advice)


def _disk(profile: Profile, output_dir: Path) -> list[Check]:
    """Room for what is still to be downloaded and for what the run writes; where both go to one volume, for the sum."""
    from huggingface_hub import constants

    # A rehearsal keeps its downloads among its outputs.
    cache = output_dir if profile.hub.endpoint == "rehearsal" else Path(constants.HF_HUB_CACHE)
    folders = {"downloads": _existing(cache), "outputs": _existing(output_dir)}
    shape = architecture.shape_of(profile.hub)
    needed = {"downloads": _to_download(profile), "outputs": planner.bytes_to_write(profile, shape)}
    otherwise = {
        "downloads": "or set HF_HOME to a larger local disk",
        "outputs": "or name another place with --output-root",
    }
    checks = []
    for what, folder in folders.items():
        beside = [other for other in folders if _volume(folders[other]) == _volume(folder)]
        room, free = sum(needed[other] for other in beside), shutil.disk_usage(folder).free
        verdict = f"make room for {_gb(room)} of {' and '.join(beside)}, {otherwise[what]}"
        checks.append(Check(f"disk for {what}", f"{_gb(free)} free", OK if free >= room else verdict))
    return checks


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _volume(folder: Path) -> int:
    return folder.stat().st_dev


def _to_download(profile: Profile) -> float:
    """Bytes of the model that are not in the cache: by its files on the Hub, where that can be asked."""
    from huggingface_hub import HfApi, constants

    hub = profile.hub
    size = architecture.bytes_on_disk(architecture.shape_of(hub))
    if hub.endpoint == constants.ENDPOINT:
        try:
            info = HfApi().model_info(
                hub.model, revision=hub.model_revision, files_metadata=True, timeout=hub_client.TIMEOUT_S
            )
            # transformers loads what is at the top; the same weights lie in folders once more, for other programs.
            size = sum(file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename)
        except Exception:  # the row about the Hub says why
            pass
    return max(0, size - _downloaded(hub.model, hub.model_revision))


def _downloaded(model: str, revision: str) -> int:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = [repo for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos if repo.repo_id == model]
    except CacheNotFound:
        return 0
    return sum(found.size_on_disk for repo in cached for found in repo.revisions if found.commit_hash == revision)


def _gb(size: float) -> str:
    return f"{size / 1e9:.{0 if size >= 10e9 else 1}f} GB"


def _hub(profile: Profile) -> Check:
    """Is the Hub there, and does it have the model?"""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = profile.hub
    where = "a rehearsal Hub on this machine" if hub.endpoint == "rehearsal" else hub.endpoint
    try:
        HfApi().model_info(hub.model, revision=hub.model_revision, timeout=hub_client.TIMEOUT_S)
    except HfHubHTTPError as error:
        found = f"{where} answers {error.response.status_code} for {hub.model}"
        return Check("Hub", found, "check hub.model and hub.model_revision, and that your token may read it")
    except Exception as error:  # whatever the network does, it is a row and not a traceback
        found = f"{where} is out of reach ({type(error).__name__})"
        return Check("Hub", found, "check the network and the proxy, or rehearse with profile tiny")
    return Check("Hub", where, OK)


def _token(profile: Profile) -> list[Check]:
    """Whose is the token, and may it write to the push target?"""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if not token:
        return [Check("token", "none", f"{hub_client.LOG_IN}, before notebook 4")]
    try:
        account = hub_client.whoami(token)
    except HfHubHTTPError as error:
        found = f"found; the Hub answers {error.response.status_code} to it"
        return [Check("token", found, "run `hf auth login` with a new one")]
    except Exception:  # the row about the Hub says why
        return [Check("token", "found", "it can be checked once the Hub is within reach")]
    target = hub_client.target(profile.hub, account)
    verdict = OK if hub_client.may_write(account, target) else hub_client.ADVICE[HTTPStatus.FORBIDDEN]
    return [Check("token", f"of account {account['name']}", OK), Check("push target", target, verdict)]
