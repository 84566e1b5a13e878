"""What every committed notebook keeps to, read from its file alone."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_setup", "02_explore_dataset", "03_load_model", "04_train_lora", "05_push_and_infer"]
# The calls that a learner would retype, by the notebook that writes them out.
VISIBLE_CALLS = {
    "02_explore_dataset": {"load_dataset", "AutoTokenizer.from_pretrained", "tokenizer.apply_chat_template"},
    "03_load_model": {"Mxfp4Config", "AutoModelForCausalLM.from_pretrained", "model.generate", "tokenizer.decode"},
    "04_train_lora": {"LoraConfig", "get_peft_model", "SFTConfig", "SFTTrainer", "trainer.train", "trainer.save_model"},
    "05_push_and_infer": {"api.upload_folder", "card.push_to_hub", "pipeline", "PeftModel.from_pretrained"},
}
MAX_LINES = 20
# What a reader must not find in an output: warnings, errors, secrets, and places on the machine that made it.
STAINS = re.compile(
    r"Warning|deprecat|Traceback|write_token|\bhf_[A-Za-z0-9]{8,}|rehearsal_[\w-]{20,}|site-packages|/home/|/root/|/tmp/"
    r"|/Users/|application/vnd\.jupyter\.widget|127\.0\.0\.1:\d+"
)


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def calls(notebook: Any) -> list[ast.Call]:
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_there_are_five_in_order() -> None:
    assert [path.stem for path in PATHS] == NAMES


def test_first_code_cell_holds_the_parameters_and_the_second_starts(path: Path, notebook: Any) -> None:
    parameters, second = code_cells(notebook)[:2]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [parameters]
    values = {}
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, ast.Assign)
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    own = {"resume": True} if path.stem == "04_train_lora" else {}
    assert values == {"profile": "tiny", "output_root": "outputs", **own}
    assert "session = start(profile, output_root)" in second.source


def test_opens_with_title_question_objectives_and_links(path: Path, notebook: Any) -> None:
    opening = notebook.cells[0].source
    number = NAMES.index(path.stem)
    assert re.match(rf"# {number + 1} · ", opening)
    assert re.search(r"^\*\*.+\?\*\*$", opening, re.MULTILINE)
    assert 3 <= len(re.findall(r"^- ", opening, re.MULTILINE)) <= 5
    neighbours = [NAMES[other] for other in (number - 1, number + 1) if 0 <= other < len(NAMES)]
    for neighbour in neighbours:
        assert f"({neighbour}.ipynb)" in opening


def test_ends_with_what_you_saw_questions_edits_and_a_record(path: Path, notebook: Any) -> None:
    text = prose(notebook)
    assert "## What you saw" in text
    questions = text.split("**Check yourself**")[1].split("**Try it**")[0]
    assert len(re.findall(r"^\d\. ", questions, re.MULTILINE)) == 3
    assert len(re.findall(r"^- ", text.split("**Try it**")[1], re.MULTILINE)) == 2
    assert f'session.record(\n    "{path.stem}"' in notebook.cells[-1].source or (
        f'session.record("{path.stem}"' in notebook.cells[-1].source
    )


def test_cells_are_short(notebook: Any) -> None:
    for cell in code_cells(notebook):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= MAX_LINES, cell.source


def test_no_cell_branches_on_the_profile(notebook: Any) -> None:
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.If | ast.IfExp):
                condition = ast.unparse(node.test)
                assert not re.search("profile|tiny", condition), condition


def test_no_cell_installs_prompts_or_carries_a_secret(notebook: Any) -> None:
    for cell in code_cells(notebook):
        assert not re.search(
            r"!pip|%pip|notebook_login|login\(|token\s*=|trust_remote_code|/home/|/root/|C:\\", cell.source
        )


def test_calls_of_the_seed_are_written_out(path: Path, notebook: Any) -> None:
    written = {ast.unparse(call.func) for call in calls(notebook)}
    assert VISIBLE_CALLS.get(path.stem, set()) <= written


def test_training_stands_alone_in_its_cell() -> None:
    sources = [cell.source for cell in code_cells(nbformat.read(ROOT / "notebooks/04_train_lora.ipynb", as_version=4))]
    assert "result = trainer.train(resume_from_checkpoint=last_checkpoint)" in sources


def test_committed_as_executed_in_order(notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    for cell in cells:
        assert all(output.output_type != "error" for output in cell.outputs)
        if "nbval-check-output" in cell.metadata.get("tags", []):
            assert cell.outputs, cell.source


def test_outputs_show_nothing_that_they_should_not(notebook: Any) -> None:
    for cell in code_cells(notebook):
        for output in cell.outputs:
            found = STAINS.search(
                str({key: value for key, value in output.get("data", output).items() if key != "image/png"})
            )
            assert str(ROOT) not in str(output), cell.source
            assert found is None, f"{found.group() if found else ''} in the output of:\n{cell.source}"
            assert output.get("name") != "stderr", output.text


def test_metadata_is_clean(notebook: Any) -> None:
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}


def test_prose_and_outputs_agree_on_the_held_out_questions() -> None:
    notebook = nbformat.read(ROOT / "notebooks/02_explore_dataset.ipynb", as_version=4)
    shown = "".join(output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs)
    assert "120 to measure with" in shown
    assert "120 questions" in prose(notebook).replace("\n", " ")
