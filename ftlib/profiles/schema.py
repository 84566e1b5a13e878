"""The sections of a profile. The comments in the shipped `.toml` files say what changing a value does."""

import contextlib
import re
from collections.abc import Collection, Iterator
from datetime import date
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, model_validator

from ftlib.errors import FtlibError, nearest
from ftlib.profiles import library

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Count = Annotated[int, Field(gt=0, lt=2**31)]  # nothing that a profile counts is larger
# The Hub's rule for names as huggingface_hub's `validate_repo_id` has it, which must not be imported before `start`.
REPO_ID = re.compile(r"(?!.*(?:--|\.\.|\.git$))(?:\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
ROOM = r"http://(?:\d{1,3}\.){3}\d{1,3}:\d{1,5}"  # the address that `ftlib hub` prints
# How many layers a model has and how many tokens it can read, where that is known without its config.json.
SIZES = {"rehearsal/gpt-oss-tiny": (4, 4_096), "openai/gpt-oss-20b": (24, 2**17), "openai/gpt-oss-120b": (36, 2**17)}
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj"]
# The `lr_scheduler_kwargs` of each schedule: exactly one of the first, and any of the others.
SCHEDULES: dict[str, tuple[list[str], list[str]]] = {
    **dict.fromkeys(("linear", "constant", "constant_with_warmup"), ([], [])),
    **dict.fromkeys(("cosine", "cosine_with_restarts"), ([], ["num_cycles"])),
    "cosine_with_min_lr": (["min_lr", "min_lr_rate"], ["num_cycles"]),
    "cosine_warmup_with_min_lr": (["min_lr", "min_lr_rate"], ["num_cycles", "warmup_lr_rate"]),
    "polynomial": ([], ["lr_end", "power"]),
    "inverse_sqrt": ([], ["timescale"]),
    "warmup_stable_decay": (["num_decay_steps"], ["num_stable_steps", "min_lr_ratio", "num_cycles"]),
}
NO_EVALUATION = "the trainer has no rows to evaluate; notebooks 3 and 5 measure"
NOT_LOCKED = "the others need packages that requirements.lock lacks"
Attention = Literal["eager", "flex_attention"]
Experts = Literal["eager", "grouped_mm", "batched_mm"]
Dtype = Literal["bfloat16", "float32"]
ColumnRole = Literal["prompt", "response", "system", "thinking", "reasoning_language"]
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def is_local_path(dataset: str) -> bool:
    """Whether a data set's name is a path: a file by its ending, a folder by its beginning."""
    is_folder = dataset.startswith(("./", "../", "/", "~")) or PureWindowsPath(dataset).is_absolute()
    return "\0" not in dataset and (is_folder or dataset.endswith(DATA_SUFFIXES))


def _real_day(text: str) -> str:
    with contextlib.suppress(ValueError):
        if date.fromisoformat(text).isoformat() == text:
            return text
    raise ValueError("expected a real day as YYYY-MM-DD, such as 2025-08-05")


def _hub_name(text: str) -> str:
    if not REPO_ID.fullmatch(text):
        allowed = "at most 96 of A-Z, a-z, 0-9, '-', '_' and '.', without '--', '..', '.git' or a sign at either end"
        raise ValueError(f"the Hub does not accept this name; expected {allowed}")
    return text


def _folder_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]{0,63}", text) or text.endswith(".") or PureWindowsPath(text).is_reserved():
        allowed = "at most 64 letters, digits, '_', '-' and '.', and none of Windows' own names"
        raise ValueError(f"it names the folder of the outputs; expected {allowed}")
    return text


def _targets(value: Any) -> Any:
    names = value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None
    if value != "all-linear" and (names is None or len(set(names)) < len(names)):
        raise ValueError(f"expected 'all-linear', or a list of names, each once, such as {LINEAR_LAYERS[::2]}")
    return value


