"""The Azure ML files fit azure-ai-ml and one another, and the guide's commands do what it says, all of it offline.

The stand-in is azure-ai-ml's own client, whose operations are made from the real ones' signatures and answer with real
entities; nothing listens anywhere.
"""

import contextlib
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import typer.main
import yaml
from azure.ai.ml import operations
from azure.ai.ml._utils._asset_utils import get_ignore_file
from azure.ai.ml.entities import AmlComputeNodeInfo, CommandJob, Workspace
from azure.ai.ml.entities._job.service_instance import ServiceInstance
from azure.ai.ml.identity import AzureMLOnBehalfOfCredential
from azure.core.exceptions import ClientAuthenticationError, ResourceNotFoundError
from azure.keyvault.secrets import SecretClient
from helpers import ROOT
from helpers.azure_mistakes import GONE, MISTAKES, TOKEN

from ftlib import cli, profiles
from ftlib.azureml import files, workspace
from ftlib.azureml.validate import problems

GUIDE = (ROOT / "docs/azure.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", GUIDE, re.MULTILINE)
OURS = [command.removeprefix("ftlib ") for command in COMMANDS if command.startswith("ftlib ")]
RECORDED = ROOT / "tests/data/azure"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files, in a project of their own."""
    copied = tmp_path / "ftlib/azureml"
    shutil.copytree(files.FOLDER, copied, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "environment.yml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    return copied


def run(*arguments: str) -> int:
    """What `ftlib …` exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ftlib", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("name", "key", "value", "says"), MISTAKES, ids=lambda part: str(part)[:40])
def test_mistake_is_named_in_one_line(name: str, key: str, value: Any, says: str, folder: Path) -> None:
    path = folder / f"{name}.yml"
    data = section = yaml.safe_load(path.read_text())
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    if value is GONE:
        del section[last]
    path.write_text(yaml.safe_dump(data))
    lines = problems(path)
    assert [line for line in lines if line.startswith(f"{name}.yml: ") and says in line], lines
    assert not [line for line in lines if "\n" in line or str(folder) in line]


def test_invalid_yaml_is_named_with_its_line(folder: Path) -> None:
    (folder / "train.yml").write_text("type: command\ncode: [\n")
    assert problems(folder / "train.yml") == ["train.yml: line 3: not valid YAML; fix it"]


def test_two_machines_may_train_with_the_guides_profile(folder: Path) -> None:
    two = 'extends = "gpt-oss-20b"\nname = "gpt-oss-20b"\n[train]\nper_device_train_batch_size = 2\n'
    (folder.parents[1] / "two.toml").write_text(two)
    assert problems(folder / "train.yml", {"inputs.profile": "two.toml", "resources.instance_count": 2}) == []


def test_validate_exits_with_1_if_a_file_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("azure", "validate", "train", "cluster") == 0
    assert run("azure", "validate", "train", "--set", f"environment_variables.X={TOKEN}") == 1
    printed = capsys.readouterr().out
    assert "found a secret" in printed
    assert TOKEN not in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("validate", "trian"), "error: Azure file 'trian': found no such file; did you mean 'train'?"),
        (("validate", "--set", "compute"), "error: --set compute: expected key=value"),
        (("submit", "train", "--set", "command.x=1"), "error: train.yml: command.x: command is a value and has no key"),
        (("submit", "train", "--set", "compute=x"), "error: train.yml: compute: found 'x'"),
        (("status",), "error: no Azure ML workspace is named: expected AZUREML_ARM_SUBSCRIPTION"),
    ],
)
def test_mistake_on_the_command_line_is_told_in_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.chdir(tmp_path):
        assert run("azure", *arguments) == 1
    told = capsys.readouterr()
    assert told.err.startswith(says)
    assert (told.out, len(told.err.splitlines())) == ("", 1)


