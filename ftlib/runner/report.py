"""The HTML report of a run: the result first, then its numbers, plots and executed notebooks as pages."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from ftlib.errors import FtlibError
from ftlib.runner import cells
from ftlib.runner.execution import NOTEBOOKS, UNFINISHED
from ftlib.session import records

BEFORE, TRAINING, AFTER, _ = NOTEBOOKS[2:]
# Measured before and after training: label, key in both records, format.
MEASURES = (
    ("Reasons in the language asked for", "agreement", "{:.1%}"),
    ("Answers exactly as the reference", "exact", "{:.1%}"),
    ("Reasoning names what the answer names", "faithful", "{:.1%}"),
    ("Held-out loss", "loss", "{:.3f}"),
    ("Replies cut at the token limit", "unfinished", "{:,}"),
    ("Held-out questions", "questions", "{:,}"),
)
# Label, notebook, key in its record, format.
FACTS = (
    ("Updates", TRAINING, "global_step", "{:,}"),
    ("Mean training loss", TRAINING, "training_loss", "{:.4f}"),
    ("Trainable parameters", TRAINING, "trainable_parameters", "{:,}"),
    ("All parameters", TRAINING, "total_parameters", "{:,}"),
    ("Training time", TRAINING, "train_runtime_s", "{:,.1f} s"),
    ("Training speed", TRAINING, "samples_per_second", "{:,.1f} rows a second"),
    ("Peak memory while training", TRAINING, "peak_memory_bytes", "{:,.2f} GB"),
    ("Trained on", TRAINING, "device", "{}"),
    ("Largest logit difference, merged against unmerged", AFTER, "merged_max_logit_difference", "{:.1e}"),
    ("Adapter on the Hub", AFTER, "hub_repo", "{}"),
)
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { border-bottom: 1px solid #8886; padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums }
.reply td, .reply th { text-align: left; width: 50% }
figure { margin: 1.5rem 0 }
img { max-width: 100%; background: #fff; border-radius: 4px }
.result { font-size: 1.25rem; font-weight: 600 }
.quiet { opacity: .7 }
"""


class Plot(NamedTuple):
    """A picture from a cell tagged `report`, with the heading above it."""

    notebook: str
    heading: str
    image: str  # a PNG in base64


def summary(output_dir: Path) -> str:
    """The result of a complete run, in one line."""
    return _result(records.read(output_dir / "records", AFTER))


def _result(record: dict[str, Any]) -> str:
    before, after = record["before"], record["after"]
    questions = f"on {after['questions']} held-out questions"
    if after["agreement"] is None:  # no row asks for a language
        return f"Held-out loss: {before['loss']:.3f} before → {after['loss']:.3f} after, {questions}"
    shares = f"{before['agreement']:.0%} before → {after['agreement']:.0%} after"
    return f"Reasoning in the language asked for: {shares}, {questions}"


def write(output_dir: Path) -> Path:
    """Write `report/index.html` and a page for each executed notebook; all are self-contained and need no network."""
    import nbformat

    left_out: list[str] = []
    paths = [output_dir / "notebooks" / f"{name}{ending}" for name in NOTEBOOKS for ending in (UNFINISHED, ".ipynb")]
    executed = {path.name.split(".")[0]: path for path in paths if path.is_file()}  # of two, the finished one
    if not executed:
        raise FtlibError(f"no executed notebooks of {output_dir.name} were found; run `ftlib run` first")
    folder = output_dir / "report"
    folder.mkdir(exist_ok=True)
    plots: list[Plot] = []
    links: list[str] = []
    for name, path in executed.items():
        try:
            cells.load(path)
        except FtlibError as error:
            left_out.append(str(error))
            continue
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        plots += plots_of(name, notebook)
        links.append(_link(name, notebook))
        (folder / f"{name}.html").write_text(page(notebook, name), encoding="utf-8")
    made = datetime.fromtimestamp(max(path.stat().st_mtime for path in executed.values()), UTC)
    index = folder / "index.html"
    index.write_text("\n".join(_index(output_dir, made, links, plots, left_out)), encoding="utf-8")
    return index


def page(notebook: Any, title: str) -> str:
    """A notebook as a page that needs no network."""
    from nbconvert import HTMLExporter

    # Without addresses for its scripts the page fetches nothing; formulas stay as they are typed.
    offline = {"mathjax_url": "", "mermaid_js_url": "", "mermaid_layout_elk_js_url": "", "require_js_url": ""}
    exporter = HTMLExporter(embed_images=True, **offline)  # type: ignore[no-untyped-call]
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    page = re.sub(r'<script src="">\s*</script>', "", page)
    for name in NOTEBOOKS:
        page = page.replace(f'href="{name}.ipynb"', f'href="{name}.html"')
    return str(page)