class Section(BaseModel):
    """A part of a profile: frozen, and strict about types and names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CallSection(Section):
    """The arguments of one library call: those declared here are required, any other that it accepts is optional."""

    model_config = ConfigDict(extra="allow")
    call: ClassVar[str]
    # What notebook 4 fills in, or what would run other people's code or publish to an account.
    not_for_profiles: ClassVar[frozenset[str]]
    # What works here, and why nothing else does, of arguments with which the call fails late or does nothing.
    works: ClassVar[dict[str, tuple[Collection[Any], str]]]

    @model_validator(mode="after")
    def _accepted_by_the_call(self) -> Self:
        for name, value in self:
            if name in self.not_for_profiles:
                raise ValueError(f"{name} cannot be set in a profile; leave it out")
            if reason := library.refusal(self.call, name, value):
                raise ValueError(reason)
            allowed, why = self.works.get(name, ([value], ""))
            if value not in allowed:
                expected = f"expected {' or '.join(map(repr, allowed))}: " if allowed else ""
                raise ValueError(f"{name} = {value!r}: {expected}{why}")
        return self


class Hub(Section):
    """Where the model comes from and where the adapter goes."""

    endpoint: Annotated[str, Field(pattern=rf"^(rehearsal|{ROOM}|https://[^\s@]+)$")]
    model: Annotated[str, Field(pattern="/"), AfterValidator(_hub_name)]
    model_revision: Commit
    push_target: Annotated[str, AfterValidator(_hub_name)]
    private: bool

    @property
    def is_rehearsal(self) -> bool:
        """Whether this is the Hub on this machine, or a room's."""
        return self.endpoint == "rehearsal" or self.is_room

    @property
    def is_room(self) -> bool:
        """Whether this is the rehearsal Hub of a room, which its members have joined."""
        return self.endpoint.startswith("http://")


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
        if not self.is_local and not ("/" in self.dataset and REPO_ID.fullmatch(self.dataset)):
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

    effective_batch_size: Count
    padding_free: bool
    expert_layers: tuple[NonNegativeInt, ...] = Field(strict=False)
    adapter_dtype: Dtype


class Lora(CallSection):
    """Arguments of peft's `LoraConfig`."""

    call = "LoraConfig"
    not_for_profiles = frozenset(
        {"target_parameters", "revision", "task_type", "inference_mode", "layers_to_transform"}
    )
    works: ClassVar = {"init_lora_weights": ([True, False, "gaussian"], "the others cannot start an expert's adapter")}

    r: Count
    lora_alpha: Count
    target_modules: Annotated[Literal["all-linear"] | list[str], BeforeValidator(_targets)]

    def adapts(self, module: str) -> bool:
        """Whether PEFT adapts a linear layer, given its whole name."""
        named = self.target_modules
        return named == "all-linear" or any(f".{module}".endswith(f".{name}") for name in named)


class Train(CallSection):
    """Arguments of trl's `SFTConfig`."""

    call = "SFTConfig"
    not_for_profiles = frozenset(
        [
            *("output_dir", "gradient_accumulation_steps", "save_total_limit", "logging_steps", "report_to", "project"),
            *("run_name", "resume_from_checkpoint", "trackio_static_space_id", "ddp_find_unused_parameters"),
            *("padding_free", "trust_remote_code", "push_to_hub", "hub_token", "hub_model_id", "hub_private_repo"),
            *("trackio_space_id", "trackio_bucket_id", "chat_template_path", "model_init_kwargs", "dataset_kwargs"),
            *("eos_token", "pad_token", "deepspeed", "fsdp", "fsdp_config", "parallelism_config", "ddp_backend"),
        ]
    )
    works: ClassVar = {
        "gradient_checkpointing": ((), "it is called activation_checkpointing now"),
        "gradient_checkpointing_kwargs": ((), "they are called activation_checkpointing_kwargs now"),
        "completion_only_loss": ([False], "rows are conversations; see assistant_only_loss"),
        "eval_on_start": ([False], NO_EVALUATION),
        "eval_strategy": (["no"], NO_EVALUATION),
        "load_best_model_at_end": ([False], NO_EVALUATION),
        "logging_strategy": (["steps"], "the loss of each update is drawn"),
        "loss_type": (["nll", "dft"], "trl has no other"),
        "lr_scheduler_type": (SCHEDULES, NO_EVALUATION),
        "optim": (["adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd"], NOT_LOCKED),
        "packing": ([False], "packed rows would read each other; see recipe.padding_free"),
        "save_only_model": ([False], "training resumes from checkpoints"),
        "save_strategy": (["steps"], "an adapter is finished once its last checkpoint is sealed"),
        "truncation_mode": (["keep_start", "keep_end"], "trl has no other"),
        "use_liger_kernel": ([False], NOT_LOCKED),
    }

    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    num_train_epochs: Count
    per_device_train_batch_size: Count
    max_length: Annotated[Count, Field(gt=1)]  # a token is learned from those before it
    assistant_only_loss: bool
    warmup_steps: Annotated[float, Field(ge=0)]
    lr_scheduler_type: str
    lr_scheduler_kwargs: dict[str, Annotated[float, Field(ge=0)]] = {}
    optim: str
    train_sampling_strategy: Literal["random", "group_by_length"]
    activation_checkpointing: bool
    bf16: bool
    use_cpu: bool
    save_steps: Count
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # as numpy takes it

    @model_validator(mode="after")
    def _taken_by_the_schedule(self) -> Self:
        (one, others), given = SCHEDULES[self.lr_scheduler_type], self.lr_scheduler_kwargs
        found = f"lr_scheduler_kwargs = {given}: {self.lr_scheduler_type!r} takes"
        if unknown := [name for name in given if name not in one + others]:
            raise ValueError(f"{found} no {unknown[0]}; valid are {one + others}")
        if one and len(given.keys() & set(one)) != 1:
            raise ValueError(f"{found} exactly one of {one}")
        return self


