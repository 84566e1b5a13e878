"""What is wrong with an Azure ML file, found here rather than by Azure: offline, without credentials, before it costs.

azure-ai-ml checks keys, types and references as it loads a file and turns it into what would be sent. The checks below
add what it lets pass, and what would only come out on a machine that is paid for by then.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ftlib import profiles
from ftlib.azureml import files, skus
from ftlib.errors import FtlibError, nearest
from ftlib.profiles import Profile
from ftlib.session.redaction import redact

LONGEST_JOB_S = 7 * 24 * 3600  # a low-priority machine is given no longer
LONGEST_IDLE_S = 1800
REMOTE = ("azureml:", "http://", "https://", "wasbs://", "abfss://", "adl://")
MOUNTED = ("${{", "/mnt/", "/home/azureuser/cloudfiles")
JOB_OUTPUT = re.compile(r"azureml://(jobs/[\w.-]+/outputs|datastores/[\w-]+/paths)/[\w./-]+")
COMPUTE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]")
EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][\w-]{2,35}")
ASSET_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,254}")
SHARED_MEMORY = re.compile(r"([1-9]\d*)([bkmg])")
UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class Problem(NamedTuple):
    """Something to mend: in which file, at which key, and what."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}"


Found = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class File:
    """A file's values and its place; `get` follows a dotted key and gives None where it leads nowhere."""

    path: Path
    data: dict[str, Any]

    def get(self, key: str) -> Any:
        """The value at a dotted key, such as "resources.shm_size"."""
        value: Any = self.data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def section(self, key: str) -> dict[str, Any]:
        """The mapping at a key, empty where there is none."""
        value = self.get(key)
        return value if isinstance(value, dict) else {}

    def whole(self, key: str, default: int) -> int:
        """The whole number at a key; the default where it is absent or none, which azure-ai-ml reports."""
        value = self.get(key)
        return value if isinstance(value, int) else default

    def missing(self, key: str) -> bool:
        """Whether a key names a local path at which there is nothing."""
        value = self.get(key)
        return isinstance(value, str) and not value.startswith(REMOTE) and not (self.path.parent / value).exists()


def problems(path: Path, changes: Mapping[str, Any] | None = None) -> list[Problem]:
    """Everything that is wrong with a file, ours and azure-ai-ml's findings alike.

    Args:
        path: the file.
        changes: values to set before looking, by dotted key.
    """
    try:
        file = File(path, files.read(path, changes))
    except FtlibError as error:
        return [Problem(*str(error).split(": ", 2))]
    checks = (_secrets, *CHECKS[files.schema(file.data)])
    found = [Problem(path.name, *one) for check in checks for one in check(file)]
    known = {problem.key for problem in found}
    theirs = [Problem(path.name, *one) for one in _library(path, changes, bool(found))]
    return found + [problem for problem in theirs if problem.key not in known]


def _library(path: Path, changes: Mapping[str, Any] | None, others: bool) -> list[tuple[str, str]]:
    """What azure-ai-ml finds, while it loads the file and while it makes of it what would be sent."""
    try:
        with files.quiet():
            entity = files.load(path, changes)
            if hasattr(entity, "_validate"):
                invalid = [(error.yaml_path, _line(error.message)) for error in entity._validate()._errors]
                if invalid:
                    return invalid
            files.to_rest(entity)
    except FtlibError:
        raise
    except Exception as error:
        messages = _messages(error)
        if messages is not None:
            return list(_flat(messages))
        words = _line(str(error))
        named = re.search(r"command|image|environment|distribution|compute|path", words.lower())
        # Such a message names no key; where we found the cause ourselves, it adds nothing.
        return [] if others else [(named[0] if named else "$schema", words)]
    return []


def _messages(error: BaseException | None) -> dict[str, Any] | None:
    """What marshmallow, which reads files for azure-ai-ml, found by key: the innermost error has it."""
    found = None
    while error is not None:
        messages = getattr(error, "messages", None)
        found = messages if isinstance(messages, dict) else found
        error = error.__cause__ or error.__context__
    return found


