"""An experiment is never answered with a false result: what a learner changes counts, or is refused in one line.

Notebook 04's own cells, with a word of them changed as a learner would, on a training of five updates.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import transformers
from datasets import Dataset
from helpers import ROOT
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, TrainerCallback

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.rehearsal import ASSETS
from ftlib.runner import bench, cells
from ftlib.session import manifest
from ftlib.session.session import Session

UPDATES = 5
BRIEF: dict[tuple[str, str], Any] = {
    ("hub", "model"): str(ASSETS / "model"),
    ("recipe", "effective_batch_size"): 4,
    ("train", "per_device_train_batch_size"): 4,
    ("train", "save_steps"): 2,
}
IMPORTED = {name: getattr(transformers, name) for name in ("AutoModelForCausalLM", "AutoTokenizer", "Mxfp4Config")}
NOTEBOOK = ROOT / "notebooks/04_train_lora.ipynb"
ARGUMENTS, LORA = "**dict(profile.train)", "**dict(profile.lora)"
Edit = tuple[str, str]


class Kernel:
    """A fresh kernel in a run's folder, in which the cells up to a variable run, edited or as they stand."""

    def __init__(self, root: Path, rows: Dataset, tokenizer: Any, resume: bool = True, **profile: Any) -> None:
        values = BRIEF | {tuple(name.split("__")): value for name, value in profile.items()}
        self.profile = bench.changed(profiles.load("tiny"), values)
        self.folder = root / "outputs/tiny"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.session = Session(self.profile, "tiny", root, "outputs", self.folder, "")
        self.given: dict[str, Any] = {
            **{"profile": self.profile, "session": self.session, "resume": resume, "repo": "learner/adapter"},
            **{"torch": torch, "set_seed": transformers.set_seed, **IMPORTED, "base_bytes": 1},
            **{"tokenizer": tokenizer, "train_dataset": rows},
        }

    def run(self, variable: str, *edits: Edit) -> Any:
        """The value of a variable; one that is there already is made again by its own cell."""
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        for old, new in edits:
            (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
            cell.source = cell.source.replace(old, new)
        path = self.folder.parent / NOTEBOOK.name
        nbformat.write(notebook, path)
        self.given.pop(variable, None)
        return cells.run(variable, path, self.given)

    def interrupt(self) -> None:
        """Begin to train, and stop by hand in the third update."""
        self.run("trainer").add_callback(Interruption())
        with pytest.raises(KeyboardInterrupt):
            self.run("result")

    def save(self) -> None:
        """The cells that save the adapter, its first card and the record."""
        self.run("published_tokenizer")
        for text in ("publish.model_card(", "session.record("):
            (cell,) = [cell for cell in cells.read(NOTEBOOK) if text in cell]
            for needed in ("device", "losses", "table", "expert_tensors", "adapter_bytes"):
                self.run(needed)
            exec(cell, self.given)

    def weights(self, folder: str = "adapter") -> dict[str, torch.Tensor]:
        return load_file(self.folder / folder / "adapter_model.safetensors")

    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.folder.rglob("*") if path.is_file() and path.name != "training.lock")
        return {str(path): path.read_bytes() for path in paths}

    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "records/04_train_lora.json").read_text())


