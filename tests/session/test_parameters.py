"""What papermill lets through, a notebook refuses before it loads anything: beside this, see helpers/bad_inputs."""

import pytest

from ftlib.session import parameters

OWN = 'profile = "tiny"  # or another\noutput_root = "outputs"\nresume = True'
START = "from ftlib import start\n"


def injected(cell: str) -> list[str]:
    return ["", "%matplotlib inline", OWN, f"# Parameters\n{cell}\n", START]


@pytest.mark.parametrize("cells", [[], ["", OWN, START], injected('profile = "gpt-oss-20b"\nresume = False')])
def test_what_the_notebook_knows_passes(cells: list[str]) -> None:
    parameters.check(cells)
