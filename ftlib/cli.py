"""The command line; `ftlib --help` lists what it does."""

import io
import os
import shutil
import sys
import traceback
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import ftlib
from ftlib import profiles
from ftlib.azureml.cli import app as azure
from ftlib.errors import FtlibError, printable
from ftlib.machine.workshop import PORT
from ftlib.session import records
from ftlib.session.processes import place
from ftlib.session.redaction import redact
from ftlib.session.session import OUTPUT_ROOT, explain, project_root

app = typer.Typer(
    help="Fine-tune gpt-oss-20b in six notebooks, and rehearse it on a laptop.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(azure, name="azure")
NARROWEST = 60  # columns in which a table can be read
Profile = Annotated[str, typer.Option(help="tiny, gpt-oss-20b, or the path of a .toml file.")]
Nproc = Annotated[int | None, typer.Option(help="Processes that train together; by default one for each GPU.")]
OutputRoot = Annotated[str, typer.Option(help="Parent of the run's folder.")]


@app.command()
def run(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Notebooks to run; all six if none is named.")] = None,
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    nproc: Nproc = None,
    resume: Annotated[bool, typer.Option(help="Resume an interrupted training, or train again.")] = True,
) -> None:
    """Run notebooks headlessly; each executed one is kept in outputs/<profile>/notebooks."""
    from ftlib.runner import execution, report

    # Of several ranks only the first prints; what goes wrong on another one is raised as an error.
    console = Console(quiet=place().rank > 0)
    output_dir = execution.run(notebooks or [], profile, output_root, nproc, resume, console)
    if not notebooks:
        lab = r".venv\Scripts\jupyter lab notebooks" if sys.platform == "win32" else "make lab"
        written = f"Report: {execution.shown(report.write(output_dir))}\nOpen the notebooks: {lab}"
        console.print(f"\n[bold]{report.summary(output_dir)}[/]\n{written}", highlight=False, soft_wrap=True)


@app.command("try")
def try_(
    profile: Annotated[str, typer.Argument(help="The path of a .toml file, or a shipped profile.")],
    output_root: OutputRoot = OUTPUT_ROOT,
) -> None:
    """Train a changed recipe, measure it, and add it to the table of attempts; on tiny, in less than a minute."""
    session = ftlib.start(profile, f"{output_root}/attempts")
    from transformers.utils import logging

    from ftlib.runner import attempts, execution

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(force_terminal=sys.stdout.isatty())  # a notebook asks its programs for colours, and shows none
    with console.status("training and measuring"), redirect_stdout(io.StringIO()):
        found = attempts.run(session)
    comparable = attempts.table(project_root() / output_root, found["conditions"])
    readable = attempts.readable(comparable)
    shown = Table("profile", *readable.columns)
    for name, row in readable.iterrows():
        shown.add_row(str(name), *row, style="bold" if name == session.profile.name else "")
    page = attempts.write_page(comparable, session.output_dir.parent)
    console.print(shown, execution.shown(page), sep="\n", highlight=False)


@app.command()
def push(
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    exported: Annotated[str | None, typer.Option(help="Push this export instead: safetensors or mxfp4.")] = None,
) -> None:
    """Push a run's finished adapter to the Hub, as notebook 05 does; after a failure it may be repeated at any time."""
    _run_folder(profile, output_root)
    session = ftlib.start(profile, output_root)
    from ftlib.model import publish

    if exported:
        from ftlib.runner import exporting

        folder, command = exporting.folder(session, exported), session.command(f"push --exported {exported}")
        print(publish.push_export(session.profile, folder, command))
    else:
        print(publish.push(session.profile, session.adapter_dir, session.command("push")))


@app.command()
def plan(
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    sku: Annotated[str | None, typer.Option(help="An Azure machine type; without it, this machine.")] = None,
    nproc: Nproc = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of the machine per hour.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows to train on, for a data set of your own.")] = None,
) -> None:
    """Predict whether a run fits, how long it takes and what it costs; exit code 1 if memory is too small."""
    session = ftlib.start(profile, output_root)
    from ftlib.machine import planner, skus

    own = session.profile
    machine = planner.rented(skus.get(sku), own) if sku else planner.this_machine(own, session.gpus)
    found = planner.plan(own, machine, nproc, rows)
    items, across = Table("memory", "peak", title=machine.name), planner.across_skus(own, rows)
    for name, size in found.items.items():
        items.add_row(name, planner.gb(size), style="bold" if name == found.overflow else "")
    machines = Table(*across.columns, box=SIMPLE, pad_edge=False, collapse_padding=True)
    machines.columns[0].no_wrap = True
    for row in across.astype(str).itertuples(index=False):
        machines.add_row(*row)
    Console().print(items, *planner.explain(found, price), machines, sep="\n", highlight=False, soft_wrap=True)
    raise typer.Exit(int(not found.fits))


@app.command()
def doctor(
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    workshop: Annotated[bool, typer.Option("--workshop", help="Also what an instructor needs.")] = False,
) -> None:
    """Check whether this machine is ready, and say how to fix what is not; exit code 1 if anything is not."""
    session = ftlib.start(profile, output_root)
    from ftlib.machine import OK, doctor

    checks = doctor.report(session.profile, session.output_dir, workshop)
    table = Table("check", "found", "verdict")
    for row in checks.itertuples(index=False):
        table.add_row(*row, style="" if row.verdict == OK else "bold")
    Console().print(table)
    raise typer.Exit(int((checks["verdict"] != OK).any()))


@app.command()
def bench(
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each recipe.")] = 5,
    updates: Annotated[int, typer.Option(min=1, help="Timed updates in a turn.")] = 4,
) -> None:
    """Time the blog post's recipe beside this profile's and its fast one, on a model with random weights."""
    session = ftlib.start(profile, output_root)
    from transformers.utils import logging

    from ftlib.runner import bench, execution

    logging.set_verbosity_error()
    console = Console()
    result = bench.run(profile, rounds, updates, console)
    written = records.write(session.output_dir, "bench", result)
    console.print(bench.table(result), execution.shown(written), sep="\n", highlight=False)


@app.command()
def export(
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    to: Annotated[str | None, typer.Option(help="safetensors, mxfp4 or gguf; by default safetensors.")] = None,
    check: Annotated[Path | None, typer.Option(help="Write nothing, and check this folder.")] = None,
) -> None:
    """Merge a run's adapter into its base and write one model, or check a folder; see notebook 06."""
    if to and check:
        raise FtlibError("found --to and --check together, expected one: --check writes nothing; drop one of them")
    _run_folder(profile, output_root)
    session = ftlib.start(profile, output_root)
    from transformers.utils import logging

    from ftlib.runner import execution, exporting

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if check:
        distance = exporting.compare(session, check)
        print(f"{check} is the model of {session.relative(session.adapter_dir)}: logits lie {distance:.2g} apart")
        return
    for written in exporting.write(session, to or "safetensors", Console()):
        print(execution.shown(written))


@app.command()
def serve(
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    file: Annotated[Path | None, typer.Option(help="A GGUF file; without it, the run's in MXFP4.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 8000,
    context: Annotated[int, typer.Option(min=64, help="The longest conversation, in tokens.")] = 2048,
) -> None:
    """Serve an exported model through an OpenAI-compatible API until Ctrl-C; FTLIB_SERVE_KEY may hold the key."""
    from ftlib.export.serve import KEY, Server

    file = file or _run_folder(profile, output_root) / "export/mxfp4.gguf"
    server = Server(file, port=port, context=context)
    key = f"${KEY}" if os.environ.get(KEY) else server.api_key
    print(f"OPENAI_BASE_URL={server.base_url}\nOPENAI_API_KEY={key}", flush=True)
    server.wait()


@app.command()
def hub(
    room: Annotated[str, typer.Option(help="This machine's address in the room's network, such as 192.168.1.10.")],
    port: Annotated[int, typer.Option(min=1, max=65535)] = PORT,
) -> None:
    """Serve one rehearsal Hub with a leaderboard to a room of learners, until Ctrl-C."""
    from ftlib.rehearsal.room import RoomHub

    with RoomHub(project_root() / OUTPUT_ROOT / "room-hub", room, port) as served, suppress(KeyboardInterrupt):
        print(served.invitation(), flush=True)
        served.wait()


@app.command()
def join(
    address: Annotated[str, typer.Argument(help="What the instructor's `ftlib hub` prints.")],
    name: Annotated[str, typer.Option(prompt="Your name", show_default=False, help="As the leaderboard shows it.")],
) -> None:
    """Join the room's rehearsal Hub; asks for the code that the instructor shows, or reads it in FTLIB_ROOM_CODE."""
    from ftlib.session import membership

    code = os.environ.get("FTLIB_ROOM_CODE") or typer.prompt("The room's code")
    member = membership.join(project_root() / OUTPUT_ROOT, address.rstrip("/"), name, code)
    # By the name of tiny, it goes on with what was trained before.
    profile = f'extends = "tiny"\nname = "tiny"\n\n[hub]\nendpoint = "{member.address}"\n'
    (project_root() / "room.toml").write_text(profile, encoding="utf-8")
    told = 'in a notebook, set profile = "room.toml"; in a terminal, `ftlib push --profile room.toml`'
    print(f"You are {member.account}. To push to the room: {told}")


@app.command()
def report(profile: Profile = "tiny", output_root: OutputRoot = OUTPUT_ROOT) -> None:
    """Write the HTML report of a run from its notebooks and records."""
    from ftlib.runner import execution, report

    print(execution.shown(report.write(_run_folder(profile, output_root))))


@app.command()
def reset(
    profile: Profile = "tiny",
    output_root: OutputRoot = OUTPUT_ROOT,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run's outputs, so that the notebooks begin anew; asks first."""
    folder = _run_folder(profile, output_root)
    if not (folder / "profile.json").is_file():
        raise FtlibError(
            f"{output_root}/{folder.name} is not a run and was not deleted; delete it by hand if you want to"
        )
    if yes or typer.confirm(f"Delete {output_root}/{folder.name} and everything in it?"):
        try:
            with FileLock(folder / "training.lock").acquire(timeout=0):
                pass
        except Timeout:
            raise FtlibError(f"a training runs in {output_root}/{folder.name}; stop it first") from None
        shutil.rmtree(folder)


def _run_folder(profile: str, output_root: str) -> Path:
    """The folder of a run that is there, so that a mistyped name does not make one."""
    folder = project_root() / output_root / profiles.load(profile).name
    if not folder.is_dir():
        found = f"found no run in {output_root}/{folder.name}"
        raise FtlibError(f"{found}; check --profile and --output-root, or run `ftlib run --profile {profile}` first")
    return folder


def main() -> None:
    """Run the command line; a mistake, or a Hub that fails, ends in one line and exit code 1."""
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    if sys.stdout is None:  # closed, as by `>&-`: whoever wrote next would write into the file opened next
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may know ASCII alone
    try:
        try:
            app()
        finally:
            _flush()
    except Exception as error:
        line = str(error) if isinstance(error, FtlibError) else explain(error)
        print(redact(f"error: {printable(line)}" if line else traceback.format_exc().rstrip()), file=sys.stderr)
        sys.exit(1)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again when it ends
        raise FtlibError(f"standard output cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    main()
