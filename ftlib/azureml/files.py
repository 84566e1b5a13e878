"""The Azure ML files: found by name, read as Azure's client reads them, and turned into what would be sent."""

import inspect
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ftlib import profiles
from ftlib.errors import FtlibError, nearest
from ftlib.profiles import Profile
from ftlib.session.session import project_root

FOLDER = Path(__file__).parent
# The function of azure-ai-ml that loads a file, by the name of its schema.
LOADERS = {
    "commandJob": "load_job",
    "pipelineJob": "load_job",
    "environment": "load_environment",
    "amlCompute": "load_compute",
    "computeInstance": "load_compute",
    "model": "load_model",
    "managedOnlineEndpoint": "load_online_endpoint",
    "managedOnlineDeployment": "load_online_deployment",
}


def shipped() -> dict[str, Path]:
    """The files that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yml"))}


def find(name: str) -> Path:
    """A file by its shipped name or its path; an FtlibError if there is none."""
    path = Path(name) if name.endswith((".yml", ".yaml")) else shipped().get(name)
    if path is None or not path.is_file():
        hint = nearest(name, list(shipped()))
        raise FtlibError(f"Azure file {name!r}: found no such file; {hint}, or give the path of a .yml file")
    return path


def overrides(settings: list[str]) -> dict[str, Any]:
    """Read `key=value` texts as `az ml … --set` takes them; a value is read as YAML, so 2 is a number."""
    for setting in settings:
        if "=" not in setting:
            raise FtlibError(f"--set {setting}: expected key=value, such as resources.instance_count=2")
    found = {}
    for key, _, value in (setting.partition("=") for setting in settings):
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise FtlibError(f"--set {key}={value}: the value is not valid YAML; put it in quotes") from None
    return found


def read(path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A file's values, with changes by dotted key, such as `resources.instance_count`; None removes one.

    Raises:
        FtlibError: it is not YAML, or not one of the kinds of Azure ML file used here.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise FtlibError(f"{path.name}: line {line}: not valid YAML; fix it") from None
    except (OSError, RecursionError) as error:
        raise FtlibError(
            f"{path.name}: cannot be read ({type(error).__name__}); change its permissions, or fix it"
        ) from None
    if not isinstance(data, dict) or schema(data) not in LOADERS:
        found = schema(data) if isinstance(data, dict) else "no settings"
        raise FtlibError(
            f"{path.name}: $schema: found {found or 'none'!r}, expected Azure ML's address of one of {list(LOADERS)}"
        )
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise FtlibError(f"{path.name}: {key}: {parent} is a value and has no keys")
        section[last] = value
        if value is None:
            del section[last]
    return data


def schema(data: Mapping[str, Any]) -> str:
    """The name of a file's schema, such as "commandJob"."""
    return str(data.get("$schema", "")).rpartition("/")[2].removesuffix(".schema.json")


def load(path: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The entity that azure-ai-ml makes of a file; its errors are not translated."""
    return entity(path, read(path, changes))


def entity(path: Path, data: Mapping[str, Any]) -> Any:
    """The entity that azure-ai-ml makes of values that a file holds, which paths in them start from."""
    source = io.StringIO(yaml.safe_dump(dict(data)))
    return getattr(client_library(), LOADERS[schema(data)])(source, relative_origin=str(path.resolve()))


def profile(path: Path, data: Mapping[str, Any]) -> Profile:
    """The profile that a job runs; a `.toml` file is found from the project's folder, which the job is sent.

    Raises:
        FtlibError: there is none, or it or its rows are not sent with the project.
    """
    name = str((data.get("inputs") or {}).get("profile"))
    if not name.endswith(".toml"):
        return profiles.load(name)
    code = next((str(step["code"]) for step in steps(data).values() if "code" in step), ".")
    root = (path.parent / code).resolve()
    found = profiles.load(root / name)
    _check_sent(root, root / name)
    if found.data.is_local:
        _check_sent(root, Path(found.data.dataset))
    return found


def _check_sent(root: Path, file: Path) -> None:
    """Raise an FtlibError if a job would not have a file: it lies elsewhere, or .amlignore leaves it out."""
    client_library()
    from azure.ai.ml._utils._asset_utils import get_ignore_file

    below = file.resolve().is_relative_to(root)
    if not file.exists() or not below or get_ignore_file(root).is_file_excluded(file.resolve()):
        where = "is not there" if not file.exists() else "is left out by .amlignore" if below else "lies elsewhere"
        raise FtlibError(f"{file.name} {where}, and the job is sent the project's folder alone; move it there")


def steps(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The commands of a job: of a pipeline each by its key, such as "jobs.train.", and of any other the job itself."""
    if schema(data) != "pipelineJob":
        return {"": data}
    jobs = data.get("jobs")
    found = jobs.items() if isinstance(jobs, dict) else ()
    return {f"jobs.{name}.": step for name, step in found if isinstance(step, dict)}


def to_rest(entity: Any) -> dict[str, Any]:
    """What would be sent to Azure; code, environment and files are resolved only when it is sent."""
    sent = entity._to_job() if hasattr(entity, "_to_job") else entity
    convert = getattr(sent, "_to_rest_online_endpoint", None) or sent._to_rest_object
    region = ["(the workspace's)"] if "location" in inspect.signature(convert).parameters else []
    text = json.dumps(convert(*region).as_dict(), default=to_rest)  # a pipeline holds its steps' components
    found: dict[str, Any] = json.loads(text.replace(json.dumps(str(project_root())), '"../.."'))
    return ({"name": entity.name} if entity.name else {}) | found


def client_library() -> Any:
    """The module `azure.ai.ml`, kept from announcing its own experimental and outdated code."""
    warnings.filterwarnings("ignore", module=r"azure\.ai\.ml|marshmallow")
    try:
        import azure.ai.ml
    except ImportError:
        raise FtlibError("azure-ai-ml is not installed; run `pip install -e '.[azure]'`") from None
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)  # which it sets itself when it is imported
    return azure.ai.ml
