"""What the commands do in a workspace: with what is one's own and a colleague's, and before anything is paid for."""

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from helpers import ROOT
from helpers.azure_mistakes import TOKEN
from helpers.azure_workspace import FAMILY, ME, READER, STORAGE, VAULT, WRITER, StandIn, credential, permissions, run

from ftlib.azureml import check, files, workspace

COLLEAGUE = "99999999-2222-3333-4444-555555555555"


def refused(status: int) -> HttpResponseError:
    return HttpResponseError(f"{status}", response=SimpleNamespace(status_code=status, reason="no", headers={}))  # type: ignore[arg-type]


def test_only_ones_own_is_shown_and_cleaned_whatever_it_is_called(
    azure: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """A colleague sends the same files to the same workspace, and somebody makes things that have no tags at all."""
    assert run("azure", "submit", "cluster", "instance", "walkthrough", "--set", "tags.team=ml") == 0
    theirs = workspace.Workspace(azure, credential(oid=COLLEAGUE))  # type: ignore[arg-type]
    theirs.submit(files.find("cluster"), {"name": "theirs"})
    theirs.submit(files.find("walkthrough"), {})
    azure.keep(files.load(files.find("cluster"), {"name": "nobodys", "tags": {}}))
    assert azure.made["brave_sky_2"].tags["owner"] == COLLEAGUE
    capsys.readouterr()
    assert run("azure", "status") == 0
    shown = capsys.readouterr().out
    assert [name for name in ("brave_sky_1", "ftlib-a100", "brave_sky_2", "theirs", "nobodys") if name in shown] == [
        "brave_sky_1",
        "ftlib-a100",
    ]
    assert run("azure", "clean", "--yes") == 0
    assert azure.asked == ["brave_sky_1", "ftlib-a100", "ftlib-notebooks"]
    assert run("azure", "clean") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing of yours costs by the hour"


def test_endpoint_gets_all_requests_to_its_deployment_and_is_deleted_first(
    azure: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("azure", "submit", "cluster", "walkthrough", "endpoint", "deployment") == 0
    address = "endpoint ftlib-reasoner: https://ftlib-reasoner.westeurope.inference.ml.azure.com/"
    assert capsys.readouterr().out.splitlines()[2:] == [address, address]
    assert azure.made["ftlib-reasoner"].traffic == {"vllm": 100}
    assert run("azure", "status") == 0
    assert address.split()[-1] in capsys.readouterr().out
    assert run("azure", "clean", "--yes") == 0
    assert azure.asked == ["ftlib-reasoner", "brave_sky_1", "ftlib-a100"]


def test_job_that_has_ended_costs_nothing_and_is_left(azure: StandIn) -> None:
    run("azure", "submit", "walkthrough")
    azure.end("brave_sky_1", "Failed")
    assert run("azure", "clean", "--yes") == 0
    assert azure.asked == []


def test_register_takes_the_adapter_of_ones_own_finished_job_and_no_other(
    azure: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the model says it was trained from is what the job was sent with, whatever the profile says today."""
    run("azure", "submit", "walkthrough", "probe", "--set", "inputs.profile=tiny")
    workspace.Workspace(azure, credential(oid=COLLEAGUE)).submit(files.find("walkthrough"), {})  # type: ignore[arg-type]
    for name in ("brave_sky_2", "brave_sky_3"):
        azure.end(name)
    for name, says in {
        "brave_sky_1": "job brave_sky_1 is Starting, expected Completed; `ftlib azure status brave_sky_1 --follow`",
        "brave_sky_2": "job brave_sky_2 trained no adapter; name a job that did",
        "brave_sky_3": "job brave_sky_3 is not one that you submitted",
    }.items():
        assert run("azure", "register", name) == 1
        assert capsys.readouterr().err.startswith(f"error: {says}")
    azure.end("brave_sky_1")
    assert run("azure", "register", "brave_sky_1") == 0
    model = azure.made["gpt-oss-tiny-multilingual-reasoner"]
    assert model.path == "azureml://jobs/brave_sky_1/outputs/run/paths/tiny/adapter"
    assert model.properties["job"] == "brave_sky_1"
    assert model.properties["base_model"] == "rehearsal/gpt-oss-tiny"
    assert set(model.properties) == {
        *("base_model", "base_revision", "dataset", "dataset_revision", "lora_r", "lora_alpha", "job")
    }


def test_resuming_job_gets_the_output_of_an_ended_one_by_its_name(
    azure: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    run("azure", "submit", "walkthrough")
    assert run("azure", "submit", "walkthrough", "--resume", "brave_sky_1") == 1
    assert "brave_sky_1 is Starting, expected Completed or Failed or Canceled" in capsys.readouterr().err
    azure.end("brave_sky_1", "Canceled")
    assert run("azure", "submit", "walkthrough", "--resume", "brave_sky_1", "--follow") == 0
    assert capsys.readouterr().out.endswith("log of brave_sky_2\n")
    job = azure.made["brave_sky_2"]
    assert job.command.endswith("--output-root ${{outputs.run}} --from ${{inputs.earlier}}")
    earlier = job.inputs["earlier"]
    assert (earlier.type, earlier.mode) == ("uri_folder", "ro_mount")
    assert earlier.path == "azureml://datastores/workspaceblobstore/paths/ftlib/runs/brave_sky_1"
    for name, says in {
        "cluster": "cluster.yml: --resume is for a job whose command is `ftlib azure job run …`",
        "walkthrough --set inputs.profile=tiny": "job brave_sky_1 ran profile gpt-oss-20b, and this one would run tiny",
    }.items():
        assert run("azure", "submit", *name.split(), "--resume", "brave_sky_1") == 1
        assert says in capsys.readouterr().err


def test_followed_job_ends_in_one_line(azure: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """azure-ai-ml raises the same when the job fails and when the person no longer wants to look on."""

    def interrupted(name: str) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise JobException(message="interrupted", no_personal_data_message="interrupted") from error

    run("azure", "submit", "walkthrough")
    azure.jobs.stream.side_effect = interrupted
    assert run("azure", "status", "brave_sky_1", "--follow") == 0
    assert "job brave_sky_1 goes on: `ftlib azure status brave_sky_1 --follow` shows" in capsys.readouterr().out
    azure.jobs.stream.side_effect = JobException(message="Exception : \n {", no_personal_data_message="")
    azure.end("brave_sky_1", "Failed")
    assert run("azure", "status", "brave_sky_1", "--follow") == 1
    said = "error: job brave_sky_1 is Failed; its page has the whole log: https://ml.azure.com/runs/brave_sky_1\n"
    assert capsys.readouterr().err == said


def test_compute_of_a_colleague_is_not_overwritten(azure: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.Workspace(azure, credential(oid=COLLEAGUE)).submit(files.find("cluster"), {})  # type: ignore[arg-type]
    assert run("azure", "submit", "cluster") == 1
    assert "compute ftlib-a100 exists already, and is not one that you made" in capsys.readouterr().err
    assert azure.made["ftlib-a100"].tags["owner"] == COLLEAGUE
    assert run("azure", "submit", "cluster", "--set", "name=mine") == 0
    assert run("azure", "submit", "cluster", "--set", "name=mine", "--set", "max_instances=1") == 0


def test_pipeline_hands_each_steps_output_to_the_next(azure: StandIn) -> None:
    run("azure", "submit", "pipeline")
    pipeline = azure.made["brave_sky_1"]
    assert (pipeline.tags["owner"], pipeline.tags["adapter"]) == (ME, "gpt-oss-20b-multilingual-reasoner")
    given = {name: step.inputs.get("earlier") for name, step in pipeline.jobs.items()}
    assert {name: str(value._data if value else None) for name, value in given.items()} == {
        "baseline": "None",
        "train": "${{parent.jobs.baseline.outputs.run}}",
        "results": "${{parent.jobs.train.outputs.run}}",
    }


def test_check_asks_and_changes_nothing(
    azure: StandIn, secrets: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = permissions(monkeypatch, READER, WRITER)
    assert run("azure", "check") == 0
    shown = capsys.readouterr().out
    for part in ("ada@example.com", "w in westeurope", "96 cores free of 96, 24 a machine", "hf-token, and you may"):
        assert part in shown
    assert TOKEN not in shown
    (address,) = asked
    assert address.startswith(f"https://management.azure.com{STORAGE}/providers/Microsoft.Authorization/permissions?")
    assert azure.made == {}


def test_check_says_what_is_missing_and_how_to_get_it(
    azure: StandIn, secrets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    permissions(monkeypatch, READER)
    azure.free_cores = 48
    azure.compute.list_sizes.side_effect = lambda: StandIn()._sizes()[1:]
    secrets.get_secret.side_effect = [ResourceNotFoundError("no such secret"), refused(403), refused(503)]
    found = {name: (what, verdict) for name, what, verdict in check.rows(workspace.connect())}
    assert found["machine Standard_NC24ads_A100_v4"][0] == "not offered in this region"
    what, verdict = found["machine Standard_NC96ads_A100_v4"]
    assert (what, verdict) == (
        "48 cores free of 48, 96 a machine",
        f"ask in the studio under Quota for 96 cores of {FAMILY} or more",
    )
    grant = f"--assignee-object-id {ME} --assignee-principal-type User --role"
    assert f"{grant} 'Storage Blob Data Contributor' --scope {STORAGE}`" in found["role on the storage"][1]
    assert found["token in the Key Vault"][1].startswith("Key Vault vault1 has no secret hf-token; log in with")
    again = {name: verdict for name, _, verdict in check.rows(workspace.connect())}
    assert f"{grant} 'Key Vault Secrets User' --scope {VAULT}`" in again["token in the Key Vault"]
    once_more = {name: verdict for name, _, verdict in check.rows(workspace.connect())}
    assert once_more["token in the Key Vault"].startswith("Azure answers: ")


def test_check_ends_where_nobody_is_signed_in(azure: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = credential()
    nobody.get_token.side_effect = ClientAuthenticationError("no account\nat all")
    ((name, _, verdict),) = check.rows(workspace.connect(nobody))
    assert (name, verdict) == ("signed in", "Azure does not know who you are (no account); run `az login`")


def test_what_azure_refuses_is_printed_in_one_line(azure: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    unknown, missing = ClientAuthenticationError("no account\nat all"), ResourceNotFoundError("no such job")
    azure.jobs.get.side_effect = [unknown, missing]
    for says in ("does not know who you are (no account); run `az login`", "answers: no such job; see docs/azure.md"):
        assert run("azure", "status", "brave") == 1
        assert capsys.readouterr().err == f"error: Azure {says}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("validate", "pipelin"), "error: Azure file 'pipelin': found no such file; did you mean 'pipeline'?"),
        (("validate", "--set", "compute"), "error: --set compute: expected key=value"),
        (("validate", "--set", "compute=["), "error: --set compute=[: the value is not valid YAML"),
        (("submit", "probe", "--set", "command.x=1"), "error: probe.yml: command.x: command is a value and has no key"),
        (("submit", "probe", "--set", "compute=x"), "error: probe.yml: compute: found 'x'"),
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


def test_without_the_extra_a_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "azure.ai.ml", None)
    for command in ("validate", "status", "check", "submit probe --dry-run"):
        assert run("azure", *command.split()) == 1
        assert capsys.readouterr().err == "error: azure-ai-ml is not installed; run `pip install -e '.[azure]'`\n"
