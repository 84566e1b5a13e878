"""Is this machine ready? A row for each thing that would go wrong later, with how to mend it."""

import shutil
import sys
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.requirements import Requirement

from ftlib import device
from ftlib.profiles import Profile
from ftlib.session import project_root

if TYPE_CHECKING:
    import pandas as pd

OK = "ok"
LOCK = "requirements.lock"
OUTPUT_BYTES = 1e9
TIMEOUT_S = 5.0


class Needs(NamedTuple):
    """What a profile takes, in bytes: disk for downloads, and memory where it trains."""

    downloads: float
    memory: float


# The rehearsal peaks at 0.9 GB. gpt-oss-20b is 14 GB to download and 42 GB of bfloat16 in memory, on GPUs of 80 GB.
NEEDS = {"float32": Needs(1e9, 2e9), "bfloat16": Needs(30e9, 80e9)}


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

    needs = NEEDS[profile.model.dtype]
    checks = [_python(), _packages(), _device(profile), _memory(profile, needs)]
    checks += [*_disk(profile, needs), _hub(profile), *_token(profile)]
    return pd.DataFrame(checks, columns=list(Check._fields))


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


def _device(profile: Profile) -> Check:
    lacks_gpu = not profile.train.use_cpu and not device.gpus()
    verdict = "use a machine with an NVIDIA GPU, or rehearse with profile tiny" if lacks_gpu else OK
    return Check("device", device.describe(profile.train.use_cpu), verdict)


def _memory(profile: Profile, needs: Needs) -> Check:
    memory = device.memory_bytes(profile.train.use_cpu)
    advice = f"{_gb(needs.memory)} are wise; with less, first lower train.per_device_batch and data.max_length"
    return Check("memory", _gb(memory), OK if memory >= needs.memory else advice)


def _disk(profile: Profile, needs: Needs) -> list[Check]:
    """Room for what is still to be downloaded, and for what the run writes; the two may be different disks."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    missing = max(OUTPUT_BYTES, needs.downloads - _downloaded(profile.hub.model))
    volumes = {
        "disk for downloads": (cache, missing, "or set HF_HOME to a larger local disk"),
        "disk for outputs": (project_root(), OUTPUT_BYTES, "or name another place with --output-root"),
    }
    checks = []
    for check, (folder, needed, otherwise) in volumes.items():
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
        verdict = OK if free >= needed else f"make room for {_gb(needed)}, {otherwise}"
        checks.append(Check(check, f"{_gb(free)} free", verdict))
    return checks


def _downloaded(model: str) -> int:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return sum(repo.size_on_disk for repo in scan_cache_dir().repos if repo.repo_id == model)
    except CacheNotFound:
        return 0


def _gb(size: float) -> str:
    return f"{size / 1e9:.0f} GB"


def _hub(profile: Profile) -> Check:
    """Is the Hub there, and does it have the model?"""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = profile.hub
    where = "a rehearsal Hub on this machine" if hub.endpoint == "rehearsal" else hub.endpoint
    try:
        HfApi().model_info(hub.model, revision=hub.model_revision, timeout=TIMEOUT_S)
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

    token = get_token()
    if not token:
        return [Check("token", "none", "run `hf auth login` in a terminal, or set HF_TOKEN, before notebook 5")]
    try:
        status, account = _whoami(token)
    except Exception:  # the row about the Hub says why
        return [Check("token", "found", "it can be checked once the Hub is within reach")]
    if status != HTTPStatus.OK:
        return [Check("token", f"found; the Hub answers {status} to it", "run `hf auth login` with a new one")]
    owner, _, name = profile.hub.push_target.rpartition("/")
    target = f"{owner or account['name']}/{name}"
    advice = "use a token that may write there, or change hub.push_target"
    return [
        Check("token", f"of account {account['name']}", OK),
        Check("push target", target, OK if _may_write(account, target) else advice),
    ]


def _whoami(token: str) -> tuple[int, dict[str, Any]]:
    """The Hub's status and what it knows of a token; huggingface_hub's own `whoami` would wait for it forever."""
    from huggingface_hub import constants, get_session

    headers = {"Authorization": f"Bearer {token}"}
    response = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=headers, timeout=TIMEOUT_S)
    return response.status_code, response.json() if response.is_success else {}


def _may_write(account: dict[str, Any], target: str) -> bool:
    owner = target.split("/")[0]
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", [])
        writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        return bool(writable & {owner, target})
    organisations = [found["name"] for found in account.get("orgs", []) if found.get("roleInOrg") != "read"]
    return token.get("role") == "write" and owner in (account["name"], *organisations)
