"""What training resumes from, and how the adapter is replaced.

`test_bad_inputs` has what is refused before training, and `test_interruption` kills real trainings.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GptOssForCausalLM, TrainerState, TrainingArguments

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import checkpoints
from ftlib.session import manifest
from ftlib.session.session import Session

ROWS = Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in ("one", "two")])
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Session:
    output_dir = tmp_path / "outputs/tiny"
    output_dir.mkdir(parents=True)
    return Session(profiles.load("tiny"), "tiny", tmp_path, "outputs", output_dir, "http://127.0.0.1:9")


def arguments(run: Session, **changes: Any) -> TrainingArguments:
    return TrainingArguments(run.checkpoints_dir, use_cpu=True, report_to="none", **changes)


def changed(run: Session, section: str, **values: Any) -> Session:
    part = getattr(run.profile, section).model_copy(update=values)
    return replace(run, profile=run.profile.model_copy(update={section: part}))


def save_checkpoint(run: Session, step: int, seconds: float = 1.0) -> Path:
    """As `Trainer` writes it, file by file, and as it is sealed after that."""
    folder = run.checkpoints_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_text(f"after {step}")
    progress = checkpoints.Progress(run, ROWS, None)
    progress.seconds = seconds
    progress.on_save(arguments(run), TrainerState(global_step=step), None)  # type: ignore[arg-type]
    return folder


def save_adapter(run: Session, weights: str, broken_off: bool = False) -> None:
    """As `trainer.save_model` does, which saves more than an adapter."""
    with checkpoints.replacing(run) as folder:
        folder.mkdir()
        for name in ("tokenizer.json", "adapter_config.json", "README.md", "training_args.bin"):
            (folder / name).write_text("written by the trainer")
        (folder / WEIGHTS).write_text(weights)
        if broken_off:
            raise OSError("disk full")


def adapter(run: Session) -> str:
    return (run.adapter_dir / WEIGHTS).read_text()


def test_the_newest_checkpoint_is_the_one_with_the_highest_number(run: Session) -> None:
    assert checkpoints.last_complete(run, ROWS, resume=True) is None
    folders = [save_checkpoint(run, step) for step in (9, 100, 60)]
    for _ in range(2):  # a cell may be run twice
        assert checkpoints.last_complete(run, ROWS, resume=True) == folders[1]


def test_an_incomplete_checkpoint_does_not_count_and_rank_0_removes_it(run: Session) -> None:
    complete, last = save_checkpoint(run, 3), save_checkpoint(run, 6)
    (last / manifest.NAME).unlink()
    assert checkpoints.last_complete(replace(run, rank=1, world_size=2), ROWS, resume=True) == complete
    assert last.exists()
    assert checkpoints.last_complete(run, ROWS, resume=True) == complete
    assert not last.exists()


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        *(("hub", "model_revision", "0" * 40), ("data", "template_date", "2025-01-01")),
        *(("model", "experts_implementation", "eager"), ("recipe", "expert_layers", (1,)), ("lora", "r", 4)),
    ],
)
def test_another_recipe_is_not_mixed_in(run: Session, section: str, name: str, value: Any) -> None:
    folder = save_checkpoint(run, 3)
    with pytest.raises(FtlibError, match=f"checkpoint-3 was trained with {section}.{name} = .*, now it is .*resume = "):
        checkpoints.last_complete(changed(run, section, **{name: value}), ROWS, resume=True)
    assert folder.exists()


def test_the_work_may_be_shared_differently(run: Session) -> None:
    folder = save_checkpoint(run, 3)
    other = changed(run, "train", per_device_train_batch_size=4, save_steps=5)
    assert checkpoints.last_complete(other, ROWS, resume=True) == folder


def test_arguments_that_were_changed_in_the_cell_are_noticed(run: Session) -> None:
    progress, state = checkpoints.Progress(run, ROWS, save_checkpoint(run, 3)), TrainerState()
    shared = arguments(run, per_device_train_batch_size=4, save_steps=5, run_name="again")
    progress.on_train_begin(shared, state, None)  # type: ignore[arg-type]
    with pytest.raises(
        FtlibError, match=r"checkpoint-3 was trained with weight_decay = 0.*, now it is 0\.1; resume = "
    ):
        progress.on_train_begin(arguments(run, weight_decay=0.1), state, None)  # type: ignore[arg-type]


def test_an_adapter_that_is_trained_already_does_not_start_again(
    run: Session, model: GptOssForCausalLM, with_adapter: Callable[..., Any]
) -> None:
    peft_model, progress = with_adapter(model), checkpoints.Progress(run, ROWS, None)
    progress.on_train_begin(arguments(run), TrainerState(), None, model=peft_model)  # type: ignore[arg-type]
    with torch.no_grad():
        next(weight for name, weight in peft_model.named_parameters() if "lora_B" in name).view(-1)[0] = 1.0
    with pytest.raises(FtlibError, match=r"has been trained already.*restart the kernel"):
        progress.on_train_begin(arguments(run), TrainerState(), None, model=peft_model)  # type: ignore[arg-type]


def test_ranks_that_share_no_folder_are_refused(run: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has claimed its folder, and each rank says whether it sees the claim in its own."""
    (run.output_dir / "training.lock").touch()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda seen, own: seen.__setitem__(slice(2), [True, own])
    )
    rank_1 = replace(run, rank=1, world_size=2)
    assert checkpoints.last_complete(rank_1, ROWS, resume=True) is None
    elsewhere = replace(rank_1, output_dir=run.output_dir.parent)
    with pytest.raises(FtlibError, match="rank 1 does not see what rank 0 writes to outputs/; mount one folder on all"):
        checkpoints.last_complete(elsewhere, ROWS, resume=True)


