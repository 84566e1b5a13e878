"""Builds the rehearsal's `assets/` in about twenty minutes; with `--data` only the two files of data, in seconds.

The base is a real `GptOssForCausalLM` that learns to reason in English only, so that notebook 04 has a habit to change.
Then its experts are packed in MXFP4, like the published ones, and the rest is trained a little further.
"""

import hashlib
import json
import platform
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from trl.chat_template_utils import gptoss_chat_template

from ftlib.rehearsal import ASSETS, corpus, mxfp4

MANIFEST = "manifest.json"
DATASET_FILE = "dataset/data/train-00000-of-00001.parquet"
_SPECIAL = ("startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call")
SPECIAL_TOKENS = [f"<|{name}|>" for name in _SPECIAL]


@dataclass(frozen=True)
class Recipe:
    """How the base is made: longer training sharpens its facts, a larger vocabulary shortens its texts."""

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
    """A byte-level BPE tokenizer with harmony's special tokens and TRL's gpt-oss template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: dict[str, Any] = {"special_tokens": SPECIAL_TOKENS, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=recipe.vocabulary, **settings)
    renderer = _wrap(Tokenizer(models.BPE()))  # only renders the template, which needs no vocabulary
    documents = islice(corpus.pretraining_documents(recipe.seed), recipe.tokenizer_documents)
    tokenizer.train_from_iterator((_render(renderer, document, recipe) for document in documents), trainer)
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
    settings: dict[str, Any] = {"architectures": ["GptOssForCausalLM"], "dtype": "float32"}
    settings |= {"vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 4}
    settings |= {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.9}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 128}
    settings |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = GptOssForCausalLM(GptOssConfig(**settings, max_position_embeddings=4_096))
    model.set_attn_implementation("eager")
    model.set_experts_implementation("grouped_mm")
    return model


def _batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of rows of similar length, which need little padding."""
    documents, rng = corpus.pretraining_documents(seed), random.Random(seed)
    while True:
        texts = [_render(tokenizer, document, recipe) for document in islice(documents, recipe.batch_rows * 16)]
        rows = sorted((tokenizer(text)["input_ids"] for text in texts), key=len)
        batches = [rows[start : start + recipe.batch_rows] for start in range(0, len(rows), recipe.batch_rows)]
        for batch in rng.sample(batches, len(batches)):
            padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
            labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
            yield {**padded, "labels": labels}


def train(model: GptOssForCausalLM, batches: Iterator[dict[str, torch.Tensor]], rate: float, warmup: float) -> float:
    """Train on all batches what is not frozen; returns the mean loss of the last 50 steps."""
    steps, losses = list(batches), list[float]()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    total = len(steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total, pct_start=warmup / total)
    for step, batch in enumerate(steps, 1):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step} of {total}: loss {sum(losses[-100:]) / 100:.3f}", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def pack_experts(model: GptOssForCausalLM) -> dict[str, torch.Tensor]:
    """Freeze every expert weight at its packed value; returns the packed tensors by their published names."""
    packed: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for name in ("gate_up_proj", "down_proj"):
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
    rest = {name: tensor for name, tensor in model.state_dict().items() if f"{name}_blocks" not in packed}
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in rest.items()}
    save_file({**tensors, **packed}, folder / "model.safetensors", metadata={"format": "pt"})
    # The published repository holds its weights again in a folder, for other programs: never to be loaded or counted.
    (folder / "original").mkdir(exist_ok=True)
    save_file({"norm.scale": tensors["model.norm.weight"]}, folder / "original/model.safetensors")
    model.config.dtype = "bfloat16"
    unpacked = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    model.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": unpacked}
    model.config.save_pretrained(folder)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|return|>", "<|endoftext|>", "<|call|>")]
    pad = tokenizer.pad_token_id
    GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=pad).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(recipe: Recipe, folder: Path) -> None:
    """Write the sample data set as parquet and the held-out questions as JSON lines."""
    Dataset.from_list(corpus.sample_dataset(recipe.seed)).to_parquet(folder / DATASET_FILE)
    lines = [json.dumps(row, ensure_ascii=False) for row in corpus.held_out_questions(recipe.seed)]
    (folder / "held_out.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_manifest(folder: Path, made: dict[str, Any]) -> None:
    """Record a checksum of every file beside how and on what they were made."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    (folder / MANIFEST).write_text(json.dumps(made | {"files": files}, indent=2) + "\n", encoding="utf-8")


def build_model(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Make the tokenizer and the model in `folder`; returns how they were made."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer(recipe)
    model = new_model(tokenizer)
    first = islice(_batches(tokenizer, recipe, recipe.seed), recipe.steps)
    train(model, first, recipe.learning_rate, recipe.warmup_steps)
    packed = pack_experts(model)
    second = islice(_batches(tokenizer, recipe, recipe.seed + 1), recipe.steps_after_packing)
    final_loss = train(model, second, recipe.learning_rate_after_packing, recipe.warmup_steps)
    save_model(model, packed, tokenizer, folder)
    return {
        "command": "python -m ftlib.rehearsal.build",
        "recipe": asdict(recipe),
        "final_loss": round(final_loss, 4),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "trl")},
    }


def main() -> None:
    """Renew the assets in their place, where the two README.md files are kept; with `--data` only the data."""
    made = json.loads((ASSETS / MANIFEST).read_text(encoding="utf-8"))
    write_data(Recipe(), ASSETS)
    if "--data" not in sys.argv:
        made = build_model(Recipe(), ASSETS / "model")
    write_manifest(ASSETS, made)


if __name__ == "__main__":
    main()
