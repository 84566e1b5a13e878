"""`make exercises`: the learners' copies of the exercises, made from the notebooks that have the solutions."""

import json
import re
from pathlib import Path
from typing import Any

from ftlib.runner import cells
from ftlib.session.session import project_root

FOLDER = Path("notebooks/exercises")
SOLUTIONS = FOLDER / "solutions"
SOLUTION = re.compile(r"\n *### BEGIN SOLUTION\n.*?### END SOLUTION", re.DOTALL)  # as nbgrader marks them


def blank(solved: dict[str, Any]) -> dict[str, Any]:
    """A notebook without its solutions and outputs."""
    copied: list[dict[str, Any]] = []
    for cell in solved["cells"]:
        source = SOLUTION.sub("", "".join(cell["source"]))
        emptied: dict[str, Any] = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        copied.append(cell | emptied | {"source": source.splitlines(keepends=True)})
    return solved | {"cells": copied}


def write(root: Path) -> None:
    """Write a copy of each notebook in `solutions/` beside that folder."""
    for path in sorted((root / SOLUTIONS).glob("*.ipynb")):
        text = json.dumps(blank(cells.load(path)), indent=1, ensure_ascii=False)
        (root / FOLDER / path.name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(project_root())
