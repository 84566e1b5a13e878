"""How the ranks of a training start, fail and end, on one machine and on several.

A small notebook takes the place of the training; `test_interruption` trains.
"""

import re
import signal
import time
from pathlib import Path

import pytest
from helpers import write_notebook
from helpers.launching import azure_ml, leave_nobody_behind, ranks  # noqa: F401  # for every test

# Two ranks meet; then rank 1 may leave, and rank 0 waits for it.
MEETING = """
import os, torch.distributed as ranks
ranks.init_process_group("gloo")
ranks.barrier()
if ranks.get_rank() == 1 and os.environ.get("LEAVES"):
    os._exit(1)
ranks.barrier()
"""
WAITING = "import os, time\nopen('begun' + os.environ['RANK'], 'w').close()\nwhile True: time.sleep(1)"


@pytest.mark.slow
def test_a_rank_whose_partner_is_lost_ends_too_and_says_why(project: Path) -> None:
    write_notebook(project, "04_train_lora", MEETING)
    (code, said), (other_code, other_said) = (rank.end() for rank in azure_ml(project, LEAVES="1"))
    assert (code, other_code) == (1, 1)
    assert re.search(r"cell \[3\] .*: lost the connection to another rank, whose own error says why \(Runtime", said)
    assert said.count("\n") == 1
    assert "Kernel died" in other_said


@pytest.mark.parametrize(
    ("rank", "number", "expected"),
    [
        (None, signal.SIGTERM, "error: stopped by SIGTERM; run it again to go on from the last checkpoint\n"),
        (1, signal.SIGKILL, r"error: rank 1 was ended by SIGKILL \(out of memory\?\); run it again .*\n"),
        pytest.param(None, signal.SIGKILL, "", marks=pytest.mark.slow),  # nobody is left to say anything
    ],
    ids=["the command is stopped", "a rank is killed", "the command is killed"],
)
def test_no_rank_goes_on_without_the_others(
    project: Path, rank: int | None, number: signal.Signals, expected: str
) -> None:
    write_notebook(project, "04_train_lora", WAITING)
    launch = ranks(project)
    while not all((project / f"begun{begun}").exists() for begun in range(2)):
        assert not launch.is_over, launch.end()
        time.sleep(0.05)
    if rank is None:
        launch.send(number)
    else:
        launch.find("ftlib.cli", rank).send_signal(number)
    code, said = launch.end()
    assert re.fullmatch(expected, said), said
    assert code == (1 if expected else -signal.SIGKILL)
