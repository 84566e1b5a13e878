"""Azure's GPU machines that this project names, and what is in them (`skus.toml`)."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt

from ftlib.errors import FtlibError, nearest

TABLE = Path(__file__).with_name("skus.toml")


class Sku(BaseModel):
    """A machine that can be rented; memory, speed and bandwidth are those of one GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str  # as Azure spells it, such as "Standard_NC96ads_A100_v4"
    gpu: str
    gpus: PositiveInt
    gpu_memory_gb: PositiveInt
    ram_gb: PositiveInt
    peak_tflops: PositiveInt  # dense bfloat16, from the datasheet
    bandwidth_gb_s: PositiveInt  # GB/s, from the datasheet


@cache
def load() -> dict[str, Sku]:
    """All machines of the table by name, the smallest first."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Sku(name=name, **values) for name, values in table.items()}


def get(name: str) -> Sku:
    """A machine by its name; an FtlibError if the table does not have it."""
    if name not in load():
        raise FtlibError(f"SKU {name!r} is not in {TABLE.name}; {nearest(name, list(load()))}")
    return load()[name]
