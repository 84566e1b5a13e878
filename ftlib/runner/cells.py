"""Executes a notebook's own cells, without Jupyter, up to one variable.

A benchmark or a test that needs a model or a trainer gets exactly what the notebook builds.
"""

import ast
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ftlib.errors import FtlibError


def read(notebook: Path) -> list[str]:
    """The source of a notebook's code cells, in order."""
    if not notebook.is_file():
        raise FtlibError(f"found no notebooks/{notebook.name}; run this in the project's folder")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def leading_to(variable: str, notebook: Path, given: Collection[str]) -> list[str]:
    """The cells needed to compute a variable, in order; names in `given` need no cell."""
    cells = read(notebook)
    bound = [_names(cell, ast.Store) for cell in cells]
    makers = [position for position, names in enumerate(bound) if variable in names]
    if not makers:
        raise FtlibError(f"notebooks/{notebook.name}: no cell makes {variable!r}; restore the committed notebook")
    taken, open_ends = set[int](), makers[-1:]
    while open_ends:
        position = open_ends.pop()
        taken.add(position)
        for needed in _names(cells[position], ast.Load, ast.Del) - bound[position] - set(given):
            sources = [earlier for earlier in range(position) if needed in bound[earlier]]
            open_ends += sources[-1:]
    return [cells[position] for position in sorted(taken)]


def run(variable: str, notebook: Path, namespace: dict[str, Any]) -> Any:
    """Execute the cells needed to compute a variable and return its value; `namespace` gives and gets variables."""
    for cell in leading_to(variable, notebook, namespace):
        exec(cell, namespace)
    return namespace[variable]


def _names(source: str, *contexts: type[ast.expr_context]) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, contexts)}
    if ast.Store in contexts:
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        names |= {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    return names
