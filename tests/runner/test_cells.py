"""A notebook's cells without Jupyter: those that lead to a variable, and no others."""

from pathlib import Path

import pytest
from helpers import write_notebook

from ftlib.errors import FtlibError
from ftlib.runner import cells


@pytest.fixture
def notebook(project: Path) -> Path:
    write_notebook(project, "some", "a = 1", "b = 10", "unrelated = 1 / 0", "c = a + b", "a = 100")
    return project / "notebooks/some.ipynb"


def test_only_the_cells_that_lead_there_are_executed(notebook: Path) -> None:
    assert cells.leading_to("c", notebook, given=()) == ["a = 1", "b = 10", "c = a + b"]
    assert cells.run("c", notebook, {}) == 11


def test_what_is_given_is_not_made_again(notebook: Path) -> None:
    assert cells.run("c", notebook, {"a": 5}) == 15


def test_what_is_not_there_is_named(notebook: Path) -> None:
    with pytest.raises(FtlibError, match=r"^notebooks/some\.ipynb: no cell makes 'trainer'; restore the committed"):
        cells.run("trainer", notebook, {})
    with pytest.raises(FtlibError, match=r"^found no notebooks/other\.ipynb; run this in the project's folder"):
        cells.read(notebook.with_name("other.ipynb"))
