"""What is wrong with an Azure ML file, found offline before it costs anything.

azure-ai-ml checks keys, types and references; `CHECKS` adds mistakes that would show only in Azure. What may well be
right, since only the workspace knows, or only costs more, is a warning.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ftlib.azureml import files
from ftlib.dataset.shapes import shortened
from ftlib.errors import FtlibError, nearest
from ftlib.machine import planner, skus
from ftlib.session.redaction import redact

COMPUTE_NAME = "3 to 24 letters, digits and dashes that begin with a letter and do not end with a dash"
LONGEST_IDLE_S = 1800
LONGEST_JOB_S = 30 * 24 * 3600  # after which Azure ends any job
LONGEST_REQUEST_MS = 180_000
IDLE_MINUTES = range(15, 3 * 24 * 60 + 1)
NO_GPU = r"Standard_[ABDEFHLM][A-Z]*\d\w*"  # general machines, by their series
PIPELINE_SETTINGS = ("default_compute", "default_datastore", "continue_on_step_failure", "force_rerun")
# What azure-ai-ml says at length, of its own code or with a path of this machine, in short.
SHORTER = {
    r"In order to specify an existing .*": "found no such file or folder; expected one, or azureml:NAME@latest",
    r".*Docker image or Dockerfile is required.*": "found no image; expected `image:` with the one to start from",
    r"No such file or directory: (?:.*/)?(.*)": r"found no file \1; expected the path of one, as seen from this file",
    r"Value '(.*)' passed is not in set \['ray'\]": r"found '\1'; expected pytorch, which tells each process its rank",
    r"'\w+' object has no attribute .*": "a value has another type than Azure ML expects, or names nothing that exists",
}
SERVERLESS = "resources.instance_type"  # of a job without a cluster
# What Azure fills in in the path of an output.
IN_PATHS = r"name|output_name|default_datastore|parent\.outputs\.\w+"


class Finding(NamedTuple):
    """What is expected at a key; a warning if the file may be right as it is."""

    key: str
    expected: str
    is_error: bool = True


Found = Iterator[Finding]


class File(NamedTuple):
    """A file's values, or those of one step of a pipeline; its place, and what the files beside it describe."""

    path: Path
    data: Mapping[str, Any]
    beside: Mapping[str, Mapping[str, Any]]  # by the name that jobs use, such as "azureml:ftlib-a100"

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key, such as "resources.shm_size"."""
        value: Any = self.data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value


def examine(path: Path, changes: Mapping[str, Any] | None = None) -> tuple[list[str], list[str]]:
    """Errors and warnings, one line for each key; `changes` are made before looking."""
    try:
        file = File(path, files.read(path, changes), _beside(path.parent))
    except FtlibError as error:
        return [str(error)], []
    errors, warnings = _by_azure(path, file.data), dict[str, str]()
    if not errors:  # so the types are right
        for key, expected, is_error in CHECKS[files.schema(file.data)](file):
            told = f"found {shortened(repr(file.get(key, 'none')))}; expected {expected}"
            (errors if is_error else warnings).setdefault(key, told)
    secrets = [key for key, value in _flat(file.data) if redact(value) != value]
    errors |= dict.fromkeys(secrets, "found a secret; keep it in the workspace's Key Vault as hf-token")
    return _lines(path, errors), _lines(path, warnings)


def _lines(path: Path, found: Mapping[str, str]) -> list[str]:
    return [f"{path.name}: {key}: {text}" for key, text in found.items()]


def _by_azure(path: Path, data: Mapping[str, Any]) -> dict[str, str]:
    """What azure-ai-ml finds, by key, while it makes an entity of the data and turns that into what would be sent."""
    try:
        entity = files.entity(path, data)
        invalid = getattr(entity._validate(), "_errors", []) if hasattr(entity, "_validate") else []
        if not invalid:
            files.to_rest(entity)
        found = {error.yaml_path: _short(error.message) for error in invalid}
    except FtlibError:
        raise
    except Exception as error:  # of many kinds
        found = {key: _short(message) for key, message in _flat(_messages(error))}
    steps = files.steps(data)
    for key in [key for key in found if key.removesuffix("component") in steps]:  # a step of none of its kinds
        at = key.removesuffix("component")
        step = {**steps[at], "$schema": "commandJob.schema.json", "outputs": {}}
        found |= {f"{at}{below}": text for below, text in _by_azure(path, step).items()} or {key: found[key]}
        del found[key]
    return found


def _short(message: str) -> str:
    line = " ".join(message.split())
    return next((re.sub(long, short, line) for long, short in SHORTER.items() if re.fullmatch(long, line)), line)


def _messages(error: Exception) -> Any:
    """What marshmallow, which reads files for azure-ai-ml, found by key; else what the error says."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(messages := getattr(inner, "messages", None), dict):
            return messages
        inner = inner.__cause__ or inner.__context__
    return {"azure-ai-ml": str(error)}


