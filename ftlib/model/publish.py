"""What goes up to the Hub: the adapter's files, and a model card that says how it was made and how well it does."""

import json
import numbers
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.errors import FtlibError
from ftlib.model import recipe
from ftlib.profiles import Hub, Profile
from ftlib.session import hub_client, manifest

if TYPE_CHECKING:
    import pandas as pd
    from huggingface_hub import EvalResult, ModelCard

# Not `training_args.bin`: it is a pickle, which nobody should have to open.
ADAPTER_FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "README.md", manifest.NAME),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)
AGAIN = "run 04_train_lora.ipynb with resume = False"
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")
TEMPLATE, EXPORTED_TEMPLATE = (Path(__file__).with_name(name) for name in ("model_card.md", "exported_card.md"))


def files_to_push(adapter_dir: Path, profile: Profile) -> "pd.DataFrame":
    """List the files of a saved adapter that go up to the Hub, once checked: index file, column bytes."""
    import pandas as pd

    check_adapter(adapter_dir, profile)
    sizes = {name: (adapter_dir / name).stat().st_size for name in ADAPTER_FILES}
    return pd.Series(sizes, name="bytes").rename_axis("file").to_frame()


def check_adapter(adapter_dir: Path, profile: Profile) -> None:
    """Check that a saved adapter is whole and the profile's.

    Raises:
        FtlibError: a file is missing or has changed since it was saved, or the profile is not the adapter's.
    """
    missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
    if missing:
        raise FtlibError(f"{adapter_dir.name}/ lacks {missing}; run 04_train_lora.ipynb to its end first")
    listed = manifest.verify(adapter_dir) | {manifest.NAME, "README.md"}
    if unlisted := [name for name in ADAPTER_FILES if name not in listed]:
        raise FtlibError(f"{adapter_dir.name}/{manifest.NAME} lacks {unlisted}; {AGAIN}")
    try:
        (adapter_dir / "README.md").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"{adapter_dir.name}/README.md: byte {error.start} is no UTF-8 text, which a model card has to be"
        raise FtlibError(f"{found}; correct it, or {AGAIN}") from None
    _check_profile(adapter_dir, profile)


def _check_profile(adapter_dir: Path, profile: Profile) -> None:
    """Check that the profile in force is the one that the adapter was trained with, and its base the profile's."""
    beside, config = adapter_dir.with_name("profile.json"), adapter_dir / "adapter_config.json"
    try:
        earlier = recipe.asked(json.loads(beside.read_bytes()))
        base = json.loads(config.read_bytes())
        trained = {"hub.model": base["base_model_name_or_path"], "hub.model_revision": base["revision"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise FtlibError(f"{beside.name} or {adapter_dir.name}/{config.name} cannot be read; {AGAIN}") from None
    ways_out = f"take that back, or {AGAIN}"
    recipe.check_same(f"{adapter_dir.name}/", earlier | trained, recipe.asked(profile.model_dump()), ways_out)


def push(profile: Profile, adapter_dir: Path, command: str) -> str:
    """Push a finished adapter as notebook 05 does, in one commit, and return the repository's address.

    Raises:
        FtlibError: there is no finished adapter, it is another profile's, or the token may not push it.
        HfHubHTTPError: the Hub does not take it.
    """
    files_to_push(adapter_dir, profile)
    return _push(profile.hub, adapter_dir, ADAPTER_FILES, command)


def push_export(profile: Profile, folder: Path, command: str) -> str:
    """Push an exported folder as a model of its own: its name is the adapter's, a hyphen and the folder's.

    Raises:
        FtlibError: the folder is not there or not whole, or the token may not push it.
        HfHubHTTPError: the Hub does not take it.
    """
    names = [*manifest.verify(folder), manifest.NAME]
    hub = profile.hub.model_copy(update={"push_target": f"{profile.hub.push_target}-{folder.name}"})
    return _push(hub, folder, names, command)


def _push(hub: Hub, folder: Path, names: Sequence[str], command: str) -> str:
    from huggingface_hub import HfApi

    repo = hub_client.check_access(hub, command)
    api = HfApi()
    address = api.create_repo(repo, private=hub.private, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(names))
    return str(address)


def model_card(
    profile: Profile, repo: str, training: dict[str, Any], results: Mapping[str, str | float | None]
) -> "ModelCard":
    """Write the adapter's model card.

    Args:
        profile: says where the data comes from.
        repo: the adapter's name on the Hub.
        training: the record of notebook 04, with the recipe as the trainer was given it.
        results: measurements by label. Numbers also go into the metadata; what is None is left out.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data, name, trained = profile.data, repo.split("/")[-1], training["recipe"]
    measured = {label: value for label, value in results.items() if value is not None}
    eval_results = _eval_results(profile, measured)
    metadata = ModelCardData(
        base_model=trained["hub.model"],
        datasets=None if data.is_local else [data.dataset],
        library_name="peft",
        pipeline_tag="text-generation",
        license="apache-2.0",
        tags=["lora", "sft", "trl"],
        model_name=name if eval_results else None,
        eval_results=eval_results or None,
    )
    values = {
        "name": name,
        "repo": repo,
        "data": f"{data.shown}, a local file" if data.is_local else f"{data.dataset} at {data.revision}",
        "measured": measured,
        "training": training,
        "recipe": trained,
        "adapted": _adapted(trained["lora.target_modules"] or (), trained["lora.target_parameters"] or ()),
        "libraries": _libraries(),
    }
    card: ModelCard = ModelCard.from_template(metadata, template_path=str(TEMPLATE), **values)
    return card


def exported_card(profile: Profile, distance: float) -> "ModelCard":
    """Write the card of base and adapter in one model: `distance` is what `export.check.folder` found."""
    from huggingface_hub import ModelCard, ModelCardData

    metadata = ModelCardData(
        base_model=profile.hub.model,
        base_model_relation="finetune",
        datasets=None if profile.data.is_local else [profile.data.dataset],
        library_name="transformers",
        pipeline_tag="text-generation",
        license="apache-2.0",
    )
    values: dict[str, Any] = {"hub": profile.hub, "distance": distance, "libraries": _libraries()}
    card: ModelCard = ModelCard.from_template(metadata, template_path=str(EXPORTED_TEMPLATE), **values)
    return card


def _libraries() -> str:
    return ", ".join(f"{library} {version(library)}" for library in LIBRARIES)


def _adapted(modules: str | Sequence[str], parameters: Sequence[str]) -> str:
    """The layers and experts that have an adapter, in words."""
    names = [modules] if isinstance(modules, str) else sorted({path.split(".")[-1] for path in modules})
    layers = dict.fromkeys(name.split(".mlp.")[0] for name in parameters)
    shown = [f"`{name.replace('`', '')}`" for name in names]
    return f"on {', '.join(shown) or 'no layers'}; experts of layers {', '.join(layers) or 'none'}"


def _eval_results(profile: Profile, measured: Mapping[str, str | float]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    own = profile.data.held_out_share > 0 and not profile.data.is_local
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=profile.data.dataset if own else "held-out",
            dataset_name="questions held out from training",
            dataset_revision=profile.data.revision if own else None,
            metric_type=re.sub(r"\W+", "_", label.lower()).strip("_"),
            metric_name=label,
            metric_value=float(value),
        )
        for label, value in measured.items()
        if isinstance(value, numbers.Real)
    ]
