"""Azure ML, from a subscription to a trained adapter; docs/azure.md is the guide."""

import json
import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ftlib.errors import FtlibError
from ftlib.session.redaction import redact

app = typer.Typer(help=__doc__, no_args_is_help=True)
Files = Annotated[list[str], typer.Argument(help="Shipped names (see `ftlib azure validate`) or paths of .yml files.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="key=value, to replace what the file says.")]


@app.command()
def validate(
    names: Annotated[list[str] | None, typer.Argument(help="Names or paths; all shipped files if none.")] = None,
    changes: Changes = None,
) -> None:
    """Check files offline, without credentials; exit code 1 if anything is wrong."""
    from ftlib.azureml import files
    from ftlib.azureml.validate import problems

    wanted = {name: files.find(name) for name in names or files.shipped()}
    found = {name: problems(path, files.overrides(changes or [])) for name, path in wanted.items()}
    for name, wrong in found.items():
        print(redact("\n".join(map(str, wrong))) if wrong else f"{name:<22}ok")
    raise typer.Exit(int(any(found.values())))


@app.command()
def submit(
    names: Files,
    changes: Changes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:
    """Check files, then send what they describe: environment, compute, job or model."""
    from ftlib.azureml import files, workspace
    from ftlib.azureml.validate import problems

    paths, settings = [files.find(name) for name in names], files.overrides(changes or [])
    if wrong := [problem for path in paths for problem in problems(path, settings)]:
        raise FtlibError("; ".join(map(str, wrong)))
    if dry_run:
        for path in paths:
            print(redact(json.dumps(files.to_rest(files.load(path, settings)), indent=2, ensure_ascii=False)))
        return
    with workspace.azure_errors():
        client = workspace.connect()
        for path in paths:
            print(redact(workspace.submit(client, path, settings)))


@app.command()
def status(job: Annotated[str | None, typer.Argument(help="A job's name; all of ours if none.")] = None) -> None:
    """Show our jobs, and the machines that are running and paid for."""
    from ftlib.azureml import workspace

    table = Table("what", "name", "state", "where")
    with workspace.azure_errors():
        client = workspace.connect()
        for one in [client.jobs.get(job)] if job else workspace.jobs(client):
            table.add_row("job", one.name, one.status, one.studio_url)
        for compute in workspace.computes(client):
            nodes = client.compute.list_nodes(compute.name) if compute.type == "amlcompute" else None
            state = compute.state if nodes is None else f"{len(list(nodes))} machine(s)"
            table.add_row("compute", compute.name, state, compute.size)
    Console(soft_wrap=True).print(table)


@app.command()
def register(
    job: Annotated[str, typer.Argument(help="A job's name, as `ftlib azure submit` prints it.")],
    profile: Annotated[str, typer.Option(help="The profile that the job ran.")] = "gpt-oss-20b",
) -> None:
    """Register a job's adapter as a model of the workspace, with what it was trained from."""
    from ftlib import profiles
    from ftlib.azureml import files, workspace

    with workspace.azure_errors():
        changes = workspace.model_changes(profiles.load(profile), job)
        print(workspace.submit(workspace.connect(), files.find("model"), changes))


@app.command()
def clean(yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only list.")] = False) -> None:
    """List what still costs by the hour; with --yes, cancel those jobs and delete those computes."""
    from ftlib.azureml import workspace

    with workspace.azure_errors():
        client = workspace.connect()
        removals = workspace.removable(client)
        for kind, name in removals:
            print(f"{'deleting' if yes else 'would delete'} {kind} {name}", flush=True)
            if yes:
                (client.jobs.begin_cancel if kind == "job" else client.compute.begin_delete)(name).result()
    if not removals:
        print("nothing of ours costs by the hour")
    elif not yes:
        print("nothing was deleted: run it again with --yes")


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def job(context: typer.Context, profile: Annotated[str, typer.Option()] = "tiny") -> None:
    """Inside a job: take the Hub's token from the workspace's Key Vault, then become `ftlib run`."""
    from ftlib import profiles
    from ftlib.azureml import workspace

    if not profiles.load(profile).hub.is_rehearsal:
        os.environ["HF_TOKEN"] = workspace.hub_token()
    os.execv(sys.executable, [sys.executable, "-m", "ftlib.cli", "run", "--profile", profile, *context.args])