def _flat(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
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


def _beside(folder: Path) -> dict[str, dict[str, Any]]:
    """What the shipped files, and others in a folder, describe."""
    found = {}
    for path in (*files.shipped().values(), *folder.glob("*.y*ml")):
        with contextlib.suppress(FtlibError):
            data = files.read(path)
            found[f"azureml:{data.get('name')}"] = data
    return found


def _size(file: File, key: str) -> Found:
    """Azure checks a machine's size only when it starts one; it has more of them than the table."""
    size = str(file.get(key))
    if not re.fullmatch(r"Standard_[A-Z]+\d+\w*", size):
        yield Finding(key, f"a machine as Azure spells it; {nearest(size, list(skus.load()))}")
    elif size not in skus.load():
        close = nearest(size, list(skus.load()))
        yield Finding(key, f"a machine of {skus.TABLE.name}, whose GPUs and memory are known here; {close}", False)


def _job(file: File) -> Found:
    if not files.steps(file.data):
        yield Finding("jobs", "the steps of the pipeline")
    for name in set(file.get("settings", {})) - set(PIPELINE_SETTINGS):
        yield Finding(f"settings.{name}", f"a setting of pipelines; {nearest(name, list(PIPELINE_SETTINGS))}")
    if file.get("compute") and files.schema(file.data) == "pipelineJob":
        yield Finding("compute", "the clusters of the steps, such as jobs.train.compute: each step names its own")
    used = {name for step in files.steps(file.data).values() for name in _referred(file, step)}
    for name in set(file.get("inputs", {})) - used:
        yield Finding(f"inputs.{name}", f"an input that a command refers to; {nearest(name, sorted(used))}")
    for at, step in files.steps(file.data).items():
        for finding in _step(file._replace(data={**step, "inputs": _inputs(file, step)})):
            yield finding._replace(key=at + finding.key)
    yield from _outputs(file)
    if file.get("tags.project") != "ftlib":
        yield Finding("tags.project", "ftlib, so that status, register and clean recognise your jobs", False)


def _referred(file: File, step: Mapping[str, Any]) -> list[str]:
    """The inputs of the file that a step refers to."""
    if files.schema(file.data) != "pipelineJob":
        return re.findall(r"\$\{\{inputs\.(\w+)", str(step.get("command")))
    return re.findall(r"\$\{\{parent\.inputs\.(\w+)", str(step.get("inputs")))


def _inputs(file: File, step: Mapping[str, Any]) -> dict[str, Any]:
    """A step's inputs, with the pipeline's own in place of references to them."""
    given = step.get("inputs") or {}
    referred = {name: re.fullmatch(r"\$\{\{parent\.(inputs\.\w+)\}\}", str(value)) for name, value in given.items()}
    return {name: file.get(found[1]) if (found := referred[name]) else value for name, value in given.items()}


def _step(file: File) -> Found:
    """One command, and the machines that run it."""
    yield from _machines(file)
    yield from _processes(file)
    yield from _profile(file)
    yield from _command(file)
    yield from _outputs(file)
    yield from _surroundings(file)
    if not (file.path.parent / str(file.get("code")) / "notebooks").is_dir():
        yield Finding("code", "the project's folder, which has notebooks/")
    if not 0 < int(file.get("limits.timeout", 0)) <= LONGEST_JOB_S:
        yield Finding("limits.timeout", f"1 to {LONGEST_JOB_S} seconds, or a job that hangs is paid for without end")
    if not re.fullmatch(r"[1-9]\d*[bkmg]", str(file.get("resources.shm_size"))):
        yield Finding("resources.shm_size", "a number and one of b, k, m, g, such as 64g: processes need more than 2g")


def _cluster(file: File) -> Mapping[str, Any] | None:
    return file.beside.get(str(file.get("compute")))


def _size_of(file: File) -> str:
    """The size of the machines that a step runs on; "" if it cannot be known here."""
    if not file.get("compute"):
        return str(file.get(SERVERLESS))
    return str((_cluster(file) or {}).get("size", ""))


def _machines(file: File) -> Found:
    compute, nodes, cluster = file.get("compute"), int(file.get("resources.instance_count", 1)), _cluster(file)
    if compute is None:
        yield from _size(file, SERVERLESS)
    elif not re.fullmatch(r"azureml:[A-Za-z][\w-]*", str(compute)):
        yield Finding("compute", f"azureml: and a cluster's name; {_close(file, compute, 'amlCompute')}")
    elif cluster is None:
        yield Finding("compute", f"a cluster that exists; {_close(file, compute, 'amlCompute')}", False)
    elif nodes > int(cluster.get("max_instances", 4)):
        yield Finding("resources.instance_count", f"{cluster['name']}'s max_instances at most")
    if nodes < 1:
        yield Finding("resources.instance_count", "1 or more")
    if compute is not None and file.get(SERVERLESS):
        yield Finding(SERVERLESS, "nothing beside `compute`, whose machines the job gets", False)
    if nodes > 1 and not file.get("distribution"):
        yield Finding("distribution", "type pytorch for several machines, or all machines but one stay idle")


def _close(file: File, name: Any, schema: str) -> str:
    return nearest(str(name), [other for other, data in file.beside.items() if files.schema(data) == schema])


def _started(file: File) -> tuple[str, int | None]:
    """Where a step says how many processes train on a machine, and how many; None is for one a GPU."""
    if file.get("distribution"):
        return "distribution.process_count_per_instance", int(file.get("distribution.process_count_per_instance", 1))
    asked = re.search(r"--nproc[ =](-?\d+)", str(file.get("command")))
    return "command", int(asked[1]) if asked else None


def _processes(file: File) -> Found:
    key, processes = _started(file)
    machine = skus.load().get(_size_of(file))
    if str(file.get("distribution.type", "pytorch")).lower() != "pytorch":
        yield Finding("distribution.type", "pytorch, which tells each process its rank")
    if processes is not None and processes < 1:
        yield Finding(key, "1 process or more")
    elif machine and processes and processes != machine.gpus:
        text = f"{machine.gpus} processes, one for each GPU of {machine.name}; they are {processes}"
        yield Finding(key, text, processes > machine.gpus)


def _profile(file: File) -> Found:
    """Can the profile run there, and may it read the Hub's token?"""
    machine, (_, processes) = skus.load().get(_size_of(file)), _started(file)
    try:
        profile = files.profile(file.path, {**file.data, "$schema": ""})
        count = max(0, processes or 0) or (planner.processes(profile, machine.gpus) if machine else 1)
        profile.accumulation_steps(count * max(1, int(file.get("resources.instance_count", 1))))
    except FtlibError as error:
        yield Finding("inputs.profile", f"a profile that this job can run: {error}")
        return
    if not profile.train.use_cpu and re.fullmatch(NO_GPU, _size_of(file)):
        yield Finding("inputs.profile", f"one that computes on a CPU, such as tiny: {_size_of(file)} has no GPU")
    if not profile.hub.is_rehearsal:
        if file.get("identity.type") != "user_identity":
            yield Finding("identity.type", "user_identity, which may read the Hub's token in the Key Vault")
        elif file.get("compute") is None:
            yield Finding("compute", "a cluster: elsewhere Azure promises the identity for storage alone", False)
    with contextlib.suppress(FtlibError):  # the shape of a model that is not published is not known here
        if machine and not planner.plan(profile, planner.rented(machine, profile), count).fits:
            yield Finding(
                "inputs.profile", f"a smaller profile, or a larger machine than {machine.name}: see `ftlib plan`"
            )


def _command(file: File) -> Found:
    """Azure fills in inputs and outputs, and the shell of the job everything else."""
    command = str(file.get("command"))
    if "${{outputs.run}}" not in command:
        yield Finding("command", "${{outputs.run}} as --output-root, or nothing of the run is kept")
    for inside in re.findall(r"\$\{\{(.*?)\}\}", command):
        kind, _, name = inside.partition(".")
        if kind not in ("inputs", "outputs") or name not in (file.get(kind) or {}):
            declared = [f"{kind}.{name}" for kind in ("inputs", "outputs") for name in file.get(kind, {})]
            yield Finding("command", f"nothing else in ${{{{…}}}} than {', '.join(declared)}; it has {inside!r}")
    if re.search(r"\$\{?(HF_TOKEN|AZUREML_TOKEN)|\bHF_TOKEN=|hf auth login", command):
        yield Finding("command", "no token: `ftlib azure job` reads it in the Key Vault")
    if "azure job" not in command and "user_identity" in str(file.get("identity")):
        yield Finding("command", "`python -m ftlib.cli azure job run …`, which fetches the Hub's token", False)


def _outputs(file: File) -> Found:
    for name, output in (file.get("outputs") or {}).items():
        key, path = f"outputs.{name}", str(file.get(f"outputs.{name}.path", ""))
        if not isinstance(output, dict):  # of a step, which names the pipeline's
            continue
        if output.get("type", "uri_folder") != "uri_folder":
            yield Finding(f"{key}.type", "uri_folder: a run is a folder")
        if output.get("mode") != "rw_mount":
            yield Finding(f"{key}.mode", "rw_mount, or checkpoints are lost with the machine")
        if path and not re.fullmatch(r"azureml://(datastores/[\w-]+/paths|subscriptions)/.+", path):
            yield Finding(f"{key}.path", "azureml://datastores/NAME/paths/FOLDER, a place in a datastore")
        elif unknown := [
            inside for inside in re.findall(r"\$\{\{(.*?)\}\}", path) if not re.fullmatch(IN_PATHS, inside)
        ]:
            yield Finding(f"{key}.path", f"${{{{name}}}} and nothing else in ${{{{…}}}}; it has {unknown[0]!r}")
        elif path and "${{name}}" not in path:
            yield Finding(f"{key}.path", "${{name}} in it, so that each job has a folder of its own", False)


def _surroundings(file: File) -> Found:
    named = str(file.get("environment"))
    name = named.partition("@")[0]
    if not re.fullmatch(r"azureml:([\w.-]+(@\w+|:[\w.-]+)|//registries/.+)", named):
        yield Finding("environment", "azureml:NAME@latest or azureml:NAME:VERSION")
    elif name not in file.beside and not named.startswith("azureml://"):
        yield Finding("environment", f"one that exists; {_close(file, name, 'environment')}", False)
    for variable, value in (file.get("environment_variables") or {}).items():
        key = f"environment_variables.{variable}"
        if "${{" in str(value):
            yield Finding(key, "a value as it is: Azure fills in nothing here")
        elif variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            yield Finding(key, "nothing: Azure tells each process its place")
        elif variable.startswith("HF_") and str(value).startswith(
            ("/mnt/batch", "/mnt/azureml", "/home/azureuser/cloudfiles")
        ):
            yield Finding(key, "a folder on a local disk: downloads stall on a mounted one")


def _compute(file: File) -> Found:
    yield from _size(file, "size")
    name = str(file.get("name"))
    if not re.fullmatch(r"[A-Za-z](?=.{2,23}$)[A-Za-z0-9-]*[A-Za-z0-9]", name):
        yield Finding("name", COMPUTE_NAME)
    if file.get("tags.project") != "ftlib":
        yield Finding("tags.project", "ftlib, so that status and clean recognise your machines", False)
    yield from (_instance if files.schema(file.data) == "computeInstance" else _nodes)(file)


def _nodes(file: File) -> Found:
    least, most = int(file.get("min_instances", 0)), int(file.get("max_instances", 4))
    if most < 1:
        yield Finding("max_instances", "1 or more")
    if not 0 <= least <= max(most, 1):
        yield Finding("min_instances", "0 to max_instances")
    elif least:
        yield Finding("min_instances", "0, or machines are paid for while nothing runs", False)
    idle = int(file.get("idle_time_before_scale_down", 120))
    if idle < 0:
        yield Finding("idle_time_before_scale_down", "seconds, 0 or more")
    elif idle > LONGEST_IDLE_S:
        yield Finding("idle_time_before_scale_down", f"{LONGEST_IDLE_S} seconds or less, which are paid for", False)


def _instance(file: File) -> Found:
    key = "idle_time_before_shutdown_minutes"
    minutes = file.get(key)
    if minutes is None:
        yield Finding(key, "minutes, or the machine is paid for until someone stops it", False)
    elif int(minutes) not in IDLE_MINUTES:
        yield Finding(key, f"{IDLE_MINUTES[0]} to {IDLE_MINUTES[-1]} minutes")


def _environment(file: File) -> Found:
    image = str(file.get("image", ""))
    if file.get("conda_file") and re.search(r"/curated/|acpt", image):
        yield Finding(
            "image", "a base image, such as openmpi5.0-cuda12.6-ubuntu24.04: a curated one has a Python of its own"
        )
    if image.endswith(":latest") or ":" not in image.rpartition("/")[2]:
        yield Finding("image", "a fixed tag, or tomorrow's environment may differ", False)


def _model(file: File) -> Found:
    path = str(file.get("path", ""))
    if not path or (not path.startswith("azureml://") and not (file.path.parent / path).exists()):
        yield Finding("path", "azureml://jobs/JOB/outputs/run/paths/PROFILE/adapter, or a folder that exists")
    if path.startswith("azureml://jobs/") and not re.fullmatch(r"azureml://jobs/[\w-]+/outputs/\w+/paths/.+", path):
        yield Finding("path", "azureml://jobs/JOB/outputs/run/paths/PROFILE/adapter")


def _endpoint(file: File) -> Found:
    if not re.fullmatch(r"[a-z](?=.{2,31}$)[a-z0-9-]*[a-z0-9]", str(file.get("name"))):
        yield Finding("name", "3 to 32 lower-case letters, digits and dashes that begin with a letter")
    if file.get("tags.project") != "ftlib":
        yield Finding("tags.project", "ftlib, so that status and clean recognise your endpoints", False)


def _deployment(file: File) -> Found:
    yield from _size(file, "instance_type")
    model, endpoint = str(file.get("model")), f"azureml:{file.get('endpoint_name')}"
    if not re.fullmatch(r"azureml:([\w.-]+(@\w+|:[\w.-]+)|//.+)", model):
        yield Finding("model", "azureml:NAME@latest or azureml:NAME:VERSION, a merged model of the workspace")
    if endpoint not in file.beside:
        close = _close(file, endpoint, "managedOnlineEndpoint").replace("azureml:", "")
        yield Finding("endpoint_name", f"an endpoint that exists; {close}", False)
    if re.fullmatch(NO_GPU, str(file.get("instance_type"))):
        yield Finding("instance_type", "a machine with a GPU, which the model needs")
    if int(file.get("instance_count", 1)) < 1:
        yield Finding("instance_count", "1 or more")
    if not 0 < int(file.get("request_settings.request_timeout_ms", 5000)) <= LONGEST_REQUEST_MS:
        yield Finding("request_settings.request_timeout_ms", f"{LONGEST_REQUEST_MS} milliseconds at most")
    if not file.get("environment"):
        yield Finding("environment", "an image that serves the model, or a folder to build one from")
    folder = file.get("environment.build.path")
    if folder and not (file.path.parent / str(folder) / "Dockerfile").is_file():
        yield Finding("environment.build.path", "a folder with a Dockerfile")


CHECKS: dict[str, Callable[[File], Found]] = {
    "commandJob": _job,
    "pipelineJob": _job,
    "amlCompute": _compute,
    "computeInstance": _compute,
    "environment": _environment,
    "model": _model,
    "managedOnlineEndpoint": _endpoint,
    "managedOnlineDeployment": _deployment,
}
