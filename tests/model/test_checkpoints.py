"""What training resumes from, and how the adapter is replaced.

`test_bad_inputs` has what is refused before training, `test_false_lessons` what is refused as another recipe's, and
`test_interruption` kills real trainings.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM, TrainerState, TrainingArguments

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import checkpoints, recipe
from ftlib.session import manifest
from ftlib.session.session import Session

WEIGHTS = "adapter_model.safetensors"
ROWS = Dataset.from_dict({"input_ids": [[1]]})


@pytest.fixture
def run(tmp_path: Path) -> Session:
    output_dir = tmp_path / "outputs/tiny"
    output_dir.mkdir(parents=True)
    return Session(profiles.load("tiny"), "tiny", tmp_path, "outputs", output_dir, "http://127.0.0.1:9")


@pytest.fixture
def trainer(run: Session, base_model: GptOssForCausalLM, with_adapter: Callable[..., Any]) -> Any:
    """What is asked of a trainer before it trains."""
    args = TrainingArguments(run.checkpoints_dir, use_cpu=True, report_to="none", seed=0)
    return SimpleNamespace(args=args, model=with_adapter(copy.deepcopy(base_model)), train_dataset=ROWS)


def save_checkpoint(run: Session, trainer: Any, step: int, of: int = 9, seconds: float = 1.0, value: float = 1) -> Path:
    """As `Trainer` writes it, file by file, and as it is sealed after that."""
    folder = run.checkpoints_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    write(folder, value)
    progress = checkpoints.Progress(run)
    progress.recipe = recipe.given(trainer.args, trainer.model, ROWS)
    progress.seconds = seconds
    progress.on_save(trainer.args, TrainerState(global_step=step, max_steps=of), None)  # type: ignore[arg-type]
    return folder


def write(folder: Path, value: float) -> None:
    save_file({"lora_B": torch.tensor([value])}, folder / WEIGHTS)


def save_adapter(run: Session, value: float, broken_off: bool = False) -> None:
    """As `trainer.save_model` does, which saves more than an adapter."""
    with checkpoints.replacing(run) as folder:
        folder.mkdir()
        for name in ("tokenizer.json", "adapter_config.json", "README.md", "training_args.bin"):
            (folder / name).write_text("written by the trainer")
        write(folder, value)
        if broken_off:
            raise OSError("disk full")


def adapter(run: Session) -> float:
    return load_file(run.adapter_dir / WEIGHTS)["lora_B"].item()


def test_the_newest_checkpoint_is_the_one_with_the_highest_number(run: Session, trainer: Any) -> None:
    assert checkpoints.last_complete(run, trainer, resume=True) is None
    folders = [save_checkpoint(run, trainer, step) for step in (9, 100, 60)]
    for _ in range(2):  # a cell may be run twice
        assert checkpoints.last_complete(run, trainer, resume=True) == folders[1]


def test_an_incomplete_checkpoint_does_not_count_and_rank_0_removes_it(run: Session, trainer: Any) -> None:
    complete, last = save_checkpoint(run, trainer, 3), save_checkpoint(run, trainer, 6)
    (last / manifest.NAME).unlink()
    emptied, other = save_checkpoint(run, trainer, 9), run.checkpoints_dir / "checkpoint-9x"
    (emptied / manifest.NAME).write_text("{}")
    manifest.write(save_checkpoint(run, trainer, 12), [WEIGHTS])  # whole as far as it goes, but without the recipe
    other.mkdir()
    assert checkpoints.last_complete(replace(run, rank=1, world_size=2), trainer, resume=True) == complete
    assert last.exists()
    assert checkpoints.last_complete(run, trainer, resume=True) == complete
    assert {*run.checkpoints_dir.iterdir()} == {complete, other}


def test_the_work_may_be_shared_differently_but_the_rows_of_an_update_are_the_same(run: Session, trainer: Any) -> None:
    folder = save_checkpoint(run, trainer, 3)
    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = 4, 2
    trainer.args.save_steps, trainer.args.run_name = 5, "again"
    assert checkpoints.last_complete(run, trainer, resume=True) == folder
    trainer.args.gradient_accumulation_steps = 4
    with pytest.raises(
        FtlibError, match=r"with recipe\.effective_batch_size = 8, now it is 16; to train again in its pla"
    ):
        checkpoints.last_complete(run, trainer, resume=True)


def test_ranks_that_share_no_folder_are_refused(run: Session, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has claimed its folder, and each rank says whether it sees the claim in its own."""
    (run.output_dir / "training.lock").touch()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda seen, own: seen.__setitem__(slice(2), [True, own])
    )
    rank_1 = replace(run, rank=1, world_size=2)
    assert checkpoints.last_complete(rank_1, trainer, resume=True) is None
    elsewhere = replace(rank_1, output_dir=run.output_dir.parent)
    with pytest.raises(FtlibError, match="rank 1 does not see what rank 0 writes to outputs/; mount one folder on all"):
        checkpoints.last_complete(elsewhere, trainer, resume=True)


