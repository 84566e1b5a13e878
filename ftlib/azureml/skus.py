"""Azure's GPU machines that this project names, and what is in them (`skus.toml`)."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ftlib.errors import FtlibError, nearest

TABLE = Path(__file__).with_name("skus.toml")

PositiveInt = Annotated[int, Field(gt=0)]


class Sku(BaseModel):
    """A machine that can be rented.

    Attributes:
        name: as Azure spells it, such as "Standard_NC96ads_A100_v4".
        gpu: the kind of its GPUs.
        gpus: how many it has.
        gpu_memory_gb: memory of one GPU.
        ram_gb: memory of the machine.
        temporary_disk_gib: the local disk that is lost when the machine stops.
        peak_tflops: dense bfloat16 TFLOP/s of one GPU, by its datasheet.
        bandwidth_gb_s: GB/s of one GPU's memory, by its datasheet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    gpu: str
    gpus: PositiveInt
    gpu_memory_gb: PositiveInt
    ram_gb: PositiveInt
    temporary_disk_gib: PositiveInt
    peak_tflops: PositiveInt
    bandwidth_gb_s: PositiveInt


@cache
def load() -> dict[str, Sku]:
    """All machines of the table by name, the smallest first."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Sku(name=name, **values) for name, values in table.items()}


def get(name: str) -> Sku:
    """A machine by its name.

    Raises:
        FtlibError: no machine of that name is in the table.
    """
    if name not in load():
        raise FtlibError(f"SKU {name!r} is not in {TABLE.name}; {nearest(name, list(load()))}")
    return load()[name]
