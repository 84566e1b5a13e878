"""Notebook 04's own cells, executed on the 20B profile, build the blog post's recipe: what can be proven without a GPU.

The model has the published shape and no weights, on the meta device. Where an object has to be built on this machine, a
profile that differs from it in what a CPU cannot do (`bf16`, `use_cpu`) is used.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ftlib import profiles
from ftlib.model import adapters, architecture
from ftlib.runner import bench

NOTEBOOK, LARGE = "04_train_lora", profiles.load("gpt-oss-20b")
# What the blog post trained with, by today's names; the last three were defaults.
BLOG_POST = {
    "learning_rate": 2e-4,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "max_length": 2048,
    "warmup_steps": 0.03,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "logging_steps": 1,
    "report_to": ["trackio"],
    "bf16": True,
    "optim": "adamw_torch_fused",
    "train_sampling_strategy": "random",
}


@pytest.fixture
def session(tmp_path: Path) -> SimpleNamespace:
    folders = {"adapter_dir": tmp_path / "adapter", "checkpoints_dir": tmp_path / "checkpoints"}
    return SimpleNamespace(profile=LARGE, world_size=1, is_main=False, trackers=["trackio"], **folders)


@pytest.fixture
def trainer(
    notebooks: Any,
    session: SimpleNamespace,
    model: GptOssForCausalLM,
    with_adapter: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
    sample: Dataset,
) -> SFTTrainer:
    """The trainer as the notebook's cells build it, with the tiny model."""
    on_a_cpu = bench.changed(LARGE, {("train", "bf16"): False, ("train", "use_cpu"): True})
    given = {"profile": on_a_cpu, "session": session, "tokenizer": tokenizer, "resume": True}
    return notebooks.run(NOTEBOOK, "trainer", given | {"peft_model": with_adapter(model), "train_dataset": sample})


def test_lora_adapts_what_the_blog_post_adapted(notebooks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        weightless = GptOssForCausalLM(GptOssConfig(**architecture.config_json(LARGE.hub)))
    namespace: dict[str, Any] = {"profile": LARGE, "model": weightless}
    notebooks.run(NOTEBOOK, "peft_model", namespace)
    peft_config, peft_model = namespace["peft_config"], namespace["peft_model"]
    assert (peft_config.r, peft_config.lora_alpha, peft_config.lora_dropout) == (8, 16, 0)
    assert (peft_config.bias, peft_config.use_rslora, peft_config.modules_to_save) == ("none", False, None)
    assert peft_model.get_nb_trainable_parameters() == (15_040_512, 20_929_797_696)
    assert "trainable params: 15,040,512 || all params: 20,929,797,696" in capsys.readouterr().out
    assert len(adapters.adapted_expert_tensors(peft_model)) == 6
    table = adapters.parameter_table(peft_model).set_index("block")["trainable"]
    assert table[table > 0].to_dict() == {"attention": 3_981_312, "experts": 11_059_200}
    assert peft_config.revision == LARGE.hub.model_revision, "who loads the adapter gets the base that it was made for"


def test_training_arguments_are_the_blog_posts_number_for_number_on_any_number_of_processes(
    notebooks: Any, session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.SFTConfig", dict)
    for session.world_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        given = notebooks.run(NOTEBOOK, "training_args", {"profile": LARGE, "session": session})
        assert {name: given[name] for name in BLOG_POST} == BLOG_POST | {"gradient_accumulation_steps": accumulation}
    assert given["seed"] == 42, "the Trainer's default, which the blog post left alone"
    assert (given["use_cpu"], given["assistant_only_loss"]) == (False, False)
    assert given["activation_checkpointing_kwargs"] == {"use_reentrant": False}
    assert {"packing", "padding_free", "max_steps", "weight_decay", "loss_type"} & set(given) == set()
    model = LARGE.model
    assert (model.attn_implementation, model.experts_implementation, model.dtype) == ("eager", "eager", "bfloat16")


def test_63_steps_of_16_rows_with_one_process(trainer: SFTTrainer) -> None:
    assert len(trainer.train_dataset) == 1_000, "no row is dropped, split or packed"
    _, _, examples, _, batch, _, steps = trainer.set_initial_training_values(
        trainer.args, trainer.get_train_dataloader()
    )
    assert (examples, batch, steps) == (1_000, 16, 63)
    assert not trainer.aux_loss_enabled, "TRL would add the 0.9 of the published configuration"
    assert trainer.data_collator == DataCollatorForLanguageModeling(trainer.processing_class.pad_token_id)

    # Two steps of warm-up, then a cosine that ends at a tenth.
    assert trainer.args.get_warmup_steps(steps) == 2
    trainer.create_optimizer_and_scheduler(steps)
    factor = trainer.lr_scheduler.lr_lambdas[0]
    assert [factor(step) for step in (0, 1, 2, steps)] == pytest.approx([0, 0.5, 1, 0.1])
