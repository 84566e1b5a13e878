"""The arguments of `SFTConfig` and `LoraConfig`, read from their source: importing them would load torch."""

import ast
import importlib.util
import typing
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ftlib.errors import nearest

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
def arguments(call: str) -> dict[str, Any]:
    """The arguments that a call accepts, each with its type, or Any for a type of the library's own."""
    found: dict[str, Any] = {}
    for package, file, name in CLASSES[call]:
        spec = importlib.util.find_spec(package)
        source = Path(str(spec and spec.origin)).parent / file
        classes = [
            node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
        ]
        body = next(node.body for node in classes if node.name == name)
        fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        found |= {ast.unparse(field.target): _type(field.annotation) for field in fields}
    return found


def _type(annotation: ast.expr) -> Any:
    try:
        return eval(ast.unparse(annotation), {}, vars(typing))  # the library's own text, not a profile's
    except NameError:
        return Any


def refusal(call: str, name: str, value: Any) -> str:
    """Why a call does not accept an argument with this value; "" if it does."""
    known = arguments(call)
    if name not in known:
        return f"{name}: {call} has no such argument; {nearest(name, list(known))}"
    try:
        TypeAdapter(known[name], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"]
        return f"{name} = {value!r}: {expected[0].lower()}{expected[1:]}"
    return ""
