"""The sections of a profile. The comments in the shipped `.toml` files say what changing a value does."""

import contextlib
import re
from datetime import date
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from ftlib.errors import FtlibError
from ftlib.profiles import library

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
REPO_ID = r"^[\w.-]+/[\w.-]+$"
Attention = Literal["eager", "flex_attention"]
Experts = Literal["eager", "grouped_mm", "batched_mm"]
Dtype = Literal["bfloat16", "float32"]
ColumnRole = Literal["prompt", "response", "system", "thinking", "reasoning_language"]
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


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


class CallSection(Section):
    """The arguments of one library call: those declared here are required, any other that it accepts is optional."""

    model_config = ConfigDict(extra="allow")
    call: ClassVar[str]
    # What notebook 4 fills in, or what would run other people's code or publish to an account.
    not_for_profiles: ClassVar[frozenset[str]]

    @model_validator(mode="after")
    def _accepted_by_the_call(self) -> Self:
        for name, value in self:
            if name in self.not_for_profiles:
                raise ValueError(f"{name} cannot be set in a profile; leave it out")
            if reason := library.refusal(self.call, name, value):
                raise ValueError(reason)
        return self


class Hub(Section):
    """Where the model comes from and where the adapter goes."""

    endpoint: Annotated[str, Field(pattern=r"^(rehearsal|https://[^\s@]+)$")]
    model: Annotated[str, Field(pattern=REPO_ID)]
    model_revision: Commit
    push_target: Annotated[str, Field(pattern=r"^([\w.-]+/)?[\w.-]+$")]
    private: bool

    @property
    def is_rehearsal(self) -> bool:
        """Whether this is the Hub on this machine."""
        return self.endpoint == "rehearsal"


class Data(Section):
    """What is read, a Hub id with its commit or the path of a local file or folder, and what of it is held out."""

    dataset: str
    revision: Commit | None = None
    columns: dict[ColumnRole, str]
    on_bad_row: Literal["stop", "drop"]
    held_out_share: Annotated[float, Field(ge=0, lt=1)]
    template_date: Annotated[str, AfterValidator(_real_day)]

    @property
    def is_local(self) -> bool:
        """Whether the data set is a file or folder on this machine."""
        return is_local_path(self.dataset)

    @property
    def shown(self) -> str:
        """The data set as it is published: its Hub id, or the name of the file or folder without its place."""
        return Path(self.dataset).name if self.is_local else self.dataset

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.is_local and self.revision:
            raise ValueError(f"revision {self.revision} belongs to no local file; leave it out")
        if not self.is_local and not re.fullmatch(REPO_ID, self.dataset):
            expected = f"a file ends in one of {', '.join(DATA_SUFFIXES)}, a folder begins with './'"
            raise ValueError(f"dataset {self.dataset!r} is neither a Hub id such as 'name/data' nor a path: {expected}")
        if not self.is_local and not self.revision:
            raise ValueError(f"revision is missing: add the commit of {self.dataset}, 40 hex digits, from its page")
        return self


class Model(Section):
    """How the base model is held in memory and computes while it trains, by `from_pretrained`'s own names."""

    dtype: Dtype
    attn_implementation: Attention
    experts_implementation: Experts


class Recipe(Section):
    """What no single library call takes: how rows are batched, and which experts the adapter reaches."""

    effective_batch_size: PositiveInt
    padding_free: bool
    expert_layers: tuple[NonNegativeInt, ...] = Field(strict=False)
    adapter_dtype: Dtype


class Lora(CallSection):
    """Arguments of peft's `LoraConfig`."""

    call = "LoraConfig"
    not_for_profiles = frozenset({"target_parameters", "revision", "task_type"})

    r: PositiveInt
    lora_alpha: PositiveInt
    target_modules: str


class Train(CallSection):
    """Arguments of trl's `SFTConfig`."""

    call = "SFTConfig"
    not_for_profiles = frozenset(
        [
            *("output_dir", "gradient_accumulation_steps", "save_total_limit", "logging_steps", "report_to", "project"),
            *("run_name", "resume_from_checkpoint", "trackio_static_space_id", "ddp_find_unused_parameters"),
            *("padding_free", "trust_remote_code", "push_to_hub", "hub_token", "hub_model_id", "hub_private_repo"),
        ]
    )

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
    seed: NonNegativeInt


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
        used = {"model": self.model.attn_implementation, "measure": self.measure.attn_implementation}
        for section, attention in used.items():
            if self.train.use_cpu and attention != "eager":
                found = f"{section}.attn_implementation = {attention!r}"
                raise ValueError(f"{found} needs a GPU; with train.use_cpu use 'eager'")
        if (self.recipe.adapter_dtype, self.model.dtype) == ("bfloat16", "float32"):  # PEFT would keep the base's
            raise ValueError("recipe.adapter_dtype = 'bfloat16' needs model.dtype = 'bfloat16', found 'float32'")
        return self

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches to gather before each update, so that one process and `world_size` train the same thing."""
        wanted, held = self.recipe.effective_batch_size, self.train.per_device_train_batch_size
        if wanted % (held * world_size):
            found = f"{wanted} is not a multiple of train.per_device_train_batch_size × processes = {held} ×"
            raise FtlibError(
                f"recipe.effective_batch_size {found} {world_size} = {held * world_size}; change one of these"
            )
        return wanted // (held * world_size)
