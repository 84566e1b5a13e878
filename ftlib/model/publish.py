"""What goes up to the Hub, and the card that tells others what it is, how it was made and how well it does."""

import numbers
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.errors import FtlibError
from ftlib.profiles import Profile
from ftlib.session import hub_client, manifest

if TYPE_CHECKING:
    import pandas as pd
    from huggingface_hub import EvalResult, ModelCard

# The adapter, its card, its checksums and the tokenizer with its template. The trainer also saves its arguments as a
# pickle, which nobody should have to open. The card is not in the manifest: it is written again with the results.
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    manifest.NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")

USAGE = """\
Load the base dequantised: the adapter's experts find no place in a base that is still packed in MXFP4.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config, pipeline

base = AutoModelForCausalLM.from_pretrained(
    "{base}",
    revision="{revision}",
    quantization_config=Mxfp4Config(dequantize=True),
    device_map="auto",
)
model = PeftModel.from_pretrained(base, "{repo}")  # revision="…" pins the adapter, too
generator = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained("{repo}"))
messages = [
    {{"role": "system", "content": "reasoning language: French"}},
    {{"role": "user", "content": "What is the capital of Australia?"}},
]
print(generator(messages, return_full_text=False, skip_special_tokens=False)[0]["generated_text"])
```
"""


def files_to_push(adapter_dir: Path) -> "pd.DataFrame":
    """The files of a saved adapter that go up to the Hub, and their sizes.

    Returns:
        Index file, column bytes.

    Raises:
        FtlibError: one of them is missing or is not what was saved.
    """
    import pandas as pd

    _check_finished(adapter_dir)
    sizes = {name: (adapter_dir / name).stat().st_size for name in ADAPTER_FILES}
    return pd.Series(sizes, name="bytes").rename_axis("file").to_frame()


def _check_finished(adapter_dir: Path) -> None:
    missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
    if missing:
        raise FtlibError(f"{adapter_dir.name}/ lacks {missing}; run 04_train_lora.ipynb to its end first")
    manifest.verify(adapter_dir)


def push(profile: Profile, adapter_dir: Path, command: str) -> str:
    """Push a finished adapter as notebook 05 does: all of it in one commit, so that it is there whole or not at all.

    Args:
        profile: the profile that it was trained with.
        adapter_dir: where it was saved.
        command: the command line that does it again, for a person to read where it fails.

    Returns:
        The repository's address.

    Raises:
        FtlibError: there is no finished adapter, or the token may not push it.
        HfHubHTTPError: the Hub does not take it.
    """
    from huggingface_hub import HfApi

    _check_finished(adapter_dir)
    repo = hub_client.check_access(profile.hub, command)
    api = HfApi()
    address = api.create_repo(repo, private=profile.hub.private, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=adapter_dir, allow_patterns=list(ADAPTER_FILES))
    return str(address)


def model_card(
    profile: Profile, repo: str, training: dict[str, Any], results: Mapping[str, str | float | None]
) -> "ModelCard":
    """Write the adapter's model card.

    Args:
        profile: the profile that it was trained with.
        repo: its name on the Hub.
        training: the record of notebook 04.
        results: what has been measured of it so far, as label and value. Numbers also go into the metadata; what is
            None was not measured and is left out.
    """
    from huggingface_hub import ModelCard, ModelCardData

    measured = {label: value for label, value in results.items() if value is not None}
    eval_results = _eval_results(profile, measured)
    metadata = ModelCardData(
        base_model=profile.hub.model,
        datasets=None if profile.data.is_local else [profile.data.dataset],
        library_name="peft",
        pipeline_tag="text-generation",
        license="apache-2.0",
        tags=["lora", "sft", "trl"],
        model_name=repo.split("/")[-1] if eval_results else None,
        eval_results=eval_results or None,
    )
    sections = [
        f"# {repo.split('/')[-1]}",
        f"A LoRA adapter for `{profile.hub.model}`, trained on {_data(profile)}.",
        _section("Measured", {label: _number(value) for label, value in measured.items()}),
        _section("Recipe", _recipe(profile, training)),
        _section("Libraries", {name: version(name) for name in LIBRARIES}),
        "## Use\n\n" + USAGE.format(repo=repo, base=profile.hub.model, revision=profile.hub.model_revision),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections))


def _eval_results(profile: Profile, measured: Mapping[str, str | float]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    data = profile.data
    kept = data.held_out_share > 0 and not data.is_local
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data.dataset if kept else "held-out",
            dataset_name="questions held out from training",
            dataset_revision=data.revision if kept else None,
            metric_type=re.sub(r"\W+", "_", label.lower()).strip("_"),
            metric_name=label,
            metric_value=float(value),
        )
        for label, value in measured.items()
        if isinstance(value, numbers.Real)
    ]


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _section(title: str, values: dict[str, str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {label}: {value}" for label, value in values.items())])


def _data(profile: Profile) -> str:
    data = profile.data
    return f"{data.shown}, a local file" if data.is_local else f"{data.dataset} at {data.revision}"


def _recipe(profile: Profile, training: dict[str, Any]) -> dict[str, str]:
    lora, train, recipe = profile.lora, profile.train, profile.recipe
    return {
        "Base model": f"{profile.hub.model} at {profile.hub.model_revision}",
        "Data set": _data(profile),
        "LoRA": f"r {lora.r}, alpha {lora.lora_alpha}, {lora.target_modules}; "
        f"experts of layers {list(recipe.expert_layers)}",
        "Trained on": f"{'the assistant turns only' if train.assistant_only_loss else 'whole conversations'} "
        f"(assistant_only_loss {str(train.assistant_only_loss).lower()}), up to {train.max_length} tokens",
        "Training": f"{training['global_step']} steps of {recipe.effective_batch_size} rows, "
        f"learning rate {train.learning_rate:g}, {train.lr_scheduler_type}, warm-up {train.warmup_steps:g}, "
        f"mean loss {training['training_loss']:.4f}, seed {train.seed}",
    }
