"""Is this machine ready? A row for each thing that would go wrong later, with how to mend it."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import Requirement

from ftlib import device
from ftlib.profiles import Profile
from ftlib.session import project_root

if TYPE_CHECKING:
    import pandas as pd

OK = "ok"
LOCK = "requirements.lock"
# The checkpoint as downloaded and the unpacked copy in memory, in bytes. 20B: 13.8 GB on disk and 42 GB in bfloat16.
NEEDS = {"bfloat16": (30e9, 48e9), "float32": (1e9, 2e9)}


class Check(NamedTuple):
    """One thing that was looked at."""

    check: str
    found: str
    verdict: str


def report(profile: Profile) -> "pd.DataFrame":
    """Look at everything that the walkthrough needs; never asks, never raises for a machine that is not ready.

    Returns:
        Columns check, found and verdict, which is "ok" or what to do.
    """
    import pandas as pd

    checks = [_python(), _packages(), _device(profile), _disk(profile), *_hub(profile)]
    return pd.DataFrame(checks, columns=list(Check._fields))


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", found, OK if sys.version_info >= (3, 11) else "install Python 3.11 or later")


def _packages() -> Check:
    """Compare what is installed with the lock; `==` overlooks a build tag such as torch's "+cpu"."""
    lock = project_root() / LOCK
    if not lock.is_file():
        return Check("packages", f"no {LOCK} here", "run from the project's folder to compare versions")
    lines = lock.read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.split("#")[0]) for line in lines if "==" in line]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    differing = [pin.name for pin in here if not _satisfies(pin)]
    if differing:
        return Check("packages", f"{len(differing)} differ: {', '.join(differing[:5])}", f"pip install -r {LOCK}")
    return Check("packages", f"as in {LOCK}", OK)


def _satisfies(pin: Requirement) -> bool:
    try:
        return pin.specifier.contains(version(pin.name))
    except PackageNotFoundError:
        return False


def _device(profile: Profile) -> Check:
    _, needed = NEEDS[profile.model.dtype]
    memory = device.memory_bytes()
    found = f"{device.describe()}, {memory / 1e9:.0f} GB"
    return Check("device", found, OK if memory >= needed else f"the model wants {needed / 1e9:.0f} GB of memory")


def _disk(profile: Profile) -> Check:
    needed, _ = NEEDS[profile.model.dtype]
    folder = next(path for path in (_cache(), *_cache().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    verdict = OK if free >= needed else f"free {needed / 1e9:.0f} GB, or set HF_HOME to a larger local disk"
    return Check("disk for downloads", f"{free / 1e9:.0f} GB free", verdict)


def _cache() -> Path:
    return Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser().absolute()


def _hub(profile: Profile) -> Iterator[Check]:
    """Is the Hub there, whose is the token, and may it write to the push target?"""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    where = "a rehearsal Hub on this machine" if profile.hub.endpoint == "rehearsal" else profile.hub.endpoint
    if not get_token():
        yield Check("token", "none", "run `hf auth login` in a terminal, or set HF_TOKEN")
        return
    try:
        account = api.whoami()
    except HfHubHTTPError as error:
        yield Check("token", "refused", f"the Hub answered {error.response.status_code}: run `hf auth login` again")
        return
    except Exception as error:  # whatever the network does, it is a row and not a traceback
        yield Check("Hub", "out of reach", f"check the network and the proxy ({type(error).__name__})")
        return
    yield Check("Hub", where, OK)
    yield Check("token", f"of {account['name']}", OK)
    owner = profile.hub.push_target.split("/")[0] if "/" in profile.hub.push_target else account["name"]
    writes = account["auth"]["accessToken"].get("role") in ("write", "fineGrained")
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    verdict = OK if writes and owner in owners else f"use a token that may write to {owner}"
    yield Check("push target", f"{owner}/{profile.hub.push_target.split('/')[-1]}", verdict)
