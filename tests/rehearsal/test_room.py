"""The room's Hub, as learners meet it with the real client, and as one of them might misuse it."""

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from helpers import HANGING_S
from huggingface_hub import EvalResult, HfApi, ModelCardData, constants
from huggingface_hub.errors import HfHubHTTPError

from ftlib import cli, profiles
from ftlib.errors import FtlibError
from ftlib.rehearsal import room
from ftlib.rehearsal.hub import MODEL_ID, RehearsalHub
from ftlib.rehearsal.room import RoomHub
from ftlib.session import membership, session

HOST = "127.0.0.1"
LABELS = "Reasons in the language asked for", "Answers exactly as the reference"  # notebook 5's


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RoomHub]:
    with RoomHub(tmp_path / "room", HOST, free_port()) as running:
        yield running


class Learner:
    """Someone who has joined, with the real client."""

    def __init__(self, hub: RoomHub, folder: Path, name: str) -> None:
        member = membership.join(folder, hub.endpoint, name, hub.code)
        self.account, self.token, self.endpoint = member.account, member.token, member.address
        self.api = HfApi(endpoint=member.address, token=member.token)

    def push(self, name: str = "adapter", **files: bytes) -> str:
        repo = self.api.create_repo(name, exist_ok=True).repo_id
        for path, data in files.items():
            self.api.upload_file(path_or_fileobj=data, path_in_repo=path.replace("_", "."), repo_id=repo)
        return repo

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        """A request that is sent exactly as written, as the client would not."""
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=HANGING_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {self.token}", **headers})
            return connection.getresponse()


@pytest.fixture
def join(hub: RoomHub, tmp_path: Path) -> Callable[[str], Learner]:
    return lambda name: Learner(hub, tmp_path / name.replace("/", ""), name)


def page(hub: RoomHub) -> str:
    answer = httpx2.get(hub.endpoint, trust_env=False)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    return answer.text


def card(*values: Any) -> bytes:
    """A model card with results, as `publish.model_card` writes their metadata."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="questions",
            metric_type=re.sub(r"\W+", "_", label.lower()),
            metric_name=label,
            metric_value=value,
        )
        for label, value in zip(LABELS, values, strict=True)
    ]
    return f"---\n{ModelCardData(model_name='mine', eval_results=results)}\n---\n# Card\n".encode()


def rows(hub: RoomHub) -> list[list[str]]:
    """The cells of the leaderboard's rows."""
    return [re.findall(r"<td[^>]*>([^<]*)", row) for row in re.findall(r"<tr><td>.*", page(hub))]


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(HfHubHTTPError) as refused:
        do()
    return f"{refused.value.response.status_code} {refused.value.response.headers['X-Error-Message']}"


def test_twenty_five_learners_at_once_push_and_get_back_what_is_theirs(hub: RoomHub, tmp_path: Path) -> None:
    def work(number: int) -> tuple[Learner, str]:
        folder = tmp_path / f"adapter-{number}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(bytes([number]) * 400_000)
        (folder / "README.md").write_bytes(card(number / 100, 0.5))
        learner = Learner(hub, tmp_path / str(number), "Zoë")
        repo = learner.api.create_repo("adapter").repo_id
        learner.api.upload_folder(repo_id=repo, folder_path=folder)
        got = Path(learner.api.snapshot_download(repo, cache_dir=tmp_path / f"cache-{number}"))
        assert {path.name: path.read_bytes() for path in got.iterdir()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }
        learner.api.hf_hub_download(MODEL_ID, "config.json", cache_dir=tmp_path / f"cache-{number}")
        return learner, repo

    with ThreadPoolExecutor(25) as pool:
        done = list(pool.map(work, range(25)))
    assert {learner.account for learner, _ in done} == {"zoe", *(f"zoe-{number}" for number in range(2, 26))}
    assert [repo for learner, repo in done if repo != f"{learner.account}/adapter"] == []
    assert [row[2] for row in rows(hub)] == [repo for _, repo in reversed(done)], "the best first"
    reader = done[0][0].api
    sizes = [file.size for _, repo in done for file in reader.list_repo_tree(repo) if file.path.endswith("tensors")]
    assert sizes == [400_000] * 25, "anyone in the room may read"


