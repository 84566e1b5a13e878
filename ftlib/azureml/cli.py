"""Azure ML, from a subscription to a trained adapter; docs/azure.md is the guide."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ftlib.errors import FtlibError
from ftlib.session.redaction import redact

app = typer.Typer(help=__doc__, no_args_is_help=True)
Files = Annotated[list[str], typer.Argument(help="Shipped names (see `ftlib azure validate`) or paths of .yml files.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="key=value, to replace what the file says.")]
Follow = Annotated[bool, typer.Option("--follow", help="Show the job's log until it ends.")]


@app.command()
def validate(
    names: Annotated[list[str] | None, typer.Argument(help="Names or paths; all shipped files if none.")] = None,
    changes: Changes = None,
) -> None:
    """Check files offline, without credentials; exit code 1 if anything is wrong."""
    from ftlib.azureml import files
    from ftlib.azureml.validate import examine

    wanted = {name: files.find(name) for name in names or files.shipped()}
    found = {name: examine(path, files.overrides(changes or [])) for name, path in wanted.items()}
    for name, (wrong, doubtful) in found.items():
        lines = [*wrong, *(f"warning: {line}" for line in doubtful)]
        print(redact("\n".join(lines)) if lines else f"{name:<21} ok")
    raise typer.Exit(int(any(wrong for wrong, _ in found.values())))


@app.command()
def check() -> None:
    """Ask Azure, and change nothing: are you signed in, is there quota, are the roles and the token there?"""
    from ftlib.azureml import check, workspace
    from ftlib.machine import OK

    with workspace.azure_errors():
        rows = check.rows(workspace.connect())
    for name, found, verdict in rows:
        told = f"ok, {found}" if verdict == OK else "; ".join(filter(None, (found, verdict)))
        print(redact(f"{name:<36}{told}"))
    raise typer.Exit(int(any(verdict != OK for _, _, verdict in rows)))


@app.command()
def submit(
    names: Files,
    changes: Changes = None,
    resume: Annotated[str | None, typer.Option(help="An ended job, from whose output this one goes on.")] = None,
    follow: Follow = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:
    """Check files, then send what they describe: environment, compute, job, model, or endpoint."""
    from ftlib.azureml import files, workspace
    from ftlib.azureml.validate import examine

    settings = {}
    wrong: list[str] = []
    for path in map(files.find, names):
        settings[path] = files.overrides(changes or [])
        if resume:
            settings[path] |= workspace.going_on_from(resume, path, settings[path])
        errors, warnings = examine(path, settings[path])
        wrong += errors
        for line in warnings:
            print(redact(f"warning: {line}"), file=sys.stderr)
    if wrong:
        raise FtlibError("; ".join(wrong))
    if dry_run:
        for path, own in settings.items():
            print(redact(json.dumps(files.to_rest(files.load(path, own)), indent=2, ensure_ascii=False)))
        return
    with workspace.azure_errors():
        connected = workspace.connect()
        for path, own in settings.items():
            if resume:
                workspace.check_same_profile(connected.ended(resume), path, own)
            sent = connected.submit(path, own)
            print(redact(sent.text), flush=True)
            if follow and sent.job:
                connected.follow(sent.job)


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(help="A job's name; all of yours if none.")] = None,
    follow: Follow = False,
) -> None:
    """Show your jobs, and the machines that are running and paid for."""
    from ftlib.azureml import workspace

    rows: list[tuple[str, str, str, str]] = []
    with workspace.azure_errors():
        connected = workspace.connect()
        if job and follow:
            connected.follow(job)
        for one in [connected.client.jobs.get(job)] if job else connected.jobs():
            rows.append(("job", one.name, one.status, one.studio_url))
        for endpoint in connected.endpoints():
            rows.append(("endpoint", endpoint.name, endpoint.provisioning_state, endpoint.scoring_uri))
        for compute in connected.computes():
            nodes = connected.client.compute.list_nodes(compute.name) if compute.type == "amlcompute" else None
            state = compute.state if nodes is None else f"{len(list(nodes))} machine(s)"
            rows.append(("compute", compute.name, state, compute.size))
    for what, name, state, where in rows:
        print(f"{what:<10}{name:<28}{state or '':<14}{where}")


@app.command()
def register(job: Annotated[str, typer.Argument(help="A job's name, as `ftlib azure submit` prints it.")]) -> None:
    """Register a finished job's adapter as a model of the workspace, with what it was trained from."""
    from ftlib.azureml import files, workspace

    with workspace.azure_errors():
        connected = workspace.connect()
        print(connected.submit(files.find("model"), connected.adapter_of(job)).text)


@app.command()
def clean(yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only list.")] = False) -> None:
    """List what of yours still costs by the hour; with --yes, cancel those jobs, delete those machines."""
    from ftlib.azureml import workspace

    with workspace.azure_errors():
        connected = workspace.connect()
        removals = connected.removable()
        for kind, name in removals:
            verb = "cancel" if kind == "job" else "delete"
            print(f"{verb} {kind} {name}", flush=True)
            if yes:
                connected.remove(kind, name)
    if not removals:
        print("nothing of yours costs by the hour")
    elif not yes:
        print("nothing was done: run it again with --yes")


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def job(
    context: typer.Context,
    command: Annotated[str, typer.Argument()],
    profile: Annotated[str, typer.Option()] = "tiny",
    output_root: Annotated[str, typer.Option()] = "outputs",
    earlier: Annotated[Path | None, typer.Option("--from")] = None,
) -> None:
    """Inside a job: fetch the Hub's token and an earlier job's output, then become `ftlib COMMAND`."""
    from ftlib import profiles
    from ftlib.azureml.job import hub_token, take_over

    loaded = profiles.load(profile)
    if earlier:
        take_over(earlier / loaded.name, Path(output_root) / loaded.name)
    if not loaded.hub.is_rehearsal:
        os.environ["HF_TOKEN"] = hub_token()
    options = ["--profile", profile, "--output-root", output_root]
    os.execv(sys.executable, [sys.executable, "-m", "ftlib.cli", command, *context.args, *options])
