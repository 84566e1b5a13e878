"""The HTML report of a run: each executed notebook as a page, and an index with the results and the plots."""

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from ftlib import records
from ftlib.errors import FtlibError
from ftlib.runner import NOTEBOOKS

# What the index shows of the records: label, notebook, key, format.
RESULTS = (
    ("Reasons in the language asked for, before", "05_push_and_infer", "language_agreement_before", "{:.1%}"),
    ("Reasons in the language asked for, after", "05_push_and_infer", "language_agreement_after", "{:.1%}"),
    ("Answers exactly as the reference, after", "05_push_and_infer", "final_exact_after", "{:.1%}"),
    ("Held-out questions", "05_push_and_infer", "held_out_rows", "{:,}"),
    ("Largest logit difference, merged against unmerged", "05_push_and_infer", "merged_max_logit_difference", "{:.1e}"),
    ("Updates", "04_train_lora", "global_step", "{:,}"),
    ("Mean training loss", "04_train_lora", "training_loss", "{:.4f}"),
    ("Trainable parameters", "04_train_lora", "trainable_parameters", "{:,}"),
    ("All parameters", "04_train_lora", "total_parameters", "{:,}"),
    ("Training time", "04_train_lora", "train_runtime_s", "{:.1f} s"),
    ("Training speed", "04_train_lora", "samples_per_second", "{:.1f} rows/s"),
    ("Peak memory while training", "04_train_lora", "peak_memory_bytes", "{:,} bytes"),
    ("Trained on", "04_train_lora", "device", "{}"),
    ("Adapter on the Hub", "05_push_and_infer", "hub_repo", "{}"),
)
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td { border-bottom: 1px solid #8886; padding: .3rem 1rem .3rem 0 }
td + td { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1.5rem 0 }
img { max-width: 100%; background: #fff; border-radius: 4px }
"""


def summary(output_dir: Path) -> str:
    """The result of a complete run, in one line.

    Raises:
        FtlibError: the last notebook has not been run to its end.
    """
    record = records.read(output_dir / "records", "05_push_and_infer")
    before, after = record["language_agreement_before"], record["language_agreement_after"]
    return (
        f"Reasoning in the language asked for: {before:.0%} before → {after:.0%} after, "
        f"on {record['held_out_rows']} held-out questions"
    )


def write(output_dir: Path) -> Path:
    """Write `report/index.html` and a page for each executed notebook; all are self-contained and need no network.

    Raises:
        FtlibError: no notebook has been executed yet.
    """
    import nbformat

    executed = [path for name in NOTEBOOKS if (path := output_dir / "notebooks" / f"{name}.ipynb").is_file()]
    if not executed:
        raise FtlibError(f"no executed notebooks of {output_dir.name} were found; run `ftlib run` first")
    folder = output_dir / "report"
    folder.mkdir(exist_ok=True)
    figures, links = [], []
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        (folder / f"{path.stem}.html").write_text(_page(notebook, path.stem), encoding="utf-8")
        links.append(f'<li><a href="{path.stem}.html">{escape(_title(notebook))}</a></li>')
        figures += _figures(notebook)
    index = folder / "index.html"
    index.write_text(_index(output_dir, links, figures), encoding="utf-8")
    return index


def _page(notebook: Any, title: str) -> str:
    from nbconvert import HTMLExporter

    # Without an address for MathJax and Mermaid the page asks nobody for anything.
    exporter = HTMLExporter(embed_images=True, mathjax_url="", mermaid_js_url="", require_js_url="")
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return str(body)


def _title(notebook: Any) -> str:
    return str(notebook.cells[0].source.splitlines()[0].lstrip("# "))


def _figures(notebook: Any) -> list[str]:
    """The plots of the cells tagged `report`, each under the heading that it stands below in the notebook."""
    figures, heading = [], _title(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1].lstrip("# ") if headings else heading
        elif "report" in cell.metadata.get("tags", []):
            images = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
            caption = escape(heading)
            figures += [
                f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="data:image/png;base64,{image}">'
                "</figure>"
                for image in images
            ]
    return figures


def _index(output_dir: Path, links: list[str], figures: list[str]) -> str:
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    rows = [
        f"<tr><td>{escape(label)}</td><td>{escape(_value(output_dir, notebook, key, pattern))}</td></tr>"
        for label, notebook, key, pattern in RESULTS
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(output_dir.name)}: fine-tuning report</title><style>{STYLE}</style></head><body>",
            f"<h1>Fine-tuning report: {escape(output_dir.name)}</h1><p>Written {made}.</p>",
            "<h2>Results</h2><table>",
            *rows,
            "</table><h2>Notebooks</h2><ol>",
            *links,
            "</ol><h2>Plots</h2>",
            *figures,
            "</body></html>",
        ]
    )


def _value(output_dir: Path, notebook: str, key: str, pattern: str) -> str:
    try:
        return pattern.format(records.read(output_dir / "records", notebook)[key])
    except FtlibError:
        return "not run"
