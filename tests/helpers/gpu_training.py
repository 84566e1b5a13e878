"""Runs notebook 04's own cells in a process of their own, from the checkpoint to the saved adapter.

    python -m helpers.gpu_training RIG FOLDER RECIPE RUN KILLED STOPPED

trains RECIPE ("recipe" or "fast") into FOLDER/RUN, is killed in update KILLED or ends after update STOPPED (0: never),
and prints what it measured as JSON. Run again, it goes on from its last checkpoint.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftlib.rehearsal import ASSETS
from ftlib.runner import bench
from ftlib.session import device
from helpers.rig import Rig

IMPORTED = ("AutoModelForCausalLM", "AutoTokenizer", "Mxfp4Config", "set_seed")


class Interruption(TrainerCallback):
    """Kills this process in one update, or ends training after another."""

    def __init__(self, killed: int, stopped: int) -> None:
        self._killed, self._stopped = killed, stopped

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self._killed:
            os.kill(os.getpid(), signal.SIGKILL)
        control.should_training_stop |= state.global_step == self._stopped


def train(rig: Rig, recipe: str, run: str, killed: int, stopped: int) -> dict[str, Any]:
    """Train and save; returns the losses of all updates, seconds, and the peak of memory."""
    profile = rig.profile(recipe)
    if profile.model.attn_implementation == "flex_attention":
        device.compile_for_many_shapes()
    namespace = {
        "profile": profile,
        "session": rig.session(profile, run),
        "resume": True,
        # What the cell imports that would load the tokenizer and the rows from the Hub.
        "torch": torch,
        **{name: getattr(transformers, name) for name in IMPORTED},
        "tokenizer": AutoTokenizer.from_pretrained(ASSETS / "model"),
        "train_dataset": bench.rows_of(rig.recipe),
    }
    started = time.monotonic()
    trainer = rig.run("04_train_lora", "trainer", namespace)
    loaded = time.monotonic()
    trainer.add_callback(Interruption(killed, stopped))
    rig.run("04_train_lora", "result", namespace)
    trained = time.monotonic()
    if not stopped:  # else it is not finished, and nothing saves it as if it were
        rig.run("04_train_lora", "published_tokenizer", namespace)
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "resumed_from": namespace["last_checkpoint"].name if namespace["last_checkpoint"] else None,
        "load_s": loaded - started,
        "train_s": trained - loaded,
        "updates": trainer.state.global_step,
        "peak_bytes": torch.cuda.max_memory_allocated() if rig.on_gpu else device.peak_memory_bytes(),
    }


if __name__ == "__main__":
    name, folder, recipe, run, killed, stopped = sys.argv[1:]
    print(json.dumps(train(Rig(name, Path(folder)), recipe, run, int(killed), int(stopped))))
