"""Profiles: the shipped ones load, a file of your own changes only what it says, and mistakes are named in one line."""

import dataclasses
import inspect
import itertools
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig
from pydantic import ValidationError
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from trl import SFTConfig

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import architecture
from ftlib.profiles import library
from ftlib.profiles.schema import REPO_ID, SCHEDULES, SIZES, Lora, Train
from ftlib.rehearsal import ASSETS

Write = Callable[..., Path]
WHOLE = ["gpt-oss-20b", "tiny"]
FAST = ["gpt-oss-20b-fast", "tiny-fast"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def test_shipped_profiles_load_with_every_value_that_they_hold() -> None:
    """A value that the file holds and the profile does not would be decoration."""
    assert profiles.shipped() == sorted(WHOLE + FAST)
    written = {name: tomllib.loads((profiles.FOLDER / f"{name}.toml").read_text()) for name in profiles.shipped()}
    for name in WHOLE:
        profile = profiles.load(name).model_dump()
        profile["recipe"]["expert_layers"] = list(profile["recipe"]["expert_layers"])
        assert profile == {"name": name, **written[name]}
    for name, fast in zip(WHOLE, FAST, strict=True):
        changed = {key.split(".")[1] for key in profiles.compare(name, fast).index} - {"push_target", "project"}
        assert changed
        assert changed <= {
            *("attn_implementation", "experts_implementation", "padding_free"),
            *("per_device_train_batch_size", "train_sampling_strategy"),
        }, "a fast profile learns the same"


@pytest.mark.parametrize(("section", "call"), [(Train, SFTConfig), (Lora, LoraConfig)])
def test_arguments_are_those_of_the_libraries(section: type[Train] | type[Lora], call: Any) -> None:
    """They are read from source; the classes themselves are the proof."""
    accepted = {field.name for field in dataclasses.fields(call) if field.init}
    assert library.arguments(section.call).keys() == accepted
    assert {*section.model_fields, *section.not_for_profiles, *section.works} <= accepted


def test_a_file_changes_only_what_it_says(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it extends a file beside it, wherever it is loaded from."""
    write('extends = "tiny"\n[train]\nseed = 1\nnum_train_epochs = 2\n[recipe]\nexpert_layers = []\n', "first.toml")
    path = write('extends = "first.toml"\nname = "second-run"\n[train]\nseed = 2\n')
    monkeypatch.chdir("/")
    profile, base = profiles.load(path), profiles.load("tiny")
    assert (profile.name, profile.recipe.expert_layers) == ("second-run", ())
    assert profile.train == base.train.model_copy(update={"seed": 2, "num_train_epochs": 2})
    assert profile.model_copy(update={part: getattr(base, part) for part in ("name", "train", "recipe")}) == base


def test_what_else_the_libraries_accept_reaches_their_calls(write: Write) -> None:
    profile = profiles.load(write('extends = "tiny"\n[train]\nmax_steps = 3\n[lora]\nuse_rslora = true\n'))
    assert dict(profile.train) == dict(profiles.load("tiny").train) | {"max_steps": 3}
    assert dict(profile.lora)["use_rslora"]


REFUSED = [  # beside those of helpers/bad_inputs
    ("[train]\nwieght_decay = 0.1", "train.wieght_decay: SFTConfig has no such argument; did you mean 'weight_decay'?"),
    ("[train]\nwarmup_ratio = 0.03", "train.warmup_ratio: SFTConfig has no such argument; did you mean 'warmup_"),
    ("[lora]\ndropout = 0.1", "lora.dropout: LoraConfig has no such argument; did you mean 'lora_dropout'?"),
    ('[train]\nweight_decay = "0.1"', "train.weight_decay = '0.1': input should be a valid number"),
    ('[train]\noptim = "adamw"', "train.optim = 'adamw': input should be 'adamw_torch', 'adamw_torch_fused',"),
    ('[train]\noutput_dir = "x"', "train.output_dir cannot be set in a profile; leave it out"),
    ('[lora]\ntask_type = "CAUSAL_LM"', "lora.task_type cannot be set in a profile"),
    ("[track]\nxyz = 1", "unknown key track.xyz; valid are ['project']"),
    (f'[data]\ndataset = "a.csv"\nrevision = "{"0" * 40}"', "belongs to no local file; leave it out"),
    ('[model]\nattn_implementation = "flex_attention"', "model.attn_implementation = 'flex_attention' needs a GPU"),
    ("[train]\nepochs = 3", "train.epochs: SFTConfig has no such argument; did you mean 'num_train_epochs'?"),
    ("[lora]\nalpha = 8", "lora.alpha: LoraConfig has no such argument; did you mean 'lora_alpha'?"),
    (
        "[train]\ngradient_checkpointing = true",
        "train.gradient_checkpointing = True: it is called activation_checkpointing now",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_mistake_is_named_with_what_is_allowed(write: Write, change: str, message: str) -> None:
    with pytest.raises(FtlibError) as raised:
        profiles.load(write(f'extends = "tiny"\n{change}\n'))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_profile_cannot_be_changed_by_a_cell() -> None:
    with pytest.raises(ValidationError):
        profiles.load("tiny").train.learning_rate = 1.0  # type: ignore[misc]


def test_one_gpu_and_four_gather_the_same_rows() -> None:
    profile = profiles.load("gpt-oss-20b")
    assert [profile.accumulation_steps(processes) for processes in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(FtlibError, match=r"effective_batch_size 16 is not a multiple of .* 4 × 3 = 12; change one"):
        profile.accumulation_steps(3)


def test_a_local_data_set_lies_beside_the_file_that_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when another file, somewhere else, extends that one; and it inherits no commit."""
    path = write('extends = "tiny"\n[data]\ndataset = "rows/mine.jsonl"\n')
    monkeypatch.chdir("/")
    for asked in (path, write('extends = "../mine.toml"\n', "sub/other.toml")):
        data = profiles.load(asked).data
        assert (data.dataset, data.revision) == (str(path.parent / "rows/mine.jsonl"), None)
        assert (data.is_local, data.shown) == (True, "mine.jsonl")


@pytest.mark.parametrize("name", ["notebooks/examples/own_data.toml", "examples/own_data.toml"])
def test_jupyter_opens_a_profile_by_its_path_in_the_project(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """JupyterLab works in notebooks/, a terminal in the folder above it."""
    monkeypatch.chdir(ROOT / "notebooks")
    assert profiles.load(name).name == "own_data"
    monkeypatch.chdir(ROOT)
    assert profiles.load("notebooks/examples/own_data.toml").name == "own_data"


def test_names_are_those_that_the_hub_allows() -> None:
    parts = ["a", "-", ".", "_", "é", "git", "/", "a" * 95, "\n"]
    for text in map("".join, itertools.chain(*(itertools.product(parts, repeat=length) for length in range(1, 5)))):
        try:
            validate_repo_id(text)
            allowed = True
        except HFValidationError:
            allowed = False
        assert bool(REPO_ID.fullmatch(text)) == allowed, text


def test_schedules_take_what_transformers_has_them_take() -> None:
    filled_in = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "warmup_type", "decay_type"}
    for name, (one, others) in SCHEDULES.items():
        taken = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters
        assert {*one, *others} == taken.keys() - filled_in
        assert {key for key, each in taken.items() if each.default is each.empty} - filled_in <= set(one)


def test_another_schedule_does_not_inherit_the_old_ones_arguments(write: Write) -> None:
    train = profiles.load(write('extends = "tiny"\n[train]\nlr_scheduler_type = "cosine"\n')).train
    assert (train.lr_scheduler_type, train.lr_scheduler_kwargs) == ("cosine", {})
    kept = write('extends = "tiny"\n[train]\nlr_scheduler_kwargs = { min_lr = 1e-4 }\n')
    assert profiles.load(kept).train.lr_scheduler_kwargs == {"min_lr": 1e-4}


def test_sizes_are_those_of_the_models() -> None:
    config = json.loads((ASSETS / "model/config.json").read_text())
    assert SIZES["rehearsal/gpt-oss-tiny"] == (config["num_hidden_layers"], config["max_position_embeddings"])
    assert SIZES["openai/gpt-oss-20b"][0] == architecture.PUBLISHED["openai/gpt-oss-20b"]["num_hidden_layers"]


@pytest.mark.parametrize("text", ["\ufeff{}", "{}\r\n"])
def test_an_editors_marks_do_not_matter(write: Write, text: str) -> None:
    assert profiles.load(write(text.format('extends = "tiny"'))).name == "mine"
