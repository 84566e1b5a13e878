"""Training that may be interrupted at any moment: what it leaves behind, and what it goes on from.

`Trainer` writes a checkpoint file by file into its final folder, so a kill in the middle leaves one that looks whole.
Here a checkpoint counts only once it is sealed: a manifest with the checksum of each file, written last. The finished
adapter is put in place as a whole as well.
"""

import filecmp
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlib.errors import FtlibError
from ftlib.session import manifest
from ftlib.session.session import Session

if TYPE_CHECKING:
    from datasets import Dataset

KEPT = 2
"""Checkpoints that stay: while `Trainer` writes the third and drops the first, the second is whole."""

PROGRESS = "progress.json"


def last_complete(session: Session, rows: "Dataset", resume: bool) -> Path | None:
    """The checkpoint from which this run's training goes on; whatever a kill left half-written is removed.

    Args:
        session: the run.
        rows: what it trains on, in this order.
        resume: False removes the checkpoints, so that training starts again. A finished adapter stays until the new one
            replaces it.

    Returns:
        The newest complete checkpoint's folder; None where training starts at the first update.

    Raises:
        FtlibError: going on would mix two recipes, starting would overwrite a finished adapter, another process trains
            in the folder, or a rank does not see what rank 0 writes.
    """
    if session.is_main:
        session.claim_training()
        _finish_replacing(session.adapter_dir)
    _meet(session)
    found = sorted(session.checkpoints_dir.glob("checkpoint-[0-9]*"), key=_step)
    complete = [folder for folder in found if manifest.is_complete(folder)] if resume else []
    if session.is_main:
        for folder in found:
            if folder not in complete:
                shutil.rmtree(folder)
    if complete:
        _check_same_recipe(session, complete[-1], _recipe(session, rows))
        return complete[-1]
    if resume and manifest.is_complete(session.adapter_dir):
        raise FtlibError(
            f"{session.relative(session.adapter_dir)}/ holds a finished adapter, and there is no checkpoint of it; "
            + _ways_out(session)
        )
    return None


def _meet(session: Session) -> None:
    """Let no rank look for checkpoints before rank 0 has claimed the folder, nor in another folder than rank 0's."""
    if not torch.distributed.is_initialized():
        return
    place, names = session.output_dir, [f"rank-0-was-here.{uuid.uuid4().hex}"]
    if session.is_main:
        (place / names[0]).touch()
    torch.distributed.broadcast_object_list(names)
    seen = [False] * session.world_size
    torch.distributed.all_gather_object(seen, (place / names[0]).exists())
    if session.is_main:
        for sign in place.glob("rank-0-was-here.*"):  # also that of a sitting which was killed just here
            sign.unlink()
    if not all(seen):
        raise FtlibError(
            f"rank {seen.index(False)} does not see what rank 0 writes to {session.relative(place)}/; mount one folder "
            "on all machines (on Azure ML an output with `mode: rw_mount`) and name it as output_root"
        )


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _recipe(session: Session, rows: "Dataset") -> dict[str, Any]:
    """All that decides which adapter comes out, by name; how many processes share the work does not."""
    profile = session.profile
    values = {
        "hub": profile.hub.model_dump(include={"model", "model_revision"}),
        "data": profile.data.model_dump(include={"template_date"}),
        "model": profile.model.model_dump(),
        "recipe": profile.recipe.model_dump(mode="json"),
        "lora": profile.lora.model_dump(mode="json"),
        "train": profile.train.model_dump(exclude={"save_steps", "per_device_train_batch_size", "use_cpu"}),
    }
    named = {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
    digest = hashlib.sha256(json.dumps(rows["messages"][:]).encode()).hexdigest()
    return named | {"training rows": f"{len(rows)} with checksum {digest}"}


def _check_same_recipe(session: Session, checkpoint: Path, recipe: dict[str, Any]) -> None:
    earlier = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))["recipe"]
    changed = [name for name in recipe if earlier.get(name) != recipe[name]]
    if changed:
        name = changed[0]
        raise FtlibError(
            f"{session.relative(checkpoint)} was trained with {name} = {earlier.get(name)}, now it is {recipe[name]}; "
            + _ways_out(session)
        )


def _ways_out(session: Session) -> str:
    return (
        f"resume = False (`{session.command('run 04_train_lora --no-resume')}`) trains again in its place, "
        "another output_root keeps both"
    )


class Progress(TrainerCallback):
    """Seals each checkpoint once `Trainer` has written it, and counts the time of training over all its sittings.

    Args:
        session: the run.
        rows: what it trains on, in this order.
        resumed_from: the checkpoint that training goes on from, if any.
    """

    def __init__(self, session: Session, rows: "Dataset", resumed_from: Path | None) -> None:
        self._recipe = _recipe(session, rows)
        self._earlier = 0.0
        if resumed_from:
            self._earlier = json.loads((resumed_from / PROGRESS).read_text(encoding="utf-8"))["seconds"]
        self._started: float | None = None
        self.seconds = self._earlier

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; loading and tokenising are not training."""
        self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the clock."""
        if self._started is not None:
            self.seconds = self._earlier + time.monotonic() - self._started

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint that has just been written."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each rank writes its random state into the same folder
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            progress = {"seconds": self.seconds, "recipe": self._recipe}
            (folder / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
            manifest.write(folder, [path.name for path in folder.iterdir()])


@contextmanager
def replacing(session: Session) -> Iterator[Path]:
    """Give a folder to save the adapter into; once it is all there, it takes the place of `session.adapter_dir`.

    A kill before that leaves the earlier adapter as it was. One that came out the same, as when a finished training is
    run once more, stays with its card. What `Trainer` saves beside an adapter, its arguments as a pickle and a card
    with nothing filled in, is left out.
    """
    final, unfinished = session.adapter_dir, session.adapter_dir.with_name("adapter.unfinished")
    if session.is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    if session.is_main:
        _put_in_place(unfinished, final)
        session.keep_profile()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # no rank looks for the adapter before it is there


def _put_in_place(unfinished: Path, final: Path) -> None:
    for unwanted in ("training_args.bin", "README.md"):
        (unfinished / unwanted).unlink(missing_ok=True)
    _sort_target_modules(unfinished / "adapter_config.json")
    manifest.write(unfinished, [path.name for path in unfinished.iterdir()])
    if manifest.is_complete(final) and filecmp.cmp(final / manifest.NAME, unfinished / manifest.NAME, shallow=False):
        shutil.rmtree(unfinished)
        return
    if final.exists():
        final.rename(_replaced(final))
    unfinished.rename(final)
    _finish_replacing(final)


def _replaced(final: Path) -> Path:
    return final.with_name("adapter.replaced")


def _finish_replacing(final: Path) -> None:
    """Remove the earlier adapter once the new one is there, or put it back where a kill came between the two."""
    earlier = _replaced(final)
    if final.exists():
        shutil.rmtree(earlier, ignore_errors=True)
    elif earlier.exists():
        earlier.rename(final)


def _sort_target_modules(path: Path) -> None:
    """PEFT keeps their names as a set and writes them in another order each time, as if the adapter were another."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):  # and not a pattern
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
