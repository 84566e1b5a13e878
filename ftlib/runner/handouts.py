"""`make handouts`: the exercises as pages, with and without solutions, and the course's pictures as slides."""

from html import escape
from pathlib import Path

import nbformat

from ftlib.runner import report
from ftlib.runner.exercises import FOLDER, SOLUTIONS
from ftlib.session.session import project_root

HANDOUTS = Path("outputs/handouts")
# By notebook, the places of its pictures that are shown: the map, the blocks, the adapter, the curves, the result.
PICTURES = {"01_setup": [0], "03_load_model": [0], "04_train_lora": [0, 1], "05_push_and_infer": [0]}
STYLE = """
:root { color-scheme: light dark; font: 3vw/1.3 system-ui, sans-serif }
body { margin: 0 }
section { display: flex; flex-direction: column; box-sizing: border-box; height: 100vh; padding: 3vh 3vw }
section { break-after: page }
h2 { margin: 0 0 2vh; font-size: 1.2em }
img { min-height: 0; flex: 1; object-fit: contain; background: #fff }
"""


def write(root: Path) -> Path:
    """Write `outputs/handouts`: `exercises/`, `solutions/` and `slides.html`; nothing in them needs a network."""
    for name, source in (("exercises", FOLDER), ("solutions", SOLUTIONS)):
        folder = root / HANDOUTS / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted((root / source).glob("0*.ipynb")):
            notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
            # On paper nothing runs, and a check would tell the answer.
            notebook.cells = [cell for cell in notebook.cells if "check" not in cell.metadata.get("tags", [])]
            (folder / f"{path.stem}.html").write_text(report.page(notebook, path.stem), encoding="utf-8")
    (root / HANDOUTS / "slides.html").write_text(_slides(root), encoding="utf-8")
    return HANDOUTS


def _slides(root: Path) -> str:
    """One picture a screen, or a sheet when printed."""
    sections = []
    for name, places in PICTURES.items():
        notebook = nbformat.read(root / f"notebooks/{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
        pictures = list(report.plots_of(name, notebook))
        for picture in (pictures[place] for place in places):
            heading = escape(picture.heading)
            image = f'<img alt="{heading}" src="data:image/png;base64,{picture.image}">'
            sections.append(f"<section><h2>{heading}</h2>{image}</section>")
    head = f'<meta charset="utf-8"><title>Fine-tune gpt-oss</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{"".join(sections)}</html>'


if __name__ == "__main__":
    print(write(project_root()))
