"""Every request of a push and of a pull, answered with every fault: nothing is lost, and the printed command mends it.

One more or less of the real client's requests would be seen in `PUSH` and `PULL`, so none is left out.
"""

import hashlib
import itertools
import math
import re
import shlex
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from helpers.faulty_hub import FAULTS, FaultyHub
from huggingface_hub import (
    HfApi,
    constants,
    file_download,
    get_session,
    hf_hub_download,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.utils._http import default_client_factory
from typer.testing import CliRunner

from ftlib import cli, profiles
from ftlib.errors import FtlibError
from ftlib.model import publish
from ftlib.rehearsal import ASSETS
from ftlib.rehearsal.hub import MODEL_ID
from ftlib.session import hub_client, manifest, session

PROFILE = profiles.load("tiny")
REPO = f"learner/{PROFILE.hub.push_target}"
PUSH = {
    "account": "GET /api/whoami-v2",
    "create": "POST /api/repos/create",
    "validate": "POST /api/validate-yaml",
    "preupload": f"POST /api/models/{REPO}/preupload/main",
    "commit": f"POST /api/models/{REPO}/commit/main",
}
# Is it there already? That nothing is found is an answer, and no fault.
LOOK = {"look": f"GET /api/models/{REPO}"}
PULL = {
    "info": f"GET /api/models/{REPO}/revision/main",
    "tree": f"GET /api/models/{REPO}/tree/[0-9a-f]{{40}}",
    **{
        f"{method} {name}": f"{method} /{REPO}/resolve/[0-9a-f]{{40}}/{re.escape(name)}"
        for method in ("HEAD", "GET")
        for name in publish.ADAPTER_FILES
    },
}
# These stay what they are until a person does something.
FINAL = ("401", "403", "404")
PATIENCE_S, STALL_S = 0.2, 0.3
ONE_LINE = re.compile(
    r"the Hub(?:'s answer cannot be read| answers \d{3} [A-Z][\w ]+| is out of reach \(\w+\)); [^;]+, then run "
    r"`(?P<command>[^`]+)`; the saved adapter is complete and unchanged"
)


def faults(requests: Iterable[str], fast: Callable[[str, str], bool]) -> pytest.MarkDecorator:
    """Every request with every fault; those that are not fast are slow."""
    cases = itertools.product(requests, FAULTS)
    marked = [pytest.param(*case, marks=() if fast(*case) else pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("request_", "fault"), marked)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    with FaultyHub(tmp_path_factory.mktemp("hub"), STALL_S) as hub:
        yield hub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, ours and huggingface_hub's, which take no time here but on the clock of ours."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(waited))
    monkeypatch.setattr(tenacity, "time", clock)
    return waited


@pytest.fixture
def hub(
    server: FaultyHub, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[FaultyHub]:
    """The Hub in good health and without repositories, and this process set up as `start` sets up a kernel."""
    # What comes over plain HTTP needs no certificates, and they take longer to load than a push takes.
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)
    server.recover()
    HfApi(server.endpoint, server.token).delete_repo(REPO, missing_ok=True)
    server.recover()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as in a rehearsal
    template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    limits = dict.fromkeys(("connect", "read", "write"), PATIENCE_S) | {"pool": None}
    if "stall" in request.node.name:
        monkeypatch.setattr(session, "HUB_PATIENCE_S", limits)
        for owner, name in (
            (constants, "HF_HUB_DOWNLOAD_TIMEOUT"),
            (constants, "HF_HUB_ETAG_TIMEOUT"),
            (file_download, "_ETAG_RETRY_TIMEOUT"),
        ):
            monkeypatch.setattr(owner, name, PATIENCE_S)
    session._limit_waiting()
    yield server
    set_client_factory(default_client_factory)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as notebooks 04 and 05 save it, with its card and its manifest, and something that is not to go up."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((ASSETS / "model" / name).read_bytes())
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 1000)
    manifest.write(folder, [path.name for path in folder.iterdir()])
    training = {"global_step": 63, "training_loss": 1.13874}
    publish.model_card(PROFILE, REPO, training, {"Results": "to follow"}).save(folder / "README.md")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def run(hub: FaultyHub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> session.Session:
    """A run whose adapter is saved."""
    output_dir = tmp_path / "outputs/tiny"
    current = session.Session(PROFILE, "tiny", tmp_path, "outputs", output_dir, hub.endpoint)
    monkeypatch.setattr(session, "_current", current)
    shutil.copytree(saved, current.adapter_dir)
    return current


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def git_ids(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for name, data in files.items()}


def on_the_hub(hub: FaultyHub) -> dict[str, str]:
    """The files of the newest commit, as git knows them."""
    return {file.path: file.blob_id for file in HfApi(hub.endpoint).list_repo_tree(REPO, recursive=True)}


def check_what_is_said(hub: FaultyHub, error: FtlibError, run: session.Session) -> str:
    """One line, without a secret, that ends in a command; returns the command."""
    told = ONE_LINE.fullmatch(str(error))
    assert told, str(error)
    assert hub.token not in str(error)
    assert "Bearer" not in str(error)
    assert told["command"] == run.command("push")
    return told["command"]


def push(run: session.Session) -> str:
    return publish.push(run.profile, run.adapter_dir, run.command("push"))


def push_with(command: str) -> str:
    """Run the printed command line in this process."""
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def persistently(run: session.Session, do: Callable[[], Any]) -> Any:
    """As a notebook does it."""
    for attempt in hub_client.attempts(run.command("push")):
        with attempt:
            result = do()
    return result


def pull(run: session.Session, cache: Path) -> Path:
    return Path(persistently(run, lambda: snapshot_download(REPO, cache_dir=cache)))


@pytest.mark.parametrize(
    ("without_xet", "requests"),
    [
        (True, ["account", "look", "create", "validate", "validate", "preupload", "commit"]),
        (False, ["account", "look", "create", "validate", "preupload", "commit"]),
    ],
    ids=["rehearsal", "library for large files"],
)
def test_a_clean_push_is_these_requests_and_these_files(
    hub: FaultyHub,
    run: session.Session,
    monkeypatch: pytest.MonkeyPatch,
    without_xet: bool,
    requests: list[str],
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", without_xet)
    before = files_of(run.adapter_dir)
    assert push(run) == f"{hub.endpoint}/{REPO}"
    known = PUSH | LOOK
    named = [next(name for name, pattern in known.items() if re.fullmatch(pattern, asked)) for asked in hub.requests]
    assert named == requests
    assert files_of(run.adapter_dir) == before
    expected = {name: data for name, data in before.items() if name in publish.ADAPTER_FILES}
    assert len(expected) == len(publish.ADAPTER_FILES)
    assert on_the_hub(hub) == git_ids(expected)


def test_a_clean_pull_is_these_requests_and_is_what_was_saved(
    hub: FaultyHub, run: session.Session, tmp_path: Path
) -> None:
    push(run)
    hub.recover()
    folder = pull(run, tmp_path / "cache")
    named = [next(name for name, pattern in PULL.items() if re.fullmatch(pattern, asked)) for asked in hub.requests]
    assert sorted(named) == sorted(PULL)
    manifest.verify(folder)
    assert set(files_of(folder)) == set(publish.ADAPTER_FILES)


@pytest.mark.parametrize("times", [1, math.inf], ids=["once", "for good"])
@faults(PUSH, lambda request, fault: request == "commit" or fault == "503" or (request, fault) == ("create", "409"))
def test_a_push_that_meets_a_fault(
    hub: FaultyHub, run: session.Session, waits: list[float], request_: str, fault: str, times: float
) -> None:
    before = files_of(run.adapter_dir)
    hub.fail(fault, PUSH[request_], times)
    # A conflict at the creation means that the repository is there; here it is not, and the next request finds none.
    # Half an answer to the commit means that it is made, and the next attempt finds nothing to add.
    made = request_ == "commit" and fault in ("cut short", "reset half-way")
    recovers = (times == 1 and fault not in FINAL and (request_, fault) != ("create", "409")) or made
    command = run.command("push")
    if recovers:
        push(run)
    else:
        with pytest.raises(FtlibError) as raised:
            push(run)
        command = check_what_is_said(hub, raised.value, run)
    assert hub.failed >= 1
    assert sum(waits) < 60, "nobody waits that long"
    assert files_of(run.adapter_dir) == before
    hub.recover()
    assert push_with(command) == f"{hub.endpoint}/{REPO}"
    assert files_of(run.adapter_dir) == before
    expected = {name: data for name, data in before.items() if name in publish.ADAPTER_FILES}
    assert on_the_hub(hub) == git_ids(expected)


@faults(PUSH, lambda request, fault: request == "commit" and fault in ("503", "reset half-way"))
def test_a_push_with_the_library_for_large_files_that_meets_a_fault(
    hub: FaultyHub,
    run: session.Session,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    request_: str,
    fault: str,
) -> None:
    """As to the real Hub: another path through huggingface_hub, with a thread that commits."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    test_a_push_that_meets_a_fault(hub, run, waits, request_, fault, times=1)


@faults(PULL, lambda request, fault: request == "GET adapter_model.safetensors" or (request, fault) == ("tree", "503"))
def test_a_pull_that_meets_a_fault_once(
    hub: FaultyHub, run: session.Session, waits: list[float], tmp_path: Path, request_: str, fault: str
) -> None:
    push(run)
    before = files_of(run.adapter_dir)
    hub.fail(fault, PULL[request_], times=1)
    if fault in FINAL:
        with pytest.raises(FtlibError) as raised:
            pull(run, tmp_path / "cache")
        check_what_is_said(hub, raised.value, run)
    folder = pull(run, tmp_path / "cache")
    assert hub.failed == 1
    assert sum(waits) < 60, "nobody waits that long"
    manifest.verify(folder)
    assert set(files_of(folder)) == set(publish.ADAPTER_FILES)
    assert files_of(run.adapter_dir) == before


@faults(
    ["info", "tree", "HEAD adapter_model.safetensors", "GET adapter_model.safetensors"],
    lambda request, fault: request == "info" or (request, fault) == ("GET adapter_model.safetensors", "cut short"),
)
def test_a_pull_that_meets_a_fault_for_good(
    hub: FaultyHub, run: session.Session, waits: list[float], tmp_path: Path, request_: str, fault: str
) -> None:
    push(run)
    before = files_of(run.adapter_dir)
    hub.fail(fault, PULL[request_], times=math.inf)
    with pytest.raises(FtlibError) as raised:
        pull(run, tmp_path / "cache")
    check_what_is_said(hub, raised.value, run)
    assert sum(waits) < 60, "nobody waits that long"
    hub.recover()
    manifest.verify(pull(run, tmp_path / "cache"))
    assert files_of(run.adapter_dir) == before


@pytest.mark.parametrize("fault", ["cut short", "reset half-way", "stall"])
def test_a_model_that_is_cut_short_is_taken_up_again(
    hub: FaultyHub,
    run: session.Session,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """After half an answer huggingface_hub asks for the rest; where it gives up, as after a reset, for all of it."""
    shipped = (ASSETS / "model/model.safetensors").read_bytes()
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", len(shipped) // 2)  # it keeps whole pieces, of 10 MB
    hub.fail(fault, f"GET /{MODEL_ID}/resolve/[^/]+/model.safetensors", times=1)
    path = persistently(run, lambda: hf_hub_download(MODEL_ID, "model.safetensors", cache_dir=tmp_path / "cache"))
    assert Path(path).read_bytes() == shipped
    assert hub.ranges == ([f"bytes={len(shipped) // 2}-"] if fault == "cut short" else [])
    assert hub.failed == 1


@pytest.mark.parametrize("fault", ["503", "reset", "401", "404"])
def test_what_transformers_makes_of_a_fault_is_recognised(
    hub: FaultyHub, run: session.Session, waits: list[float], tmp_path: Path, fault: str
) -> None:
    """It wraps what the Hub said into an OSError about something else."""
    from transformers import AutoConfig

    hub.fail(fault, f"HEAD /{MODEL_ID}/resolve/[^/]+/config.json", times=math.inf)
    with pytest.raises(FtlibError) as raised:
        persistently(run, lambda: AutoConfig.from_pretrained(MODEL_ID, cache_dir=tmp_path / "cache"))
    check_what_is_said(hub, raised.value, run)
    expected = "out of reach (ReadError)" if fault == "reset" else f"answers {fault} "
    assert expected in str(raised.value)


def test_an_error_of_something_else_stays_what_it_is(hub: FaultyHub, run: session.Session, waits: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        persistently(run, lambda: 1 / 0)
    assert waits == []


def test_the_waits_are_announced_and_grow_unless_the_hub_names_them(
    hub: FaultyHub, run: session.Session, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail("503", PUSH["create"], times=math.inf)
    with pytest.raises(
        FtlibError, match=r"^the Hub answers 503 Service Unavailable; wait until it is well again, then"
    ):
        push(run)
    assert waits == [1, 2, 4, 8]
    assert capsys.readouterr().err == "the Hub answers 503 Service Unavailable; trying again\n" * 4
    hub.fail("429", PUSH["create"], times=1)
    waits.clear()
    push(run)
    assert waits == [1], "as its Retry-After says"


def test_nothing_at_the_address_is_told_within_a_quarter_of_a_minute(
    run: session.Session, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        FtlibError, match=r"^the Hub is out of reach \(ConnectError\); check the network and the proxy, th"
    ):
        push(run)
    assert sum(waits) == 15


@pytest.mark.slow
def test_limits_are_between_bytes_so_that_a_slow_line_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way takes longer in all than its limit, and something moves all the time."""
    limits = {"connect": 10.0, "read": 5.0, "write": 3.0, "pool": None}
    monkeypatch.setattr(session, "HUB_PATIENCE_S", limits)
    session._limit_waiting()
    seconds = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            started, missing = time.monotonic(), 6_000_000
            while missing > 0 and (piece := connection.recv(200_000)):
                missing -= len(piece)
                time.sleep(len(piece) / 1e6)
            seconds.append(time.monotonic() - started)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            for letter in b"whole":
                time.sleep(1.2)
                connection.sendall(bytes([letter]))
            seconds.append(5 * 1.2)

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64_000)  # or the system would take all of it at once
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert get_session().post(address, content=bytes(6_000_000)).text == "whole"
        server.join()
    assert seconds[0] > limits["write"]
    assert seconds[1] > limits["read"]
    set_client_factory(default_client_factory)


def test_the_limits_of_a_started_kernel_are_in_force_and_the_clients_own_ways_stay(
    run_python: Callable[..., Any],
) -> None:
    limits, follows, hooks = run_python("""
import json
from ftlib import start
start("tiny")
from huggingface_hub import get_session
client = get_session()
print(json.dumps([client.timeout.as_dict(), client.follow_redirects, len(client.event_hooks["request"])]))
""")
    assert limits == session.HUB_PATIENCE_S
    assert all(0 < limits[name] <= 60 for name in ("connect", "read", "write"))
    assert (follows, hooks) == (True, 1)
