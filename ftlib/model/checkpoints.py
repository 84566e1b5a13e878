"""Resume training that was interrupted at any moment, and replace a finished adapter as a whole.

`Trainer` writes a checkpoint file by file into its final folder, so a kill leaves one that looks complete. Here a
checkpoint counts only once it is sealed: with a manifest of checksums, written last.
"""

import filecmp
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch.distributed
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from ftlib.errors import FtlibError
from ftlib.model import recipe
from ftlib.session import manifest
from ftlib.session.session import Session

KEPT = 2
"""Checkpoints that stay: while `Trainer` writes the third and removes the first, the second is complete."""
PROGRESS = "progress.json"
UNFINISHED = "adapter.unfinished"
WEIGHTS = "adapter_model.safetensors"
OF_THE_ADAPTER = ("04_train_lora", "05_push_and_infer")
"""The records that describe one adapter, and are deleted with it."""
_changed: "WeakSet[torch.nn.Module]" = WeakSet()
"""The models of this process whose adapter is no longer as it began."""


def claim(session: Session, resume: bool) -> None:
    """Let no other process train in the run's folder, and refuse to overwrite a finished adapter unasked.

    Raises:
        FtlibError: another process trains there, or there is a finished adapter and no checkpoint of it.
    """
    if not session.is_main:
        return
    session.claim_training()
    _put_in_place(session)
    if resume and manifest.is_complete(session.adapter_dir) and not _complete(session):
        holds = f"{session.relative(session.adapter_dir)}/ holds a finished adapter, and there is no checkpoint of it"
        raise FtlibError(f"{holds}; {_ways_out(session)}")


def last_complete(session: Session, trainer: Trainer, resume: bool) -> Path | None:
    """Find the checkpoint that training goes on from: the newest complete one, or None to begin at the first update.

    Others are removed: incomplete ones and, with `resume` = False, all. An adapter that this kernel has trained already
    goes on from its checkpoint in any case.

    Raises:
        FtlibError: the checkpoint was trained with another recipe than the trainer has, there is none to go on from,
            or a rank does not see rank 0's files.
    """
    _meet(session)
    model: Any = trainer.model
    trained = model in _changed
    complete = _complete(session) if resume or trained else []
    if complete:
        _check_same(session, complete[-1], recipe.given(trainer.args, model, trainer.train_dataset))
        _changed.add(model)
    elif trained:
        told = "this adapter has been trained already, and there is no complete checkpoint to go on from"
        raise FtlibError(f"{told}; restart the kernel and run all cells")
    if session.is_main:
        for folder in {*_found(session)} - {*complete}:
            shutil.rmtree(folder)
    set_seed(trainer.args.seed)  # or a second training in one kernel would meet the rows in another order
    return complete[-1] if complete else None


def _found(session: Session) -> list[Path]:
    numbers = {path: path.name.removeprefix("checkpoint-") for path in session.checkpoints_dir.glob("checkpoint-*")}
    return sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]))


def _complete(session: Session) -> list[Path]:
    """The checkpoints that are sealed and unchanged, the newest last; an emptied manifest seals nothing."""
    return [folder for folder in _found(session) if manifest.is_complete(folder, WEIGHTS, PROGRESS)]


def _meet(session: Session) -> None:
    """Have all ranks wait until rank 0 has claimed the folder, and check that they see the same one."""
    if not torch.distributed.is_initialized():
        return
    torch.distributed.barrier()
    seen = [False] * session.world_size
    torch.distributed.all_gather_object(seen, (session.output_dir / "training.lock").exists())
    if not all(seen):
        raise FtlibError(
            f"rank {seen.index(False)} does not see what rank 0 writes to {session.relative(session.output_dir)}/; "
            "mount one folder on all machines (on Azure ML an output with `mode: rw_mount`) and name it as output_root"
        )


def _check_same(session: Session, checkpoint: Path, now: dict[str, Any]) -> None:
    recipe.check_same(session.relative(checkpoint), _progress(checkpoint)["recipe"], now, _ways_out(session))


def _progress(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))


def _ways_out(session: Session) -> str:
    again = session.command("run 04_train_lora --no-resume")
    return (
        f"to train again in its place, set resume = False and run all cells (`{again}`); another output_root keeps both"
    )


