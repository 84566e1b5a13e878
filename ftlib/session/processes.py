"""Which of several processes this one is, as torchrun or Azure ML tells each of them."""

import os
from typing import NamedTuple

from ftlib.errors import FtlibError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


class Place(NamedTuple):
    """The number of this process among all and among those of its machine, and how many there are."""

    rank: int
    local_rank: int
    world_size: int


def place() -> Place:
    """Read this process's place from its environment; FtlibError where the variables contradict one another."""
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if all(value.isdecimal() for value in given.values()):
        found = Place(*(int(given.get(name, default)) for name, default in zip(VARIABLES, (0, 0, 1), strict=True)))
        complete = found.world_size == 1 or len(given) == len(VARIABLES)
        if complete and max(found.rank, found.local_rank) < found.world_size:
            return found
    told = ", ".join(f"{name}={value}" for name, value in given.items())
    raise FtlibError(
        f"found {told} in the environment, expected {', '.join(VARIABLES)} together, as torchrun sets them, and "
        "either rank below WORLD_SIZE; unset them to run one process"
    )
