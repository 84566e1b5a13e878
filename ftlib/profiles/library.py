"""The arguments of `SFTConfig` and `LoraConfig`, read from their source: importing them would load torch."""

import ast
import importlib.util
import typing
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ftlib.errors import nearest

# Each call's dataclass after those it inherits from: call, package, file and class.
CLASSES = (
    ("SFTConfig", "transformers", "training_args.py", "TrainingArguments"),
    ("SFTConfig", "trl", "trainer/base_config.py", "_BaseConfig"),
    ("SFTConfig", "trl", "trainer/sft_config.py", "SFTConfig"),
    ("LoraConfig", "peft", "config.py", "PeftConfigMixin"),
    ("LoraConfig", "peft", "config.py", "PeftConfig"),
    ("LoraConfig", "peft", "tuners/lora/config.py", "LoraConfig"),
)


@cache
def arguments(call: str) -> dict[str, Any]:
    """The arguments that a call accepts, each with its type; Any where that is the library's own."""
    found: dict[str, Any] = {}
    for _, package, file, name in (row for row in CLASSES if row[0] == call):
        body = _classes(package, file)[name].body
        fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        found |= {ast.unparse(field.target): _type(ast.unparse(field.annotation)) for field in fields}
    return found


@cache
def _classes(package: str, file: str) -> dict[str, ast.ClassDef]:
    spec = importlib.util.find_spec(package)
    source = (Path(str(spec and spec.origin)).parent / file).read_text(encoding="utf-8")
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


@cache
def _choices() -> dict[str, Any]:
    """The texts that stand for each of transformers' enumerations."""
    classes = _classes("transformers", "trainer_utils.py") | _classes("transformers", "training_args.py")
    enums = {name: node.body for name, node in classes.items() if "ExplicitEnum" in map(ast.unparse, node.bases)}
    values = {name: [line.value for line in body if isinstance(line, ast.Assign)] for name, body in enums.items()}
    return {name: typing.Literal[*map(ast.literal_eval, texts)] for name, texts in values.items()}


def _type(annotation: str) -> Any:
    enum, _, rest = annotation.partition(" | ")
    if enum in _choices() and rest == "str":
        return _choices()[enum]
    try:
        return eval(annotation, {}, vars(typing))  # the library's own text, not a profile's
    except NameError:
        return Any


def refusal(call: str, name: str, value: Any) -> str:
    """Why a call does not accept an argument with this value; "" if it does."""
    known = arguments(call)
    if name not in known:
        return f"{name}: {call} has no such argument; {nearest(name, list(known))}"
    try:
        TypeAdapter(known[name], config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"]
        return f"{name} = {value!r}: {expected[0].lower()}{expected[1:]}"
    return ""
