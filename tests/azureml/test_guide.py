"""Each command of docs/azure.md is run as far as it can be, and prints what the guide says that it prints."""

import re
import shlex

import pytest
from helpers import ROOT
from helpers.azure_workspace import StandIn, run

from ftlib.azureml import files
from ftlib.azureml.validate import examine

GUIDE = (ROOT / "docs/azure.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", GUIDE, re.MULTILINE)
OURS = [command.removeprefix("ftlib ") for command in COMMANDS if command.startswith("ftlib ")]
PLAIN = re.findall(r"`(az ml [^`]+)`", GUIDE)


@pytest.mark.usefixtures("secrets", "writer")
def test_every_command_of_the_guide_does_what_the_guide_says(
    azure: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: dict[str, str] = {}
    for command in OURS:
        if command.startswith("azure register"):
            azure.end("brave_sky_3")
        assert run(*shlex.split(command)) == 0, capsys.readouterr().err
        printed[command] = capsys.readouterr().out
    for command, output in re.findall(r"^\$ ftlib (.+)\n((?:[^$`].*\n)+)", GUIDE, re.MULTILINE):
        assert printed[command] == output
    assert printed["azure submit probe --follow"].endswith("log of brave_sky_1\n")
    assert re.search(
        r"^compute +ftlib-a100 +2 machine\(s\) +Standard_NC96", printed["azure status brave_sky_3 --follow"], re.M
    )
    assert "delete compute ftlib-a100\n" in printed["azure clean"]
    assert printed["azure clean"].endswith("\nnothing was done: run it again with --yes\n")
    assert "cancel job brave_sky_2\n" in printed["azure clean --yes"]


def test_guide_has_every_command_and_every_file() -> None:
    assert {command.split()[1] for command in OURS} == {"validate", "check", "submit", "status", "register", "clean"}
    assert set(files.shipped()) - {"model"} <= {name for command in OURS for name in command.split()}


def test_files_of_the_plain_commands_are_there_and_azures_client_takes_them() -> None:
    named = re.findall(r"ftlib/azureml/\S+\.(?:yml|sh)", "\n".join((*PLAIN, *COMMANDS)))
    assert {name.rpartition(".")[2] for name in named} == {"yml", "sh"}
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert all(examine(ROOT / name) == ([], []) for name in named if name.endswith(".yml"))
