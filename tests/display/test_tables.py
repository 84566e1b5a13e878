"""The table of updates below the cell that trains."""

from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.utils import notebook

from ftlib.display import tables


@pytest.mark.parametrize(("updates", "rows"), [(63, 9), (10, 10), (3, 3), (1000, 10)])
def test_a_long_table_of_updates_is_shortened_to_ten(updates: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    write = notebook.NotebookTrainingTracker.write_line
    monkeypatch.setattr(notebook.disp, "display", lambda *content, **options: None)
    monkeypatch.setattr(
        notebook.NotebookTrainingTracker, "write_line", lambda table, row: shown.append(write(table, row))
    )
    trainer: Any = CallbackHandler([notebook.NotebookProgressCallback()], None, None, None, None)
    tables.shorten(trainer)
    args = TrainingArguments(report_to="none", use_cpu=True)
    state, control = TrainerState(max_steps=updates, epoch=0.0, num_train_epochs=1), TrainerControl()
    trainer.on_train_begin(args, state, control)
    for state.global_step in range(1, updates + 1):
        trainer.on_log(args, state, control, {"loss": 1.0})
    assert len(shown) == rows


def test_a_terminal_has_no_such_table() -> None:
    trainer: Any = CallbackHandler([], None, None, None, None)
    before = list(trainer.callbacks)
    tables.shorten(trainer)
    assert trainer.callbacks == before
