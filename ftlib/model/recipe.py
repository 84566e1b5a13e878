"""What decides which adapter comes out, by the names that a profile gives it: as a profile asks, and as it was trained.

Both are compared: a checkpoint's with what the trainer is given now, and the profile of a finished adapter with the
profile in force.
"""

import hashlib
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.errors import FtlibError

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import TrainingArguments

# What may differ, by how names begin. Of the trainer: folders, logs, and how the work is shared; of LoRA: its notes.
NOT_TRAIN = (
    *("output_dir", "run_name", "project", "report_to", "trackio", "hub_", "push_", "log", "save_", "eval_", "resume"),
    *("per_device_", "gradient_accumulation_steps", "use_cpu", "local_rank", "ddp_", "dataloader_", "disable_tqdm"),
)
NOT_LORA = ("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_", "task_type")
TOKENS = ("input_ids", "labels", "assistant_masks")


def asked(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What a profile asks for; it comes as `model_dump` gives it, since one of an earlier version may not be valid."""
    data = profile["data"]
    return _named(
        hub={name: profile["hub"][name] for name in ("model", "model_revision")},
        data=data if data["revision"] else data | {"dataset": Path(data["dataset"]).name},
        **{section: profile[section] for section in ("model", "recipe", "lora")},
        train={name: value for name, value in profile["train"].items() if not name.startswith(NOT_TRAIN)},
    )


def given(args: "TrainingArguments", model: "PeftModel", rows: "Dataset") -> dict[str, Any]:
    """What a trainer was really given: its arguments, its model with the adapter on it, and its tokenised rows."""
    lora, config = model.active_peft_config, model.config
    tokens = json.dumps({name: rows[name][:] for name in TOKENS if name in rows.column_names})
    base = {name: weight for name, weight in model.named_parameters() if "norm" in name}
    checksum = hashlib.sha256(b"".join(weight.double().cpu().numpy().tobytes() for weight in base.values()))
    updated = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return _named(
        hub={"model": config.name_or_path, "model_revision": lora.revision, "model_weights": checksum.hexdigest()[:12]},
        model={
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": config._attn_implementation,
            "experts_implementation": config._experts_implementation,
        },
        recipe={"effective_batch_size": updated},
        lora={name: value for name, value in lora.to_dict().items() if not name.startswith(NOT_LORA)},
        train={name: value for name, value in args.to_dict().items() if not name.startswith(NOT_TRAIN)},
        training={"rows": f"{len(rows)} with checksum {hashlib.sha256(tokens.encode()).hexdigest()[:12]}"},
    )


def _named(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """The values by `section.name`, as JSON holds them."""
    named = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    plain = json.dumps(named, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    return dict(json.loads(plain))


def check_same(what: str, earlier: Mapping[str, Any], now: Mapping[str, Any], ways_out: str) -> None:
    """Raise an FtlibError that names the first value of `earlier` that is another one `now`."""
    for name, value in now.items():
        if earlier.get(name) != value:
            before, after = (textwrap.shorten(str(each), 120, placeholder=" …") for each in (earlier.get(name), value))
            raise FtlibError(f"{what} was trained with {name} = {before}, now it is {after}; {ways_out}")
