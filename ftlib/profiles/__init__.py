"""Profiles: every value in which a rehearsal on a laptop and a run on the A100s differ, and nothing else.

A profile is a TOML file. `tiny` and `gpt-oss-20b` are shipped; your own file may say `extends = "gpt-oss-20b"` and only
what differs. The comments in the shipped files say what changing a value does.

`[train]` and `[lora]` are passed to `SFTConfig` and `LoraConfig` as they are, so whatever these accept can be set.
"""

import contextlib
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ftlib.errors import FtlibError, nearest
from ftlib.profiles import library

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path(__file__).parent

Share = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(gt=0)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
REPO_ID = r"^[\w.-]+/[\w.-]+$"
RepoId = Annotated[str, Field(pattern=REPO_ID)]
Attention = Literal["eager", "flex_attention"]
Experts = Literal["eager", "grouped_mm", "batched_mm"]
Dtype = Literal["bfloat16", "float32"]
# What a data set's columns hold, for one whose columns are named otherwise.
ColumnRole = Literal["prompt", "response", "system", "thinking", "reasoning_language"]
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# A value and the commit that it is pinned to: who names another value does not inherit the old one's commit.
PINNED = {"model": "model_revision", "dataset": "revision"}
# The sections that are a library call's arguments.
CALLS = {"lora": "LoraConfig", "train": "SFTConfig"}
# Arguments that notebook 4 fills in, or that a profile must not decide: another's code, another's account.
SET_BY_NOTEBOOK = {
    "lora": {"target_parameters", "revision", "task_type"},
    "train": {
        *("output_dir", "gradient_accumulation_steps", "save_total_limit", "logging_steps", "resume_from_checkpoint"),
        *("report_to", "project", "run_name", "trackio_static_space_id", "ddp_find_unused_parameters", "padding_free"),
        *("trust_remote_code", "push_to_hub", "hub_token", "hub_model_id", "hub_private_repo"),
    },
}
# What values were called before November 2026.
RENAMED = {
    "data.assistant_only_loss": "train.assistant_only_loss",
    "data.max_length": "train.max_length",
    "lora.alpha": "lora.lora_alpha",
    "lora.dtype": "recipe.adapter_dtype",
    "lora.expert_layers": "recipe.expert_layers",
    "measure.attention": "measure.attn_implementation",
    "measure.experts": "measure.experts_implementation",
    "model.attention": "model.attn_implementation",
    "model.experts": "model.experts_implementation",
    "train.checkpoint_steps": "train.save_steps",
    "train.effective_batch": "recipe.effective_batch_size",
    "train.epochs": "train.num_train_epochs",
    "train.min_learning_rate_share": "train.lr_scheduler_kwargs.min_lr_rate",
    "train.optimizer": "train.optim",
    "train.padding_free": "recipe.padding_free",
    "train.per_device_batch": "train.per_device_train_batch_size",
    "train.sampling": "train.train_sampling_strategy",
    "train.schedule": "train.lr_scheduler_type",
    "train.warmup_share": "train.warmup_steps",
}


def is_local_path(dataset: str) -> bool:
    """Whether a data set's name is a path: a file by its ending, a folder by its beginning."""
    return dataset.endswith(DATA_SUFFIXES) or dataset.startswith(("./", "../", "/", "~"))


def _real_day(text: str) -> str:
    with contextlib.suppress(ValueError):
        if date.fromisoformat(text).isoformat() == text:
            return text
    raise ValueError("expected a real day as YYYY-MM-DD, such as 2025-08-05")


