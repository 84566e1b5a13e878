"""Tables of texts, as a notebook shows them."""

import math
import re
from typing import TYPE_CHECKING, Any

import pandas as pd
from IPython.display import HTML

from ftlib.display import explains_arguments

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments

_CELL = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:break-word"


@explains_arguments
def readable(table: pd.DataFrame) -> HTML:
    """Show a table of texts whole, wrapped and aligned left."""
    with pd.option_context("display.max_colwidth", None):
        markup = table.to_html(index=False, border=0)
    # Styles are inline because JupyterLab removes <style> from untrusted notebooks. Tags in a text are escaped.
    return HTML(re.sub("<(t[dh])>", rf'<\1 style="{_CELL}">', markup))  # type: ignore[no-untyped-call]


def shorten(trainer: "Trainer") -> None:
    """Show ten updates at most below the cell that trains; `trainer.state.log_history` keeps all of them."""
    from transformers.utils.notebook import NotebookProgressCallback

    class Short(NotebookProgressCallback):
        def on_log(self, args: "TrainingArguments", state: "TrainerState", *rest: Any, **kwargs: Any) -> None:
            if state.global_step % math.ceil(state.max_steps / 10) == 0:
                super().on_log(args, state, *rest, **kwargs)  # type: ignore[no-untyped-call]

    if trainer.pop_callback(NotebookProgressCallback):
        trainer.add_callback(Short)
