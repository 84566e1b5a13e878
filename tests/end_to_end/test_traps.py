"""The traps between the blog post of August 2025 and today's libraries: each is shown, and its guard is held in place.

Shown elsewhere, with their guards:

- the router's auxiliary loss, which TRL takes from the model's config; the recipe's experts, attention and dtype;
  `warmup_steps` as a share; accumulation on four GPUs ............................................. test_recipe
- `target_parameters` that match nothing; a base that is still packed; merging of expert adapters .... test_adapters
- `thinking: null`; sampling switched on by the published generation config; the cache switched off . test_generation
- the card that named the seed author's data set; `training_args.bin` ................................. test_publish
- HF_ENDPOINT and HF_HOME read at import; the person's token; one process, one GPU .................... test_session
- the date pin itself; channels read from text that keeps its markers ................................. test_harmony
- `"1e-4"` as text ................................................................................... test_profiles
- an environment without Python; a lock with CUDA's packages ......................................... test_packaging
- uploads as regular files; error codes; one parquet file ............................................. test_hub
- parameters that are no literals; notebooks never executed; tokens and widgets in outputs .. test_notebook_contract
"""

import ast
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GptOssForCausalLM, Mxfp4Config, PreTrainedTokenizerFast, TrainingArguments, pipeline
from transformers import logging as transformers_logging
from transformers.pipelines import TextGenerationPipeline
from trl import SFTConfig
from trl.chat_template_utils import get_training_chat_template

from ftlib import profiles
from ftlib.dataset import harmony
from ftlib.profiles import Profile
from ftlib.rehearsal import ASSETS
from ftlib.session import hub_client

