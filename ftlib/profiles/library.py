"""What `SFTConfig` and `LoraConfig` can be told, read from their source: importing them would load torch."""

import ast
import importlib.util
import typing
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

# Each call's dataclass after those it inherits from, by package, file and class.
CLASSES = {
    "SFTConfig": (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
    "LoraConfig": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
}


@cache
def fields(call: str) -> dict[str, Any]:
    """The arguments of a call, "SFTConfig" or "LoraConfig", and their types; Any for a type of the library's own."""
    annotations: dict[str, ast.expr] = {}
    for package, file, name in CLASSES[call]:
        spec = importlib.util.find_spec(package)
        folder = Path(str(spec.origin)).parent if spec else Path()
        tree = ast.parse((folder / file).read_text(encoding="utf-8"))
        found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        annotations |= {
            line.target.id: line.annotation
            for line in found.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
    return {name: _type(annotation) for name, annotation in annotations.items()}


def _type(annotation: ast.expr) -> Any:
    try:
        return eval(ast.unparse(annotation), {}, vars(typing))  # the text is the library's, not a person's
    except NameError:
        return Any


def accepts(call: str, name: str, value: Any) -> str:
    """Whether an argument of a call may have a value: "" if so, otherwise what was expected."""
    try:
        TypeAdapter(fields(call)[name], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        return error.errors()[0]["msg"]
    return ""
