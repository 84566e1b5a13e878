"""Somebody's own data through all five notebooks from one short file: the shipped example, and every accepted shape."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from helpers import HANGING_S, NOTEBOOKS, ROOT
from pyarrow import csv, parquet

EXAMPLE = "notebooks/examples/own_data.toml"
# All notebooks in one process, one after another; each starts from its parameters, with another profile.
WALK = """
import json, sys
for cells in json.loads(sys.stdin.read()):
    namespace = {"__name__": "__main__"}
    for cell in cells:
        exec(cell, namespace)
"""


def ftlib(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """In a group of its own, so that it can be killed with its kernels, as when a machine is taken away."""
    return subprocess.Popen(
        [sys.executable, "-m", "ftlib.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def record(output_dir: Path, notebook: str) -> dict[str, Any]:
    return json.loads((output_dir / "records" / f"{notebook}.json").read_text())


@pytest.mark.slow
def test_the_example_is_killed_in_mid_training_and_runs_to_its_end(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    output_dir = tmp_path / "outputs/own_data"
    training = ftlib("run", "03_load_model", "04_train_lora", "--profile", EXAMPLE, folder=tmp_path)
    wait_for(output_dir / "checkpoints/checkpoint-20/manifest.json", training)
    os.killpg(training.pid, signal.SIGKILL)
    training.communicate()
    assert not (output_dir / "adapter").exists()

    again = ftlib("run", "--profile", EXAMPLE, folder=tmp_path)
    printed, _ = again.communicate(timeout=HANGING_S)
    assert again.returncode == 0, printed
    assert "going on from checkpoint-" in (output_dir / "notebooks/04_train_lora.ipynb").read_text()
    assert record(output_dir, "04_train_lora")["global_step"] == 48
    outcome = record(output_dir, "05_push_and_infer")
    assert outcome["before"]["agreement"] < 0.4
    assert outcome["after"]["agreement"] > 0.8
    assert f"{outcome['after']['agreement']:.0%} after, on {outcome['after']['questions']} held-out" in printed
    card = (output_dir / "adapter/README.md").read_text()
    assert "own_data.jsonl, a local file" in card
    assert "datasets:" not in card.split("---")[1]


def question(number: int) -> str:
    return f"What is {number} plus 3?"


def answer(number: int) -> str:
    return f"{number} plus 3 is {number + 3}."


def messages(number: int, content: str, **more: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question(number)}, {"role": "assistant", "content": content, **more}]
    return {"messages": turns}


def jsonl(row: Callable[[int], dict[str, Any]]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(24)))
        return "rows.jsonl"

    return write


def table(columns: dict[str, list[str]], write: Callable[[pyarrow.Table, Path], Any], name: str) -> Callable[..., str]:
    def to_file(folder: Path) -> str:
        write(pyarrow.table(columns), folder / name)
        return name

    return to_file


NUMBERS = range(24)
SHAPES: dict[str, tuple[Callable[[Path], str], str]] = {
    "messages with thinking": (jsonl(lambda n: messages(n, answer(n), thinking=f"{n} and 3 more.")), ""),
    "messages with and without <think>": (
        jsonl(lambda n: messages(n, f"<think>{n} and 3 more.</think>{answer(n)}" if n % 2 else answer(n))),
        "assistant_only_loss = true",
    ),
    "prompt and completion": (
        table({"prompt": [*map(question, NUMBERS)], "completion": [*map(answer, NUMBERS)]}, csv.write_csv, "rows.csv"),
        "",
    ),
    "other columns": (
        table(
            {
                "instruction": [*map(question, NUMBERS)],
                "output": [*map(answer, NUMBERS)],
                "lang": ["French", "Dutch"] * 12,
            },
            parquet.write_table,
            "rows.parquet",
        ),
        'columns = { prompt = "instruction", response = "output", reasoning_language = "lang" }',
    ),
}


FAST = "messages with and without <think>"


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=() if shape == FAST else pytest.mark.slow) for shape in SHAPES]
)
def test_every_shape_goes_through_all_five_notebooks(shape: str, tmp_path: Path, notebooks: Any) -> None:
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(ROOT / "notebooks/examples", tmp_path / "notebooks/examples")
    write, settings = SHAPES[shape]
    data = f'[data]\ndataset = "{write(tmp_path)}"\nheld_out_share = 0.25\n{settings}\n'
    (tmp_path / "mine.toml").write_text(f'extends = "tiny"\n{data}[measure]\nmax_new_tokens = 8\n')
    parameters = 'profile = "mine.toml"\noutput_root = "outputs"\nresume = True'
    walk = [[parameters, *notebooks.cells(name)[1:]] for name in NOTEBOOKS]
    result = subprocess.run(
        [sys.executable, "-c", WALK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        input=json.dumps(walk),
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
    assert outcome["after"]["unfinished"] == 6, "eight tokens are too few, and that is counted"
    asked = shape == "other columns"
    assert (outcome["after"]["agreement"] is None) is not asked
    assert ("not measured before training, not measured after" in result.stdout) is not asked