def test_the_seconds_of_training_add_up(run: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    progress, state = checkpoints.Progress(run, ROWS, save_checkpoint(run, 3, seconds=7.5)), TrainerState()
    now[0] += 50  # loading is not training
    progress.on_train_begin(arguments(run), state, None)  # type: ignore[arg-type]
    now[0] += 2
    progress.on_step_end(arguments(run), state, None)  # type: ignore[arg-type]
    assert progress.seconds == 9.5
    assert json.loads((save_checkpoint(run, 6, seconds=9.5) / checkpoints.PROGRESS).read_text())["seconds"] == 9.5


def test_an_adapter_is_replaced_as_a_whole_with_checksums_and_without_a_pickle(run: Session) -> None:
    save_adapter(run, "first")
    names = {"adapter_config.json", "tokenizer.json", WEIGHTS, manifest.NAME}
    assert {path.name for path in run.adapter_dir.iterdir()} == names
    assert manifest.is_complete(run.adapter_dir)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(run, "half", broken_off=True)
    assert adapter(run) == "first"
    save_adapter(run, "second")
    assert adapter(run) == "second"
    (run.adapter_dir / "README.md").write_text("with results")
    save_adapter(run, "second")
    assert (run.adapter_dir / "README.md").exists(), "the same weights keep their card"
    assert {path.name for path in run.output_dir.iterdir()} == {"adapter", "profile.json"}
    save_adapter(replace(run, output_dir=run.output_dir.parent, rank=1), "of rank 1")
    assert not (run.output_dir.parent / "adapter").exists()


@pytest.mark.parametrize("earlier_is_gone", [True, False])
def test_a_kill_while_the_adapter_is_replaced_is_made_good(run: Session, earlier_is_gone: bool) -> None:
    """Also before it is trained again."""
    save_checkpoint(run, 3)
    save_adapter(run, "new")
    run.adapter_dir.rename(run.output_dir / "adapter.unfinished")
    if not earlier_is_gone:
        run.adapter_dir.mkdir()
        (run.adapter_dir / WEIGHTS).write_text("half removed")
    assert checkpoints.last_complete(run, ROWS, resume=False) is None
    assert list(run.checkpoints_dir.iterdir()) == [], "it starts at the first update"
    assert adapter(run) == "new"
