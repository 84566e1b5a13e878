"""Checks what papermill injects: it only warns of a misspelt name, and Python takes the text "false" for true."""

import ast
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ftlib import profiles
from ftlib.errors import FtlibError, nearest

INJECTED = "# Parameters\n"  # the first line of papermill's cell
EXPECTED = {bool: "True or False", str: "text"}


def check(cells: Sequence[str]) -> None:
    """Compare the names and types that papermill injected with the notebook's own, in the cell above them."""
    own, given = next((pair for pair in pairwise(cells) if pair[1].startswith(INJECTED)), ("", ""))
    known = _values(own)
    for name, value in _values(given).items():
        if name not in known:
            hint = nearest(name, list(known))
            if section := profiles.section_of(name):
                hint = f"it is a value of the profile: set it in a .toml file under [{section}]"
            raise FtlibError(f"no parameter is called {name} (given: {value!r}); {hint}")
        if type(value) is not (wanted := type(known[name])):
            found = type(value).__name__
            raise FtlibError(f"parameter {name} = {value!r}: found {found}, expected {EXPECTED[wanted]}")


def _values(cell: str) -> dict[str, Any]:
    statements = [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): _value(node.value) for node in statements}


def _value(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except ValueError:  # papermill writes some numbers as calls, such as float('nan')
        return ast.unparse(expression)
