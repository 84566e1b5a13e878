"""What would happen on a GPU, shown without one: flex attention by its dense operator, and the GPU tests on a CPU."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from datasets import Dataset
from helpers import ROOT
from torch.nn.attention.flex_attention import flex_attention
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast
from transformers.integrations import flex_attention as integration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from ftlib.model import packing
from ftlib.session import device


@pytest.fixture
def dense_flex_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has transformers pass the attention sinks on a CPU too, which it keeps for other devices, and compile nothing."""
    code = inspect.getsource(integration.flex_attention_forward)
    assert code.count('query.device.type != "cpu"') == 1
    uncompiled = {"compile_friendly_flex_attention": lambda *args, training, **given: flex_attention(*args, **given)}
    namespace = vars(integration) | uncompiled
    exec(code.replace('query.device.type != "cpu"', "True"), namespace)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flex_attention", namespace["flex_attention_forward"])
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("dense_flex_attention")
@pytest.mark.filterwarnings("ignore")
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
    """Notebook 4 says `ddp_find_unused_parameters=False`, so with several GPUs training waits for all of them."""
    model.set_experts_implementation(experts)
    peft_model = with_adapter(model).train()
    reached: list[int] = []
    for router in (module for module in model.modules() if isinstance(module, GptOssTopKRouter)):
        router.register_forward_hook(lambda router, _, output: reached.append(len(output[2].unique())))
    peft_model(torch.tensor([[5]])).logits.sum().backward()
    assert max(reached) < model.config.num_local_experts
    trainable = {name: parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert [name for name, parameter in trainable.items() if parameter.grad is None] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
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
def test_the_tests_for_gpus_run_to_their_end_on_a_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "RIG": "tiny"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:]
