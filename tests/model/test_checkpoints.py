"""What training goes on from, and how the adapter takes its place; test_interruption kills real trainings."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from filelock import FileLock
from transformers import TrainerState

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.model import checkpoints
from ftlib.session import manifest, session
from ftlib.session.session import Session

ROWS = Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in ("one", "two")])


@pytest.fixture
def run(tmp_path: Path) -> Session:
    output_dir = tmp_path / "outputs/tiny"
    output_dir.mkdir(parents=True)
    return Session(profiles.load("tiny"), "tiny", tmp_path, "outputs", output_dir, "http://127.0.0.1:9")


def of_rank_1(run: Session) -> Session:
    return Session(run.profile, "tiny", run.project_root, "outputs", run.output_dir, run.hub_url, rank=1, world_size=2)


def save_checkpoint(run: Session, step: int, seconds: float = 1.0, rows: Dataset = ROWS) -> Path:
    """As `Trainer` writes it, file by file, and as it is sealed after that."""
    folder = run.checkpoints_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(f"after {step}")
    progress = checkpoints.Progress(run, rows, None)
    progress.seconds = seconds
    state: Any = SimpleNamespace(global_step=step, is_world_process_zero=True)
    progress.on_save(SimpleNamespace(output_dir=run.checkpoints_dir), state, None)  # type: ignore[arg-type]
    return folder


def test_nothing_to_go_on_from(run: Session) -> None:
    assert checkpoints.last_complete(run, ROWS, resume=True) is None


def test_the_last_by_its_number(run: Session) -> None:
    folders = [save_checkpoint(run, step) for step in (9, 100, 60)]
    assert checkpoints.last_complete(run, ROWS, resume=True) == folders[1]


@pytest.mark.parametrize("harm", ["no seal", "cut short", "file gone", "seal cut short"])
def test_what_is_not_whole_does_not_count_and_is_removed(run: Session, harm: str) -> None:
    whole, last = save_checkpoint(run, 3), save_checkpoint(run, 6)
    weights, seal = last / "adapter_model.safetensors", last / manifest.NAME
    if harm == "no seal":
        seal.unlink()
    elif harm == "cut short":
        weights.write_text("aft")
    elif harm == "file gone":
        weights.unlink()
    else:
        seal.write_text(seal.read_text()[:40])
    assert checkpoints.last_complete(run, ROWS, resume=True) == whole
    assert not last.exists()


def test_starting_again_removes_what_was_and_leaves_the_finished_adapter(run: Session) -> None:
    save_checkpoint(run, 3)
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "finished")
    assert checkpoints.last_complete(run, ROWS, resume=False) is None
    assert list(run.checkpoints_dir.iterdir()) == []
    assert (run.adapter_dir / "adapter_model.safetensors").read_text() == "finished"


def test_another_rank_decides_alike_and_removes_nothing(run: Session) -> None:
    whole, last = save_checkpoint(run, 3), save_checkpoint(run, 6)
    (last / manifest.NAME).unlink()
    assert checkpoints.last_complete(of_rank_1(run), ROWS, resume=True) == whole
    assert last.exists()


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("train", {"seed": 1}),
        ("train", {"learning_rate": 1e-4}),
        ("lora", {"r": 4}),
        ("train", {"assistant_only_loss": True}),
        ("model", {"experts_implementation": "eager"}),
        ("hub", {"model_revision": "0" * 40}),
    ],
)
def test_another_recipe_is_not_mixed_in(run: Session, section: str, change: dict[str, Any]) -> None:
    save_checkpoint(run, 3)
    changed = getattr(run.profile, section).model_copy(update=change)
    other = Session(
        run.profile.model_copy(update={section: changed}), "tiny", run.project_root, "outputs", run.output_dir, ""
    )
    (name,) = change
    with pytest.raises(FtlibError, match=f"checkpoint-3 was trained with {section}.{name} = .*, now it is .*resume = "):
        checkpoints.last_complete(other, ROWS, resume=True)
    assert (run.checkpoints_dir / "checkpoint-3").exists()


def test_how_the_work_is_shared_out_may_change(run: Session) -> None:
    folder = save_checkpoint(run, 3)
    train = run.profile.train.model_copy(update={"per_device_train_batch_size": 4, "save_steps": 5})
    other = Session(
        run.profile.model_copy(update={"train": train}), "tiny", run.project_root, "outputs", run.output_dir, ""
    )
    assert checkpoints.last_complete(other, ROWS, resume=True) == folder


def test_other_rows_are_not_mixed_in(run: Session) -> None:
    save_checkpoint(run, 3)
    with pytest.raises(FtlibError, match="was trained with training rows = "):
        checkpoints.last_complete(run, ROWS.select([1, 0]), resume=True)


def test_a_finished_adapter_without_checkpoints_is_not_overwritten_unasked(run: Session) -> None:
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "finished")
    with pytest.raises(FtlibError, match="holds a finished adapter, and there is no checkpoint of it; resume = False"):
        checkpoints.last_complete(run, ROWS, resume=True)


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_that_share_no_folder_are_refused(run: Session, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """Rank 0 leaves a sign in its folder, and each rank says whether it sees it in its own."""
    sign = "rank-0-was-here.test"
    (run.output_dir / sign).touch()
    elsewhere = replace(of_rank_1(run), output_dir=run.output_dir if shared else run.output_dir.parent)
    ranks = SimpleNamespace(
        is_initialized=lambda: True,
        broadcast_object_list=lambda names: names.__setitem__(0, sign),
        all_gather_object=lambda seen, own: seen.__setitem__(slice(None), [True, own]),
    )
    monkeypatch.setattr("torch.distributed", ranks)
    if shared:
        assert checkpoints.last_complete(elsewhere, ROWS, resume=True) is None
        return
    with pytest.raises(FtlibError, match="rank 1 does not see what rank 0 writes to outputs/; mount one folder on all"):
        checkpoints.last_complete(elsewhere, ROWS, resume=True)


def test_two_do_not_train_in_one_folder(run: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CLAIM_TIMEOUT_S", 0.1)
    with (
        FileLock(run.output_dir / "training.lock"),
        pytest.raises(FtlibError, match="another process is training in outputs/tiny/"),
    ):
        checkpoints.last_complete(run, ROWS, resume=True)
    for _ in range(2):  # and a cell may be run twice
        checkpoints.last_complete(run, ROWS, resume=True)


def test_the_clock_goes_on_where_it_stood(run: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    progress = checkpoints.Progress(run, ROWS, save_checkpoint(run, 3, seconds=7.5))
    state: Any = TrainerState()
    now[0] += 50  # loading is not training
    progress.on_train_begin(None, state, None)  # type: ignore[arg-type]
    now[0] += 2
    progress.on_step_end(None, state, None)  # type: ignore[arg-type]
    assert progress.seconds == 9.5
    assert json.loads((save_checkpoint(run, 6, seconds=9.5) / checkpoints.PROGRESS).read_text())["seconds"] == 9.5


def save_adapter(folder: Path, weights: str, modules: tuple[str, ...] = ("k_proj", "q_proj")) -> None:
    """As `trainer.save_model` does, which saves more than an adapter."""
    folder.mkdir()
    for name in ("tokenizer.json", "README.md", "training_args.bin"):
        (folder / name).write_text("written by the trainer")
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": modules}))
    (folder / "adapter_model.safetensors").write_text(weights)


def test_an_adapter_takes_its_place_whole_with_checksums_and_without_what_is_none_of_it(run: Session) -> None:
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "first")
        assert not run.adapter_dir.exists()
    names = {"adapter_config.json", "tokenizer.json", "adapter_model.safetensors", "manifest.json"}
    assert {path.name for path in run.adapter_dir.iterdir()} == names
    assert manifest.is_complete(run.adapter_dir)
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "second")
    assert (run.adapter_dir / "adapter_model.safetensors").read_text() == "second"
    assert {path.name for path in run.output_dir.iterdir()} == {"adapter", "profile.json"}


def test_one_that_came_out_the_same_stays_with_its_card(run: Session) -> None:
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "the same")
    (run.adapter_dir / "README.md").write_text("with results")
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "the same", modules=("q_proj", "k_proj"))  # PEFT writes a set
    assert (run.adapter_dir / "README.md").read_text() == "with results"
    assert {path.name for path in run.output_dir.iterdir()} == {"adapter", "profile.json"}


def save_until_the_disk_is_full(run: Session) -> None:
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "half")
        raise OSError("disk full")


def test_a_stop_before_the_end_leaves_the_earlier_one(run: Session) -> None:
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "finished")
    with pytest.raises(OSError, match="disk full"):
        save_until_the_disk_is_full(run)
    assert (run.adapter_dir / "adapter_model.safetensors").read_text() == "finished"
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "next")
    assert {path.name for path in run.output_dir.iterdir()} == {"adapter", "profile.json"}


@pytest.mark.parametrize("new_is_there", [True, False])
def test_a_kill_between_the_old_adapter_and_the_new_is_made_good(run: Session, new_is_there: bool) -> None:
    save_checkpoint(run, 3)
    with checkpoints.replacing(run) as folder:
        save_adapter(folder, "old")
    earlier = run.adapter_dir.rename(run.output_dir / "adapter.replaced")
    if new_is_there:
        save_adapter(run.adapter_dir, "new")
    checkpoints.last_complete(run, ROWS, resume=True)
    assert (run.adapter_dir / "adapter_model.safetensors").read_text() == ("new" if new_is_there else "old")
    assert not earlier.exists()


def test_another_rank_puts_nothing_in_place(run: Session) -> None:
    with checkpoints.replacing(of_rank_1(run)):
        pass
    assert not run.adapter_dir.exists()