class Measure(Section):
    """How the model is asked and scored before and after training; what it learns does not depend on it."""

    attn_implementation: Attention
    experts_implementation: Experts
    batch_size: Count
    max_new_tokens: Count
    score_batch_size: Count
    served_questions: Count


class Track(Section):
    """Where trackio files the training curves."""

    project: str


class Profile(Section):
    """Every value that a run depends on."""

    name: Annotated[str, AfterValidator(_folder_name)]
    hub: Hub
    data: Data
    model: Model
    recipe: Recipe
    lora: Lora
    train: Train
    measure: Measure
    track: Track

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        for problem in (*self._not_here(), *self._not_with_this_model()):
            raise ValueError(problem)
        return self

    def _not_here(self) -> Iterator[str]:
        used = {"model": self.model.attn_implementation, "measure": self.measure.attn_implementation}
        for section, attention in used.items():
            if self.train.use_cpu and attention != "eager":
                yield f"{section}.attn_implementation = {attention!r} needs a GPU; with train.use_cpu use 'eager'"
        if self.recipe.adapter_dtype == "bfloat16" and self.model.dtype == "float32":
            yield "recipe.adapter_dtype = 'bfloat16' does nothing with model.dtype = 'float32'; use 'float32'"
        for name in ("lora_dropout", "use_dora", "lora_bias"):
            if self.recipe.expert_layers and (value := dict(self.lora).get(name)):
                yield f"lora.{name} = {value!r} is not for experts; leave it out, or set recipe.expert_layers = []"

    def _not_with_this_model(self) -> Iterator[str]:
        layers, most = SIZES.get(self.hub.model, (128, 2**31))
        experts, named, tokens = list(self.recipe.expert_layers), self.lora.target_modules, self.train.max_length
        if missing := [layer for layer in experts if layer >= layers]:
            yield f"recipe.expert_layers names {missing}, but {self.hub.model} has layers 0 to {layers - 1}"
        if len(set(experts)) < len(experts):
            yield f"recipe.expert_layers = {experts}: expected each layer once"
        if tokens > most:
            yield f"train.max_length = {tokens}: {self.hub.model} reads at most {most} tokens"
        modules = [f".model.layers.{layer}.self_attn.{name}" for layer in range(layers) for name in LINEAR_LAYERS]
        for name in [] if named == "all-linear" else named:
            if not any(module.endswith(f".{name}") for module in modules):
                hint = nearest(name.rpartition(".")[2], LINEAR_LAYERS)
                yield f"lora.target_modules: {self.hub.model} has no linear layer {name!r} to adapt; {hint}"
        if not named and not experts:
            yield "lora.target_modules and recipe.expert_layers are empty: nothing would learn; fill one of them"

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches to gather before each update, so that `world_size` processes make as many as one."""
        wanted, held = self.recipe.effective_batch_size, self.train.per_device_train_batch_size
        if wanted % (held * world_size):
            found = f"{wanted} is not a multiple of train.per_device_train_batch_size × processes = {held} ×"
            raise FtlibError(
                f"recipe.effective_batch_size {found} {world_size} = {held * world_size}; change one of these"
            )
        return wanted // (held * world_size)