@pytest.mark.parametrize("shipped", files.shipped())
def test_shipped_file_is_valid_and_dry_run_prints_what_was_recorded(
    shipped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """To record anew: `ftlib azure submit NAME --dry-run > tests/data/azure/NAME.json`, and look at what changed."""
    assert run("azure", "submit", shipped, "--dry-run") == 0
    sent = json.loads(capsys.readouterr().out)
    if shipped == "environment":  # its text is environment.yml, which changes with every pin
        conda = yaml.safe_load((ROOT / "environment.yml").read_text())
        assert yaml.safe_load(sent["properties"].pop("condaFile"))["dependencies"] == conda["dependencies"]
    assert sent == json.loads((RECORDED / f"{shipped}.json").read_text())


def test_job_sends_the_project_and_nothing_personal() -> None:
    assert Path(files.load(files.find("train"))._base_path).joinpath("../..").resolve() == ROOT
    ignored = get_ignore_file(ROOT)
    kept = ("ftlib/cli.py", "ftlib/rehearsal/assets/model/config.json", "notebooks/01_setup.ipynb", "pyproject.toml")
    left_out = (".git/config", "config.json", ".venv/bin/python", "outputs/tiny/profile.json", "tests/conftest.py")
    assert [name for name in kept if ignored.is_file_excluded(ROOT / name)] == []
    assert [name for name in left_out if not ignored.is_file_excluded(ROOT / name)] == []


def test_model_file_says_what_the_profile_says() -> None:
    data = files.read(files.find("model"))
    changes = workspace.model_changes(profiles.load("gpt-oss-20b"), "brave")
    assert data["name"] == changes["name"]
    assert data["properties"] | {"job": "brave"} == changes["properties"]


class StandIn:
    """The operations of azure-ai-ml's client, with their real signatures, which keep what they are given."""

    workspace_name = "w"

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.asked: list[str] = []
        kinds = ("Job", "Compute", "Environment", "Model", "Workspace")
        made = [create_autospec(getattr(operations, f"{kind}Operations"), instance=True) for kind in kinds]
        self.jobs, self.compute, self.environments, self.models, self.workspaces = made
        self.jobs.create_or_update.side_effect = self._start
        self.jobs.list.side_effect = lambda: [one for one in self.made.values() if isinstance(one, CommandJob)]
        self.jobs.get.side_effect = self.made.__getitem__
        self.jobs.begin_cancel.side_effect = self._remove
        self.compute.begin_create_or_update.side_effect = lambda entity: done(self.keep(entity))
        self.compute.list.side_effect = lambda: [one for one in self.made.values() if hasattr(one, "size")]
        self.compute.list_nodes.side_effect = lambda name: [AmlComputeNodeInfo()] * 2
        self.compute.begin_delete.side_effect = self._remove
        self.environments.create_or_update.side_effect = self.keep
        self.models.create_or_update.side_effect = self.keep
        vault = "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/vault1"
        self.workspaces.get.side_effect = lambda name: Workspace(name=name, key_vault=vault)

    def _start(self, command: Any) -> CommandJob:
        job: CommandJob = copy.deepcopy(command._to_job())
        job.name, job._status = "brave_sky_1", "Starting"
        job.services = {"Studio": ServiceInstance(endpoint="https://ml.azure.com/runs/brave_sky_1")}
        self.made[job.name] = job
        return job

    def keep(self, entity: Any) -> Any:
        setattr(entity, *(("version", "1") if hasattr(entity, "version") else ("_provisioning_state", "Succeeded")))
        self.made[entity.name] = entity
        return entity

    def _remove(self, name: str) -> Any:
        self.asked.append(name)
        return done(self.made.pop(name))


def done(entity: Any) -> Any:
    return SimpleNamespace(result=lambda: entity)


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in for the workspace that the environment names."""
    monkeypatch.chdir(ROOT)
    for variable in workspace.VARIABLES:
        monkeypatch.setenv(variable, "w")
    client = StandIn()
    monkeypatch.setattr("azure.ai.ml.MLClient", lambda *arguments: client)
    return client


def test_every_command_of_the_guide_does_what_the_guide_says(
    azure: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: dict[str, str] = {}
    for command in OURS:
        assert run(*shlex.split(command)) == 0, capsys.readouterr().err
        printed[command] = capsys.readouterr().out
    for command, output in re.findall(r"^\$ ftlib (.+)\n((?:[^$`].*\n)+)", GUIDE, re.MULTILINE):
        assert printed[command] == output
    assert re.search(r"ftlib-a100 +│ 2 machine\(s\) +│ Standard_NC96", printed["azure status brave_sky_1"])
    assert "would delete compute ftlib-a100\n" in printed["azure clean"]
    assert printed["azure clean"].endswith("\nnothing was deleted: run it again with --yes\n")
    assert "deleting job brave_sky_1\n" in printed["azure clean --yes"]


def test_guide_has_every_command_and_every_file() -> None:
    assert {command.split()[1] for command in OURS} == {"validate", "submit", "status", "register", "clean"}
    submitted = {name for command in OURS if " submit " in command for name in command.split()}
    assert set(files.shipped()) <= submitted
    sources = [word for command in COMMANDS for word in shlex.split(command) if word.startswith("ftlib/")]
    assert [(source, (ROOT / source).is_file()) for source in sources] == [("ftlib/azureml/instance-setup.sh", True)]


def test_clean_touches_nothing_else(azure: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cluster", "instance", "train"):
        workspace.submit(azure, files.find(name), {})  # type: ignore[arg-type]
    theirs = files.load(files.find("cluster"))
    theirs.name = "somebody-elses"
    azure.keep(theirs)
    for name, values in {"ended": {"_status": "Completed"}, "other": {"experiment_name": "another"}}.items():
        azure.made[name] = job = copy.deepcopy(azure.made["brave_sky_1"])
        vars(job).update(values | {"name": name})
    assert run("azure", "clean", "--yes") == 0
    assert azure.asked == ["brave_sky_1", "ftlib-a100", "ftlib-notebooks"]
    assert run("azure", "clean") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing of ours costs by the hour"


def test_what_azure_refuses_is_printed_in_one_line(azure: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    unknown, missing = ClientAuthenticationError("no account\nat all"), ResourceNotFoundError("no such job")
    azure.jobs.get.side_effect = [unknown, missing]
    for says in ("does not know who you are (no account); run `az login`", "answers: no such job; see docs/azure.md"):
        assert run("azure", "status", "brave") == 1
        assert capsys.readouterr().err == f"error: Azure {says}\n"


def test_without_the_extra_a_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "azure.ai.ml", None)
    for command in ("validate", "status", "submit train --dry-run"):
        assert run("azure", *command.split()) == 1
        assert capsys.readouterr().err == "error: azure-ai-ml is not installed; run `pip install -e '.[azure]'`\n"


def test_job_takes_the_token_from_the_key_vault_as_its_owner(
    azure: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rehearsal asks for none, and without one a job ends before it costs."""
    vault = create_autospec(SecretClient, instance=True)
    opened, became = Mock(return_value=vault), Mock()
    vault.get_secret.side_effect = [SimpleNamespace(value=TOKEN), ResourceNotFoundError("no such secret")]
    monkeypatch.setattr("azure.keyvault.secrets.SecretClient", opened)
    monkeypatch.setattr(os, "execv", lambda program, arguments: became(arguments[3:], os.environ["HF_TOKEN"]))
    monkeypatch.setenv("HF_TOKEN", "")
    assert run("azure", "job", "--profile", "tiny", "--nproc", "4") == 0
    became.assert_called_once_with(["run", "--profile", "tiny", "--nproc", "4"], "")
    opened.assert_not_called()
    assert run("azure", "job", "--profile", "gpt-oss-20b") == 0
    became.assert_called_with(["run", "--profile", "gpt-oss-20b"], TOKEN)
    address, credential = opened.call_args.args
    assert (address, type(credential)) == ("https://vault1.vault.azure.net", AzureMLOnBehalfOfCredential)
    assert capsys.readouterr() == ("", "")
    assert run("azure", "job", "--profile", "gpt-oss-20b") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: Key Vault vault1 has no secret hf-token; log in with `hf auth login`")
    assert became.call_count == 2


def test_jobs_commands_are_what_the_command_line_takes() -> None:
    """Each job's command, with its values filled in, parses as `ftlib azure job` and then as `ftlib run`."""
    for name in ("walkthrough", "train", "notebooks", "spot"):
        data = files.read(files.find(name))
        text = data["command"].replace("${{outputs.run}}", "/mnt/run")
        for key, value in data["inputs"].items():
            text = text.replace(f"${{{{inputs.{key}}}}}", value)
        prefix, *arguments = text.split("ftlib.cli azure job ")
        assert prefix == "PYTHONPATH=$PWD python -m "
        command = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
        parsed = command.make_context("run", shlex.split(arguments[0])).params
        assert (parsed["profile"], parsed["output_root"]) == ("gpt-oss-20b", "/mnt/run")
        assert parsed["nproc"] == (4 if name in ("walkthrough", "spot") else None)


def test_instances_script_makes_environment_and_kernel_once(tmp_path: Path) -> None:
    """Its folders are moved here, and conda, sudo and python are played by stand-ins."""
    script = (files.FOLDER / "instance-setup.sh").read_text()
    for place in ("/usr/local/bin", "/home/azureuser", "/anaconda", "/tmp/ftlib-setup.log"):
        script = script.replace(place, f"{tmp_path}{place}")
    script = script.replace("nohup ftlib-setup", f"{tmp_path}/usr/local/bin/ftlib-setup").replace(" &'", "'")
    project = tmp_path / "home/azureuser/cloudfiles/code/Users/ada/ftlib"
    for name in ("usr/local/bin", "anaconda/etc/profile.d", "bin", project.parent, "tmp"):
        (tmp_path / name).mkdir(parents=True)
    log = f'echo "$0 $*" | sed "s#{tmp_path}/##g" >> {tmp_path}/calls'
    (tmp_path / "bin/sudo").write_text('#!/bin/bash\nshift 3\nexec "$@"\n')
    (tmp_path / "bin/python").write_text(f"#!/bin/bash\n{log}\n")
    (tmp_path / "bin/conda").write_text(
        f"#!/bin/bash\n{log}\n[ $1$2 = envlist ] && cat {tmp_path}/environments 2>/dev/null\n"
        f"[ $1$2 = envcreate ] && echo 'ftlib   /envs/ftlib' > {tmp_path}/environments; exit 0\n"
    )
    (tmp_path / "anaconda/etc/profile.d/conda.sh").write_text('conda() { "$CONDA" "$@"; echo "$NOT_SET"; }\n')
    for tool in (tmp_path / "bin").iterdir():
        tool.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CONDA": f"{tmp_path}/bin/conda"}
    start = partial(subprocess.run, ["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert start().returncode == 1
    assert "found 0 copies of the project" in (tmp_path / "tmp/ftlib-setup.log").read_text()
    project.mkdir()
    (project / "environment.yml").touch()
    for _ in range(2):
        done = start()
        assert (done.returncode, done.stderr) == (0, "")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if "env create" in call] == [
        f"bin/conda env create --quiet --name ftlib --file {project.relative_to(tmp_path)}/environment.yml"
    ]
    kernel = "--user --name ftlib --display-name Python (ftlib) --env HF_HUB_CACHE /tmp/huggingface"
    assert calls.count(f"bin/python -m ipykernel install {kernel}") == 2
