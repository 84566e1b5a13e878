"""Resume training that was interrupted at any moment, and replace a finished adapter as a whole.

`Trainer` writes a checkpoint file by file into its final folder, so a kill leaves one that looks complete. Here a
checkpoint counts only once it is sealed: with a manifest of checksums, written last.
"""

import filecmp
import hashlib
import json
import shutil
import time
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
    from peft import PeftModel

KEPT = 2
"""Checkpoints that stay: while `Trainer` writes the third and removes the first, the second is complete."""
PROGRESS = "progress.json"
UNFINISHED = "adapter.unfinished"
WEIGHTS = "adapter_model.safetensors"
# Arguments that may change before training resumes, by how they begin: folders, logs, and how the work is shared.
NOT_RECIPE = (
    *("output_dir", "run_name", "project", "report_to", "trackio", "hub_", "push_", "log", "save_", "eval_", "resume"),
    *("per_device_", "gradient_accumulation_steps", "use_cpu", "local_rank", "ddp_", "dataloader_", "disable_tqdm"),
)


def last_complete(session: Session, rows: "Dataset", resume: bool) -> Path | None:
    """Find the newest complete checkpoint, and remove incomplete ones; `resume` = False removes all.

    Raises:
        FtlibError: resuming would mix two recipes, starting would overwrite a finished adapter, another process trains
            in the folder, or a rank does not see rank 0's files.
    """
    if session.is_main:
        session.claim_training()
        _put_in_place(session)
    _meet(session)
    found = sorted(session.checkpoints_dir.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.split("-")[1]))
    complete = [folder for folder in found if manifest.is_complete(folder)] if resume else []
    if session.is_main:
        for folder in found:
            if folder not in complete:
                shutil.rmtree(folder)
    if complete:
        _check_same(session, complete[-1], "recipe", _recipe(session, rows))
        return complete[-1]
    if resume and manifest.is_complete(session.adapter_dir):
        raise FtlibError(
            f"{session.relative(session.adapter_dir)}/ holds a finished adapter, and there is no checkpoint of it; "
            + _ways_out(session)
        )
    return None


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


def _recipe(session: Session, rows: "Dataset") -> dict[str, Any]:
    """Everything in the profile and the data that decides which adapter comes out, by name."""
    profile = session.profile
    values = {
        "hub": profile.hub.model_dump(include={"model", "model_revision"}),
        "data": profile.data.model_dump(include={"template_date"}),
        "model": profile.model.model_dump(),
        "recipe": profile.recipe.model_dump(mode="json"),
        "lora": profile.lora.model_dump(mode="json"),
        "train": {name: value for name, value in profile.train if not name.startswith(NOT_RECIPE)},
    }
    named = {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
    digest = hashlib.sha256(json.dumps(rows["messages"][:]).encode()).hexdigest()
    return named | {"training rows": f"{len(rows)} with checksum {digest}"}


def _arguments(args: TrainingArguments) -> dict[str, Any]:
    """The trainer's arguments that decide which adapter comes out, as JSON holds them."""
    values = {name: value for name, value in args.to_dict().items() if not name.startswith(NOT_RECIPE)}
    return dict(json.loads(json.dumps(values, default=str)))


def _check_same(session: Session, checkpoint: Path, kind: str, now: dict[str, Any]) -> None:
    earlier = _progress(checkpoint)[kind]
    for name, value in now.items():
        if earlier.get(name) != value:
            raise FtlibError(
                f"{session.relative(checkpoint)} was trained with {name} = {earlier.get(name)}, now it is {value}; "
                + _ways_out(session)
            )


def _progress(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))


def _ways_out(session: Session) -> str:
    return (
        f"resume = False (`{session.command('run 04_train_lora --no-resume')}`) trains again in its place, "
        "another output_root keeps both"
    )


def _check_untrained(model: "PeftModel") -> None:
    starts_at_zero = model.active_peft_config.init_lora_weights is True
    if starts_at_zero and any("lora_B" in name and weight.any() for name, weight in model.named_parameters()):
        raise FtlibError(
            "this adapter has been trained already, so training would not start at its first update; restart the "
            "kernel and run all cells"
        )


class Progress(TrainerCallback):
    """Seals each checkpoint that `Trainer` writes, and adds up the seconds of training over interruptions."""

    def __init__(self, session: Session, rows: "Dataset", resumed_from: Path | None) -> None:
        self._session, self._recipe, self._resumed_from = session, _recipe(session, rows), resumed_from
        self.seconds = self._earlier = _progress(resumed_from)["seconds"] if resumed_from else 0.0
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the arguments are the checkpoint's, or the adapter untrained; start the clock."""
        if self._resumed_from:
            _check_same(self._session, self._resumed_from, "arguments", _arguments(args))
        else:
            _check_untrained(kwargs["model"])
        self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the clock."""
        self.seconds = self._earlier + time.monotonic() - self._started

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint that has just been written."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each rank writes its random state into the same folder
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            progress = {"seconds": self.seconds, "recipe": self._recipe, "arguments": _arguments(args)}
            (folder / PROGRESS).write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
            manifest.write(folder, [path.name for path in folder.iterdir()])


@contextmanager
def replacing(session: Session) -> Iterator[Path]:
    """Yield a folder to save the adapter into; at the end it replaces `session.adapter_dir`.

    A kill before that leaves the earlier adapter. One with the same weights stays too, with its model card.
    """
    final, unfinished = session.adapter_dir, session.output_dir / UNFINISHED
    if session.is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    if session.is_main:
        if manifest.is_complete(final) and filecmp.cmp(final / WEIGHTS, unfinished / WEIGHTS, shallow=False):
            shutil.rmtree(unfinished)
        else:
            for unwanted in ("training_args.bin", "README.md"):  # the trainer's pickle, and its empty card
                (unfinished / unwanted).unlink(missing_ok=True)
            manifest.write(unfinished, [path.name for path in unfinished.iterdir()])
        _put_in_place(session)
        session.keep_profile()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # no rank looks for the adapter before it is there


def _put_in_place(session: Session) -> None:
    """Let a new adapter that is complete replace the earlier one, also after a kill between the two steps."""
    if manifest.is_complete(unfinished := session.output_dir / UNFINISHED):
        shutil.rmtree(session.adapter_dir, ignore_errors=True)
        unfinished.rename(session.adapter_dir)
