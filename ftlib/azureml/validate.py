"""What is wrong with an Azure ML file, found offline before it costs anything.

azure-ai-ml checks keys, types and references; `CHECKS` adds mistakes that would show only on a paid machine.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ftlib import profiles
from ftlib.azureml import files, skus
from ftlib.errors import FtlibError, nearest
from ftlib.session.redaction import redact

LONGEST_IDLE_S = 1800
Found = Iterator[tuple[str, str]]  # keys, and what is expected there


class File(NamedTuple):
    """A file's values and its place."""

    path: Path
    data: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key, such as "resources.shm_size"."""
        value: Any = self.data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value


def problems(path: Path, changes: Mapping[str, Any] | None = None) -> list[str]:
    """Everything that is wrong with a file, one line for each key; `changes` are made before looking."""
    try:
        file = File(path, files.read(path, changes))
    except FtlibError as error:
        return [str(error)]
    found, check = _by_azure(path, changes), CHECKS.get(files.schema(file.data))
    if check and not found:  # so the types are right
        found = {key: f"found {file.get(key, 'none')!r}; expected {expected}" for key, expected in check(file)}
    secrets = [key for key, value in _flat(file.data) if redact(value) != value]
    found |= dict.fromkeys(secrets, "found a secret; keep it in the workspace's Key Vault as hf-token")
    return [f"{path.name}: {key}: {message}" for key, message in found.items()]


def _by_azure(path: Path, changes: Mapping[str, Any] | None) -> dict[str, str]:
    """What azure-ai-ml finds, by key, while it loads the file and turns it into what would be sent."""
    try:
        entity = files.load(path, changes)
        files.to_rest(entity)
        invalid = entity._validate()._errors if hasattr(entity, "_validate") else []
        return {error.yaml_path: " ".join(error.message.split()) for error in invalid}
    except FtlibError:
        raise
    except Exception as error:
        return {key: " ".join(message.split()) for key, message in _flat(_messages(error))}


def _messages(error: Exception) -> Any:
    """What marshmallow, which reads files for azure-ai-ml, found by key; else what the error says."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(messages := getattr(inner, "messages", None), dict):
            return messages
        inner = inner.__cause__ or inner.__context__
    return {"azure-ai-ml": str(error)}


def _flat(values: Any, key: str = "") -> Found:
    """Nested values with their dotted keys."""
    if isinstance(values, dict):
        for part, below in values.items():
            same = part in ("_schema", "value") or isinstance(part, int)
            yield from _flat(below, key if same else f"{key}.{part}".lstrip("."))
    elif isinstance(values, list):
        for below in values:
            yield from _flat(below, key)
    else:
        yield key, str(values)


def _clusters(file: File) -> dict[str, File]:
    """The clusters that the files in the same folder make, by the name that jobs use."""
    found = {}
    for path in file.path.parent.glob("*.yml"):
        with contextlib.suppress(FtlibError):
            cluster = File(path, files.read(path))
            if files.schema(cluster.data) == "amlCompute":
                found[f"azureml:{cluster.get('name')}"] = cluster
    return found


def _processes(file: File) -> int:
    """How many processes train on one machine: `ftlib run` starts them, or Azure does."""
    asked = re.search(r"--nproc[ =](\d+)", str(file.get("command")))
    return int(asked[1]) if asked else int(file.get("distribution.process_count_per_instance", 1))


def _size(file: File, key: str) -> Found:
    """Azure checks a machine's size only when it starts one."""
    if file.get(key) not in skus.load():
        yield key, f"a machine of {skus.TABLE.name}; {nearest(str(file.get(key)), list(skus.load()))}"


def _job(file: File) -> Found:
    yield from _job_machine(file)
    yield from _job_profile(file)
    if "${{outputs.run}}" not in str(file.get("command")):
        yield "command", "${{outputs.run}} as --output-root, or nothing of the run is kept"
    if file.get("outputs.run.mode") != "rw_mount":
        yield "outputs.run.mode", "rw_mount, or checkpoints are lost with the machine"
    if not (file.path.parent / str(file.get("code")) / "notebooks").is_dir():
        yield "code", "the project's folder, which has notebooks/"
    if file.get("limits.timeout") is None:
        yield "limits.timeout", "seconds, or a job that hangs is paid for without end"
    if str(file.get("environment_variables.HF_HOME")).startswith(("${{", "/mnt/", "/home/azureuser/cloudfiles")):
        yield "environment_variables.HF_HOME", "a local disk: downloads stall on a mounted one"
    if not re.fullmatch(r"[1-9]\d*[bkmg]", str(file.get("resources.shm_size"))):
        yield "resources.shm_size", "a number and one of b, k, m, g, such as 64g: several processes need more than 2g"


def _job_machine(file: File) -> Found:
    compute, clusters, processes = file.get("compute"), _clusters(file), _processes(file)
    if compute is None:
        yield from _size(file, "resources.instance_type")
    elif compute not in clusters:
        yield "compute", f"a cluster of a file beside this one; {nearest(str(compute), list(clusters))}"
    size = clusters[compute].get("size") if compute in clusters else file.get("resources.instance_type")
    machine = skus.load().get(size)
    if machine and processes != machine.gpus:
        started = "distribution.process_count_per_instance" if file.get("distribution") else "command"
        yield started, f"{machine.gpus} processes, one for each GPU of {size}; they are {processes}"
    if int(file.get("resources.instance_count", 1)) > 1 and not file.get("distribution"):
        yield "distribution", "type pytorch for several machines, or all but one would wait"


def _job_profile(file: File) -> Found:
    """A profile's path is seen from the project's folder, which is what the job is sent."""
    name, nodes = str(file.get("inputs.profile")), int(file.get("resources.instance_count", 1))
    try:
        profile = profiles.load(file.path.parent / file.get("code") / name if name.endswith(".toml") else name)
        profile.accumulation_steps(_processes(file) * nodes)
    except FtlibError as error:
        yield "inputs.profile", f"a profile that this job can run: {error}"
        return
    if not profile.hub.is_rehearsal and file.get("identity.type") != "user_identity":
        yield "identity.type", "user_identity, which may read the Hub's token in the Key Vault"


def _compute(file: File) -> Found:
    yield from _size(file, "size")
    if file.get("min_instances"):
        yield "min_instances", "0, or machines are paid for while nothing runs"
    idle = file.get("idle_time_before_scale_down", LONGEST_IDLE_S + 1)
    if file.get("type") == "amlcompute" and int(idle) > LONGEST_IDLE_S:
        yield "idle_time_before_scale_down", f"{LONGEST_IDLE_S} seconds at most, since they are paid for"
    if file.get("type") == "computeinstance" and not file.get("idle_time_before_shutdown_minutes"):
        yield "idle_time_before_shutdown_minutes", "minutes, or the machine is paid for until someone stops it"


CHECKS: dict[str, Callable[[File], Found]] = {"commandJob": _job, "amlCompute": _compute, "computeInstance": _compute}
