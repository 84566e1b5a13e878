"""`ftlib try`: attempts that can be compared stand in one table, the best first."""

from pathlib import Path

from ftlib.runner import attempts
from ftlib.session import records

SAME, OTHER = {"hub.model": "a"}, {"hub.model": "b"}


def keep(root: Path, name: str, conditions: dict[str, str], agreement: float, loss: float = 0.1) -> None:
    measured = {"agreement": agreement, "exact": 0.5, "faithful": None, "loss": loss, "trainable_parameters": 1_000}
    records.write(root / f"attempts/{name}/records", "attempt", measured | {"seconds": 9.6, "conditions": conditions})


def test_attempts_on_the_same_questions_are_compared_with_one_another_and_the_base(tmp_path: Path) -> None:
    keep(tmp_path, "good", SAME, 0.9)
    keep(tmp_path, "better", SAME, 0.9, loss=0.05)
    keep(tmp_path, "bad", SAME, 0.2)
    keep(tmp_path, "<b>on other questions", OTHER, 1.0)
    for name, conditions in (("tiny", OTHER), ("mine", SAME)):
        records.write(tmp_path / name / "records", "03_load_model", {"agreement": 0.1, "conditions": conditions})

    table = attempts.table(tmp_path, SAME)
    assert list(table.index) == ["better", "good", "bad", "the base"]
    shown = attempts.readable(table)
    assert list(shown.loc["better"]) == ["90.0%", "50.0%", "", "0.050", "1,000", "10"]
    assert list(shown.loc["the base"]) == ["10.0%", "", "", "", "", ""]
    assert list(attempts.table(tmp_path, {"hub.model": "c"}).index) == []

    page = attempts.write_page(attempts.table(tmp_path, OTHER), tmp_path).read_text(encoding="utf-8")
    assert "&lt;b&gt;on other questions" in page
    assert "<b>" not in page
