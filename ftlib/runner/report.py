"""The HTML report of a run: each executed notebook as a page, and an index with the results and the plots."""

import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftlib.errors import FtlibError
from ftlib.runner.execution import NOTEBOOKS, UNFINISHED
from ftlib.session import records

# What the index shows of the records: label, notebook, key ("after.loss" lies inside "after"), how to write the value.
RESULTS = (
    ("Held-out questions", "03_load_model", "questions", "{:,}"),
    ("Reasons in the language asked for, before training", "03_load_model", "agreement", "{:.1%}"),
    ("Reasons in the language asked for, after training", "05_push_and_infer", "after.agreement", "{:.1%}"),
    ("Answers exactly as the reference, before training", "03_load_model", "exact", "{:.1%}"),
    ("Answers exactly as the reference, after training", "05_push_and_infer", "after.exact", "{:.1%}"),
    ("Held-out loss, before training", "03_load_model", "loss", "{:.3f}"),
    ("Held-out loss, after training", "05_push_and_infer", "after.loss", "{:.3f}"),
    ("Replies cut at the token limit, after training", "05_push_and_infer", "after.unfinished", "{:,}"),
    ("Largest logit difference, merged against unmerged", "05_push_and_infer", "merged_max_logit_difference", "{:.1e}"),
    ("Updates", "04_train_lora", "global_step", "{:,}"),
    ("Mean training loss", "04_train_lora", "training_loss", "{:.4f}"),
    ("Trainable parameters", "04_train_lora", "trainable_parameters", "{:,}"),
    ("All parameters", "04_train_lora", "total_parameters", "{:,}"),
    ("Expert tensors with an adapter", "04_train_lora", "adapted_expert_tensors", "{:,}"),
    ("Training time", "04_train_lora", "train_runtime_s", "{:,.1f} s"),
    ("Training speed", "04_train_lora", "samples_per_second", "{:,.1f} rows a second"),
    ("Peak memory while training", "04_train_lora", "peak_memory_bytes", "{:,.2f} GB"),
    ("Trained on", "04_train_lora", "device", "{}"),
    ("Adapter on the Hub", "05_push_and_infer", "hub_repo", "{}"),
)
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "huggingface_hub")
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td { border-bottom: 1px solid #8886; padding: .3rem 1rem .3rem 0 }
td + td { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1.5rem 0 }
img { max-width: 100%; background: #fff; border-radius: 4px }
.quiet { opacity: .7 }
"""


def summary(output_dir: Path) -> str:
    """The result of a complete run, in one line.

    Raises:
        FtlibError: the last notebook has not been run to its end.
    """
    record = records.read(output_dir / "records", "05_push_and_infer")
    before, after = record["before"], record["after"]
    questions = f"on {after['questions']} held-out questions"
    if after["agreement"] is None:  # no row asks for a language
        return f"Held-out loss: {before['loss']:.3f} before → {after['loss']:.3f} after, {questions}"
    return (
        f"Reasoning in the language asked for: {before['agreement']:.0%} before → {after['agreement']:.0%} after, "
        f"{questions}"
    )


def write(output_dir: Path) -> Path:
    """Write `report/index.html` and a page for each executed notebook; all are self-contained and need no network.

    Raises:
        FtlibError: no notebook has been executed yet.
    """
    import nbformat

    executed = dict(_executed(output_dir / "notebooks"))
    if not executed:
        raise FtlibError(f"no executed notebooks of {output_dir.name} were found; run `ftlib run` first")
    folder = output_dir / "report"
    folder.mkdir(exist_ok=True)
    figures, links = [], []
    for name, path in executed.items():
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        figures += [_figure(name, heading, image) for heading, image in _plots(notebook)]
        links.append(_link(name, notebook))
        (folder / f"{name}.html").write_text(_page(notebook, name), encoding="utf-8")
    made = datetime.fromtimestamp(max(path.stat().st_mtime for path in executed.values()), UTC)
    index = folder / "index.html"
    index.write_text(_index(output_dir, made, links, figures), encoding="utf-8")
    return index


def _executed(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each notebook that was run to its end or, where it never was, as far as it came."""
    for name in NOTEBOOKS:
        found = [path for ending in (".ipynb", UNFINISHED) if (path := folder / f"{name}{ending}").is_file()]
        yield from ((name, path) for path in found[:1])


def _page(notebook: Any, title: str) -> str:
    from nbconvert import HTMLExporter

    # Without addresses for its scripts the page asks nobody for anything; formulas stay as they are typed.
    offline = {"mathjax_url": "", "mermaid_js_url": "", "mermaid_layout_elk_js_url": "", "require_js_url": ""}
    exporter = HTMLExporter(embed_images=True, **offline)  # type: ignore[no-untyped-call]
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    page = re.sub(r'<script src="">\s*</script>', "", page)
    for name in NOTEBOOKS:
        page = page.replace(f'href="{name}.ipynb"', f'href="{name}.html"')
    return str(page)


def _title(notebook: Any) -> str:
    return str(notebook.cells[0].source.splitlines()[0].lstrip("# "))


def _link(name: str, notebook: Any) -> str:
    run = notebook.metadata.get("papermill", {})
    took = f"{run['duration']:.0f} s" if run.get("duration") else ""
    note = f"{took}, stopped by an error" if run.get("exception") else took
    return f'<li><a href="{name}.html">{escape(_title(notebook))}</a> <span class="quiet">{note}</span></li>'


def _plots(notebook: Any) -> Iterator[tuple[str, str]]:
    """The plots of the cells tagged `report`: the heading that each stands below, and its PNG in base64."""
    heading = _title(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1].lstrip("# ") if headings else heading
        elif "report" in cell.metadata.get("tags", []):
            pictures = [output.data for output in cell.outputs if "data" in output]
            yield from ((heading, picture["image/png"]) for picture in pictures if "image/png" in picture)


def _figure(name: str, heading: str, image: str) -> str:
    caption = escape(heading)
    return (
        f'<figure><figcaption><a href="{name}.html">{caption}</a></figcaption>'
        f'<img alt="{caption}" src="data:image/png;base64,{image}"></figure>'
    )


def _index(output_dir: Path, made: datetime, links: list[str], figures: list[str]) -> str:
    title = f"Fine-tuning report: {escape(output_dir.name)}"
    rows = [f"<tr><td>{escape(label)}</td><td>{_value(output_dir, *value)}</td></tr>" for label, *value in RESULTS]
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1><p>Run on {made:%d %B %Y, %H:%M UTC}.</p>",
            "<h2>Results</h2><table>",
            *rows,
            "</table><h2>Notebooks</h2><ol>",
            *links,
            "</ol><h2>Plots</h2>",
            *figures,
            f'<p class="quiet">Python {platform.python_version()}, {libraries}</p></body></html>',
        ]
    )


def _value(output_dir: Path, notebook: str, key: str, pattern: str) -> str:
    try:
        record = records.read(output_dir / "records", notebook)
    except FtlibError:
        return "not run"
    value: Any = record
    for part in key.split("."):
        if part not in value:
            return "not recorded"
        value = value[part]
    if value is None:
        return "not measured"
    return escape(pattern.format(value / 1e9 if pattern.endswith("GB") else value))
