"""The report of a run: the result first, everything self-contained, and what is missing named."""

import shutil
from pathlib import Path

import nbformat
import pytest

from ftlib.errors import FtlibError
from ftlib.runner import report
from ftlib.session import records

EXAMPLE = {
    "language": "French",
    "question": "What is <b>2</b> plus 3?",
    "reasoning before": "They ask for a sum.",
    "reasoning after": "On demande une somme.",
    "answer after": "2 plus 3 is 5.",
    "reference": "2 plus 3 is 5.",
}


def write_notebook(folder: Path, name: str, heading: str, code: str, image: str) -> None:
    plot = nbformat.v4.new_output("display_data", {"image/png": image})
    cells = [
        nbformat.v4.new_markdown_cell("# A title\n\n[2](02_explore_dataset.ipynb)"),
        nbformat.v4.new_markdown_cell(f"## {heading}"),
        nbformat.v4.new_code_cell(code, outputs=[plot], metadata={"tags": ["report"]}),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    output_dir = tmp_path / "tiny"
    (output_dir / "notebooks").mkdir(parents=True)
    write_notebook(output_dir / "notebooks", "01_setup", "A <b>plot</b>", "plot()", "Zmlyc3Q=")
    write_notebook(output_dir / "notebooks", "05_push_and_infer", "The effect", "plots.agreement(a, b);", "cmVzdWx0")
    before = {"agreement": 0.2, "questions": 120, "exact": None}
    records.write(output_dir / "records", "03_load_model", before)
    records.write(output_dir / "records", "04_train_lora", {"peak_memory_bytes": 885_891_072, "train_runtime_s": 14.2})
    after = {"agreement": 0.975, "questions": 120, "exact": 0.9, "loss": 0.25}
    last = {"before": before, "after": after, "hub_repo": "learner/<x>", "examples": [EXAMPLE]}
    records.write(output_dir / "records", "05_push_and_infer", last)
    return output_dir


def test_the_result_comes_first_then_numbers_notebooks_and_plots(finished_run: Path) -> None:
    index = report.write(finished_run)
    text = index.read_text()
    assert {path.name for path in index.parent.iterdir()} == {"index.html", "01_setup.html", "05_push_and_infer.html"}
    parts = (
        "Reasoning in the language asked for: 20% before → 98% after, on 120 held-out questions",
        "base64,cmVzdWx0",
        "What is &lt;b&gt;2&lt;/b&gt; plus 3?",
        "<td>They ask for a sum.</td><td>On demande une somme.</td>",
        "<td>Reasons in the language asked for</td><td>20.0%</td><td>97.5%</td>",
        "<td>Answers exactly as the reference</td><td>not measured</td><td>90.0%</td>",
        "<td>Held-out loss</td><td>not measured</td><td>0.250</td>",
        "<td>Updates</td><td>not measured</td>",
        "<td>0.89 GB</td>",
        "learner/&lt;x&gt;",
        "<h2>Notebooks</h2>",
        "A &lt;b&gt;plot&lt;/b&gt;",
        "base64,Zmlyc3Q=",
    )
    places = [text.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert text.count("cmVzdWx0") == 1
    page = (index.parent / "01_setup.html").read_text()
    for source in ('src="http', 'href="http', "<script src=", "cdnjs", "unpkg"):
        assert source not in text + page
    assert 'href="02_explore_dataset.html"' in page


def test_without_a_language_the_result_is_the_loss_and_without_examples_no_reply_is_shown(finished_run: Path) -> None:
    measured = [{"agreement": None, "questions": 12, "loss": loss} for loss in (1.25, 0.5)]
    records.write(finished_run / "records", "05_push_and_infer", {"before": measured[0], "after": measured[1]})
    text = report.write(finished_run).read_text()
    assert "Held-out loss: 1.250 before → 0.500 after, on 12 held-out questions" in text
    assert 'class="reply"' not in text


def test_an_unfinished_run_says_what_is_missing(finished_run: Path) -> None:
    shutil.rmtree(finished_run / "records")
    path = finished_run / "notebooks/01_setup.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.papermill = {"duration": 3.4, "exception": True}
    path.unlink()
    nbformat.write(notebook, path.with_name("01_setup.unfinished.ipynb"))
    text = report.write(finished_run).read_text()
    assert "This run is not finished." in text
    assert "3 s, stopped by an error" in text
    with pytest.raises(FtlibError, match="run `ftlib run` first"):
        report.write(finished_run.parent)
