"""How a notebook shows errors: in one line where a person can act on it, and without secrets."""

import sys
import traceback
from collections.abc import Callable
from typing import Any

from ftlib.errors import FtlibError, printable
from ftlib.session.redaction import redact


def executed_cells() -> list[str]:
    """The source of the cells that have run in this kernel; empty outside a notebook."""
    return list(shell.user_ns["In"]) if (shell := _shell()) else []


def handle_errors(explain: Callable[[BaseException], str]) -> None:
    """From now on, show a cell's error, and let papermill report it, in one line where `explain` has one for it."""

    def show(shell: Any, kind: type[BaseException], error: BaseException, trace: Any, tb_offset: int | None) -> None:
        sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace  # for %debug and %tb
        if isinstance(error, KeyboardInterrupt):
            line = "stopped by hand; a training goes on from its last checkpoint when it is run again"
        elif isinstance(error, AssertionError) and _was_raised_in_a_cell(shell, trace):
            line = str(error)  # of an exercise's check
        elif line := str(error) if isinstance(error, FtlibError) else explain(error):
            kind = FtlibError
        line = printable(line)
        lines = [f"{kind.__name__}: {line}"]
        if not line:
            lines = shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
        shell._showtraceback(kind, redact(line or str(error)), [redact(text) for text in lines])

    if shell := _shell():
        shell.set_custom_exc((Exception, KeyboardInterrupt), show)


def _was_raised_in_a_cell(shell: Any, trace: Any) -> bool:
    *_, (frame, _) = traceback.walk_tb(trace)
    return frame.f_globals is shell.user_ns


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