def test_nobody_touches_what_is_anothers(join: Callable[[str], Learner], tmp_path: Path) -> None:
    owner, other = join("Anna"), join("Ann")
    repo = owner.push(README_md=card(0.9, 0.5))
    before = owner.api.model_info(repo).sha
    for write in (
        lambda: other.api.upload_file(path_or_fileobj=b"x", path_in_repo="README.md", repo_id=repo),
        lambda: other.api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo, create_pr=True),
        lambda: other.api.delete_file("README.md", repo),
        lambda: other.api.super_squash_history(repo),
        lambda: other.api.delete_repo(repo),
        lambda: other.api.create_repo("anna/new"),
        lambda: other.api.create_repo(repo, exist_ok=False),
        lambda: other.api.move_repo(repo, "ann/adapter"),
        lambda: other.api.update_repo_settings(repo, private=True),
        lambda: other.api.create_tag(repo, tag="x"),
        lambda: other.api.create_branch(repo, branch="x"),
        lambda: other.api.auth_check(repo, write=True),
        lambda: other.api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL_ID),
    ):
        assert refusal(write)[:3] in ("403", "404", "405")
    commit = b'{"key": "header", "value": {"summary": ""}}\n{"key": "file", "value": {"path": "x", "content": ""}}'
    for path in ("anna/adapter", "ann/..%2fanna/adapter", "ann%2f..%2fanna/adapter", "ANNA/adapter"):
        assert other.send("POST", f"/api/models/{path}/commit/main", commit).status in (403, 404)
    for asked in ({"name": "../anna/adapter"}, {"name": "adapter", "organization": "anna"}, {"name": "/adapter"}):
        for method, path in (("POST", "/api/repos/create"), ("DELETE", "/api/repos/delete")):
            assert other.send(method, path, json.dumps(asked).encode()).status in (403, 404)
    assert [file.name for file in tmp_path.glob("room/models/*/*.json")] == ["adapter.json"]
    assert (owner.api.model_info(repo).sha, owner.api.list_repo_files(repo)) == (before, ["README.md"])


def test_without_a_token_nothing_but_the_page_is_answered(hub: RoomHub, join: Callable[[str], Learner]) -> None:
    repo = join("Anna").push()
    for token in (False, hub.code, "rehearsal_" + "x" * 32):
        api = HfApi(endpoint=hub.endpoint, token=token)
        for call in (
            lambda api=api: api.model_info(repo),
            lambda api=api: api.model_info(MODEL_ID),
            lambda api=api: api.delete_repo(repo),
            lambda api=api: api.create_repo("anna/new"),
        ):
            assert refusal(call).startswith("401 This is the room's rehearsal Hub: expected the token")
    assert hub.code not in page(hub)


def test_only_programs_of_the_room_join_and_only_at_its_address(hub: RoomHub, join: Callable[[str], Learner]) -> None:
    body = json.dumps({"name": "Eve", "code": hub.code}).encode()
    anna = join("Anna")
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": hub.endpoint}):
        for method, path in (("POST", "/join"), ("GET", f"/api/models/{MODEL_ID}")):
            assert anna.send(method, path, body, **headers).status in (400, 403)
    assert anna.send("GET", "/", Host="evil.example").status == 400
    for wrong in (b"", b"[]", b'{"name": 1, "code": []}', b'{"name": "\\ud800", "code": "\\ud800"}', b'{"code": ""}'):
        assert 400 <= anna.send("POST", "/join", wrong).status < 410
    assert anna.send("POST", "/join", b" " * room.LONGEST_JOIN + body).status == 413
    assert "1 joined" in page(hub)