def _flat(messages: Any, key: str = "") -> Found:
    """One line a key: where a value may be of several kinds, all that it could have been."""
    if isinstance(messages, dict):
        for part, below in messages.items():
            inner = str(part) in {"_schema", "value"}
            yield from _flat(below, key if inner or isinstance(part, int) else f"{key}.{part}".lstrip("."))
    elif isinstance(messages, list) and any(isinstance(message, dict) for message in messages):
        several: dict[str, list[str]] = {}
        for message in messages:
            for where, what in _flat(message, key):
                several.setdefault(where, []).append(what)
        yield from ((where, " or ".join(dict.fromkeys(what))) for where, what in several.items())
    else:
        texts = messages if isinstance(messages, list) else [messages]
        yield key, "; ".join(_line(str(text)) for text in texts)


def _line(text: str) -> str:
    return " ".join(text.split())


def _secrets(file: File) -> Found:
    for key, value in _leaves(file.data):
        if redact(value) != value:
            yield key, "found a secret; expected none in a file: keep it in the workspace's Key Vault as hf-token"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for part, below in value.items():
            yield from _leaves(below, f"{key}.{part}".lstrip("."))
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(below, key)
    else:
        yield key, str(value)


def _named(key: str, pattern: re.Pattern[str], expected: str) -> Callable[[File], Found]:
    """A check of a name."""

    def check(file: File) -> Found:
        name = file.get(key)
        if not isinstance(name, str) or not pattern.fullmatch(name):
            yield key, f"found {name!r}; expected {expected}"

    return check


def _size(key: str, required: bool) -> Callable[[File], Found]:
    """A check of a machine's size against our table; Azure itself says so only when it is to start one."""

    def check(file: File) -> Found:
        size = file.get(key)
        if size is None:
            if required:
                yield key, f"found none; expected a machine of {skus.TABLE.name}"
        elif _sku(size) is None:
            close = nearest(str(size), list(skus.load()))
            yield key, f"found {size!r}, which is not in {skus.TABLE.name}; {close}"

    return check


def _sku(size: Any) -> skus.Sku | None:
    """A machine by its size, in whatever case it is written, as Azure takes it."""
    return {name.lower(): sku for name, sku in skus.load().items()}.get(str(size).lower())


def _clusters(file: File) -> dict[str, File]:
    """The clusters that the files beside this one make, by name; a file that cannot be read makes none."""
    found = {}
    for path in file.path.parent.glob("*.yml"):
        with contextlib.suppress(FtlibError):
            data = files.read(path)
            if files.schema(data) == "amlCompute":
                found[str(data.get("name"))] = File(path, data)
    return found


def _cluster(file: File) -> File | None:
    return _clusters(file).get(str(file.get("compute")).removeprefix("azureml:"))


def _machine(file: File) -> skus.Sku | None:
    """The machine that a job runs on: its own choice, or its cluster's."""
    cluster = _cluster(file)
    return _sku(file.get("resources.instance_type") or (cluster and cluster.get("size")))


def _processes(file: File) -> int:
    """How many processes a job trains with on one machine: Azure starts them, or `ftlib run` does."""
    asked = re.search(r"--nproc[ =](\d+)", str(file.get("command")))
    return file.whole("distribution.process_count_per_instance", int(asked[1]) if asked else 1)


def _job_compute(file: File) -> Found:
    compute, own = file.get("compute"), file.get("resources.instance_type")
    if compute is None and own is None:
        yield "compute", "found none; expected a cluster (azureml:<name>), or resources.instance_type for serverless"
    elif compute is not None and own is not None:
        yield "resources.instance_type", f"found {own} beside compute {compute}; expected one of the two"
    elif compute is not None and _cluster(file) is None:
        known = [f"azureml:{name}" for name in _clusters(file)]
        yield (
            "compute",
            f"found {compute!r}, which no file beside this one makes; {nearest(str(compute), known)}",
        )
    if compute is not None and file.get("queue_settings.job_tier") is not None:
        yield "queue_settings.job_tier", "has no effect on a cluster; leave compute out, or name a low-priority cluster"


def _job_nodes(file: File) -> Found:
    nodes, cluster = file.whole("resources.instance_count", 1), _cluster(file)
    most = cluster.whole("max_instances", 1) if cluster else nodes
    if not 1 <= nodes <= most:
        yield "resources.instance_count", f"found {nodes}; expected 1 to {most}, the cluster's max_instances"
    if nodes > 1 and not file.section("distribution"):
        yield "distribution", f"found none for {nodes} machines; expected type pytorch, or all but one would wait"


