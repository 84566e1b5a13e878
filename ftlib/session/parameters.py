"""A notebook's parameters, checked for what papermill lets through.

papermill writes what it is given into a cell of its own, below the cell of parameters. A misspelt name only warns
there, and the notebook runs with the value that it had; `-p resume false` arrives as the text "false", which Python
takes for true.
"""

import ast
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ftlib import profiles
from ftlib.errors import FtlibError, nearest

INJECTED = "# Parameters\n"
"""How papermill's cell begins."""

EXPECTED = {bool: "True or False", str: "text"}


def check(cells: Sequence[str]) -> None:
    """Compare the parameters that were handed in with those that the notebook has.

    Args:
        cells: the source of the cells that have been executed so far, such as IPython's `In`.

    Raises:
        FtlibError: a parameter is unknown or of another type, with the nearest name or the values that are allowed.
    """
    for own, given in pairwise(cells):
        if given.startswith(INJECTED):
            known = _values(own)
            for name, value in _values(given).items():
                _check(name, value, known)
            return


def _values(cell: str) -> dict[str, Any]:
    statements = [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): _value(node.value) for node in statements}


def _value(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except ValueError:  # papermill writes some numbers as calls, such as float('nan')
        return ast.unparse(expression)


def _check(name: str, value: Any, known: dict[str, Any]) -> None:
    if name not in known:
        section = profiles.section_of(name)
        hint = (
            f"it is a value of the profile: write it into a .toml file below [{section}], and pass the file as profile"
            if section
            else f"{nearest(name, list(known))}"
        )
        raise FtlibError(f"no parameter is called {name} (given: {value!r}); {hint}")
    wanted = type(known[name])
    if type(value) is not wanted:
        raise FtlibError(f"parameter {name} = {value!r}: found {type(value).__name__}, expected {EXPECTED[wanted]}")