class Section(BaseModel):
    """A part of a profile: frozen, and strict about types and names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Hub(Section):
    """Where the model comes from and where the adapter goes."""

    endpoint: Annotated[str, Field(pattern=r"^(rehearsal|https://[^\s@]+)$")]
    model: RepoId
    model_revision: Commit
    push_target: Annotated[str, Field(pattern=r"^([\w.-]+/)?[\w.-]+$")]
    private: bool


class Data(Section):
    """What is read, and what of it is held out for measuring.

    `dataset` is a Hub id with its `revision`, or the path of a local file or folder, which has none.
    """

    dataset: str
    revision: Commit | None = None
    columns: dict[ColumnRole, str]
    on_bad_row: Literal["stop", "drop"]
    held_out_share: Share
    template_date: Annotated[str, AfterValidator(_real_day)]

    @property
    def is_local(self) -> bool:
        """Whether the data set is a file or folder on this machine rather than one of the Hub's."""
        return is_local_path(self.dataset)

    @property
    def shown(self) -> str:
        """The data set as others are told of it: its Hub id, or the name of the file or folder without its place."""
        return Path(self.dataset).name if self.is_local else self.dataset

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.is_local and self.revision:
            raise ValueError(f"revision {self.revision} belongs to no local file; leave it out")
        if not self.is_local and not re.fullmatch(REPO_ID, self.dataset):
            raise ValueError(
                f"dataset {self.dataset!r} is neither a Hub id such as 'name/data' nor a path: a file ends in one of "
                f"{', '.join(DATA_SUFFIXES)}, a folder begins with './'"
            )
        if not self.is_local and not self.revision:
            raise ValueError(
                f"revision is missing: name the commit of {self.dataset}, 40 hex digits, so that the same rows come "
                "next year; its page on the Hub lists them under 'Files and versions'"
            )
        return self


class Model(Section):
    """How the base model is held in memory, and how it computes while it trains, as `from_pretrained` names it."""

    dtype: Dtype
    attn_implementation: Attention
    experts_implementation: Experts


class Recipe(Section):
    """What no single library call takes: how rows are batched, and where the adapter reaches."""

    effective_batch_size: PositiveInt
    padding_free: bool
    expert_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(strict=False)
    adapter_dtype: Dtype


class Lora(Section):
    """Arguments of peft's `LoraConfig`; any other that it accepts may be added."""

    model_config = ConfigDict(extra="allow")

    r: PositiveInt
    lora_alpha: PositiveInt
    target_modules: str


class Train(Section):
    """Arguments of trl's `SFTConfig`; any other that it accepts may be added."""

    model_config = ConfigDict(extra="allow")

    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    num_train_epochs: PositiveInt
    per_device_train_batch_size: PositiveInt
    max_length: PositiveInt
    assistant_only_loss: bool
    warmup_steps: Annotated[float, Field(ge=0)]
    lr_scheduler_type: str
    lr_scheduler_kwargs: dict[str, float]
    optim: str
    train_sampling_strategy: Literal["random", "group_by_length"]
    activation_checkpointing: bool
    bf16: bool
    use_cpu: bool
    save_steps: PositiveInt
    seed: Annotated[int, Field(ge=0)]


class Measure(Section):
    """How the model is asked and scored before and after training; what it learns does not depend on it."""

    attn_implementation: Attention
    experts_implementation: Experts
    batch_size: PositiveInt
    max_new_tokens: PositiveInt
    score_batch_size: PositiveInt


class Track(Section):
    """Where trackio files the training curves."""

    project: str


class Profile(Section):
    """Every value that a run depends on."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    hub: Hub
    data: Data
    model: Model
    recipe: Recipe
    lora: Lora
    train: Train
    measure: Measure
    track: Track

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        for section in ("model", "measure"):
            if self.train.use_cpu and getattr(self, section).attn_implementation == "flex_attention":
                raise ValueError(
                    f"{section}.attn_implementation = 'flex_attention' needs a GPU; use \"eager\" with train.use_cpu"
                )
        return self

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches to gather before each update, so that one process and many train the same thing.

        Args:
            world_size: number of training processes, one a GPU.

        Raises:
            FtlibError: the effective batch is not a multiple of what all processes hold at once.
        """
        wanted, held = self.recipe.effective_batch_size, self.train.per_device_train_batch_size
        if wanted % (held * world_size):
            raise FtlibError(
                f"recipe.effective_batch_size {wanted} is not a multiple of train.per_device_train_batch_size × "
                f"processes = {held} × {world_size} = {held * world_size}; change one of the three"
            )
        return wanted // (held * world_size)


