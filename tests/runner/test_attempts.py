"""`ftlib try`: attempts that can be compared stand in one table, the best first."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import PeftModel
from transformers import GptOssForCausalLM

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.runner import attempts
from ftlib.session import device, records

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


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Of a profile that measures in another way than it trains, on held-out questions that nobody asks."""
    tiny = profiles.load("tiny")
    measure = tiny.measure.model_copy(update={"experts_implementation": "eager"})
    profile = tiny.model_copy(update={"measure": measure})
    monkeypatch.setattr("ftlib.dataset.prepare.load", lambda *_: ([], []))
    monkeypatch.setattr(attempts.evaluation, "conditions", lambda *_: SAME)
    monkeypatch.setattr(attempts.hub_client, "check_download", lambda *_: None)
    return SimpleNamespace(profile=profile, project_root=tmp_path, output_dir=tmp_path / "outputs")


def test_an_attempt_is_measured_as_notebook_5_measures_and_not_as_it_trained(
    session: Any,
    monkeypatch: pytest.MonkeyPatch,
    model: GptOssForCausalLM,
    with_adapter: Callable[..., PeftModel],
) -> None:
    """A layer in training that recomputes its activations forgets what it has read, and the replies are nonsense."""
    asked = []

    def train(variable: str, notebook: Path, namespace: dict[str, Any]) -> None:
        model.set_attn_implementation("flex_attention")
        namespace |= {"peft_model": with_adapter(model).train(), "progress": SimpleNamespace(seconds=1.0)}
        namespace["tokenizer"] = None

    def evaluate(merged: Any, *_: Any) -> dict[str, Any]:
        asked.append((merged.training, merged.config._attn_implementation, merged.config._experts_implementation))
        return dict.fromkeys(attempts.COLUMNS, 0.5)

    monkeypatch.setattr(attempts.cells, "run", train)
    monkeypatch.setattr(attempts.evaluation, "evaluate", evaluate)
    monkeypatch.setattr(attempts.evaluation, "summarise", lambda results: results)
    assert attempts.run(session)["agreement"] == 0.5
    assert asked == [(False, "eager", "eager")]


def test_an_attempt_that_this_machine_cannot_finish_is_not_begun(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session.profile = profiles.load("gpt-oss-20b")
    monkeypatch.setattr(device, "installed_gpus", list)
    monkeypatch.setattr(device, "gpus", lambda: 0)
    with pytest.raises(FtlibError, match=r"^profile gpt-oss-20b computes on a GPU: found no GPU"):
        attempts.run(session)


def test_an_attempt_on_a_damaged_base_is_not_begun(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: str, revision: str) -> None:
        raise FtlibError(f"{model} is damaged")

    monkeypatch.setattr(attempts.hub_client, "check_download", damaged)
    with pytest.raises(FtlibError, match=r"^rehearsal/gpt-oss-tiny is damaged$"):
        attempts.run(session)
