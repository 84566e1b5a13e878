"""Inside a job: the Hub's token is read as its owner, and an earlier job's output is copied once."""

import os
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, create_autospec

import pytest
import typer.main
from azure.ai.ml.identity import AzureMLOnBehalfOfCredential
from azure.core.exceptions import ResourceNotFoundError
from azure.keyvault.secrets import SecretClient
from helpers.azure_mistakes import TOKEN
from helpers.azure_workspace import StandIn, run

from ftlib import cli
from ftlib.azureml import files
from ftlib.azureml.job import take_over
from ftlib.errors import FtlibError
from ftlib.session.session import OWNER


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """What a job's process becomes, and the token that it then has."""
    became = Mock()
    monkeypatch.setattr(os, "execv", lambda program, arguments: became(arguments[3:], os.environ["HF_TOKEN"]))
    monkeypatch.setenv("HF_TOKEN", "")
    return became


def test_job_takes_the_token_from_the_key_vault_as_its_owner(
    azure: StandIn, became: Mock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rehearsal asks for none, and without one a job ends before it costs."""
    vault = create_autospec(SecretClient, instance=True)
    opened = Mock(return_value=vault)
    vault.get_secret.side_effect = [SimpleNamespace(value=TOKEN), ResourceNotFoundError("no such secret")]
    monkeypatch.setattr("azure.keyvault.secrets.SecretClient", opened)
    rest = ["--output-root", "/mnt/run"]
    assert run("azure", "job", "run", "--profile", "tiny", "--nproc", "4", *rest) == 0
    became.assert_called_once_with(["run", "--nproc", "4", "--profile", "tiny", *rest], "")
    opened.assert_not_called()
    assert run("azure", "job", "run", "04_train_lora", "--profile", "gpt-oss-20b", *rest) == 0
    became.assert_called_with(["run", "04_train_lora", "--profile", "gpt-oss-20b", *rest], TOKEN)
    address, credential = opened.call_args.args
    assert (address, type(credential)) == ("https://vault1.vault.azure.net", AzureMLOnBehalfOfCredential)
    assert capsys.readouterr() == ("", "")
    assert run("azure", "job", "run", "--profile", "gpt-oss-20b", *rest) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: Key Vault vault1 has no secret hf-token; log in with `hf auth login`")
    assert became.call_count == 2


def test_jobs_commands_are_what_the_command_line_takes() -> None:
    """Each command of a shipped job, with its values filled in, parses as what `ftlib azure job` becomes."""
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    seen = set()
    for name in ("walkthrough", "pipeline", "probe"):
        for step in files.steps(files.read(files.find(name))).values():
            text = (
                step["command"].replace("${{outputs.run}}", "/mnt/run").replace("${{inputs.earlier}}", "/mnt/earlier")
            )
            for part in text.replace("${{inputs.profile}}", "gpt-oss-20b").split(" && "):
                prefix, arguments = part.split("ftlib.cli ")
                assert prefix == "PYTHONPATH=$PWD python -m "
                words = shlex.split(arguments.removeprefix("azure job "))
                if "--from" in words:  # which `ftlib azure job` keeps
                    del words[words.index("--from") : words.index("--from") + 2]
                parsed = commands[words[0]].make_context(words[0], words[1:]).params
                assert (parsed["profile"], parsed["output_root"]) == ("gpt-oss-20b", "/mnt/run")
                seen.add(words[0])
    assert seen == {"run", "doctor", "report"}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """What an earlier job has left of the profile `mine`."""
    folder = tmp_path / "earlier/mine"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/weights").write_text("trained")
    (folder / OWNER).write_text("an ended job")
    return folder


def test_first_process_copies_and_the_others_wait(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output/mine"
    (tmp_path / "output/mine.part").mkdir(parents=True)  # of a machine that was taken away
    (tmp_path / "output/mine.part/half").touch()
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    other = threading.Thread(target=take_over, args=(earlier, output))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    assert not output.exists()
    monkeypatch.setenv("RANK", "0")
    take_over(earlier, output)
    other.join()
    assert [path.name for path in sorted(output.rglob("*"))] == ["checkpoints", "weights"]
    (output / "checkpoints/weights").write_text("trained further")
    take_over(earlier, output)  # the job starts anew, on another machine
    assert (output / "checkpoints/weights").read_text() == "trained further"


def test_profile_that_the_earlier_job_did_not_run_is_named(earlier: Path, tmp_path: Path) -> None:
    for there, found in {earlier.with_name("tiny"): "found mine ", tmp_path / "gone/tiny": "found nothing "}.items():
        with pytest.raises(FtlibError, match=f"^{found}in the earlier job's output, expected tiny/, the folder of"):
            take_over(there, tmp_path / "output/tiny")