def _title(notebook: Any, name: str) -> str:
    first = notebook.cells[0].source.splitlines() if notebook.cells else []
    return str(first[0].lstrip("# ")) if first else name


def _link(name: str, notebook: Any) -> str:
    run = notebook.metadata.get("papermill", {})
    took = f"{run['duration']:.0f} s" if run.get("duration") else ""
    note = f"{took}, stopped by an error" if run.get("exception") else took
    return f'<li><a href="{name}.html">{escape(_title(notebook, name))}</a> <span class="quiet">{note}</span></li>'


def plots_of(name: str, notebook: Any) -> Iterator[Plot]:
    """The pictures from a notebook's cells tagged `report`."""
    heading = _title(notebook, name)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1].strip("# ").replace("`", "") if headings else heading
        elif "report" in cell.metadata.get("tags", []):
            data = [output.get("data", {}) for output in cell.outputs]
            yield from (Plot(name, heading, each["image/png"]) for each in data if "image/png" in each)


def _figure(plot: Plot) -> str:
    caption = escape(plot.heading)
    return (
        f'<figure><figcaption><a href="{plot.notebook}.html">{caption}</a></figcaption>'
        f'<img alt="{caption}" src="data:image/png;base64,{plot.image}"></figure>'
    )


def _index(output_dir: Path, made: datetime, links: list[str], plots: list[Plot], left_out: list[str]) -> Iterator[str]:
    found = {name: _record(output_dir, name, left_out) for name in NOTEBOOKS}
    title = f"Fine-tuning report: {escape(output_dir.name)}"
    result = [plot for plot in plots if plot.notebook == AFTER]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
    yield f'<p class="result">{escape(_result(found[AFTER])) if found[AFTER] else "This run is not finished."}</p>'
    yield from (f"<p>Left out: {escape(why)}</p>" for why in left_out)
    yield from map(_figure, result)
    yield from _reply(found[AFTER].get("examples", []))
    yield "<h2>Results</h2><table><tr><th></th><th>before training</th><th>after</th></tr>"
    after = found[AFTER].get("after", {})
    for label, key, pattern in MEASURES:
        yield f"<tr><td>{label}</td>{_cell(found[BEFORE], key, pattern)}{_cell(after, key, pattern)}</tr>"
    yield "</table><table>"
    for label, notebook, key, pattern in FACTS:
        yield f"<tr><td>{label}</td>{_cell(found[notebook], key, pattern)}</tr>"
    yield "</table><h2>Notebooks</h2><ol>"
    yield from links
    yield "</ol><h2>Plots</h2>"
    yield from (_figure(plot) for plot in plots if plot not in result)
    yield f'<p class="quiet">Run on {made:%d %B %Y, %H:%M UTC}</p></body></html>'


def _record(output_dir: Path, name: str, left_out: list[str]) -> dict[str, Any]:
    """A notebook's record, empty where it has left none; one that cannot be read is added to `left_out`."""
    folder = output_dir / "records"
    if not (folder / f"{name}.json").is_file():
        return {}
    try:
        return records.read(folder, name)
    except FtlibError as error:
        left_out.append(str(error))
        return {}


def _reply(examples: list[dict[str, Any]]) -> Iterator[str]:
    """One question, with the model's reasoning before and after training side by side; in another language if any."""
    others = [example for example in examples if example["language"] != "English"]
    for example in (others or examples)[:1]:
        shown = {key: escape(str(value)) for key, value in example.items()}
        yield f"<p>Asked to reason in {shown['language']}: <q>{shown['question']}</q></p>"
        yield '<table class="reply"><tr><th>reasoning before training</th><th>after</th></tr>'
        yield f"<tr><td>{shown['reasoning before']}</td><td>{shown['reasoning after']}</td></tr></table>"
        yield f"<p>It answers: <q>{shown['answer after']}</q></p>"


def _cell(record: dict[str, Any], key: str, pattern: str) -> str:
    value = record.get(key)
    if value is None:
        return "<td>not measured</td>"
    return f"<td>{escape(pattern.format(value / 1e9 if pattern.endswith('GB') else value))}</td>"
