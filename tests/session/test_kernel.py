"""What a notebook shows of an error: one line where a person can act on it, and never a secret."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient
from traitlets.config import Config

BEGIN = """
import os, httpx2
from ftlib.errors import FtlibError
from ftlib.session import hub_client, kernel
kernel.handle_errors(lambda error: hub_client.explain(error, "ftlib push"))
secret = os.environ["MY_API_KEY"]
"""
CELLS = {
    "hub": "raise httpx2.ConnectTimeout(secret)",
    "caused": "raise OSError(secret) from httpx2.ReadError(secret)",
    "ours": "raise FtlibError('no such thing')",
    "escapes": "raise FtlibError('no \\x1b[2J\\nfile')",
    "stopped": "raise KeyboardInterrupt",
    "checked": "assert 1 == 2, 'Look again.'",
    "deeper": "import numpy\nnumpy.testing.assert_equal(1, 2)",
    "other": "def careless():\n    raise OSError(f'{secret} is refused')\ncareless()",
}  # fmt: skip


def test_errors_are_one_line_where_a_person_can_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = [nbformat.v4.new_code_cell(source) for source in (BEGIN, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    config = Config({"KernelManager": {"transport_encryption": "auto"}})
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, allow_errors=True, config=config, resources=resources, kernel_name="python3").execute()
    shown: dict[str, Any] = {name: cell.outputs[0] for name, cell in zip(CELLS, notebook.cells[1:], strict=True)}
    assert "correct-horse" not in json.dumps([cell.outputs for cell in notebook.cells])
    lines = {name: shown[name].traceback for name in ("hub", "caused", "ours", "escapes", "stopped", "checked")}
    then = "check the network and the proxy, then run `ftlib push`; the saved adapter is complete and unchanged"
    stopped = "stopped by hand; a training goes on from its last checkpoint when it is run again"
    assert lines == {
        "hub": [f"FtlibError: the Hub is out of reach (ConnectTimeout); {then}"],
        "caused": [f"FtlibError: the Hub is out of reach (ReadError); {then}"],
        "ours": ["FtlibError: no such thing"],
        "escapes": [r"FtlibError: no \x1b[2J\nfile"],
        "stopped": [f"KeyboardInterrupt: {stopped}"],
        "checked": ["AssertionError: Look again."],  # by an exercise
    }
    assert lines["hub"] == [f"FtlibError: {shown['hub'].evalue}"], "as papermill reports it"
    assert (shown["other"].ename, shown["other"].evalue) == ("OSError", "[secret removed] is refused")
    assert "numpy.testing" in "".join(shown["deeper"].traceback), "an assertion that is not the cell's own"
    assert "careless" in "".join(shown["other"].traceback), "with the frames that say where"