NAMES = ["01_setup", "02_explore_dataset", "03_load_model", "04_train_lora", "05_push_and_infer"]
WITH_A_MODEL = NAMES[2:]
# They read their settings, the Hub's address among them, when they are imported.
READ_AT_IMPORT = {"huggingface_hub", "transformers", "datasets", "peft", "trl", "trackio", "accelerate"}
AUSTRALIA = [{"role": "user", "content": "¿Cuál es el capital de Australia?"}]


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.fixture
def session(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(
        world_size=1,
        is_main=False,
        checkpoints_dir=tmp_path / "checkpoints",
        trackers=["trackio"],
        device="cpu",
        command=lambda verb: f"ftlib {verb}",
    )


@pytest.fixture(params=profiles.shipped())
def profile(request: pytest.FixtureRequest) -> Profile:
    return profiles.load(request.param)


@pytest.fixture
def loads(
    notebooks: Any,
    profile: Profile,
    session: SimpleNamespace,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, dict[str, Any]]:
    """What every cell that loads a model passes on, by the cell."""
    found: dict[str, dict[str, Any]] = {}

    def keep(name: str, **settings: Any) -> SimpleNamespace:
        found[notebook] = settings | {"name": name}
        return SimpleNamespace()

    loader = SimpleNamespace(from_pretrained=keep)
    monkeypatch.setattr("transformers.AutoModelForCausalLM", loader)
    monkeypatch.setattr("peft.PeftModel", SimpleNamespace(from_pretrained=lambda base, name: base))
    namespace = {"profile": profile, "session": session, "tokenizer": tokenizer, "repo": "learner/adapter"}
    namespace |= {"hub_client": hub_client}
    for notebook, variable in zip(WITH_A_MODEL, ("model", "model", "base"), strict=True):
        notebooks.run(notebook, variable, dict(namespace))
    return found


# Templates and generation


def test_a_rendered_prompt_is_a_mapping_and_is_handed_on_as_one(
    notebooks: Any, base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    inputs = tokenizer.apply_chat_template(AUSTRALIA, add_generation_prompt=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    with pytest.raises(AttributeError):
        base_model.generate(inputs, max_new_tokens=1)

    cell = notebooks.cell_with("03_load_model", "model.generate(")
    asking = cell[cell.index("messages = ") :]
    settings = SimpleNamespace(measure=SimpleNamespace(max_new_tokens=12))
    namespace = {"profile": settings, "tokenizer": tokenizer, "model": base_model}
    exec(asking, namespace)
    assert namespace["response"].startswith("<|channel|>analysis<|message|>The user")
    assert "¿Cuál es el capital de Australia?" in asking, "the seed's question"


def test_a_prompt_that_is_tokenised_by_hand_has_a_mapping_too(notebooks: Any) -> None:
    for name in NAMES:
        for call in notebooks.calls(name, ".generate"):
            assert [ast.unparse(argument) for argument in call.args] == []
            assert keywords(call)[None] == "inputs"


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("02_explore_dataset", "get_training_chat_template(tokenizer)"),
        ("03_load_model", "tokenizer.chat_template"),
        ("04_train_lora", "get_training_chat_template(tokenizer)"),
        ("05_push_and_infer", "tokenizer.chat_template"),
    ],
)
def test_every_notebook_that_renders_pins_the_date(notebooks: Any, name: str, template: str) -> None:
    """The template prints today's date: lengths, losses and greedy answers would change overnight."""
    pins = [
        node.lineno
        for node in ast.walk(notebooks.tree(name))
        if isinstance(node, ast.Assign)
        and ast.unparse(node) == f"tokenizer.chat_template = harmony.pin_date({template}, profile.data.template_date)"
    ]
    rendering = ("apply_chat_template", "pipeline", "generate_reply", "evaluate", "token_lengths", "SFTTrainer")
    uses = [call.lineno for ending in rendering for call in notebooks.calls(name, ending)]
    assert len(pins) == 1
    assert uses
    assert pins[0] < min(uses)


def test_what_is_pushed_is_the_template_as_published(notebooks: Any) -> None:
    """Others would otherwise be told for ever that it is August 2025."""
    (save,) = notebooks.calls("04_train_lora", "published_tokenizer.save_pretrained")
    written = [ast.unparse(node) for node in ast.walk(notebooks.tree("04_train_lora")) if isinstance(node, ast.Assign)]
    loaded = "AutoTokenizer.from_pretrained(profile.hub.model, revision=profile.hub.model_revision)"
    assert f"published_tokenizer = {loaded}" in written
    assert not [line for line in written if line.startswith("published_tokenizer.")]
    (train,) = notebooks.calls("04_train_lora", "trainer.save_model")
    assert save.lineno > train.lineno, "the trainer saves its own, which is pinned"


def test_unpinned_renders_follow_the_clock_and_pinned_ones_do_not(
    shipped_tokenizer: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    class Tomorrow:
        @staticmethod
        def now() -> Any:
            return SimpleNamespace(strftime=lambda format: "2999-12-31")

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    rendered = [each.apply_chat_template(AUSTRALIA, tokenize=False) for each in (shipped_tokenizer, tokenizer)]
    assert "Current date: 2999-12-31" in rendered[0]
    assert "Current date: 2025-08-05" in rendered[1]


def test_training_on_the_reply_alone_wants_the_template_as_published(tokenizer: PreTrainedTokenizerFast) -> None:
    """`assistant_only_loss=True` knows the template by its text, which the pin changes: so what TRL makes is pinned."""
    with pytest.raises(ValueError, match="template"):
        get_training_chat_template(tokenizer)


def test_pipeline_runs_the_channels_together_unless_told_to_keep_the_markers(
    notebooks: Any, base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    generator = pipeline("text-generation", model=base_model, tokenizer=tokenizer)
    assert isinstance(generator, TextGenerationPipeline)
    settings = {"max_new_tokens": 80, "do_sample": False, "return_full_text": False}
    question = "What is 2 plus 3?"
    glued = generator([{"role": "user", "content": question}], **settings)[0]["generated_text"]
    assert glued.startswith("analysisThe user")
    assert "assistantfinal2 plus 3" in glued
    assert harmony.parse_reply(glued).final == ""

    namespace = {"generator": generator, "settings": settings, "question": question, "harmony": harmony}
    exec(notebooks.cell_with("05_push_and_infer", "skip_special_tokens"), namespace)
    assert namespace["reply"].analysis.startswith("The user")
    assert namespace["reply"].final == "2 plus 3 is 5."
    assert namespace["reply"].complete


def test_inference_asks_for_what_was_trained(notebooks: Any) -> None:
    """The seed's question had no system message, and was cut at 128 tokens: it never exercised the adapter."""
    asked = notebooks.cell_with("05_push_and_infer", "skip_special_tokens")
    assert '{"role": "system", "content": "reasoning language: ' in asked
    limits = [keywords(call).get("max_new_tokens") for name in NAMES for call in notebooks.calls(name, ".generate")]
    limits += [
        keywords(call)["max_new_tokens"]
        for call in notebooks.calls(NAMES[4], "dict")
        if "max_new_tokens" in keywords(call)
    ]
    assert set(limits) == {"profile.measure.max_new_tokens"}
    assert profiles.load("gpt-oss-20b").measure.max_new_tokens >= 2048, "half of the data's rows have over 1,000 tokens"


# Loading


def test_three_cells_load_a_model_and_no_other(notebooks: Any, loads: dict[str, dict[str, Any]]) -> None:
    """`pipeline` with a name would load another, and the base of an adapter at its newest commit."""
    written = [call for name in NAMES for call in notebooks.calls(name, "AutoModelForCausalLM.from_pretrained")]
    assert len(written) == len(loads) == 3
    for name in NAMES:
        assert {keywords(call)["model"] for call in notebooks.calls(name, "pipeline")} <= {"peft_model"}


def test_every_load_unpacks_the_experts(loads: dict[str, dict[str, Any]]) -> None:
    """Into a base that is still packed, expert adapters are not put, and nothing says so."""
    for place, settings in loads.items():
        assert isinstance(settings["quantization_config"], Mxfp4Config), place
        assert settings["quantization_config"].dequantize, place


def test_no_load_takes_a_pickle(loads: dict[str, dict[str, Any]]) -> None:
    assert all(settings["use_safetensors"] is True for settings in loads.values())


def test_every_load_says_how_it_computes(loads: dict[str, dict[str, Any]], profile: Profile) -> None:
    """`torch_dtype` is deprecated, and the experts' default is no longer the seed's loop."""
    for place, settings in loads.items():
        computes = profile.model if place == "04_train_lora" else profile.measure
        assert settings["dtype"] == getattr(torch, profile.model.dtype), place
        assert settings["attn_implementation"] == computes.attention, place
        assert settings["experts_implementation"] == computes.experts, place
        assert settings["device_map"] == "cpu", place
        assert "torch_dtype" not in settings, place


def test_every_load_is_of_the_pinned_revision(loads: dict[str, dict[str, Any]], profile: Profile) -> None:
    for place, settings in loads.items():
        assert settings["name"] == profile.hub.model, place
        assert settings["revision"] == profile.hub.model_revision, place


@pytest.mark.parametrize("name", NAMES)
def test_every_download_is_of_a_pinned_revision(notebooks: Any, name: str) -> None:
    for call in notebooks.calls(name, "load_dataset"):
        assert keywords(call)[None] in ("data.source(profile.data)", "data.source(own)", "source")
    for call in notebooks.calls(name, "AutoTokenizer.from_pretrained"):
        pinned = "profile.hub.model, revision=profile.hub.model_revision"
        assert ast.unparse(call) in (f"AutoTokenizer.from_pretrained({pinned})", "AutoTokenizer.from_pretrained(repo)")


def test_experts_would_not_be_computed_as_the_seed_did_by_default(base_model: GptOssForCausalLM) -> None:
    default = GptOssForCausalLM(type(base_model.config)(**json.loads((ASSETS / "model/config.json").read_text())))
    assert default.config._experts_implementation == "grouped_mm"


def test_the_old_name_of_dtype_is_deprecated(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoConfig

    transformers_logging.enable_propagation()
    try:
        AutoConfig.from_pretrained(ASSETS / "model", torch_dtype="bfloat16")
    finally:
        transformers_logging.disable_propagation()
    assert "`torch_dtype` is deprecated" in caplog.text


# Training


def test_the_old_name_of_the_warm_up_is_gone() -> None:
    assert "warmup_ratio" not in inspect.signature(SFTConfig).parameters
    arguments = SFTConfig("x", warmup_steps=0.03, bf16=False, use_cpu=True, activation_checkpointing=False)
    assert arguments.get_warmup_steps(63) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="the trap is that of a machine without a GPU")
def test_a_cpu_trains_only_as_the_tiny_profile_says(notebooks: Any, session: SimpleNamespace) -> None:
    namespace: dict[str, Any] = {"profile": profiles.load("tiny"), "session": session}
    arguments: TrainingArguments = notebooks.run("04_train_lora", "training_args", dict(namespace))
    assert (arguments.bf16, arguments.use_cpu, str(arguments.device)) == (False, True, "cpu")
    with pytest.raises(ValueError, match="bf16"):
        notebooks.run("04_train_lora", "training_args", namespace | {"profile": profiles.load("gpt-oss-20b")})


@pytest.mark.parametrize("name", profiles.shipped())
def test_no_profile_turns_the_routers_loss_on(
    notebooks: Any, session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("trl.SFTConfig", dict)
    given = {"profile": profiles.load(name), "session": session}
    assert notebooks.run("04_train_lora", "training_args", given)["router_aux_loss_coef"] == 0.0


def test_ranks_do_not_look_for_unused_parameters(
    notebooks: Any, session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.SFTConfig", dict)
    given = {"profile": profiles.load("tiny"), "session": session}
    assert notebooks.run("04_train_lora", "training_args", given)["ddp_find_unused_parameters"] is False


# Curves


@pytest.mark.parametrize("is_main", [True, False])
def test_curves_open_no_dashboard_and_no_space(
    notebooks: Any, session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, is_main: bool
) -> None:
    """In a kernel, trackio embeds a dashboard whose address carries a write token; pushing would make a Space."""
    import trackio

    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(trackio, "init", lambda **settings: begun.append(settings))
    monkeypatch.setattr("trl.SFTConfig", dict)
    session.is_main = is_main
    given = {"profile": profiles.load("tiny"), "session": session}
    arguments = notebooks.run("04_train_lora", "training_args", given)
    expected = {"project": arguments["project"], "name": arguments["run_name"], "embed": False, "resume": "allow"}
    assert begun == ([expected] if is_main else [])
    assert arguments["report_to"] == ["trackio"]
    assert arguments["trackio_static_space_id"] is False
    assert not arguments.get("push_to_hub", False)


def test_the_run_begins_before_the_trainer_would_begin_it(notebooks: Any) -> None:
    (begin,) = notebooks.calls("04_train_lora", "trackio.init")
    (train,) = notebooks.calls("04_train_lora", "trainer.train")
    assert begin.lineno < train.lineno


def test_trackio_still_embeds_by_default() -> None:
    import trackio

    parameters = inspect.signature(trackio.init).parameters
    assert parameters["embed"].default is not False
    assert SFTConfig.__dataclass_fields__["trackio_static_space_id"].default is not False


# The order of things


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_reads_its_settings_at_import_comes_before_start(notebooks: Any, name: str) -> None:
    (start,) = notebooks.calls(name, "start")
    imports = [node for node in ast.walk(notebooks.tree(name)) if isinstance(node, ast.Import | ast.ImportFrom)]
    libraries = {"early": set(), "late": set()}
    for node in imports:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
        when = "early" if node.lineno < start.lineno else "late"
        libraries[when] |= {module.split(".")[0] for module in modules}
    assert libraries["early"] == {"ftlib"}
    assert READ_AT_IMPORT & libraries["late"]


def test_ftlib_brings_none_of_them_along(run_python: Callable[..., Any]) -> None:
    loaded = run_python("import json, sys, ftlib.cli; print(json.dumps(sorted(sys.modules)))")
    assert READ_AT_IMPORT & set(loaded) == set()
