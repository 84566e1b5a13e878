"""Every file of a finished run, emptied, cut in half or with one byte flipped: named, repaired, or never read.

What is not refused must come to the result of the undamaged run, or a report must say what it leaves out.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from end_to_end import test_bad_inputs
from helpers import HANGING_S, NOTEBOOKS, ROOT, write_notebook
from huggingface_hub import HfApi

from ftlib.runner import execution, report
from ftlib.session import manifest, records

COMMANDS = ["report", "push", "plan", "doctor", "run 04_train_lora", "run 05_push_and_infer"]
ROWS = 180
BRIEF = 'extends = "tiny"\n[data]\ndataset = "rows.jsonl"\nheld_out_share = 0.1\n[train]\nsave_steps = 5\n'
NOT_SEALED = "README.md"  # of an adapter, since notebook 05 and people write into it
MEASURED: dict[str, Any] = {"agreement": 0.975, "exact": 0.9, "loss": 0.25, "questions": 120, "unfinished": 0}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]


DAMAGES = {"emptied": lambda data: b"", "halved": lambda data: data[: len(data) // 2], "flipped": flipped}


class Result(NamedTuple):
    """What a command came to."""

    code: int
    printed: str
    error: str
    left: Any  # what it has pushed, found or written


class FinishedRun:
    """A run's folder with what real notebooks leave, and the commands that read it."""

    def __init__(
        self, world: test_bad_inputs.World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._world, self._patch, self._capsys = world, monkeypatch, capsys
        self.output, self._found = world.output, {}
        world.checkpoint()
        checkpoint = self.output / "checkpoints/checkpoint-3"
        manifest.write(checkpoint, [path.name for path in checkpoint.iterdir()])
        for name in NOTEBOOKS:
            write_notebook(self.output, name)
            records.write(
                self.output / "records",
                name,
                {"base_bytes": 1, "global_step": 63, "trainable_parameters": 8, **MEASURED},
            )
        compared = {"before": MEASURED, "after": MEASURED, "examples": []}
        records.write(self.output / "records", NOTEBOOKS[4], compared)
        world.reach["05_push_and_infer"] = ["baseline", "hub_files"]
        monkeypatch.setattr(execution, "_execute", self._execute)
        monkeypatch.setattr(report, "page", lambda notebook, name: f"the page of {name}")
        monkeypatch.setattr(HfApi, "create_repo", Mock(return_value="address"))
        monkeypatch.setattr(HfApi, "list_repo_files", Mock(return_value=[]))
        monkeypatch.setattr(HfApi, "upload_folder", self._upload)
        (self.output.parents[1] / "mine.toml").write_text('extends = "tiny"\n')
        self.run("report")

    def _upload(self, folder_path: Path, **_: Any) -> None:
        self._found["pushed"] = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self._found["pushed"].pop(NOT_SEALED)

    def _execute(self, name: str, parameters: dict[str, Any], folder: Path) -> None:
        self._found["variables"] = self._world.execute(name, parameters)

    def run(self, command: str) -> Result:
        self._found = {}
        self._capsys.readouterr()
        name, *notebook = command.split()
        code = self._world.run(name, *notebook, "--profile", "mine.toml") or 0
        printed, error = self._capsys.readouterr()
        page = (self.output / "report/index.html").read_text() if command == "report" and not code else ""
        return Result(code, printed if name != "run" else "", error, {**self._found, "page": page})


world = test_bad_inputs.world


@pytest.fixture
def finished(
    world: test_bad_inputs.World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> FinishedRun:
    return FinishedRun(world, monkeypatch, capsys)


def check(command: str, broken: Path, result: Result, whole: Result) -> None:
    """A damaged file is named in one line, left out of the report, or makes no difference."""
    if result.code != whole.code:
        (line,) = result.error.splitlines()
        assert line.startswith("error: ")
        assert broken.name in line or broken.parent.name.split("-")[0] in line
    elif command == "report" and result.left != whole.left:
        assert "<p>Left out: " in result.left["page"]
        assert broken.stem in result.left["page"].partition("<p>Left out: ")[2].partition("</p>")[0]
    else:
        assert result == whole


def damaged(finished: FinishedRun) -> list[tuple[Path, str]]:
    files = sorted(path for path in finished.output.rglob("*") if path.is_file() and path.stat().st_size)
    return [(path, damage) for path in files for damage in DAMAGES]


def break_and_check(finished: FinishedRun, cases: list[tuple[Path, str]]) -> None:
    for path, _ in damaged(finished):
        os.utime(path, (0, 0))  # which the report tells
    whole = {command: finished.run(command) for command in COMMANDS}
    failed = {command: result.error for command, result in whole.items() if result.code}
    assert failed == {"doctor": ""}, "without a damage, only something that the machine lacks is told"
    before = {path: path.read_bytes() for path, _ in damaged(finished)}
    for path, damage in cases:
        for command in COMMANDS:
            for each, data in before.items():
                each.parent.mkdir(exist_ok=True)  # a broken checkpoint is removed
                each.write_bytes(DAMAGES[damage](data) if each == path else data)
                os.utime(each, (0, 0))
            try:
                check(command, path, finished.run(command), whole[command])
            except Exception as error:
                error.add_note(f"{path.relative_to(finished.output)}, {damage}: ftlib {command}")
                raise


def test_thirty_damages_are_named_repaired_or_never_read(finished: FinishedRun) -> None:
    break_and_check(finished, random.Random(0).sample(damaged(finished), 30))


@pytest.mark.slow
def test_every_damage_is_named_repaired_or_never_read(finished: FinishedRun) -> None:
    break_and_check(finished, damaged(finished))


class RealRun:
    """A finished run of real notebooks, and what the real commands make of it when one of its files is damaged."""

    def __init__(self, project: Path, rows: list[dict[str, Any]]) -> None:
        self._project, self.output = project, project / "outputs/mine"
        shutil.copytree(ROOT / "notebooks", project / "notebooks")
        (project / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (project / "mine.toml").write_text(BRIEF)
        self._call("run")
        shutil.copytree(self.output, project / "whole", symlinks=True)

    def _call(self, command: str) -> tuple[int, str]:
        words = [sys.executable, "-m", "ftlib.cli", *command.split(), "--profile", "mine.toml"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, cwd=self._project, env=environment, capture_output=True, text=True, timeout=HANGING_S
        )
        return done.returncode, done.stderr

    def restore(self) -> None:
        shutil.rmtree(self.output)
        shutil.copytree(self._project / "whole", self.output, symlinks=True)

    def files(self) -> list[Path]:
        every = sorted(path for path in self.output.rglob("*") if path.is_file() and not path.is_symlink())
        return [path for path in every if path.stat().st_size]

    def read_by(self, command: str) -> list[Path]:
        """The files that a command reads: the file system notes each access that follows a change."""
        self.restore()
        files = self.files()
        for path in files:
            os.utime(path, (0, path.stat().st_mtime))
        self._call(command)
        return [path for path in files if not path.exists() or path.stat().st_atime] or files

    def results(self, command: str) -> tuple[int, str, dict[str, Any]]:
        """Exit code, error, and the record of the notebook that the command runs."""
        code, error = self._call(command)
        notebook = command.partition(" ")[2]
        if not notebook or code:
            return code, error, {}
        return code, error, without_measures(records.read(self.output / "records", notebook))


def without_measures(values: Any) -> Any:
    """A record without what differs between two runs of the same: times, memory, and what llama.cpp answers.

    It answers several requests at once, and rounds by which of them meet.
    """
    if isinstance(values, list):
        return [without_measures(value) for value in values]
    if not isinstance(values, dict):
        return values
    kept = {
        key: value
        for key, value in values.items()
        if not key.endswith(("_s", "_seconds", "_per_second", "_bytes", "engines"))
    }
    return {key: without_measures(value) for key, value in kept.items()}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, sample_rows: list[dict[str, Any]]) -> RealRun:
    return RealRun(tmp_path_factory.mktemp("project"), sample_rows[:ROWS])


@pytest.mark.slow
@pytest.mark.timeout(5 * HANGING_S)
@pytest.mark.parametrize("command", ["report", "push", "doctor", *(f"run {name}" for name in NOTEBOOKS)])
def test_every_file_that_a_real_command_reads_is_named_repaired_or_makes_no_difference(
    command: str, real: RealRun
) -> None:
    """Each file in turn is emptied, cut in half, or has one byte flipped."""
    read = real.read_by(command)
    real.restore()
    code, _, whole = real.results(command)
    for number, path in enumerate(read):
        real.restore()
        path.write_bytes(list(DAMAGES.values())[number % 3](path.read_bytes()))
        found, error, results = real.results(command)
        where = f"{path.relative_to(real.output)}: ftlib {command}: {error}"
        if found != code:
            assert error.startswith("error: "), where
            assert error.count("\n") == 1, where
            assert any(part in error for part in path.relative_to(real.output).parts), where
            assert str(real.output) not in error, where
        elif path.name not in str(results):  # notebook 01 records what the doctor says of it
            assert results == whole, where
