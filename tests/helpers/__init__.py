"""What tests call and no test is: where things are, small notebooks, processes to end, a Hub that fails, mistakes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTEBOOKS = (
    *("01_setup", "02_explore_dataset", "03_load_model"),
    *("04_train_lora", "05_push_and_infer", "06_export_and_serve"),
)
# A command that takes this many seconds hangs, however slow and busy the machine is.
HANGING_S = 1200.0


def write_notebook(project: Path, name: str, *cells: str) -> None:
    """Write a small notebook in place of a real one, to be run by `ftlib run`."""
    import nbformat

    defaults = 'profile = ""\noutput_root = ""\nresume = True'
    parameters = nbformat.v4.new_code_cell(defaults, metadata={"tags": ["parameters"]})
    title = nbformat.v4.new_markdown_cell(f"# {name}")
    notebook = nbformat.v4.new_notebook(cells=[title, parameters, *map(nbformat.v4.new_code_cell, cells)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")
