"""What the GPU tests run on: a shape, a checkpoint of random weights in it, and recipes that read the checkpoint.

The rig "gpt-oss-20b" has the published shape and needs a GPU of 80 GB; "tiny" rehearses the same tests on a CPU, with
eager attention instead of flex attention.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM

from ftlib import profiles
from ftlib.model import architecture
from ftlib.profiles import Profile
from ftlib.rehearsal import ASSETS
from ftlib.rehearsal.mxfp4 import BLOCK
from ftlib.runner import bench, cells
from ftlib.session.session import Session
from helpers import ROOT

CHECKPOINT_AFTER = 4  # updates, of ten
SCALES = (118, 122)  # MXFP4 exponents that give random codes a standard deviation of about 0.02, as in a fresh model
EMBEDDING = 32.0  # standard deviation; with the usual one, 24 random layers magnify bfloat16's rounding to a third
PACKED = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Rig:
    """The profile's name, "gpt-oss-20b" or "tiny", and the folder of the checkpoint and of what the tests train."""

    name: str
    folder: Path

    @property
    def recipe(self) -> Profile:
        """The profile's recipe, with the random checkpoint as its model and brief replies."""
        return self.profile("recipe")

    def profile(self, name: str) -> Profile:
        """The "recipe" or the "fast" one; on a CPU, where flex attention has no sinks, that is without padding."""
        values: dict[tuple[str, str], Any] = {
            ("hub", "model"): str(self.checkpoint),
            ("measure", "max_new_tokens"): 64 if self.on_gpu else 8,
            ("train", "save_steps"): CHECKPOINT_AFTER,
        }
        if name == "fast" and not self.on_gpu:
            values["recipe", "padding_free"] = True
        shipped = f"{self.name}-fast" if name == "fast" and self.on_gpu else self.name
        return bench.changed(profiles.load(shipped), values)

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
        return bench.config_of(profiles.load(self.name))

    def session(self, profile: Profile, run: str = "run") -> Session:
        """A session as `start` would make it, but without a Hub."""
        output_dir = self.folder / run
        output_dir.mkdir(exist_ok=True)
        return Session(profile, self.name, self.folder, run, output_dir, hub_url="")

    def run(self, notebook: str, variable: str, namespace: dict[str, Any]) -> Any:
        """Execute the cells that a notebook's variable needs; returns its value."""
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
    index = {"metadata": {}, "weight_map": places}
    (rig.checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum((rig.checkpoint / file).stat().st_size for file in shards)


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
