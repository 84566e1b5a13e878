"""`ftlib reset` deletes one run after asking, and nothing that is none or that is in use."""

from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from ftlib.cli import app
from ftlib.errors import FtlibError


@pytest.fixture
def tiny(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of tiny beside another."""
    monkeypatch.chdir(project)
    for name in ("tiny", "mine"):
        (project / "outputs" / name).mkdir(parents=True)
        (project / "outputs" / name / "profile.json").write_text("{}")
    return project / "outputs/tiny"


def reset(answer: str) -> None:
    result = CliRunner().invoke(app, ["reset"], input=f"{answer}\n")
    if result.exception:
        raise result.exception


def test_a_run_goes_once_that_is_wanted(tiny: Path) -> None:
    reset("n")
    assert tiny.is_dir()
    reset("y")
    assert [path.name for path in tiny.parent.iterdir()] == ["mine"]


def test_what_is_no_run_or_in_use_stays(tiny: Path) -> None:
    with FileLock(tiny / "training.lock"), pytest.raises(FtlibError, match=r"^a training runs in outputs/tiny; stop"):
        reset("y")
    (tiny / "profile.json").unlink()
    with pytest.raises(FtlibError, match=r"^outputs/tiny is not a run and was not deleted; delete it by hand"):
        reset("y")
    assert tiny.is_dir()
