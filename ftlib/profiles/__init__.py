"""Profiles: every value in which a rehearsal on a laptop and a run on the A100s differ, and nothing else.

A profile is a TOML file. `tiny` and `gpt-oss-20b` are shipped; a person's own file may say `extends = "gpt-oss-20b"`
and only what differs. The comments in the shipped files say what changing a value does.
"""

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftlib.errors import FtlibError

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parent

Share = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(gt=0)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
RepoId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


class Section(BaseModel):
    """A part of a profile: frozen, and strict about types and names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Hub(Section):
    """Where models and data come from and where the adapter goes."""

    endpoint: Annotated[str, Field(pattern=r"^(rehearsal|https://\S+)$")]
    model: RepoId
    model_revision: Commit
    dataset: RepoId
    dataset_revision: Commit
    push_target: Annotated[str, Field(pattern=r"^([\w.-]+/)?[\w.-]+$")]
    private: bool


class Data(Section):
    """What is read, how much of a conversation, and what is kept for measuring."""

    held_out_share: Share
    max_length: PositiveInt
    template_date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Model(Section):
    """How the base model is held in memory."""

    dtype: Literal["bfloat16", "float32"]
    attention: Literal["eager", "flex_attention", "sdpa"]
    experts: Literal["eager", "grouped_mm", "batched_mm"]
    device_map: Literal["auto", "cpu"]


class Lora(Section):
    """The shape of the adapter."""

    r: PositiveInt
    alpha: PositiveInt
    target_modules: str
    expert_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(strict=False)


class Train(Section):
    """The recipe of the fine-tuning."""

    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    epochs: PositiveInt
    effective_batch: PositiveInt
    per_device_batch: PositiveInt
    warmup_share: Share
    schedule: str
    min_learning_rate_share: Share
    activation_checkpointing: bool
    bf16: bool
    use_cpu: bool
    seed: Annotated[int, Field(ge=0)]

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches to gather before each update, so that one process and many train the same thing.

        Args:
            world_size: number of training processes, one a GPU.

        Raises:
            FtlibError: `effective_batch` is not a multiple of `per_device_batch × world_size`.
        """
        rows = self.per_device_batch * world_size
        if self.effective_batch % rows:
            raise FtlibError(
                f"train.effective_batch {self.effective_batch} is not a multiple of per_device_batch × processes = "
                f"{self.per_device_batch} × {world_size} = {rows}; change one of the three"
            )
        return self.effective_batch // rows


class Generate(Section):
    """How replies are generated when the model is measured."""

    max_new_tokens: PositiveInt
    batch_size: PositiveInt


class Track(Section):
    """Where trackio files the training curves."""

    project: str


class Profile(Section):
    """Every value that a run depends on."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    hub: Hub
    data: Data
    model: Model
    lora: Lora
    train: Train
    generate: Generate
    track: Track


def shipped() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str | Path) -> Profile:
    """Read a profile by its shipped name or by the path of a `.toml` file.

    Raises:
        FtlibError: no such profile, not TOML, an unknown key, a wrong type or value, or a file that extends itself.
    """
    values = _read(str(name), seen=())
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise FtlibError(f"profile {name}: {_explain(error)}") from None


def compare(first: str, second: str) -> "pd.DataFrame":
    """The values in which two profiles differ.

    Returns:
        Index value (`section.key`), one column a profile.
    """
    import pandas as pd

    frame = pd.DataFrame({name: _flat(load(name)) for name in (first, second)}).rename_axis("value")
    return frame[frame[first].map(str) != frame[second].map(str)]


def _flat(profile: Profile) -> dict[str, Any]:
    sections = {section: values for section, values in profile.model_dump().items() if isinstance(values, dict)}
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _path(name: str) -> Path:
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise FtlibError(f"profile {name}: no such file; give the path of a .toml file or one of {shipped()}")
        return path
    if name not in shipped():
        raise FtlibError(f"profile {name!r} is unknown{_nearest(name, shipped())}; shipped are {shipped()}")
    return FOLDER / f"{name}.toml"


def _read(name: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a profile file laid over those of the one that it extends."""
    path = _path(name).resolve()
    if path in seen:
        raise FtlibError(f"profile {path.name} extends itself; let it extend one of {shipped()}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FtlibError(f"profile {name}: not valid TOML: {error}") from None
    base = values.pop("extends", None)
    values.setdefault("name", path.stem)
    if base is None:
        return values
    parent = path.parent / base if str(base).endswith(".toml") else base
    return _overlay(_read(str(parent), (*seen, path)), values)


def _overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_sections = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _overlay(base[key], value) if both_sections else value
    return merged


def _explain(error: ValidationError) -> str:
    """The first thing wrong, in one line: where, what was found, what is allowed."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *section, key = first["loc"]
        model: Any = Profile
        for part in section:
            model = model.model_fields[str(part)].annotation
        return f"unknown key {where}{_nearest(str(key), list(model.model_fields))}"
    if first["type"] == "missing":
        return f"{where} is missing; add it, or let the file extend one of {shipped()}"
    expected = first["msg"][0].lower() + first["msg"][1:]
    return f"{where} = {first['input']!r}: {expected}"


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {valid}"
