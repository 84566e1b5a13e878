"""Builds what the rehearsal ships: the sample data set, the held-out questions, the tokenizer and the tiny base model.

    python -m ftlib.rehearsal.build            # all of it, in about twenty minutes
    python -m ftlib.rehearsal.build --data     # the two files of data alone, in seconds: the model stays as it is

The base is a real `GptOssForCausalLM`. It learns to reason in English whatever language it is asked for, while it
reads all five, so that the LoRA of notebook 04 has a habit to change. Its experts are then packed in MXFP4, like the
published checkpoint's, and the rest is trained a little further around the packed values. The same versions of the
libraries on the same machine give the same bytes; the manifest records both.
"""

import hashlib
import json
import platform
import random
import shutil
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from trl.chat_template_utils import gptoss_chat_template

from ftlib.rehearsal import ASSETS, corpus, mxfp4

MANIFEST = "manifest.json"
DATASET_FILE = "dataset/data/train-00000-of-00001.parquet"

SPECIAL_TOKENS = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
]
EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Recipe:
    """How the base is made. Longer training sharpens its facts; a larger vocabulary shortens its texts."""

    seed: int = 0
    template_date: str = "2025-08-05"
    vocabulary: int = 1_024
    tokenizer_documents: int = 4_000
    batch_rows: int = 32
    steps: int = 1_200
    steps_after_packing: int = 200
    warmup_steps: int = 40
    learning_rate: float = 4e-3
    learning_rate_after_packing: float = 8e-4


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the harmony special tokens and TRL's gpt-oss template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    wrapped = _wrap(Tokenizer(models.BPE()))  # only renders the template: it has no vocabulary yet
    documents = islice(corpus.pretraining_documents(recipe.seed), recipe.tokenizer_documents)
    tokenizer.train_from_iterator((_render(wrapped, document, recipe) for document in documents), trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        chat_template=gptoss_chat_template,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _render(tokenizer: PreTrainedTokenizerFast, document: list[dict[str, Any]] | str, recipe: Recipe) -> str:
    if isinstance(document, str):
        return document + "<|endoftext|>"
    template = gptoss_chat_template.replace('strftime_now("%Y-%m-%d")', f"{recipe.template_date!r}")
    return str(tokenizer.apply_chat_template(document, tokenize=False, chat_template=template))


def new_model(tokenizer: PreTrainedTokenizerFast) -> GptOssForCausalLM:
    """The published architecture with every size made small; rotary settings and attention window are unchanged."""
    config = GptOssConfig(
        architectures=["GptOssForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=128,
        max_position_embeddings=4_096,
        router_aux_loss_coef=0.9,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = GptOssForCausalLM(config)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("grouped_mm")
    return model


def _batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of like length, so that little of them is padding."""
    documents, rng = corpus.pretraining_documents(seed), random.Random(seed)
    while True:
        texts = [_render(tokenizer, document, recipe) for document in islice(documents, recipe.batch_rows * 16)]
        rows = sorted((tokenizer(text)["input_ids"] for text in texts), key=len)
        batches = [rows[start : start + recipe.batch_rows] for start in range(0, len(rows), recipe.batch_rows)]
        for batch in rng.sample(batches, len(batches)):
            padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
            labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, IGNORED_LABEL)
            yield {**padded, "labels": labels}


def train(
    model: GptOssForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    steps: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Train whatever still asks for a gradient; returns the mean loss of the last 50 steps."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=recipe.warmup_steps / steps
    )
    losses: list[float] = []
    for step, batch in enumerate(islice(_batches(tokenizer, recipe, seed), steps), 1):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"  step {step} of {steps}: loss {sum(losses[-100:]) / len(losses[-100:]):.3f}", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def pack_experts(model: GptOssForCausalLM) -> dict[str, torch.Tensor]:
    """Pack every expert weight, put what the packed form stands for in its place, and freeze it.

    Returns:
        The packed tensors under the published checkpoint's names: `…_blocks` and `…_scales`.
    """
    packed: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for name in EXPERT_WEIGHTS:
            weight = getattr(layer.mlp.experts, name)
            blocks, scales = mxfp4.pack(weight)
            with torch.no_grad():
                weight.copy_(mxfp4.unpack(blocks, scales))
            weight.requires_grad_(False)
            prefix = f"model.layers.{index}.mlp.experts.{name}"
            packed |= {f"{prefix}_blocks": blocks, f"{prefix}_scales": scales}
    return packed


def save_model(
    model: GptOssForCausalLM, packed: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write a checkpoint in the published layout: packed experts, everything else in bfloat16."""
    expert_weights = {name.removesuffix("_blocks") for name in packed}
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in expert_weights
    }
    folder.mkdir(parents=True)
    save_file({**tensors, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
    # The published repository holds its weights again in folders, for other programs: not to be loaded or counted here.
    (folder / "original").mkdir()
    save_file({"norm.scale": tensors["model.norm.weight"]}, folder / "original/model.safetensors")
    config = model.config
    config.dtype = "bfloat16"
    config.quantization_config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    config.save_pretrained(folder)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|return|>", "<|endoftext|>", "<|call|>")]
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MODEL_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# gpt-oss-tiny

A `GptOssForCausalLM` of about a million parameters for rehearsals: it knows some two hundred facts and reasons about
them in English, whatever language it is asked for. `python -m ftlib.rehearsal.build` makes it; it is of no other use.
"""

DATASET_CARD = """\
---
license: apache-2.0
language: [en, es, fr, it, de]
size_categories: [1K<n<10K]
---
# Multilingual thinking, sample

1,000 generated conversations in the schema of `HuggingFaceH4/Multilingual-Thinking`: questions and answers in
English, reasoning in one of five languages. Like the published rows, a few are unusual: one answer is empty, one has
67,800 characters, one mentions `<think>`, and one row is a copy of another. Made by `python -m ftlib.rehearsal.build`
for rehearsals.
"""


def write_data(recipe: Recipe, folder: Path) -> None:
    """Write the sample data set as parquet and the held-out questions as JSON lines."""
    parquet = folder / DATASET_FILE
    parquet.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(corpus.sample_dataset(recipe.seed)).to_parquet(parquet)
    (folder / "dataset/README.md").write_text(DATASET_CARD, encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in corpus.held_out_questions(recipe.seed)]
    (folder / "held_out.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, which holds them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_manifest(recipe: Recipe, folder: Path, final_loss: float, seconds: float) -> None:
    """Record a checksum of every file, and how, when and on what they were made."""
    manifest = {
        "command": "python -m ftlib.rehearsal.build",
        "recipe": asdict(recipe),
        "final_loss": round(final_loss, 4),
        "seconds": round(seconds),
        "made_on": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "trl")},
        "files": checksums(folder),
    }
    _write_json(manifest, folder / MANIFEST)


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def renew_data(folder: Path) -> None:
    """Write the data that belongs to the model in `folder` anew; how the model was made stays in the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    write_data(Recipe(**manifest["recipe"]), folder)
    _write_json(manifest | {"files": checksums(folder)}, folder / MANIFEST)


def build(folder: Path, recipe: Recipe) -> None:
    """Make every asset in `folder`, which must not exist yet."""
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    transformers_logging.set_verbosity_error()
    write_data(recipe, folder)
    tokenizer = train_tokenizer(recipe)
    model = new_model(tokenizer)
    print(f"pretraining {model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    train(model, tokenizer, recipe, recipe.steps, recipe.learning_rate, recipe.seed)
    packed = pack_experts(model)
    final_loss = train(
        model, tokenizer, recipe, recipe.steps_after_packing, recipe.learning_rate_after_packing, recipe.seed + 1
    )
    save_model(model, packed, tokenizer, folder / "model")
    (folder / "model/README.md").write_text(MODEL_CARD, encoding="utf-8")
    write_manifest(recipe, folder, final_loss, time.monotonic() - started)


def _replace_assets() -> None:
    """Build in a temporary folder beside the assets and put it in their place once it is complete."""
    with tempfile.TemporaryDirectory(dir=ASSETS.parent) as scratch:
        fresh = Path(scratch) / "assets"
        build(fresh, Recipe())
        shutil.rmtree(ASSETS, ignore_errors=True)
        fresh.replace(ASSETS)


def main() -> None:
    """Build everything, or with `--data` the data alone."""
    parser = ArgumentParser(description="Build what the rehearsal ships.")
    parser.add_argument("--data", action="store_true", help="the data alone: the model stays as it is")
    if parser.parse_args().data:
        renew_data(ASSETS)
    else:
        _replace_assets()
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    print(f"{ASSETS.name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