def _job_gpus(file: File) -> Found:
    machine, processes = _machine(file), _processes(file)
    starts = "distribution.process_count_per_instance" if file.section("distribution") else "command"
    if file.section("distribution") and "--nproc" in str(file.get("command")):
        yield "command", "found --nproc beside distribution; expected one of the two to start the processes"
    if machine and processes != machine.gpus:
        yield starts, f"found {processes} processes; expected {machine.gpus}, one for each GPU of {machine.name}"


def _job_profile(file: File) -> Found:
    profile = _profile(file)
    if isinstance(profile, FtlibError):
        yield "inputs.profile", str(profile)
    elif profile:
        try:
            profile.accumulation_steps(_processes(file) * file.whole("resources.instance_count", 1))
        except FtlibError as error:
            yield "resources.instance_count", str(error)


def _profile(file: File) -> Profile | FtlibError | None:
    """The profile that a job runs; a path is seen from the project's folder, which is what the job sees."""
    name = file.get("inputs.profile")
    if not isinstance(name, str):
        return None
    try:
        return profiles.load(file.path.parent / str(file.get("code")) / name if name.endswith(".toml") else name)
    except FtlibError as error:
        return error


def _job_memory(file: File) -> Found:
    size, machine = file.get("resources.shm_size"), _machine(file)
    matched = SHARED_MEMORY.fullmatch(str(size))
    if size is None:
        if _processes(file) > 1:
            yield (
                "resources.shm_size",
                "found none, which makes it 2g; expected more for several processes, such as 64g",
            )
    elif matched is None:
        yield "resources.shm_size", f"found {size!r}; expected a number and one of b, k, m, g, such as 64g"
    elif machine and int(matched[1]) * UNITS[matched[2]] >= machine.ram_gb * 1e9:
        yield "resources.shm_size", f"found {size}; expected less than the {machine.ram_gb} GB of {machine.name}"


def _job_references(file: File) -> Found:
    command = str(file.get("command"))
    for kind in ("inputs", "outputs"):
        used = set(re.findall(rf"\$\{{\{{\s*{kind}\.(\w+)\s*\}}\}}", command))
        declared = set(file.section(kind))
        for name in sorted(used - declared):
            yield f"{kind}.{name}", f"found in command and not declared; expected one of {sorted(declared)}"
        for name in sorted(declared - used):
            yield f"{kind}.{name}", f"declared and not used in command; expected ${{{{{kind}.{name}}}}} there"


def _job_outputs(file: File) -> Found:
    for name, output in file.section("outputs").items():
        mode = output.get("mode") if isinstance(output, dict) else None
        if mode != "rw_mount":
            yield f"outputs.{name}.mode", f"found {mode!r}; expected rw_mount, or checkpoints are lost with the machine"


def _job_paths(file: File) -> Found:
    code = file.get("code")
    if file.missing("code"):
        yield "code", f"found nothing at {code!r}; expected the project's folder, seen from this file"
    elif not (file.path.parent / str(code) / "notebooks").is_dir():
        yield "code", f"found no notebooks/ in {code!r}; expected the project's folder"
    for name in file.section("inputs"):
        if file.missing(f"inputs.{name}.path"):
            yield f"inputs.{name}.path", f"found nothing at {file.get(f'inputs.{name}.path')!r}; give an existing path"


def _job_limit(file: File) -> Found:
    timeout = file.get("limits.timeout")
    if timeout is None:
        yield "limits.timeout", "found none; expected seconds, or a job that hangs is paid for without end"
    elif isinstance(timeout, int) and not 0 < timeout <= LONGEST_JOB_S:
        yield "limits.timeout", f"found {timeout}; expected 1 to {LONGEST_JOB_S} seconds"


def _job_surroundings(file: File) -> Found:
    cache, profile = str(file.get("environment_variables.HF_HOME")), _profile(file)
    if cache.startswith(MOUNTED):
        yield (
            "environment_variables.HF_HOME",
            f"found {cache!r}; expected a local disk: downloads stall on a mounted one",
        )
    needs_token = isinstance(profile, Profile) and profile.hub.endpoint != "rehearsal"
    if needs_token and file.get("identity.type") != "user_identity":
        yield (
            "identity.type",
            f"found {file.get('identity.type')!r}; expected user_identity, which may read the Key Vault",
        )


