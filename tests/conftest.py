"""What the tests share: nothing of the person's own is seen, nothing is fetched, and the tiny model is loaded once."""

import ast
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import HANGING_S, NOTEBOOKS, ROOT

from ftlib.runner import cells

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

LONGEST_FIRST = (
    "test_walkthrough",
    "test_interruption",
    "test_ranks",
    "test_secrets",
    "test_execution",
    "test_bench",
    "test_own_data",
    "test_session",
    "test_gpu_facts",
    "test_install",
)
NOWHERE = "http://127.0.0.1:9"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def pytest_configure(config: pytest.Config) -> None:
    """Before any library reads its settings: a cache of our own, and a Hub at which nobody answers."""
    scratch = tempfile.mkdtemp(prefix="ftlib-tests-")
    config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "_HF_", "TRACKIO")) or name in RANK_VARIABLES:
            del os.environ[name]
    os.environ |= {
        "HF_ENDPOINT": NOWHERE,
        "HF_HOME": f"{scratch}/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRACKIO_DIR": f"{scratch}/trackio",
    }
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    # peft 0.21 still asks transformers 5.23 by the old name.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    # azure-ai-ml 1.35 asks marshmallow for what its next version will no longer have.
    for outdated in ("`Number` field", "The `ordered`", "The 'default' argument", "Passing field metadata"):
        config.addinivalue_line("filterwarnings", f"ignore:{outdated}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker is still busy with one when the others are done."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def base_model() -> "GptOssForCausalLM":
    """The shipped model, dequantised, in float32: to look at and to ask, never to change (`model` is a copy)."""
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    from ftlib.rehearsal import ASSETS

    # So small a model is not made faster by threads, and on a busy machine they wait for one another.
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(
        ASSETS / "model",
        attn_implementation="eager",
        experts_implementation="grouped_mm",
        dtype=torch.float32,
        quantization_config=Mxfp4Config(dequantize=True),
        device_map="cpu",
    )


@pytest.fixture
def model(base_model: "GptOssForCausalLM") -> "GptOssForCausalLM":
    """A copy of the tiny model that a test may change."""
    return copy.deepcopy(base_model)


@pytest.fixture(scope="session")
def shipped_tokenizer() -> "PreTrainedTokenizerFast":
    """The shipped tokenizer with its template as published, which writes today's date."""
    from transformers import AutoTokenizer

    from ftlib.rehearsal import ASSETS

    return AutoTokenizer.from_pretrained(ASSETS / "model")


@pytest.fixture(scope="session")
def tokenizer(shipped_tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """The shipped tokenizer with its date pinned, as in the notebooks; not to be changed."""
    from ftlib.dataset.harmony import pin_date

    pinned = copy.deepcopy(shipped_tokenizer)
    pinned.chat_template = pin_date(shipped_tokenizer.chat_template, "2025-08-05")
    return pinned


@pytest.fixture(scope="session")
def sample_rows() -> list[dict[str, Any]]:
    """The rows of the shipped data set."""
    from pyarrow import parquet

    from ftlib.rehearsal import ASSETS

    return parquet.read_table(ASSETS / "dataset/data/train-00000-of-00001.parquet").to_pylist()


@pytest.fixture(scope="session")
def sample(sample_rows: list[dict[str, Any]]) -> "Dataset":
    """The shipped data set as `load_dataset` gives it."""
    from datasets import Dataset

    return Dataset.from_list(sample_rows)


@pytest.fixture(scope="session")
def with_adapter() -> "Callable[..., PeftModel]":
    """Puts a fresh LoRA on a model, shaped as the notebook shapes it."""
    from peft import LoraConfig, get_peft_model

    from ftlib.model.adapters import expert_target_parameters

    def wrap(model: "GptOssForCausalLM", target_parameters: list[str] | None = None) -> "PeftModel":
        expert_tensors = expert_target_parameters([1, 3], 4) if target_parameters is None else target_parameters
        config = LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules="all-linear",
            target_parameters=expert_tensors,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    return wrap


class Notebooks:
    """The code of the committed notebooks, as a learner reads it."""

    names = NOTEBOOKS

    def path(self, name: str) -> Path:
        return ROOT / "notebooks" / f"{name}.ipynb"

    def cells(self, name: str) -> list[str]:
        """The source of a notebook's code cells, in order."""
        return cells.read(self.path(name))

    def tree(self, name: str) -> ast.Module:
        """All of a notebook's code as one syntax tree."""
        return ast.parse("\n".join(self.cells(name)))

    def calls(self, name: str, ending: str) -> list[ast.Call]:
        """The calls of a function or method, such as `from_pretrained`, in order."""
        found = [node for node in ast.walk(self.tree(name)) if isinstance(node, ast.Call)]
        return sorted((call for call in found if ast.unparse(call.func).endswith(ending)), key=lambda call: call.lineno)

    def cell_with(self, name: str, text: str) -> str:
        """The one cell that contains a text."""
        found = [cell for cell in self.cells(name) if text in cell]
        assert len(found) == 1, f"{name} has {text!r} in {len(found)} cells"
        return found[0]

    def run(self, name: str, variable: str, namespace: dict[str, Any]) -> Any:
        """Execute, as they stand, the cells that it takes to arrive at a variable; returns its value."""
        return cells.run(variable, self.path(name), namespace)


@pytest.fixture(scope="session")
def notebooks() -> Notebooks:
    return Notebooks()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder, with nothing in it but an empty `notebooks/`."""
    (tmp_path / "project/notebooks").mkdir(parents=True)
    return tmp_path / "project"


@pytest.fixture
def run_python(project: Path) -> Callable[..., Any]:
    """Runs code in a Python of its own, in the project's folder; returns what it prints last, read as JSON."""

    def run(code: str, folder: Path = project, **environment: str) -> Any:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=HANGING_S,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run