class Progress(TrainerCallback):
    """Seals each checkpoint that `Trainer` writes, and adds up the seconds of training over interruptions."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.recipe: dict[str, Any] = {}
        self.seconds = self._earlier = self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the recipe, check that it is the checkpoint's, or the adapter untrained, and start the clock."""
        self.recipe = recipe.given(args, kwargs["model"], kwargs["train_dataloader"].dataset)
        self._earlier = 0.0
        if state.global_step:
            checkpoint = self._session.checkpoints_dir / f"checkpoint-{state.global_step}"
            _check_same(self._session, checkpoint, self.recipe)
            self._earlier = float(_progress(checkpoint)["seconds"])
        elif kwargs["model"] in _changed:
            found = "this adapter has been trained already, and would not start at its first update"
            raise FtlibError(f"{found}; run the cell that calls last_complete, or restart the kernel and run all cells")
        # Or PEFT would ask the Hub, at each checkpoint, whether the base's newest config has another vocabulary.
        kwargs["model"].save_pretrained = partial(kwargs["model"].save_pretrained, save_embedding_layers=False)
        self.seconds, self._started = self._earlier, time.monotonic()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember that the model is not as it began."""
        _changed.add(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the clock."""
        self.seconds = self._earlier + time.monotonic() - self._started

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop a training that has diverged: nothing recovers from NaN."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(value := kwargs["logs"].get(name) or 0):
                raise FtlibError(f"update {state.global_step}: {name} is {value}; lower train.learning_rate")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint that has just been written."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each rank writes its random state into the same folder
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            if not all(bool(weight.isfinite().all()) for weight in load_file(folder / WEIGHTS).values()):
                raise FtlibError(f"update {state.global_step}: the adapter holds NaN; lower train.learning_rate")
            values = {"updates": state.global_step, "of": state.max_steps, "seconds": self.seconds}
            text = json.dumps(values | {"recipe": self.recipe}, indent=2)
            (folder / PROGRESS).write_text(text + "\n", encoding="utf-8")
            manifest.write(folder, [path.name for path in folder.iterdir()])


@contextmanager
def replacing(session: Session) -> Iterator[Path]:
    """Yield a folder to save the adapter into; at the end it replaces `session.adapter_dir`.

    A kill before that leaves the earlier adapter. One with the same weights stays too, with its model card.

    Raises:
        FtlibError: the training is not finished, or it did not end with these weights.
    """
    final, unfinished = session.adapter_dir, session.output_dir / UNFINISHED
    if session.is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    if session.is_main:
        _check_finished(session, unfinished)
        if manifest.is_complete(final) and filecmp.cmp(final / WEIGHTS, unfinished / WEIGHTS, shallow=False):
            shutil.rmtree(unfinished)
        else:
            for unwanted in ("training_args.bin", "README.md"):  # the trainer's pickle, and its empty card
                (unfinished / unwanted).unlink(missing_ok=True)
            manifest.write(unfinished, [path.name for path in unfinished.iterdir()])
        _put_in_place(session)
        session.keep_profile()
        session.release_training()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # no rank looks for the adapter before it is there


def _check_finished(session: Session, adapter: Path) -> None:
    """Check that an adapter is what the last checkpoint holds, and that this is of the last update."""
    complete = _complete(session)
    if not complete:
        raise FtlibError("this adapter has not been trained; run the cell with trainer.train first")
    last, progress = complete[-1], _progress(complete[-1])
    if progress["updates"] < progress["of"]:
        found = f"training is not finished: its last checkpoint is of update {progress['updates']} of {progress['of']}"
        raise FtlibError(f"{found}; run the cell with trainer.train again")
    if not filecmp.cmp(last / WEIGHTS, adapter / WEIGHTS, shallow=False):
        found = f"the adapter in this kernel is not what training ended with ({session.relative(last)})"
        raise FtlibError(f"{found}; restart the kernel and run all cells")
    if not any(weight.any() for name, weight in load_file(adapter / WEIGHTS).items() if "lora_B" in name):
        found = f"training changed nothing in {progress['of']} update(s)"
        raise FtlibError(f"{found}: the first ones warm up from a learning rate of 0; train on more rows or epochs")


def _put_in_place(session: Session) -> None:
    """Let a new adapter that is complete replace the earlier one, also after a kill between the two steps."""
    if manifest.is_complete(unfinished := session.output_dir / UNFINISHED):
        for notebook in OF_THE_ADAPTER:
            (session.output_dir / "records" / f"{notebook}.json").unlink(missing_ok=True)
        shutil.rmtree(session.adapter_dir, ignore_errors=True)
        unfinished.rename(session.adapter_dir)
