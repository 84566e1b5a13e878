"""A user's own data through all notebooks, from one short profile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import HANGING_S, NOTEBOOKS, ROOT

EXAMPLE = "notebooks/examples/own_data.toml"
PROFILE = """
extends = "tiny"
[data]
dataset = "rows.jsonl"
held_out_share = 0.25
[train]
assistant_only_loss = true
[measure]
max_new_tokens = 8
"""
# All notebooks in one process, one after another, each with parameters of our own.
WALK = """
import json, sys
for cells in json.loads(sys.stdin.read()):
    namespace = {"__name__": "__main__"}
    for cell in cells:
        exec(cell, namespace)
"""


def record(output_dir: Path, notebook: str) -> dict[str, Any]:
    return json.loads((output_dir / "records" / f"{notebook}.json").read_text())


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """In a process group of its own, so that it can be killed with its kernels."""
    return subprocess.Popen(
        [sys.executable, "-m", "ftlib.cli", "run", *arguments, "--profile", EXAMPLE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_example_is_killed_in_mid_training_and_runs_to_its_end(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    output_dir = tmp_path / "outputs/own_data"
    training = start("03_load_model", "04_train_lora", folder=tmp_path)
    while not (output_dir / "checkpoints/checkpoint-20/manifest.json").exists():
        assert training.poll() is None, training.communicate()[0]
        time.sleep(0.02)
    os.killpg(training.pid, signal.SIGKILL)
    training.communicate()
    assert not (output_dir / "adapter").exists()

    again = start(folder=tmp_path)
    printed, _ = again.communicate(timeout=HANGING_S)
    assert again.returncode == 0, printed
    assert "going on from checkpoint-" in (output_dir / "notebooks/04_train_lora.ipynb").read_text()
    assert record(output_dir, "04_train_lora")["global_step"] == 48
    outcome = record(output_dir, "05_push_and_infer")
    assert outcome["before"]["agreement"] < 0.4
    assert outcome["after"]["agreement"] > 0.8
    assert "own_data.jsonl, a local file" in (output_dir / "adapter/README.md").read_text()


def test_rows_without_a_language_go_through_all_notebooks(tmp_path: Path, notebooks: Any) -> None:
    """Half of them with `<think>`; only the assistant's turns are trained on. The folder is that of JupyterLab."""
    shutil.copytree(ROOT / "notebooks/examples", tmp_path / "notebooks/examples")
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(24):
            answer = f"{number} plus 3 is {number + 3}."
            reply = f"<think>{number} and 3 more.</think>{answer}" if number % 2 else answer
            turns = [("user", f"What is {number} plus 3?"), ("assistant", reply)]
            print(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}), file=file)
    (tmp_path / "mine.toml").write_text(PROFILE)
    parameters = 'profile = "mine.toml"\noutput_root = "outputs"\nresume = True'
    result = subprocess.run(
        [sys.executable, "-c", WALK],
        cwd=tmp_path / "notebooks",
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        input=json.dumps([[parameters, *notebooks.cells(name)[1:]] for name in NOTEBOOKS]),
        capture_output=True,
        text=True,
        timeout=HANGING_S,
    )
    assert result.returncode == 0, result.stderr
    output_dir = tmp_path / "outputs/mine"
    explored, outcome = record(output_dir, "02_explore_dataset"), record(output_dir, "05_push_and_infer")
    assert (explored["rows"], explored["problems"], explored["held_out_rows"]) == (24, 0, 6)
    assert record(output_dir, "04_train_lora")["global_step"] == 2
    assert outcome["after"]["loss"] < outcome["before"]["loss"]
    assert (outcome["after"]["unfinished"], outcome["after"]["agreement"]) == (6, None), "eight tokens are too few"
    assert "not measured before training, not measured after" in result.stdout
