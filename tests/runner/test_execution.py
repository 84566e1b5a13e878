"""Headless runs and the command line, with small notebooks in place of the real ones."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import HANGING_S, ROOT, write_notebook
from rich.console import Console

from ftlib.errors import FtlibError
from ftlib.runner import execution, ranks
from ftlib.session import records


@pytest.fixture
def project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return project


def ftlib(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftlib.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGING_S)


def run(*notebooks: str, profile: str = "tiny", processes: int | None = 1, resume: bool = True) -> Path:
    return execution.run(notebooks, profile, "outputs", processes, resume, Console(quiet=True))


def test_a_notebook_runs_with_its_parameters_in_this_python_and_is_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever kernel it was saved with, and whatever a user-level kernel of the same name belongs to."""
    elsewhere = project / "user/kernels/python3/kernel.json"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text('{"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(project / "user"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    write_notebook(project, "01_setup", "import os, sys; print(profile, output_root, sys.executable, os.getcwd())")
    path = project / "notebooks/01_setup.ipynb"
    path.write_text(path.read_text().replace('"name": "python3"', '"name": "deleted-environment"'))
    (project / "mine.toml").write_text('extends = "tiny"\n')
    monkeypatch.chdir(project / "notebooks")
    result = ftlib("run", "01_setup.ipynb", "--profile", "../mine.toml", "--output-root", "elsewhere")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"01_setup +✓ +\d+ s\n", result.stdout)
    kept = nbformat.read(project / "elsewhere/mine/notebooks/01_setup.ipynb", as_version=4)
    assert kept.cells[-1].outputs[0].text == f"mine.toml elsewhere {sys.executable} {project}\n"
    assert str(project) not in str(kept.metadata)


def test_a_failing_cell_is_named_in_one_line_and_leaves_the_finished_notebook_as_it_was(project: Path) -> None:
    write_notebook(project, "01_setup", "1")
    run("01_setup")
    folder = project / "outputs/tiny/notebooks"
    finished = (folder / "01_setup.ipynb").read_bytes()
    write_notebook(project, "01_setup", "fine = 1", "raise ValueError('the disk is full')")
    result = ftlib("run", "01_setup")
    assert result.returncode == 1
    assert result.stderr == (
        "error: 01_setup, cell [4] `raise ValueError('the disk is full')`: ValueError: the disk is full; "
        "see outputs/tiny/notebooks/01_setup.unfinished.ipynb\n"
    )
    assert "the disk is full" in (folder / "01_setup.unfinished.ipynb").read_text()
    assert (folder / "01_setup.ipynb").read_bytes() == finished
    write_notebook(project, "01_setup", "2")
    run("01_setup")
    assert [path.name for path in folder.iterdir()] == ["01_setup.ipynb"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("from ftlib.errors import FtlibError; raise FtlibError('found A; do B')", r": found A; do B; see "),
        (
            "# the end\n\nimport os; os._exit(1)",
            r"`import os; os._exit\(1\)`: Kernel died \(out of memory, or of open files\?\); see ",
        ),
        ("raise type('OutOfMemoryError', (OSError,), {})('full')", "full; lower train.per_device_train_batch_size"),
    ],
    ids=["for people", "a dead kernel", "of torch"],
)
def test_an_error_says_what_to_do(project: Path, cell: str, said: str) -> None:
    write_notebook(project, "01_setup", cell)
    with pytest.raises(FtlibError, match=rf"^01_setup, cell \[3\] .*{said}"):
        run("01_setup")


def test_what_cannot_run_here_is_refused_before_anything_is_written(project: Path) -> None:
    with pytest.raises(FtlibError, match=r"^found no notebooks/01_setup\.ipynb; run this in the project's folder"):
        run("01_setup")
    write_notebook(project, "03_load_model")
    with pytest.raises(FtlibError, match=r"computes on a GPU: found no GPU, driver none, torch 2\."):
        run("03_load_model", profile="gpt-oss-20b")
    assert not (project / "outputs").exists()


def test_a_finished_run_stays_and_the_next_goes_to_a_new_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mine.toml").write_text('extends = "tiny"\n')
    for name in execution.NOTEBOOKS:
        write_notebook(project, name)
    monkeypatch.setattr(execution, "_execute", lambda *_: None)
    for expected in ("outputs/mine", "outputs/run-2/mine", "outputs/run-3/mine"):
        folder = run(profile="mine.toml")
        assert folder == project / expected
        records.write(folder / "records", execution.NOTEBOOKS[-1], {"finished": expected})
    asked_for = project / "outputs/mine"
    assert run(profile="mine.toml", resume=False) == run("01_setup", profile="mine.toml") == asked_for