class Interruption(TrainerCallback):
    """Ctrl-C in the third update."""

    def on_pre_optimizer_step(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def rows(sample: Dataset) -> Dataset:
    return sample.select(range(4 * UPDATES))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> Kernel:
    """A finished training, not to be changed."""
    torch.set_num_threads(1)
    kernel = Kernel(tmp_path_factory.mktemp("finished"), rows, tokenizer)
    kernel.run("result")
    kernel.save()
    return kernel


@pytest.fixture
def restarted(finished: Kernel, tmp_path: Path, rows: Dataset, tokenizer: Any) -> Callable[..., Kernel]:
    """A fresh kernel in a copy of the finished run."""

    def restart(**settings: Any) -> Kernel:
        shutil.copytree(finished.folder, tmp_path / "outputs/tiny")
        return Kernel(tmp_path, rows, tokenizer, **settings)

    return restart


@pytest.fixture
def fresh(tmp_path: Path, rows: Dataset, tokenizer: Any) -> Callable[..., Kernel]:
    """A fresh kernel in an empty folder."""
    torch.set_num_threads(1)
    return lambda updates=UPDATES, **settings: Kernel(tmp_path, rows.select(range(4 * updates)), tokenizer, **settings)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ((ARGUMENTS, f'{ARGUMENTS} | {{"learning_rate": 0.5}}'), r"train\.learning_rate = 0\.007, now it is 0\.5"),
        ((LORA, f'{LORA} | {{"r": 2}}'), r"lora\.r = 8, now it is 2"),
        ((LORA, f'{LORA} | {{"target_modules": ["q_proj"]}}'), r"lora\.target_modules = \['model.*, now it is"),
        (("=accumulation,", "=2 * accumulation,"), r"recipe\.effective_batch_size = 4, now it is 8"),
        (("train_dataset.sel", "train_dataset.select(range(8)).sel"), r"training\.rows = 20 with .*, now it is 8 with"),
        (("    profile.hub.model,\n", '    "other-base",\n'), r"hub\.model = .*/model, now it is other-base"),
        (
            ("ors=True,\n)", "ors=True,\n)\nmodel.model.norm.weight.data += 1"),
            r"hub\.model_weights = \w+, now it is \w+",
        ),
        (
            ("dtype=getattr(torch, profile.model.dtype)", "dtype=torch.bfloat16"),
            r"model\.dtype = float32, now it is bf",
        ),
    ],
)
def test_a_cell_changed_after_a_finished_run_is_named(
    edit: Edit, message: str, restarted: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It went on from the last checkpoint and showed the old curves, or failed in torch."""
    kernel = restarted()
    monkeypatch.chdir(tmp_path)
    if "other-base" in edit[1]:
        (tmp_path / "other-base").symlink_to(ASSETS / "model")
    before = kernel.files()
    with pytest.raises(
        FtlibError, match=rf"^outputs/tiny/checkpoints/checkpoint-5 was trained with {message}.*; to tr"
    ):
        kernel.run("result", edit)
    assert kernel.files() == before


def test_a_checkpoint_that_is_named_by_hand_is_compared_too(restarted: Callable[..., Kernel]) -> None:
    kernel = restarted()
    trainer = kernel.run("trainer", (ARGUMENTS, f'{ARGUMENTS} | {{"learning_rate": 0.5}}'))
    with pytest.raises(
        FtlibError, match=r"checkpoint-5 was trained with train\.learning_rate = 0\.007, now it is 0\.5"
    ):
        trainer.train(resume_from_checkpoint=True)


def test_with_resume_false_it_counts_and_the_card_and_the_record_say_so(restarted: Callable[..., Kernel]) -> None:
    """The profile still says 0.007, and the earlier adapter's records go with it."""
    kernel = restarted(resume=False)
    (kernel.folder / "records/05_push_and_infer.json").write_text("{}")
    earlier = kernel.weights()
    kernel.run("result", (ARGUMENTS, f'{ARGUMENTS} | {{"learning_rate": 0.005}}'))
    kernel.save()
    assert not same(kernel.weights(), earlier)
    assert kernel.record()["recipe"]["train.learning_rate"] == 0.005
    assert "learning rate 0.005" in (kernel.folder / "adapter/README.md").read_text()
    assert not (kernel.folder / "records/05_push_and_infer.json").exists()


def test_trained_twice_in_one_kernel_it_stays_as_it_is(
    finished: Kernel, fresh: Callable[..., Kernel], capsys: pytest.CaptureFixture[str]
) -> None:
    """It trained on from trained weights: 126 updates, recorded as 63."""
    kernel = fresh(resume=False)
    for started in ("starting at the first update", "going on from checkpoint-5"):
        assert kernel.run("result").global_step == UPDATES
        assert started in capsys.readouterr().out
    with pytest.raises(FtlibError, match=r"has been trained already.*restart the kernel"):
        kernel.given["trainer"].train()
    kernel.run("result")
    kernel.save()
    assert same(kernel.weights(), finished.weights())
    assert kernel.record()["global_step"] == UPDATES


@pytest.mark.parametrize("sampling", ["group_by_length", pytest.param("random", marks=pytest.mark.slow)])
def test_an_interrupted_cell_that_is_run_again_goes_on_where_it_was(
    sampling: str, fresh: Callable[..., Kernel], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with resume = False: to the last bit as if nothing had happened, and no half of it is saved as finished."""
    undisturbed = fresh(train__train_sampling_strategy=sampling)
    undisturbed.run("result")
    undisturbed.save()
    expected = undisturbed.weights()
    kernel = fresh(resume=False, train__train_sampling_strategy=sampling)
    kernel.interrupt()
    with pytest.raises(
        FtlibError, match=r"^training is not finished: its last checkpoint is of update 2 of 5; run the"
    ):
        kernel.run("published_tokenizer")
    kernel.given["trainer"].remove_callback(Interruption)
    assert kernel.run("result").global_step == UPDATES
    assert "going on from checkpoint-2" in capsys.readouterr().out
    assert same(kernel.weights("checkpoints/checkpoint-5"), expected)


def test_an_interruption_before_the_first_checkpoint_is_told(fresh: Callable[..., Kernel]) -> None:
    kernel = fresh(updates=3, train__save_steps=4)
    kernel.interrupt()
    with pytest.raises(
        FtlibError, match=r"no complete checkpoint to go on from; restart the kernel and run all cells$"
    ):
        kernel.run("result")


def test_an_adapter_may_begin_otherwise_than_with_zeros(fresh: Callable[..., Kernel]) -> None:
    """It was taken for one that is trained already."""
    kernel = fresh(updates=2)
    edit = (LORA, f'{LORA} | {{"init_lora_weights": False}}')
    assert kernel.run("result", edit).global_step == 2


def test_an_adapter_is_put_on_once(fresh: Callable[..., Kernel]) -> None:
    kernel = fresh()
    kernel.run("peft_model")
    with pytest.raises(
        FtlibError, match=r"^this model has an adapter already; run the cells again from the one that l"
    ):
        kernel.run("peft_model")


def test_nothing_is_saved_as_finished_that_was_not_trained(fresh: Callable[..., Kernel]) -> None:
    kernel = fresh(updates=1)
    kernel.run("trainer")
    with pytest.raises(
        FtlibError, match=r"^this adapter has not been trained; run the cell with trainer\.train first$"
    ):
        kernel.run("published_tokenizer")
    kernel.run("result")
    with pytest.raises(FtlibError, match=r"^training changed nothing in 1 update\(s\): .* a learning rate of 0"):
        kernel.run("published_tokenizer")
    assert not kernel.session.adapter_dir.exists()


@pytest.mark.parametrize(
    ("save_steps", "found"), [(2, "update 2: the adapter holds NaN"), (4, "update 3: grad_norm is ")]
)
def test_a_training_that_goes_astray_is_stopped(save_steps: int, found: str, fresh: Callable[..., Kernel]) -> None:
    """Its logged loss would be a number, since the trainer replaces NaN by the mean of the others."""
    kernel = fresh(train__save_steps=save_steps)
    with pytest.raises(FtlibError, match=rf"^{found}.*; lower train.learning_rate$"):
        kernel.run("result", (ARGUMENTS, f'{ARGUMENTS} | {{"learning_rate": 1e38}}'))
    assert not any(map(manifest.is_complete, kernel.session.checkpoints_dir.iterdir()))


def test_without_experts_the_adapter_is_of_attention_alone(fresh: Callable[..., Kernel]) -> None:
    kernel = fresh(updates=2, recipe__expert_layers=())
    kernel.run("result")
    kernel.save()
    assert len(kernel.weights()) == 2 * 4 * 4
    assert "experts of layers none" in (kernel.folder / "adapter/README.md").read_text()
    assert kernel.record()["adapted_expert_tensors"] == 0


def test_rows_of_which_nothing_is_left_are_not_trained_on(fresh: Callable[..., Kernel], tmp_path: Path) -> None:
    """It trained on nothing, with a loss of 0.0."""
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}] for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in turns))
    data = {"data__dataset": str(tmp_path / "rows.jsonl"), "data__revision": None, "data__held_out_share": 0.5}
    kernel = fresh(train__max_length=1, **data)
    del kernel.given["train_dataset"]
    with pytest.raises(FtlibError, match=r"^train\.max_length = 1 leaves no text to learn from in any of 2 rows"):
        kernel.run("train_dataset")
