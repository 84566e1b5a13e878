"""What papermill lets through, a notebook refuses before it loads anything."""

import pytest

from ftlib.errors import FtlibError
from ftlib.session import parameters

OWN = 'profile = "tiny"  # or another\noutput_root = "outputs"\nresume = True'
START = "from ftlib import start\n"


def injected(cell: str) -> list[str]:
    return ["", OWN, f"# Parameters\n{cell}\n", START]


@pytest.mark.parametrize(
    "cells",
    [
        [],
        ["", OWN, START],
        injected('profile = "gpt-oss-20b"\nresume = False'),
        ["", OWN, START, "learned = 1"],
        ["", "%matplotlib inline", OWN, START],
    ],
)
def test_what_the_notebook_knows_passes(cells: list[str]) -> None:
    parameters.check(cells)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('profil = "tiny"', "no parameter is called profil (given: 'tiny'); did you mean 'profile'?"),
        ("xyz = 3", "no parameter is called xyz (given: 3); valid are ['profile', 'output_root', 'resume']"),
        (
            "learning_rate = 0.0001",
            "no parameter is called learning_rate (given: 0.0001); it is a value of the profile: set it in a .toml",
        ),
        ('resume = "false"', "parameter resume = 'false': found str, expected True or False"),
        ("profile = 20", "parameter profile = 20: found int, expected text"),
        ("resume = float('nan')", "parameter resume = \"float('nan')\": found str, expected True or False"),
    ],
)
def test_what_it_does_not_know_is_refused(cell: str, message: str) -> None:
    with pytest.raises(FtlibError) as raised:
        parameters.check(injected(cell))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
