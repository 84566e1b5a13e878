"""What every committed notebook keeps to, read from its file alone."""

import ast
import re
from typing import Any

import nbformat
import pytest
from helpers import NOTEBOOKS, ROOT
from ipykernel.ipkernel import IPythonKernel

# The calls that a learner would retype, by the notebook that writes them out.
VISIBLE_CALLS = {
    "02_explore_dataset": {"load_dataset", "AutoTokenizer.from_pretrained", "tokenizer.apply_chat_template"},
    "03_load_model": {"Mxfp4Config", "AutoModelForCausalLM.from_pretrained", "model.generate", "tokenizer.decode"},
    "04_train_lora": {"LoraConfig", "get_peft_model", "SFTConfig", "SFTTrainer", "trainer.train", "trainer.save_model"},
    "05_push_and_infer": {"api.upload_folder", "card.push_to_hub", "pipeline", "PeftModel.from_pretrained"},
}
# What a reader must not find in an output: warnings, errors, secrets, and places on the machine that made it.
STAINS = re.compile(
    r"Warning|deprecat|Traceback|write_token|\bhf_[A-Za-z0-9]{8,}|rehearsal_[\w-]{20,}|site-packages|/home/|/root/|/tmp/"
    r"|/Users/|application/vnd\.jupyter\.widget|127\.0\.0\.1:\d+"
)


@pytest.fixture(params=NOTEBOOKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def notebook(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_there_are_no_others() -> None:
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == list(NOTEBOOKS)


def test_opens_with_title_question_objectives_and_links(name: str, notebook: Any) -> None:
    opening, number = notebook.cells[0].source, NOTEBOOKS.index(name)
    assert re.match(rf"# {number + 1} · ", opening)
    assert re.search(r"^\*\*.+\?\*\*$", opening, re.MULTILINE)
    assert 3 <= len(re.findall(r"^- ", opening, re.MULTILINE)) <= 5
    for neighbour in (number - 1, number + 1):
        if 0 <= neighbour < len(NOTEBOOKS):
            assert f"({NOTEBOOKS[neighbour]}.ipynb)" in opening


def test_first_code_cell_holds_the_parameters_and_the_second_starts(name: str, notebook: Any) -> None:
    parameters, second = code_cells(notebook)[:2]
    assert [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])] == [parameters]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(parameters.source).body}
    own = {"resume": True} if name == "04_train_lora" else {}
    assert values == {"profile": "tiny", "output_root": "outputs", **own}
    assert "session = start(profile, output_root)" in second.source


def test_ends_with_what_you_saw_questions_edits_and_a_record(name: str, notebook: Any) -> None:
    text = prose(notebook)
    assert "## What you saw" in text
    questions, edits = text.split("**Check yourself**")[1].split("**Try it**")
    assert len(re.findall(r"^\d\. ", questions, re.MULTILINE)) == 3
    assert len(re.findall(r"^- ", edits, re.MULTILINE)) in (2, 3)
    linked = re.findall(r"\(exercises/(\w+)\.ipynb\)", edits)
    assert [each[:2] for each in linked if each != "quiz"] == ([name[:2]] if name != NOTEBOOKS[-1] else [])
    assert all((ROOT / f"notebooks/exercises/{each}.ipynb").is_file() for each in linked)
    assert re.search(rf'session\.record\(\s*"{name}"', notebook.cells[-1].source)


def test_cells_hold_whole_calls_and_nothing_that_a_lesson_should_not(name: str, notebook: Any) -> None:
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assert VISIBLE_CALLS.get(name, set()) <= {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    conditions = [ast.unparse(node.test) for node in nodes if isinstance(node, ast.If | ast.IfExp)]
    assert not [condition for condition in conditions if re.search("profile|tiny", condition)]
    for cell in code_cells(notebook):
        assert not re.search(
            r"[!%]pip|notebook_login|login\(|token\s*=|trust_remote_code|/home/|/root/|C:\\", cell.source
        )


def test_committed_as_executed_in_order_with_nothing_of_the_machine(notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in cells:
        assert set(cell.metadata) <= {"tags"}
        assert cell.outputs or "nbval-check-output" not in cell.metadata.get("tags", []), cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            texts = {key: value for key, value in output.get("data", output).items() if key != "image/png"}
            found = STAINS.search(str(texts))
            assert found is None, f"{found and found.group()} in the output of:\n{cell.source}"
            assert str(ROOT) not in str(output), cell.source


def test_jupyterlab_opens_it_unmodified_and_saves_the_same_bytes(name: str, notebook: Any) -> None:
    """JupyterLab puts the kernel's own description of its language into the notebook, the version included."""
    language = notebook.metadata.language_info
    assert language == IPythonKernel.language_info | {"version": language["version"]}
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert notebook.metadata.kernelspec == kernel
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert nbformat.writes(notebook, version=4) + "\n" == path.read_text(encoding="utf-8")


def test_prose_and_outputs_agree_on_the_held_out_questions() -> None:
    notebook = nbformat.read(ROOT / "notebooks/02_explore_dataset.ipynb", as_version=4)
    shown = "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs)
    assert "120 to measure with" in shown
    assert "120 questions" in prose(notebook).replace("\n", " ")