def test_the_seconds_of_training_add_up(run: Session, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    save_checkpoint(run, trainer, 3, seconds=7.5)
    progress, state = checkpoints.Progress(run), TrainerState(global_step=3)
    now[0] += 50  # loading is not training
    loader: Any = SimpleNamespace(dataset=ROWS)
    progress.on_train_begin(trainer.args, state, None, model=trainer.model, train_dataloader=loader)  # type: ignore[arg-type]
    now[0] += 2
    progress.on_step_end(trainer.args, state, None)  # type: ignore[arg-type]
    assert progress.seconds == 9.5
    sealed = json.loads((save_checkpoint(run, trainer, 6, seconds=9.5) / checkpoints.PROGRESS).read_text())
    assert (sealed["updates"], sealed["of"], sealed["seconds"]) == (6, 9, 9.5)


def test_an_adapter_is_replaced_as_a_whole_with_checksums_and_without_a_pickle(run: Session, trainer: Any) -> None:
    save_checkpoint(run, trainer, 9, value=1)
    run.record("04_train_lora")
    save_adapter(run, 1)
    names = {"adapter_config.json", "tokenizer.json", WEIGHTS, manifest.NAME}
    assert {path.name for path in run.adapter_dir.iterdir()} == names
    assert manifest.is_complete(run.adapter_dir)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(run, 2, broken_off=True)
    assert adapter(run) == 1
    with pytest.raises(
        FtlibError, match=r"^the adapter in this kernel is not what training ended with \(.*checkpoint-9\)"
    ):
        save_adapter(run, 2)
    assert adapter(run) == 1
    save_checkpoint(run, trainer, 10, of=10, value=2)
    save_adapter(run, 2)
    assert adapter(run) == 2
    (run.adapter_dir / "README.md").write_text("with results")
    run.record("04_train_lora")
    save_adapter(run, 2)
    assert (run.adapter_dir / "README.md").exists(), "the same weights keep their card"
    assert run.read_record("04_train_lora") == {}, "and their record"
    assert {path.name for path in run.output_dir.iterdir()} == {"adapter", "checkpoints", "profile.json", "records"}
    save_adapter(replace(run, output_dir=run.output_dir.parent, rank=1), 3)
    assert not (run.output_dir.parent / "adapter").exists()


@pytest.mark.parametrize("earlier_is_gone", [True, False])
def test_a_kill_while_the_adapter_is_replaced_is_made_good(run: Session, trainer: Any, earlier_is_gone: bool) -> None:
    """Also before it is trained again; the records of the earlier one go."""
    save_checkpoint(run, trainer, 9)
    save_adapter(run, 1)
    run.adapter_dir.rename(run.output_dir / "adapter.unfinished")
    if not earlier_is_gone:
        run.adapter_dir.mkdir()
        (run.adapter_dir / WEIGHTS).write_text("half removed")
    run.record("05_push_and_infer")
    checkpoints.claim(run, resume=False)
    assert adapter(run) == 1
    assert list((run.output_dir / "records").iterdir()) == []
    assert checkpoints.last_complete(run, trainer, resume=False) is None
    assert list(run.checkpoints_dir.iterdir()) == [], "it starts at the first update"