def _cluster_cost(file: File) -> Found:
    least, idle = file.get("min_instances"), file.get("idle_time_before_scale_down")
    if least not in (0, None):
        yield "min_instances", f"found {least}; expected 0, or machines are paid for while nothing runs"
    if file.whole("max_instances", 1) < 1:
        yield "max_instances", f"found {file.get('max_instances')}; expected 1 or more"
    if isinstance(idle, int) and idle > LONGEST_IDLE_S:
        yield (
            "idle_time_before_scale_down",
            f"found {idle} seconds; expected {LONGEST_IDLE_S} at most, since they are paid for",
        )


def _instance_cost(file: File) -> Found:
    key = "idle_time_before_shutdown_minutes"
    if file.get(key) is None and file.get("idle_time_before_shutdown") is None:
        yield key, "found none; expected minutes, or the machine is paid for until someone stops it"


def _instance_script(file: File) -> Found:
    key = "setup_scripts.creation_script"
    if file.missing(f"{key}.path"):
        yield f"{key}.path", f"found nothing at {file.get(f'{key}.path')!r}; expected a script beside this file"
    if file.get(key) is not None and file.get(f"{key}.timeout_minutes") is None:
        yield f"{key}.timeout_minutes", "found none; expected minutes, such as 15"


def _environment_files(file: File) -> Found:
    conda_file = file.get("conda_file")
    if file.missing("conda_file"):
        yield "conda_file", f"found nothing at {conda_file!r}; expected a conda file, seen from this file"
    elif isinstance(conda_file, str):
        conda = yaml.safe_load((file.path.parent / conda_file).read_text(encoding="utf-8"))
        parts = conda.get("dependencies", []) if isinstance(conda, dict) else []
        nested = [part["pip"] for part in parts if isinstance(part, dict) and "pip" in part]
        local = [pin for pins in nested for pin in pins if pin.startswith(("-", "."))]
        if local:
            yield (
                "conda_file",
                f"found {local[0]!r} in it; expected pins alone: Azure gets the text, not what it refers to",
            )


def _environment_image(file: File) -> Found:
    image = file.get("image")
    if isinstance(image, str) and image.rpartition("/")[2].partition(":")[2] in {"", "latest"}:
        yield "image", f"found {image!r}; expected a tag that stays, such as :20260621.v1"


def _model_source(file: File) -> Found:
    path = str(file.get("path"))
    if file.missing("path"):
        yield (
            "path",
            f"found nothing at {path!r}; expected a folder, or azureml://jobs/<job>/outputs/<output>/paths/<folder>",
        )
    elif path.startswith("azureml:") and not JOB_OUTPUT.fullmatch(path):
        yield (
            "path",
            f"found {path!r}; expected azureml://jobs/<job>/outputs/<output>/paths/<folder>, or a datastore's path",
        )


COMPUTE_CHECKS = (
    _named("name", COMPUTE_NAME, "3 to 24 letters, digits and hyphens, beginning with a letter"),
    _size("size", required=True),
)
ASSET_CHECKS = (_named("name", ASSET_NAME, "1 to 255 letters, digits, dots, hyphens and underscores"),)
CHECKS: dict[str, tuple[Callable[[File], Found], ...]] = {
    "commandJob": (
        _named("experiment_name", EXPERIMENT_NAME, "3 to 36 letters, digits, hyphens and underscores"),
        *(
            _size("resources.instance_type", required=False),
            _job_compute,
            _job_nodes,
            _job_gpus,
            _job_profile,
            _job_memory,
        ),
        *(_job_references, _job_outputs, _job_paths, _job_limit, _job_surroundings),
    ),
    "amlCompute": (*COMPUTE_CHECKS, _cluster_cost),
    "computeInstance": (*COMPUTE_CHECKS, _instance_cost, _instance_script),
    "environment": (*ASSET_CHECKS, _environment_files, _environment_image),
    "model": (*ASSET_CHECKS, _model_source),
}