@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        ('PYTHONIOENCODING=ascii {} run 01_setup --output-root="-{{a}}"', 0, "01_setup            +"),
        (
            "PYTHONUNBUFFERED= {} report >/dev/full",
            1,
            "error: standard output cannot be written (No space left on device)\n",
        ),
        ("{} report >&-", 0, ""),
        ("PYTHONIOENCODING=ascii {} report --output-root größe", 0, "gr??e/tiny/report/index.html\n"),
    ],
)
def test_any_terminal_will_do(project: Path, redirected: str, code: int, told: str) -> None:
    """One that knows ASCII alone, a full one and a closed one; and papermill writes where it was told to."""
    write_notebook(project, "01_setup", "1")
    if "report" in redirected:
        root = "größe" if "größe" in redirected else "outputs"
        shutil.copytree(project / "notebooks", project / root / "tiny/notebooks")
    line = redirected.format(f"{sys.executable} -m ftlib.cli")
    result = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=HANGING_S)
    assert result.returncode == code
    assert (result.stdout + result.stderr).startswith(told)
    assert (result.stdout + result.stderr).count("\n") <= 1
    assert [path.name for path in project.rglob("01_setup.*")].count("01_setup.ipynb") == 2


# Several ranks


def test_a_failing_rank_is_reported_in_one_line_and_its_notebook_kept(project: Path) -> None:
    write_notebook(project, "04_train_lora", "import os\nassert os.environ['RANK'] == '0', 'rank 1 is ill'")
    result = ftlib("run", "04_train_lora", "--nproc", "2")
    assert result.returncode == 1
    assert result.stderr == (
        "error: 04_train_lora, cell [3] `import os`: AssertionError: rank 1 is ill; "
        "see outputs/tiny/notebooks/04_train_lora.rank1.unfinished.ipynb\n"
    )
    assert (project / "outputs/tiny/notebooks/04_train_lora.rank1.unfinished.ipynb").is_file()


@pytest.mark.parametrize(("name", "processes"), [("03_load_model", None), ("04_train_lora", 2)])
def test_ranks_that_cannot_train_together_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, processes: int | None
) -> None:
    for variable, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(
        FtlibError, match=r"^found 2 processes started together \(WORLD_SIZE\); expected them to run 04"
    ):
        run(name, processes=processes)


@pytest.mark.parametrize(
    ("profile", "processes", "message"),
    [
        ("tiny", 3, "per_device_train_batch_size × processes = 8 × 3 = 24"),
        ("gpt-oss-20b", 4, "found 1 GPUs for 4 processes here, expected one for each"),
    ],
)
def test_more_ranks_than_there_is_work_or_a_gpu_for_are_refused_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, profile: str, processes: int, message: str
) -> None:
    monkeypatch.setattr(ranks.device, "gpus", lambda: 1)
    monkeypatch.setattr(execution.doctor, "check_compute", lambda profile: None)
    write_notebook(project, "04_train_lora")
    with pytest.raises(FtlibError, match=re.escape(message)):
        run("04_train_lora", profile=profile, processes=processes)
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("profile", "gpus", "world_size", "expected"),
    [
        ("gpt-oss-20b", 8, 1, 4),  # an update has four parts
        ("gpt-oss-20b", 1, 1, 1),
        ("gpt-oss-20b", 4, 4, 1),  # the ranks have been started
        ("tiny", 4, 1, 1),  # computes on the CPU
    ],
)
def test_by_default_training_takes_all_gpus_and_measuring_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, profile: str, gpus: int, world_size: int, expected: int
) -> None:
    started: list[tuple[str, int]] = []
    for variable, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": world_size}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(ranks.device, "gpus", lambda: gpus)
    monkeypatch.setattr(execution.doctor, "check_compute", lambda profile: None)
    monkeypatch.setattr(execution.doctor, "check_disk", lambda profile, output_dir, exports: None)
    monkeypatch.setattr(execution, "_execute", lambda name, *_: started.append((name, 1)))
    monkeypatch.setattr(ranks, "launch", lambda _, processes, __: started.append(("04_train_lora", processes)))
    names = ["04_train_lora"] if world_size > 1 else ["03_load_model", "04_train_lora", "05_push_and_infer"]
    for name in names:
        write_notebook(project, name)
    run(*names, profile=profile, processes=None)
    assert started == [(name, expected if name == "04_train_lora" else 1) for name in names]


def test_help_is_light() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'papermill', 'huggingface_hub', 'matplotlib'}"
    source = f"import sys, ftlib.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", source], capture_output=True, text=True).stdout == "[]\n"
