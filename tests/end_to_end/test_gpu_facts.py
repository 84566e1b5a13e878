"""What would happen on GPUs, shown without one: with two fake GPUs and flex attention's dense operator."""

import inspect
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from datasets import Dataset
from helpers import ROOT
from torch._subclasses import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from transformers.integrations import flex_attention as integration
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from trl import SFTTrainer
from trl.trainer import utils as trl_utils

from ftlib import profiles
from ftlib.model import packing
from ftlib.rehearsal import ASSETS
from ftlib.session import device
from ftlib.session.session import Session


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors with a shape and a device, and no values; TRL's head gets a stand-in for its kernel."""
    head = SimpleNamespace(apply=lambda hidden, weight, *_: [(hidden @ weight.T).log_softmax(-1).amax(-1)] * 5)
    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", head)
    monkeypatch.setattr(trl_utils, "_use_triton", lambda _: False)
    # The operator's own way asks for a CUDA, which a torch for CPUs lacks.
    monkeypatch.setattr(torch.Tensor, "__invert__", lambda mask: mask.eq(0))
    with FakeTensorMode():
        yield


def trainers_loss(device_map: str) -> torch.Tensor:
    """The loss as TRL's trainer computes it, of a model on two GPUs that `from_pretrained` placed by a `device_map`.

    The layers compute nothing here: what matters is where they leave their output. "auto" spreads them, and the head
    lies on the last GPU.
    """
    first, last = ("cuda:0", "cuda:1") if device_map == "auto" else (device_map, device_map)
    config = AutoConfig.from_pretrained(ASSETS / "model")
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
    head = torch.empty(config.vocab_size, config.hidden_size, device=last)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    output = BaseModelOutput(last_hidden_state=torch.empty(2, 8, config.hidden_size, device=last))
    model.model.forward = lambda *_, **__: output
    # Of a model that is spread, accelerate has the model's own forward bring its outputs back to where the inputs were.
    add_hook_to_module(model, AlignDevicesHook(first, io_same_device=True))
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.ones(2, 8, dtype=torch.long, device=first)  # where Trainer puts a batch, and counts its tokens
    trainer: Any = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda _: np.ones(1)),
        args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=False),
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "shift_labels": ids}
    return SFTTrainer.compute_loss(trainer, model, batch, num_items_in_batch=ids.sum())


@pytest.mark.usefixtures("fake_gpus")
def test_where_a_session_puts_the_model_trls_loss_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "driver", lambda: ("two GPUs", ""))
    session = Session(profiles.load("gpt-oss-20b"), "", tmp_path, "", tmp_path, "", gpus=2)
    assert trainers_loss(session.device).device == torch.device("cuda:0")


@pytest.mark.usefixtures("fake_gpus")
def test_spread_over_two_gpus_it_is_not() -> None:
    """Fails once TRL brings the loss back to where the batch is: then one process might use several GPUs."""
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        trainers_loss("auto")


@pytest.fixture
def dense_flex_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flex attention on a CPU: not compiled, and past the check that refuses gpt-oss's sinks there."""
    code = inspect.getsource(integration.flex_attention_forward)
    assert code.count('query.device.type != "cpu"') == 1
    namespace = dict(vars(integration)) | {"compile_friendly_flex_attention": not_compiled}
    exec(code.replace('query.device.type != "cpu"', "True"), namespace)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flex_attention", namespace["flex_attention_forward"])
    with torch.compiler.set_stance("force_eager"):
        yield


def not_compiled(*args: Any, training: bool, **kwargs: Any) -> Any:
    return flex_attention(*args, **kwargs)


@pytest.mark.usefixtures("dense_flex_attention")
def test_rows_end_to_end_compute_with_flex_attention_what_they_compute_alone(
    model: GptOssForCausalLM, sample: Dataset, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [tokenizer.apply_chat_template(messages)["input_ids"] for messages in sample["messages"][:3]]
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
        model.set_attn_implementation("flex_attention")
        batch = packing.collator(model, tokenizer, padding_free=True)([{"input_ids": row} for row in rows])
        batch.pop("labels")
        assert (model(**batch).logits[0] - alone).abs().max().item() < 1e-4


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_every_adapter_parameter_gets_a_gradient_though_no_token_reaches_its_expert(
    experts: str, model: GptOssForCausalLM, with_adapter: Callable[..., Any]
) -> None:
    """DDP waits for all of them, because of `ddp_find_unused_parameters=False`."""
    model.set_experts_implementation(experts)
    peft_model = with_adapter(model).train()
    peft_model.gradient_checkpointing_enable({"use_reentrant": False})
    peft_model.enable_input_require_grads()
    reached: list[int] = []
    for router in (module for module in model.modules() if isinstance(module, GptOssTopKRouter)):
        router.register_forward_hook(lambda router, _, output: reached.append(len(output[2].unique())))
    token = torch.tensor([[5]])
    peft_model(token).logits.sum().backward()
    assert max(reached) < model.config.num_local_experts
    trainable = {name: parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert [name for name, parameter in trainable.items() if parameter.grad is None] == []


def test_flex_attention_that_meets_too_many_shapes_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it goes on silently with all scores written out."""
    monkeypatch.setattr(device, "RECOMPILE_LIMIT", 3)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=False):
        device.compile_for_many_shapes()
        compiled = torch.compile(flex_attention, backend="eager", dynamic=False)
        rows = [torch.ones(1, 1, length, 16) for length in range(1, 5)]
        for row in rows[:3]:
            compiled(row, row, row)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            compiled(rows[3], rows[3], rows[3])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tests_for_gpus_run_to_their_end_on_a_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "RIG": "tiny"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:]
