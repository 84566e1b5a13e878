"""Solutions pass their checks, blank copies fail them, and a typical wrong answer gets the hint that fits."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from exercises.wrong_answers import WRONG
from helpers import NOTEBOOKS, ROOT
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.errors import FtlibError
from ftlib.model import evaluation
from ftlib.runner import cells, exercises
from ftlib.session import records

NAMES = sorted(path.stem for path in (ROOT / exercises.SOLUTIONS).glob("*.ipynb"))
MEASURED = {"agreement": 0.975, "exact": 0.9, "loss": 0.064, "trainable_parameters": 110_592}


def code(folder: Path, name: str) -> list[tuple[str, str]]:
    """Tag and source of a notebook's code cells, without those that train."""
    found = [cell for cell in cells.load(ROOT / folder / f"{name}.ipynb")["cells"] if cell["cell_type"] == "code"]
    tagged = [(" ".join(cell["metadata"].get("tags", [])), "".join(cell["source"])) for cell in found]
    return [(tag, source) for tag, source in tagged if tag != "trains"]


def imports(name: str) -> str:
    """The imports of a notebook's setup."""
    setup = ast.parse("\n".join(source for tag, source in code(exercises.SOLUTIONS, name) if tag == "setup"))
    return "\n".join(ast.unparse(node) for node in setup.body if isinstance(node, ast.Import | ast.ImportFrom))


def exercise(folder: Path, name: str, number: int) -> tuple[list[str], str, list[str]]:
    """The cells before an exercise's answer that are given, the answer, and its checks; the first has number 0."""
    found = code(folder, name)
    places = [place for place, (tag, _) in enumerate(found) if tag == "answer"]
    place, following = places[number], [*places[1:], len(found)][number]
    given = [source for tag, source in found[:place] if not tag]
    return given, found[place][1], [source for tag, source in found[place:following] if tag == "check"]


ALL = [
    (name, number)
    for name in NAMES
    for number in range(sum(tag == "answer" for tag, _ in code(exercises.FOLDER, name)))
]


@pytest.fixture
def solve(
    base_model: GptOssForCausalLM,
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sample: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Gives an exercise an answer and runs its checks, in what its setup would have made."""
    monkeypatch.chdir(tmp_path)
    records.write(tmp_path / "attempts/attention/records", "attempt", MEASURED | {"trainable_parameters": 28_672})
    profile = profiles.load("tiny")
    session = SimpleNamespace(
        output_dir=tmp_path / "tiny",
        project_root=ROOT,
        read_record=lambda notebook: MEASURED if "train" in notebook else {"after": MEASURED},
    )
    verdicts = {"exact": [1, 1, 1, 0, 0, 1, 1, 0], "faithful": [0, 0, 1, 1, 0, 1, 1, 0]}
    languages = {"language": ["Italian", "Italian", "Italian", "French", "French", "German", "German", "German"]}
    texts = {name: [""] * 8 for name in ("user", "analysis", "final")}
    results = pd.DataFrame(languages | texts | verdicts).astype({"exact": bool, "faithful": bool})
    asked = pd.DataFrame({"language": ["English", "French", "German", "Italian", "Spanish"], "detected": "English"})
    monkeypatch.setattr(prepare, "load", lambda *_: (sample, sample))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: asked)
    monkeypatch.setattr(evaluation, "summarise", lambda _: {"agreement": 0.2})

    def run(name: str, number: int, answer: str | None = None, folder: Path = exercises.SOLUTIONS) -> None:
        given, solution, checks = exercise(folder, name, number)
        namespace: dict[str, Any] = {"session": session, "profile": profile, "tokenizer": tokenizer, "rows": sample}
        namespace |= {"model": model, "results": results}
        exec(imports(name), namespace)
        if name == "02_conversations":
            namespace["lengths"] = prepare.token_lengths(sample, tokenizer)
        for source in (*given, solution if answer is None else answer, *checks):
            exec(source, namespace)

    return run


@pytest.mark.parametrize(("name", "number"), ALL)
def test_the_solution_passes_and_the_blank_copy_does_not(solve: Any, name: str, number: int) -> None:
    solve(name, number)
    with pytest.raises((AssertionError, FtlibError)) as raised:
        solve(name, number, exercise(exercises.FOLDER, name, number)[1])
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "number", "answer", "hint"),
    [(*place, answer, hint) for place, wrong in WRONG.items() for answer, hint in wrong.items()],
    ids=lambda value: value if len(str(value)) < 50 else "",
)
def test_a_wrong_answer_gets_the_hint_that_fits(solve: Any, name: str, number: int, answer: str, hint: str) -> None:
    with pytest.raises((AssertionError, FtlibError)) as raised:
        solve(name, number, answer)
    assert hint in str(raised.value)


def test_every_exercise_has_three_wrong_answers() -> None:
    assert len(ALL) == 11
    assert {place: len(WRONG[place]) for place in ALL} == dict.fromkeys(ALL, 3)


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_those_of_the_solutions_and_checks_are_locked(name: str) -> None:
    solved, copied = (cells.load(ROOT / folder / f"{name}.ipynb") for folder in (exercises.SOLUTIONS, exercises.FOLDER))
    assert copied == exercises.blank(solved), "run `make exercises`"
    assert "SOLUTION" not in str(copied)
    for cell in copied["cells"]:
        assert not cell.get("outputs")
        locked = cell["metadata"].get("editable") is cell["metadata"].get("deletable") is False
        assert locked == ("check" in cell["metadata"].get("tags", []))


def test_the_quiz_has_one_right_answer_to_each_question_and_says_why() -> None:
    quiz = json.loads((ROOT / exercises.FOLDER / "quiz.json").read_text(encoding="utf-8"))
    shown = "\n".join(cells.read(ROOT / exercises.FOLDER / "quiz.ipynb"))
    assert len(quiz) == len(NOTEBOOKS)
    for name, questions in quiz.items():
        assert f'display_quiz(quiz["{name}"]' in shown
        assert len(questions) >= 2
        for question in questions:
            assert sum(answer["correct"] for answer in question["answers"]) == 1
            assert all(answer["feedback"] for answer in question["answers"])
            assert "$" not in json.dumps(question), "formulas would be fetched from the network"
