"""What goes up to the Hub, and the card that tells others what it is, how it was made and how well it does."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.errors import FtlibError
from ftlib.profiles import Profile

if TYPE_CHECKING:
    import pandas as pd
    from huggingface_hub import ModelCard

# The adapter and its card. The trainer also saves its arguments as a pickle, which nobody should have to open.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")

USAGE = """\
Load the base dequantised: the adapter's experts find no place in a base that is still packed in MXFP4.

```python
from transformers import Mxfp4Config, pipeline

generator = pipeline(
    "text-generation",
    model="{repo}",
    model_kwargs={{"quantization_config": Mxfp4Config(dequantize=True)}},
)
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
        FtlibError: one of them is missing, because the adapter was not saved to its end.
    """
    import pandas as pd

    missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
    if missing:
        raise FtlibError(f"{adapter_dir.name}/ lacks {missing}; run 04_train_lora.ipynb to its end first")
    sizes = {name: (adapter_dir / name).stat().st_size for name in ADAPTER_FILES}
    return pd.Series(sizes, name="bytes").rename_axis("file").to_frame()


def model_card(profile: Profile, repo: str, training: dict[str, Any], results: dict[str, str]) -> "ModelCard":
    """Write the adapter's model card.

    Args:
        profile: the profile that it was trained with.
        repo: its name on the Hub.
        training: the record of notebook 04.
        results: what has been measured of it so far, as label and value.
    """
    from huggingface_hub import ModelCard, ModelCardData

    metadata = ModelCardData(
        base_model=profile.hub.model,
        datasets=[profile.hub.dataset],
        library_name="peft",
        pipeline_tag="text-generation",
        license="apache-2.0",
        tags=["lora", "sft", "trl"],
    )
    sections = [
        f"# {repo.split('/')[-1]}",
        f"A LoRA adapter that makes `{profile.hub.model}` reason in the language that the system message names.",
        _section("Measured", results),
        _section("Recipe", _recipe(profile, training)),
        _section("Libraries", {name: version(name) for name in LIBRARIES}),
        "## Use\n\n" + USAGE.format(repo=repo),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections))


def _section(title: str, values: dict[str, str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {label}: {value}" for label, value in values.items())])


def _recipe(profile: Profile, training: dict[str, Any]) -> dict[str, str]:
    lora, train = profile.lora, profile.train
    return {
        "Base model": f"{profile.hub.model} at {profile.hub.model_revision}",
        "Data set": f"{profile.hub.dataset} at {profile.hub.dataset_revision}",
        "LoRA": f"r {lora.r}, alpha {lora.alpha}, {lora.target_modules}; experts of layers {list(lora.expert_layers)}",
        "Training": f"{training['global_step']} steps of {train.effective_batch} rows, "
        f"learning rate {train.learning_rate:g}, mean loss {training['training_loss']:.4f}, seed {train.seed}",
    }
