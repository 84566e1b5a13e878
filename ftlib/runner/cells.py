"""Executes a notebook's own cells, without Jupyter, up to one variable.

A benchmark or a test that needs a model or a trainer gets exactly what the notebook builds.
"""

import ast
import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ftlib.errors import FtlibError


def load(notebook: Path) -> dict[str, Any]:
    """A notebook as its JSON says, of format 4; FtlibError names one that is missing, damaged or of another format."""
    from nbformat.validator import isvalid

    shown = f"{notebook.parent.name}/{notebook.name}"
    if not notebook.is_file():
        raise FtlibError(f"found no {shown}; run this in the project's folder")
    data = notebook.read_bytes()
    content: Any = None
    with contextlib.suppress(ValueError):
        content = json.loads(data.decode("utf-8"))
    version = content.get("nbformat") if isinstance(content, dict) else None
    if version == 4 and isvalid(content):  # type: ignore[no-untyped-call]
        return dict(content)
    found = "the marks of a merge conflict" if b"\n<<<<<<< " in data else "no whole notebook"
    found = f"format {version}" if version not in (None, 4) else found
    raise FtlibError(f"{shown}: found {found}, expected one of format 4; restore the file, or write it again")


def read(notebook: Path) -> list[str]:
    """The source of a notebook's code cells, in order."""
    return ["".join(cell["source"]) for cell in load(notebook)["cells"] if cell["cell_type"] == "code"]


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
