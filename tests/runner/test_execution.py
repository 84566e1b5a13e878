"""Headless runs and the command line, with small notebooks in place of the real ones."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from helpers import HANGING_S, ROOT, write_notebook
from rich.console import Console

from ftlib.errors import FtlibError
from ftlib.runner import execution, report
from ftlib.session import records


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def ftlib(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftlib.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGING_S)


def test_runs_a_notebook_with_its_parameters_and_keeps_it(project: Path) -> None:
    write_notebook(project, "01_setup", "print(profile, output_root)")
    result = ftlib("run", "notebooks/01_setup.ipynb", "--profile", "tiny", "--output-root", "elsewhere")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"01_setup +✓ +\d+ s\n", result.stdout)
    assert result.stderr == ""
    kept = nbformat.read(project / "elsewhere/tiny/notebooks/01_setup.ipynb", as_version=4)
    assert kept.cells[-1].outputs[0].text == "tiny elsewhere\n"


def test_a_failing_cell_is_named_in_one_line_and_the_notebook_kept(project: Path) -> None:
    write_notebook(project, "01_setup", "fine = 1", "raise ValueError('the disk is full')")
    result = ftlib("run", "01_setup")
    assert result.returncode == 1
    assert result.stderr == (
        "error: 01_setup, cell [4] `raise ValueError('the disk is full')`: ValueError: the disk is full; "
        "see outputs/tiny/notebooks/01_setup.unfinished.ipynb\n"
    )
    assert "the disk is full" in (project / "outputs/tiny/notebooks/01_setup.unfinished.ipynb").read_text()


def test_a_notebook_that_fails_leaves_the_finished_one_as_it_was(project: Path) -> None:
    write_notebook(project, "01_setup", "1")
    assert ftlib("run", "01_setup").returncode == 0
    folder = project / "outputs/tiny/notebooks"
    finished = (folder / "01_setup.ipynb").read_bytes()
    write_notebook(project, "01_setup", "1 / 0")
    assert ftlib("run", "01_setup").returncode == 1
    assert (folder / "01_setup.ipynb").read_bytes() == finished
    write_notebook(project, "01_setup", "2")
    assert ftlib("run", "01_setup").returncode == 0
    assert [path.name for path in folder.iterdir()] == ["01_setup.ipynb"]


def test_an_error_meant_for_people_is_told_without_its_class(project: Path) -> None:
    write_notebook(project, "01_setup", "from ftlib.errors import FtlibError", "raise FtlibError('found A; do B')")
    assert ftlib("run", "01_setup").stderr.startswith(
        "error: 01_setup, cell [4] `raise FtlibError('found A; do B')`: found A; do B; see "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["05_push_and_infr"], "did you mean 05_push_and_infer?"),
        (["unrelated"], "there are 01_setup, 02_explore_dataset"),
        (["01_setup", "--profile", "tinny"], "did you mean 'tiny'?"),
        (["01_setup", "--profile", "mine.toml"], "profile mine.toml: no such file"),
        (["01_setup", "--nproc", "2"], "expected 1, or more for a run that includes 04_train_lora"),
        (["01_setup", "--nproc", "0"], "--nproc 0: expected 1"),
        (["01_setup"], "found no notebooks/01_setup.ipynb; run this in the project's folder"),
    ],
)
def test_mistakes_get_one_line(project: Path, arguments: list[str], message: str) -> None:
    result = ftlib("run", *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (project / "outputs").exists()


@pytest.mark.slow
def test_two_ranks_share_a_world_and_rank_0_is_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a profile that is named as seen from another folder than the ranks work in."""
    source = (
        "import os; from pathlib import Path\nPath('rank' + os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])"
    )
    write_notebook(project, "04_train_lora", source)
    (project / "mine.toml").write_text('extends = "tiny"\n')
    monkeypatch.chdir(project / "notebooks")
    result = ftlib("run", "04_train_lora", "--profile", "../mine.toml", "--nproc", "2")
    assert result.returncode == 0, result.stderr
    assert [(project / f"rank{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    assert [path.name for path in (project / "outputs/mine/notebooks").iterdir()] == ["04_train_lora.ipynb"]
    assert result.stdout.count("04_train_lora") == 1


@pytest.mark.slow
def test_a_failing_rank_is_told_in_one_line_and_its_notebook_kept(project: Path) -> None:
    write_notebook(project, "04_train_lora", "import os\nassert os.environ['RANK'] == '0', 'rank 1 is ill'")
    result = ftlib("run", "04_train_lora", "--nproc", "2")
    assert result.returncode == 1
    assert result.stderr == (
        "error: 04_train_lora, cell [3] `import os`: AssertionError: rank 1 is ill; "
        "see outputs/tiny/notebooks/04_train_lora.rank1.unfinished.ipynb\n"
    )
    assert (project / "outputs/tiny/notebooks/04_train_lora.rank1.unfinished.ipynb").is_file()


def test_a_kernel_that_dies_is_told_in_one_line(project: Path) -> None:
    write_notebook(project, "01_setup", "# the end\n\nimport os; os._exit(1)", "never = 1")
    result = ftlib("run", "01_setup")
    assert result.returncode == 1
    assert result.stderr == (
        "error: 01_setup, cell [3] `import os; os._exit(1)`: Kernel died (out of memory?); "
        "see outputs/tiny/notebooks/01_setup.unfinished.ipynb\n"
    )


def test_the_kernel_is_this_python_in_the_projects_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever kernel the notebook was saved with, and whatever a user-level kernel of the same name belongs to."""
    elsewhere = project / "user/kernels/python3/kernel.json"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text('{"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(project / "user"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    write_notebook(project, "01_setup", "import os, sys; print(sys.executable, os.getcwd())")
    path = project / "notebooks/01_setup.ipynb"
    path.write_text(path.read_text().replace('"name": "python3"', '"name": "deleted-environment"'))
    (project / "mine.toml").write_text('extends = "tiny"\n')
    monkeypatch.chdir(project / "notebooks")
    result = ftlib("run", "01_setup", "--profile", "../mine.toml")
    assert result.returncode == 0, result.stderr
    kept = nbformat.read(project / "outputs/mine/notebooks/01_setup.ipynb", as_version=4)
    assert kept.cells[-1].outputs[0].text == f"{sys.executable} {project}\n"
    assert kept.metadata.papermill.parameters == {"profile": "mine.toml", "output_root": "outputs"}
    assert str(project) not in str(kept.metadata)


def test_a_finished_run_stays_and_the_next_goes_to_a_new_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mine.toml").write_text('extends = "tiny"\n')
    console = Console(quiet=True)
    monkeypatch.setattr(execution, "_execute", lambda *_: None)
    for expected in ("outputs/mine", "outputs/run-2/mine", "outputs/run-3/mine"):
        folder = execution.run([], "mine.toml", "outputs", 1, True, console)
        assert folder == project / expected
        records.write(folder / "records", "05_push_and_infer", {"finished": expected})
    assert execution.run([], "mine.toml", "outputs", 1, False, console) == project / "outputs/mine", (
        "as it was asked for"
    )
    assert execution.run(["01_setup"], "mine.toml", "outputs", 1, True, console) == project / "outputs/mine"


@pytest.mark.parametrize("arguments", [["03_load_model"], [], ["04_train_lora", "--nproc", "2"]])
def test_only_training_runs_on_several_ranks(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = ftlib("run", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: found 2 processes started together (WORLD_SIZE); expected them to run 04_")
    assert len(result.stderr.splitlines()) == 1


def test_ranks_that_are_not_told_who_they_are_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = ftlib("run", "04_train_lora")
    assert result.returncode == 1
    assert "WORLD_SIZE = 2 in the environment without LOCAL_RANK, MASTER_ADDR, MASTER_PORT; expected" in result.stderr


@pytest.mark.parametrize(
    ("profile", "processes", "message"),
    [
        ("tiny", 3, "is not a multiple of per_device_train_batch_size × processes = 8 × 3 = 24"),
        ("gpt-oss-20b", 4, "4 processes on this machine: found 1 GPUs, expected one for each"),
    ],
)
def test_more_ranks_than_there_is_work_or_a_gpu_for_are_refused_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, profile: str, processes: int, message: str
) -> None:
    monkeypatch.setattr(execution.device, "gpus", lambda: 1)
    monkeypatch.setattr(execution.doctor, "check_compute", lambda profile: None)
    with pytest.raises(FtlibError, match=re.escape(message)):
        execution.run(["04_train_lora"], profile, "outputs", processes, True, Console(quiet=True))
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("profile", "gpus", "ranks", "processes"),
    [
        ("gpt-oss-20b", 4, 1, 4),
        ("gpt-oss-20b", 8, 1, 4),
        ("gpt-oss-20b", 1, 1, 1),
        ("gpt-oss-20b", 4, 4, 1),
        ("tiny", 4, 1, 1),
    ],
)
def test_unless_told_otherwise_training_takes_all_gpus_and_measuring_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, profile: str, gpus: int, ranks: int, processes: int
) -> None:
    """A rank that torchrun or Azure ML has started starts no others."""
    started: list[tuple[str, int]] = []
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setattr(execution.device, "gpus", lambda: gpus)
    monkeypatch.setattr(execution.doctor, "check_compute", lambda profile: None)
    monkeypatch.setattr(execution.doctor, "check_disk", lambda profile, output_dir: None)
    monkeypatch.setattr(execution, "_execute", lambda name, *_: started.append((name, 1)))
    monkeypatch.setattr(execution, "_launch", lambda _, processes, __: started.append(("04_train_lora", processes)))
    names = ["04_train_lora"] if ranks > 1 else ["03_load_model", "04_train_lora", "05_push_and_infer"]
    execution.run(names, profile, "outputs", None, True, Console(quiet=True))
    assert started == [(name, processes if name == "04_train_lora" else 1) for name in names]


@pytest.mark.parametrize("notebook", ["03_load_model", "04_train_lora", "05_push_and_infer"])
def test_without_a_gpu_nothing_is_begun(project: Path, notebook: str) -> None:
    result = ftlib("run", notebook, "--profile", "gpt-oss-20b")
    assert result.returncode == 1
    assert result.stderr.startswith("error: profile gpt-oss-20b computes on a GPU: found no GPU, driver none, torch 2.")
    assert len(result.stderr.splitlines()) == 1
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("OutOfMemoryError", "lower train.per_device_train_batch_size in your profile"),
        ("FailOnRecompileLimitHit", 'set model.attn_implementation = "eager" in your profile'),
    ],
)
def test_an_error_of_torchs_that_a_profile_can_avoid_says_how(project: Path, error: str, advice: str) -> None:
    write_notebook(project, "01_setup", f"raise type('{error}', (RuntimeError,), {{}})('of torch')")
    assert advice in ftlib("run", "01_setup").stderr


def test_help_is_light() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'papermill', 'huggingface_hub', 'matplotlib'}"
    source = f"import sys, ftlib.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", source], capture_output=True, text=True).stdout == "[]\n"


def test_doctor_prints_a_row_for_each_check() -> None:
    result = ftlib("doctor", "--profile", "tiny")
    assert result.returncode == 0, result.stderr
    for check in ("Python", "packages", "device", "disk", "Hub", "token", "push target"):
        assert check in result.stdout


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    output_dir = tmp_path / "tiny"
    (output_dir / "notebooks").mkdir(parents=True)
    plot = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    cells = [
        nbformat.v4.new_markdown_cell("# 1 · Set up\n\n[2](02_explore_dataset.ipynb)"),
        nbformat.v4.new_markdown_cell("## A <b>plot</b>"),
        nbformat.v4.new_code_cell("plot()", outputs=[plot], metadata={"tags": ["report"]}),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), output_dir / "notebooks/01_setup.ipynb")
    before = {"agreement": 0.2, "questions": 120, "exact": None}
    records.write(output_dir / "records", "03_load_model", before)
    records.write(output_dir / "records", "04_train_lora", {"peak_memory_bytes": 885_891_072, "train_runtime_s": 14.2})
    after = {"agreement": 0.975, "questions": 120, "exact": 0.9, "loss": 0.25}
    records.write(output_dir / "records", "05_push_and_infer", {
        "before": before, "after": after, "merged_max_logit_difference": 1e-5, "hub_repo": "learner/<x>",
    })  # fmt: skip
    return output_dir


def test_summary_is_one_line(finished_run: Path) -> None:
    assert report.summary(finished_run) == (
        "Reasoning in the language asked for: 20% before → 98% after, on 120 held-out questions"
    )


def test_summary_of_a_run_in_which_no_language_was_asked_for(finished_run: Path) -> None:
    measured = [{"agreement": None, "questions": 12, "loss": loss} for loss in (1.25, 0.5)]
    records.write(finished_run / "records", "05_push_and_infer", {"before": measured[0], "after": measured[1]})
    assert report.summary(finished_run) == "Held-out loss: 1.250 before → 0.500 after, on 12 held-out questions"


def test_report_has_results_plots_and_pages_and_asks_nobody(finished_run: Path) -> None:
    index = report.write(finished_run)
    text = index.read_text()
    assert {path.name for path in index.parent.iterdir()} == {"index.html", "01_setup.html"}
    assert "97.5%" in text
    for shown in ("20.0%", "120", "14.2 s", "0.89 GB", "0.250"):
        assert f"<td>{shown}</td>" in text
    assert "<td>Answers exactly as the reference, before training</td><td>not measured</td>" in text
    assert "<td>Held-out loss, before training</td><td>not recorded</td>" in text
    assert "<td>Updates</td><td>not recorded</td>" in text
    assert "not run" not in text
    assert "learner/&lt;x&gt;" in text
    assert "data:image/png;base64,iVBORw0KGgo=" in text
    assert "A &lt;b&gt;plot&lt;/b&gt;" in text
    page = (index.parent / "01_setup.html").read_text()
    for source in ('src="http', 'href="http', "<script src=", "cdnjs", "unpkg"):
        assert source not in text + page
    assert 'href="02_explore_dataset.html"' in page
    assert f"transformers {version('transformers')}" in text


def test_report_of_an_unfinished_run_says_what_is_missing(finished_run: Path) -> None:
    shutil.rmtree(finished_run / "records")
    path = finished_run / "notebooks/01_setup.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.papermill = {"duration": 3.4, "exception": True}
    path.unlink()
    nbformat.write(notebook, path.with_name("01_setup.unfinished.ipynb"))
    text = report.write(finished_run).read_text()
    assert "<td>Updates</td><td>not run</td>" in text
    assert "3 s, stopped by an error" in text


def test_report_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FtlibError, match="run `ftlib run` first"):
        report.write(tmp_path)


def test_names_are_the_notebooks_that_exist() -> None:
    assert list(execution.NOTEBOOKS) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