def shipped() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str | Path) -> Profile:
    """Read a profile by its shipped name or by the path of a `.toml` file.

    Raises:
        FtlibError: no such profile, not TOML, an unknown key, a wrong type or value, or a file that extends itself.
    """
    values = _read(str(name), seen=())
    _check_names(str(name), values)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise FtlibError(f"profile {name}: {_explain(error)}") from None


def _check_names(profile: str, values: dict[str, Any]) -> None:
    """Refuse yesterday's names, and what the library calls do not accept."""
    sections = {section: keys for section, keys in values.items() if isinstance(keys, dict)}
    for name, new in RENAMED.items():
        section, key = name.split(".")
        if key in sections.get(section, {}):
            raise FtlibError(f"profile {profile}: {name} is now called {new}; rename it")
    for section, call in CALLS.items():
        own = _model_of(section).model_fields
        known = sorted(library.fields(call).keys() - SET_BY_NOTEBOOK[section])
        for key, value in sections.get(section, {}).items():
            if key in SET_BY_NOTEBOOK[section]:
                raise FtlibError(f"profile {profile}: {section}.{key} is not a profile's to decide; leave it out")
            if key not in known:
                raise FtlibError(f"profile {profile}: {call} has no argument {key}; {nearest(key, known)}")
            if key not in own and (expected := library.accepts(call, key, value)):
                raise FtlibError(f"profile {profile}: {section}.{key} = {value!r}: {expected[0].lower()}{expected[1:]}")


def _model_of(section: str) -> Any:
    return Profile.model_fields[section].annotation


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
        raise FtlibError(f"profile {name!r} is unknown; {nearest(name, shipped())}")
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
    except OSError as error:
        raise FtlibError(f"profile {name}: cannot be read ({error.strerror}); check its rights") from None
    base = values.pop("extends", None)
    values.setdefault("name", path.stem)
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("dataset"), str) and is_local_path(data["dataset"]):
        data["dataset"] = _resolved(data["dataset"], path.parent)
    if base is None:
        return values
    if not isinstance(base, str):
        raise FtlibError(
            f"profile {name}: extends = {base!r}: expected one of {shipped()}, or the path of a .toml file"
        )
    parent = path.parent / base if base.endswith(".toml") else base
    return _overlay(_read(str(parent), (*seen, path)), values)


def _resolved(dataset: str, folder: Path) -> str:
    try:
        return str((folder / Path(dataset).expanduser()).resolve())
    except RuntimeError:
        raise FtlibError(f"data.dataset {dataset!r}: nobody of that name has a home here; write the path out") from None


def _overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for named, pin in PINNED.items():
        if named in changes:
            merged.pop(pin, None)
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
        model = _model_of(str(section[0])) if section else Profile
        return f"unknown key {where}; {nearest(str(key), list(model.model_fields))}"
    if first["type"] == "missing":
        return f"{where} is missing; add it, or let the file extend one of {shipped()}"
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # of a section as a whole
        return f"{where}.{first['ctx']['error']}".lstrip(".")
    expected = first["msg"].removeprefix("Value error, ")
    expected = expected[0].lower() + expected[1:]
    quoted = isinstance(first["input"], str) and not first["type"].startswith(("string", "literal", "value"))
    hint = "; write it without quotes" if quoted else ""
    return f"{where} = {first['input']!r}: {expected}{hint}"


def section_of(key: str) -> str:
    """The section of a profile that has a key, such as "train" for "learning_rate"; "" where none has."""
    for section in Profile.model_fields:
        if key in getattr(_model_of(section), "model_fields", {}) or (
            section in CALLS and key in library.fields(CALLS[section])
        ):
            return section
    return ""
