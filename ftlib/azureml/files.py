"""The Azure ML files: found by name, read as Azure's client reads them, and turned into what would be sent."""

import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ftlib.errors import FtlibError, nearest

FOLDER = Path(__file__).parent
# The function of azure-ai-ml that loads a file, by the name of its schema.
LOADERS = {
    "commandJob": "load_job",
    "environment": "load_environment",
    "amlCompute": "load_compute",
    "computeInstance": "load_compute",
    "model": "load_model",
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
    return {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in settings)}


def read(path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A file's values, with changes to some of them by dotted key, such as `resources.instance_count`.

    Raises:
        FtlibError: it is not YAML, or not one of the kinds of Azure ML file used here.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise FtlibError(f"{path.name}: line {line}: not valid YAML; fix it") from None
    if not isinstance(data, dict) or schema(data) not in LOADERS:
        raise FtlibError(f"{path.name}: $schema: expected Azure ML's address of one of {list(LOADERS)}")
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise FtlibError(f"{path.name}: {key}: {parent} is a value and has no keys")
        section[last] = value
    return data


def schema(data: Mapping[str, Any]) -> str:
    """The name of a file's schema, such as "commandJob"."""
    return str(data.get("$schema", "")).rpartition("/")[2].removesuffix(".schema.json")


def load(path: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The entity that azure-ai-ml makes of a file; its errors are not translated."""
    ml, data = client_library(), read(path, changes)
    source = io.StringIO(yaml.safe_dump(data))
    return getattr(ml, LOADERS[schema(data)])(source, relative_origin=str(path.resolve()))


def to_rest(entity: Any) -> dict[str, Any]:
    """What would be sent to Azure; code, environment and files are resolved only when it is sent."""
    sent: dict[str, Any] = (entity._to_job() if hasattr(entity, "_to_job") else entity)._to_rest_object().as_dict()
    return ({"name": entity.name} if entity.name else {}) | sent


def client_library() -> Any:
    """The module `azure.ai.ml`, kept from announcing its own experimental and outdated code."""
    warnings.filterwarnings("ignore", module=r"azure\.ai\.ml|marshmallow")
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)
    try:
        import azure.ai.ml
    except ImportError:
        raise FtlibError("azure-ai-ml is not installed; run `pip install -e '.[azure]'`") from None
    return azure.ai.ml
