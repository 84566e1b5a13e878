"""What a machine must have: how it is set up and checked, and what a run will take of it."""

from typing import NamedTuple

OK = "ok"


class Check(NamedTuple):
    """One thing that was looked at; the verdict is OK, or what to do."""

    check: str
    found: str
    verdict: str