def test_the_code_cannot_be_guessed(hub: RoomHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(room, "monotonic", lambda: now)
    for _ in range(room.MOST_JOINS):
        with pytest.raises(FtlibError, match="this is not the code that the instructor shows; correct it"):
            membership.join(tmp_path / "eve", hub.endpoint, "Eve", "AAAA-AAAA")
    with pytest.raises(FtlibError, match=f"expected at most {room.MOST_JOINS} requests in {room.WINDOW_S} s"):
        membership.join(tmp_path / "eve", hub.endpoint, "Eve", hub.code)
    assert not (tmp_path / "eve").exists()
    now += room.WINDOW_S
    assert Learner(hub, tmp_path / "eve", "Eve").account == "eve"
    assert re.fullmatch(f"[{room.CODE_LETTERS}]{{4}}-[{room.CODE_LETTERS}]{{4}}", hub.code)


def test_names_become_accounts_that_nobody_else_has(hub: RoomHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def account(name: str) -> str:
        asked = {"name": name, "code": f" {hub.code.lower().replace('-', ' ')}"}
        answer = httpx2.post(f"{hub.endpoint}/join", json=asked, trust_env=False)
        return str(answer.json().get("account", answer.status_code))

    names = ["Anna", "anna ", "ANNA!", "李雷", "Api", "con", "../x", "a" * 40, "", " ", "a" * 41, "a\nb", "a\u202eb"]
    accounts = ["anna", "anna-2", "anna-3", "learner", "api-2", "con-2", "x", "a" * 24, *["400"] * 5]
    assert [account(name) for name in names] == accounts
    monkeypatch.setattr(room, "MOST_ACCOUNTS", 8)
    assert account("Late") == "403"


def test_what_a_learner_may_send_is_limited(
    hub: RoomHub, join: Callable[[str], Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = join("Anna"), join("Ben")
    repo = anna.push()
    lines = [{"key": "header", "value": {"summary": ""}}]
    lines += [{"key": "file", "value": {"path": str(n), "content": ""}} for n in range(room.MOST_FILES)]
    for separator in ("\n", "\r"):
        body = separator.join(map(json.dumps, lines)).encode()
        assert anna.send("POST", f"/api/models/{repo}/commit/main", body).status == 413
    monkeypatch.setattr(room, "MOST_BYTES", 100_000)
    assert "anna may push 100,000 bytes in all" in refusal(lambda: anna.push(big=bytes(80_000)))
    anna.push(big=bytes(50_000))
    anna.api.delete_repo(repo)
    assert "and has pushed 7" in refusal(lambda: anna.push(big=bytes(50_000))), "deleting gives nothing back"
    assert ben.push(big=bytes(50_000)) == "ben/adapter", "each has a limit of their own"
    monkeypatch.setattr(room, "MOST_REPOS", 3)
    for name in "ab":
        ben.push(name)
    assert "at most 3 repositories of an account" in refusal(lambda: ben.push("c"))
    assert ben.push("a", file=b"x") == "ben/a", "what is there may be pushed to"
    monkeypatch.setattr(room, "MOST_HISTORY", 500)
    assert "the history of ben/a is too long" in refusal(lambda: ben.push("a", file=b"y" * 9, other=b"z"))
    assert anna.send("POST", "/api/validate-yaml", **{"Content-Length": f"{2**25 + 1}"}).status == 413


def test_requests_of_an_account_are_limited(
    hub: RoomHub, join: Callable[[str], Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(room, "monotonic", lambda: now)
    anna, ben = join("Anna"), join("Ben")

    def ask(learner: Learner) -> http.client.HTTPResponse:
        return learner.send("GET", "/api/whoami-v2")

    assert {ask(anna).status for _ in range(room.MOST_REQUESTS)} == {200}
    assert (ask(anna).status, ask(anna).headers["Retry-After"], ask(ben).status) == (429, "10", 200)
    now += room.WINDOW_S
    assert ask(anna).status == 200
    anna.token = "rehearsal_guessed"
    assert [ask(anna).status for _ in range(room.MOST_VISITS + 1)] == [401] * room.MOST_VISITS + [429]
    assert ask(ben).status == 200


def test_the_leaderboard_ranks_what_the_cards_say(hub: RoomHub, join: Callable[[str], Learner], notebooks: Any) -> None:
    publishing = notebooks.cell_with("05_push_and_infer", "publish.model_card(")
    assert all(f'"{label}"' in publishing for label in LABELS)
    pushed = {"Low": (0.2, 1), "High": (0.975, 0.5), "Higher": (0.975, 0.75)}
    pushed |= {"No card": (), "Too high": (37, float("inf")), "Not a number": (float("nan"), "1.0"), "Yes": (True, -1)}
    for name, values in pushed.items():
        learner = join(name)
        learner.push("worse", **({"README_md": card(0, 0)} if name == "High" else {}))
        learner.push(**({"README_md": card(*values)} if values else {"file": b"x"}))
    hidden = join("Hidden")
    hidden.api.create_repo("empty")
    hidden.api.create_repo("secret", private=True)
    hidden.push("secret", README_md=card(0.9, 0.9))
    shown = [row[:5] for row in rows(hub)]
    assert shown[:3] == [
        ["1", "Higher", "higher/adapter", "97.5%", "75.0%"],
        ["2", "High", "high/adapter", "97.5%", "50.0%"],
        ["3", "Low", "low/adapter", "20.0%", "100.0%"],
    ]
    assert [row[1:] for row in shown[3:]] == [
        [name, f"{name.lower().replace(' ', '-')}/adapter", "–", "–"] for name in list(pushed)[3:]
    ]
    assert "8 joined" in page(hub)


def test_a_hostile_name_or_card_does_nothing_to_the_page(
    hub: RoomHub, join: Callable[[str], Learner], tmp_path: Path
) -> None:
    script = "<script>alert(1)</script>"
    mallory = join(script)
    good = card(0.9, 0.5).decode()
    hostile = [
        good.replace("0.9", script),
        good.replace("0.9", "!!python/object/apply:os.system ['x']"),
        good.replace("0.9", "&a 0.9").replace("0.5", "*a"),
        good.replace("0.9", "[" * 99 + "]" * 99),
        good.replace("0.9", "9" * 5000),
        "---\nmodel-index: {}\n---\n",
        "---\nmodel-index: [{results: [{metrics: [{type: [], value: 1}]}]}]\n---\n",
        "---\n" + "x: y\n" * 10_000 + good[4:],
        "\udcff",
    ]
    for text in hostile:
        content = base64.b64encode(text.encode(errors="surrogateescape")).decode()
        lines = (
            {"key": "header", "value": {"summary": script}},
            {"key": "file", "value": {"path": "README.md", "content": content}},
        )
        repo = mallory.push()
        answer = mallory.send("POST", f"/api/models/{repo}/commit/main", "\n".join(map(json.dumps, lines)).encode())
        assert answer.status == 200
        assert [row[3] for row in rows(hub)] == ["–"]
        assert "<script" not in page(hub)
    assert "&lt;script&gt;alert(1)" in page(hub)
    join("Anna").push(README_md=good.encode())
    for damaged in ("{", f'{{"id": "{repo}", "private": false, "commits": []}}'):
        (tmp_path / f"room/models/{repo}.json").write_text(damaged)
        assert [row[1] for row in rows(hub)] == ["Anna"], "a damaged record hides no other"


def test_a_restart_keeps_accounts_and_no_token_is_stored(tmp_path: Path) -> None:
    with RoomHub(tmp_path / "room", HOST, free_port()) as first:
        anna = Learner(first, tmp_path / "anna", "Anna")
        repo = anna.push(README_md=card(0.9, 0.5))
        with pytest.raises(FtlibError, match="another `ftlib hub` serves this project's room"):
            RoomHub(tmp_path / "room", HOST, free_port())
    with RoomHub(tmp_path / "room", HOST, free_port()) as second:
        assert second.code != first.code
        again = HfApi(endpoint=second.endpoint, token=anna.token)
        assert (again.whoami()["name"], again.list_repo_files(repo)) == ("anna", ["README.md"])
        assert Learner(second, tmp_path / "other", "Anna").account == "anna-2"
        assert [row[1] for row in rows(second)] == ["Anna"]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "room").rglob("*") if path.is_file())
    assert b"Anna" in stored
    assert not [secret for secret in (anna.token, first.code, second.code) if secret.encode() in stored]
    assert stat.S_IMODE((tmp_path / "room").stat().st_mode) == 0o700
    (tmp_path / "room/accounts.json").write_text("{")
    with pytest.raises(FtlibError, match=r"accounts\.json of the room is damaged"):
        RoomHub(tmp_path / "room", HOST, free_port())


@pytest.mark.parametrize("address", ["0.0.0.0", "localhost", "192.168.1", "203.0.113.7", "::1", "evil.example", ""])
def test_only_an_address_of_this_machine_is_served(tmp_path: Path, address: str) -> None:
    with pytest.raises(FtlibError, match=r"expected one of this machine's: .*127\.0\.0\.1"):
        RoomHub(tmp_path / "room", address, free_port())


def test_a_port_that_is_taken_is_named_and_nothing_else_ever_listens(hub: RoomHub, tmp_path: Path) -> None:
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with pytest.raises(FtlibError, match=rf"--room 127\.0\.0\.1 --port {port} cannot be used"):
        RoomHub(tmp_path / "other", HOST, port)
    with RehearsalHub(tmp_path / "hub"):
        listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening} == {HOST}
        assert port in {address.port for address in listening}
        assert len(listening) == 2


def test_the_commands_of_instructor_and_learner(
    hub: RoomHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTLIB_ROOM_CODE", hub.code)
    monkeypatch.setattr(sys, "argv", ["ftlib", "join", f"{hub.endpoint}/", "--name", "Anna"])
    with monkeypatch.context() as behind_a_proxy:
        behind_a_proxy.setenv("NO_PROXY", "")
        behind_a_proxy.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    kept = tmp_path / "outputs/room.json"
    assert "You are anna." in said
    profile = profiles.load(tmp_path / "room.toml")
    assert (profile.name, profile.hub.endpoint) == ("tiny", hub.endpoint)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    token = membership.token(kept.parent, hub.endpoint)
    assert HfApi(endpoint=hub.endpoint, token=token).whoami()["name"] == "anna"
    assert token not in said
    with pytest.raises(FtlibError, match=r"found a member of .*; run `ftlib join http://10\.0\.0\.1:80`"):
        membership.token(kept.parent, "http://10.0.0.1:80")
    with pytest.raises(FtlibError, match="found no member of a room"):
        membership.token(tmp_path, hub.endpoint)
    shown = hub.invitation()
    assert f"ftlib join {hub.endpoint}" in shown
    assert hub.code in shown
    assert "█" in shown, "the QR code"


@pytest.mark.parametrize(
    "address", ["http://evil.example", "http://10.0.0.1", "https://10.0.0.1:80", "10.0.0.1:80", ""]
)
def test_an_address_of_no_room_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(FtlibError, match=r"expected one such as http://192\.168\.1\.10:8765"):
        membership.join(tmp_path, address, "Anna", "code")


def test_where_no_room_is_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(FtlibError, match=r"no room's Hub answers at .* \(ConnectError\); check the address"):
        membership.join(tmp_path, f"http://{HOST}:{free_port()}", "Anna", "code")


def test_a_session_in_a_room_is_the_learners_account_there_and_nothing_of_their_own(
    hub: RoomHub, project: Path, run_python: Callable[..., Any], tmp_path: Path
) -> None:
    member = membership.join(project / "outputs", hub.endpoint, "Anna", hub.code)
    (project / "room.toml").write_text(f'extends = "tiny"\n[hub]\nendpoint = "{hub.endpoint}"\n')
    own = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    told = run_python(
        """
import json, os
from ftlib import start
session = start("room.toml")
from huggingface_hub import constants
from datasets import load_dataset
from ftlib.session import hub_client, redaction
repo = hub_client.check_access(session.profile.hub)
rows = len(load_dataset("rehearsal/multilingual-thinking-sample", split="train"))
redacted = redaction.redact(token := os.environ["HF_TOKEN"])
os.environ["HF_TOKEN"] = "rehearsal_forgotten"
try:
    hub_client.check_access(session.profile.hub)
except Exception as error:
    forgotten = str(error)
print(json.dumps({
    "environment": dict(os.environ), "repo": repo, "rows": rows, "cache": constants.HF_HUB_CACHE,
    "says": session.hub_description, "token": token, "redacted": redacted, "forgotten": forgotten,
}))
""",
        HF_TOKEN="hf_planted_by_the_test",
        HF_HUB_CACHE=str(tmp_path / "own"),
        NO_PROXY="",
        **own,
    )
    assert (told["repo"], told["rows"]) == ("anna/gpt-oss-tiny-multilingual-reasoner", 1000)
    assert told["token"] == member.token
    assert "hf_planted" not in json.dumps(told)
    assert not [name for name in told["environment"] if name.lower() in ("http_proxy", "all_proxy")]
    assert told["redacted"] == "[secret removed]"
    assert f"a rehearsal Hub of the room at {hub.endpoint}" in told["says"]
    assert told["forgotten"].endswith("401 Unauthorized; join the room again with `ftlib join`")
    assert Path(told["cache"]).is_relative_to(project / "outputs/room/huggingface")
    written = [path for path in project.rglob("*") if path.is_file() and member.token.encode() in path.read_bytes()]
    assert written == [project / "outputs/room.json"]


def test_no_proxy_stands_between_a_learner_and_the_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also none that the operating system names."""
    endpoint = "http://10.1.2.3:8765"
    (tmp_path / "outputs").mkdir()
    member = membership.Member(address=endpoint, account="anna", token="rehearsal_" + "x" * 32)
    (tmp_path / "outputs" / membership.FILE).write_text(member.model_dump_json())
    (tmp_path / "room.toml").write_text(f'extends = "tiny"\n[hub]\nendpoint = "{endpoint}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"HTTP_PROXY": "http://127.0.0.1:9", "HF_TOKEN": "own"})
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.set_client_factory", lambda factory: None)
    assert session._connect(profiles.load("room.toml"), tmp_path / "outputs/room") == (endpoint, [])
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "127.0.0.1,10.1.2.3"
    assert (os.environ["HF_TOKEN"], os.environ["HF_ENDPOINT"]) == (member.token, endpoint)
    assert "HTTP_PROXY" not in os.environ
