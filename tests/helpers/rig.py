"""What the tests for GPUs run on: a shape, a checkpoint of random weights in it, and recipes that read that folder.

The same tests run on two rigs. "gpt-oss-20b" has the published shape and wants a GPU of 80 GB; "tiny" rehearses them on
a CPU, with eager attention where the other has flex attention, and finds whatever is wrong but for what a GPU does.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM

from ftlib import profiles
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.rehearsal import ASSETS
from ftlib.rehearsal.mxfp4 import BLOCK
from ftlib.runner import bench, cells
from ftlib.session import device, records
from ftlib.session.session import Session
from helpers import ROOT

CHECKPOINT_AFTER = 4
"""Updates between two checkpoints; there are ten."""
SCALES = (118, 122)
"""Exponents of MXFP4 with which random codes have a standard deviation of about 0.02, as a fresh model has."""
EMBEDDING = 32.0
"""Standard deviation of the embeddings. Where these outweigh what the layers add, a layer's rounding stays small; with
usual ones 24 random layers magnify it until, in bfloat16, logits are a third apart."""
PACKED = ("gate_up_proj", "down_proj")


class Untracked(Session):
    """A session whose training keeps no curves."""

    trackers: ClassVar = []  # type: ignore[misc]


@dataclass(frozen=True)
class Rig:
    """What is computed, and on what.

    Args:
        name: of the profile: "gpt-oss-20b" or "tiny".
        folder: where the checkpoint is, and where what the tests train goes.
    """

    name: str
    folder: Path

    @property
    def recipe(self) -> Profile:
        """The profile's recipe, with the random checkpoint as its model and brief replies."""
        return self._here(profiles.load(self.name))

    @property
    def fast(self) -> Profile:
        """The same in the fast profile's way; on a CPU, where flex attention has no sinks, as far as it goes."""
        if self.on_gpu:
            return self._here(profiles.load(f"{self.name}-fast"))
        return bench.changed(self.recipe, {("recipe", "padding_free"): True})

    def _here(self, profile: Profile) -> Profile:
        values = {
            ("hub", "model"): str(self.checkpoint),
            ("measure", "max_new_tokens"): 64 if self.on_gpu else 8,
            ("train", "save_steps"): CHECKPOINT_AFTER,
        }
        return bench.changed(profile, values)

    def profile(self, name: str) -> Profile:
        """The one or the other by its name, "recipe" or "fast"."""
        return {"recipe": self.recipe, "fast": self.fast}[name]

    @property
    def on_gpu(self) -> bool:
        return not profiles.load(self.name).train.use_cpu

    @property
    def place(self) -> str:
        return "cuda" if self.on_gpu else "cpu"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model"

    @property
    def shape(self) -> architecture.Shape:
        return architecture.shape_of(profiles.load(self.name).hub)

    @property
    def config(self) -> GptOssConfig:
        return bench.shape_of(profiles.load(self.name))

    def session(self, profile: Profile, run: str = "run") -> Session:
        """A notebook's surroundings, as `start` would make them, but without a Hub."""
        output_dir = self.folder / run
        output_dir.mkdir(exist_ok=True)
        return Untracked(profile, self.name, self.folder, run, output_dir, hub_url="")

    def run(self, notebook: str, variable: str, namespace: dict[str, Any]) -> Any:
        """Execute a notebook's own cells as far as they lead to a variable; returns its value."""
        return cells.run(variable, ROOT / "notebooks" / f"{notebook}.ipynb", namespace)


def write_checkpoint(rig: Rig) -> int:
    """Write random weights as the published checkpoint holds them, a shard a layer; returns their bytes."""
    torch.manual_seed(0)
    shutil.copytree(ASSETS / "model", rig.checkpoint, ignore=shutil.ignore_patterns("model.safetensors"))
    own = json.loads((rig.checkpoint / "config.json").read_text())
    kept = {name: own[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")}
    config = GptOssConfig(**rig.config.to_dict() | kept | {"dtype": "bfloat16"})
    config.architectures = ["GptOssForCausalLM"]
    config.save_pretrained(rig.checkpoint)
    with torch.device("meta"):
        weights = GptOssForCausalLM(rig.config).state_dict()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in weights.items():
        layer = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = weight
    places: dict[str, str] = {}
    for file, named in shards.items():
        tensors = {name: tensor.cpu() for old in named.items() for name, tensor in _random(*old, rig.place)}
        save_file(tensors, rig.checkpoint / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    size = sum((rig.checkpoint / file).stat().st_size for file in shards)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (rig.checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def _random(name: str, weight: torch.Tensor, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    if name.endswith(PACKED):
        experts, inputs, outputs = weight.shape
        groups = (experts, outputs, inputs // BLOCK)
        yield f"{name}_blocks", torch.randint(256, (*groups, BLOCK // 2), dtype=torch.uint8, device=place)
        yield f"{name}_scales", torch.randint(*SCALES, groups, dtype=torch.uint8, device=place)
    elif "norm" in name:
        yield name, torch.ones(weight.shape, dtype=torch.bfloat16, device=place)
    else:
        size = EMBEDDING if "embed" in name else 0.02
        yield name, torch.randn(weight.shape, dtype=torch.bfloat16, device=place) * size


class Figures:
    """What the tests measured: a line each below pytest's report, and a file of them.

    A second run on the same machine with the same libraries adds to the file of the first, so that the tests may be
    run in two parts.
    """

    def __init__(self, rig: Rig) -> None:
        self.lines: list[str] = []
        self._folder = ROOT / "outputs" / "gpu"
        self._name = "figures" if rig.on_gpu else f"figures-{rig.name}"
        self._values: dict[str, Any] = {
            "shape": f"random weights in the shape of {rig.name}",
            "machine": device.describe(not rig.on_gpu),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")},
            "figures": {},
        }
        path = self._folder / f"{self._name}.json"
        earlier = json.loads(path.read_text()) if path.is_file() else {}
        if all(earlier.get(key) == self._values[key] for key in ("shape", "machine", "versions")):
            self._values["figures"] = earlier["figures"]

    def tell(self, name: str, line: str, **values: Any) -> None:
        """Keep what a test measured, as a line to read and as values; written at once, whatever comes after."""
        self.lines.append(f"{name}: {line}")
        self._values["figures"][name] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", **values}
        records.write(self._folder, self._name, self._values)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """pytest calls this at the end of a run."""
        terminalreporter.section(f"{self._values['shape']}, {self._values['machine']}")
        for line in self.lines:
            terminalreporter.write_line(line)
