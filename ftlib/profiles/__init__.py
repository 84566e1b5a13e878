"""Profiles: every value in which a rehearsal on a laptop and a run on the A100s differ, and nothing else.

A profile is a TOML file; your own may say `extends = "gpt-oss-20b"` and only what differs. `[train]` and `[lora]` are
passed to `SFTConfig` and `LoraConfig` as they are, so what these accept can be set, unless it would fail later here.
"""

import os
import reprlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ftlib.errors import FtlibError, nearest
from ftlib.profiles import library
from ftlib.profiles.schema import DATA_SUFFIXES, ColumnRole, Data, Hub, Lora, Measure, Profile, Train, is_local_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DATA_SUFFIXES", "ColumnRole", "Data", "Hub", "Measure", "Profile", "Train"]
FOLDER = Path(__file__).parent
# A value and what belongs to it: a file that names another value does not inherit what belonged to the old one.
BELONGS = {"model": "model_revision", "dataset": "revision", "lr_scheduler_type": "lr_scheduler_kwargs"}
LARGEST = 10**6  # bytes of a profile
SHORT = reprlib.Repr()  # of what was found, at a length that can be read
SHORT.maxstring = SHORT.maxother = 100


def shipped() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str | Path) -> Profile:
    """Read a profile by its shipped name or by the path of a `.toml` file; FtlibError names the first mistake."""
    shown = _shown(str(name))
    try:
        return Profile.model_validate(_read(path_of(name), shown, seen=()))
    except ValidationError as error:
        raise FtlibError(f"profile {shown}: {_explain(error)}") from None
    except RecursionError:
        raise FtlibError(f"profile {shown} nests or extends too deep; let it extend one of {shipped()}") from None


def path_of(name: str | Path) -> Path:
    """The file of a profile, which need not exist; in notebooks/, a path may begin in the project's folder, too."""
    if str(name) in shipped():
        return FOLDER / f"{name}.toml"
    if not str(name).endswith(".toml"):
        raise FtlibError(f"profile {SHORT.repr(str(name))} is unknown; {nearest(str(name), shipped())}")
    above = Path("..") / name
    return above if Path.cwd().name == "notebooks" and not Path(name).exists() and above.exists() else Path(name)


def compare(first: str, second: str) -> "pd.DataFrame":
    """The values in which two profiles differ: index value (`section.key`), one column a profile."""
    import pandas as pd

    values = {name: load(name).model_dump(exclude={"name"}) for name in (first, second)}
    columns = {name: pd.json_normalize(sections, max_level=1).T[0] for name, sections in values.items()}
    frame = pd.concat(columns, axis=1).rename_axis("value")
    return frame[frame[first].map(str) != frame[second].map(str)]


def section_of(key: str) -> str:
    """The section of a profile that a key belongs to, such as "train" for "learning_rate"; "" if there is none."""
    accepted = {"train": library.arguments(Train.call), "lora": library.arguments(Lora.call)}
    sections = {name: (*_keys(name), *accepted.get(name, ())) for name in Profile.model_fields}
    return next((name for name, keys in sections.items() if key in keys), "")


def _keys(section: str) -> list[str]:
    """The declared keys of a section, or of the profile itself where it has no section of that name."""
    field = Profile.model_fields.get(section)
    return list(getattr(field.annotation if field else Profile, "model_fields", {}))


def _shown(name: str) -> str:
    """A profile as errors name it: with no path of this machine, and not at any length."""
    return SHORT.repr(Path(name).name if Path(name).is_absolute() else name).strip("'\"")


def _read(path: Path, shown: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a profile file, laid over those of the file that it extends."""
    values = _values(path, shown)
    if (path := path.resolve()) in seen:
        raise FtlibError(f"profile {path.name} extends itself; let it extend one of {shipped()}")
    values.setdefault("name", path.stem)
    data = values.get("data")
    if isinstance(data, dict) and isinstance(name := data.get("dataset"), str) and is_local_path(name):
        data["dataset"] = str((path.parent / os.path.expanduser(name)).resolve())  # noqa: PTH111
    if "extends" not in values:
        return values
    if not isinstance(base := values.pop("extends"), str):
        raise FtlibError(f"profile {shown}: extends = {SHORT.repr(base)}: expected one of {shipped()}, or a path")
    parent = path.parent / base if base.endswith(".toml") else path_of(base)
    return _overlay(_read(parent, _shown(base), (*seen, path)), values)


def _values(path: Path, shown: str) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise FtlibError(f"profile {shown}: no such file; give the path of a .toml file or one of {shipped()}")
        if path.stat().st_size > LARGEST:
            raise FtlibError(f"profile {shown}: found {path.stat().st_size} bytes, expected a short .toml file")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FtlibError(f"profile {shown}: not valid TOML: {error}") from None
    except OSError as error:
        found = f"profile {shown}: cannot be read ({error.strerror})"
        raise FtlibError(f"{found}; check its name and permissions") from None


def _overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A profile's values with changes laid over them, value by value in each section."""
    merged = dict(base)
    for section, values in changes.items():
        if isinstance(values, dict) and isinstance(below := base.get(section), dict):
            outdated = {BELONGS.get(key) for key, value in values.items() if value != below.get(key)}
            values = {key: value for key, value in below.items() if key not in outdated} | values
        merged[section] = values
    return merged


def _explain(error: ValidationError) -> str:
    """The first thing wrong, in one line: where, what was found, what is allowed."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where}; {nearest(str(first['loc'][-1]), _keys(where.rpartition('.')[0]))}"
    if first["type"] == "missing":
        return f"{where} is missing; add it, or let the file extend one of {shipped()}"
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # of a section as a whole
        return f"{where}.{first['ctx']['error']}".lstrip(".")
    expected = first["msg"].removeprefix("Value error, ")
    quoted = isinstance(first["input"], str) and not first["type"].startswith(("string", "literal", "value"))
    found = f"{where} = {SHORT.repr(first['input'])}"
    return f"{found}: {expected[0].lower()}{expected[1:]}{'; write it without quotes' * quoted}"
