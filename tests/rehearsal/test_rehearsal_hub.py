"""The rehearsal Hub, as the real clients meet it."""

import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import HANGING_S, ROOT
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import close_session

from ftlib.errors import FtlibError
from ftlib.rehearsal import hub as hub_module
from ftlib.rehearsal.hub import DATASET_ID, MODEL_ID, RehearsalHub, dataset_revision, model_revision

ADAPTER = "learner/adapter"
CARD = "---\nlicense: apache-2.0\nlibrary_name: peft\npipeline_tag: text-generation\ntags: [lora]\n---\n# An adapter\n"


def write_manifest(assets: Path) -> None:
    files = sorted(path for folder in ("model", "dataset") for path in (assets / folder).rglob("*") if path.is_file())
    digests = {path.relative_to(assets).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (assets / "manifest.json").write_text(json.dumps({"files": digests}))


def write_dataset(assets: Path) -> None:
    (assets / "dataset" / "data").mkdir(parents=True)
    table = pa.table({"user": ["Hola", "Hello"], "reasoning_language": ["Spanish", "English"]})
    pq.write_table(table, assets / "dataset" / "data" / "train-00000-of-00001.parquet")
    (assets / "dataset" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A sample\n")


def write_assets(folder: Path) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"model_type": "gpt_oss"}')
    (folder / "model" / "README.md").write_text(CARD)
    write_dataset(folder)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        close_session()  # the client reads the variable when it opens its session
        yield
    close_session()


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    return write_assets(tmp_path / "assets")


@pytest.fixture
def hub(tmp_path: Path, assets: Path) -> Iterator[RehearsalHub]:
    with RehearsalHub(tmp_path / "hub", assets) as running:
        yield running


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RehearsalHub]:
    """For tests that change nothing, or must not be able to."""
    folder = tmp_path_factory.mktemp("shared")
    record = {"kind": "models", "id": "learner/secret", "private": False, "commits": []}
    for place in (folder, folder / "hub", folder / "learner"):
        place.mkdir(exist_ok=True)
        (place / "secret.json").write_text(json.dumps(record))
    with RehearsalHub(folder / "hub", write_assets(folder / "assets")) as running:
        (folder / "assets" / "secret").write_text("secret")
        client(running).create_repo(ADAPTER)
        yield running


@pytest.fixture
def api(hub: RehearsalHub) -> HfApi:
    return client(hub)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 300)
    (folder / "README.md").write_text(CARD)
    return folder


def client(hub: RehearsalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


def push(api: HfApi, folder: Path, repo_id: str = ADAPTER) -> str:
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Push").oid


def raw(
    hub: RehearsalHub, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send a path exactly as written, which a well-mannered client would not."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=HANGING_S)
    connection.putrequest(method, path)
    for name, value in {
        "Authorization": f"Bearer {hub.token}",
        "Content-Length": str(len(body or b"")),
        **headers,
    }.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    answer = response.status, response.headers, response.read()
    connection.close()
    return answer


# Shipped files


def test_a_revision_names_the_shipped_content(assets: Path) -> None:
    before = model_revision(assets), dataset_revision(assets)
    assert all(len(revision) == 40 and set(revision) <= set("0123456789abcdef") for revision in before)
    assert before[0] != before[1]
    assert before == (model_revision(assets), dataset_revision(assets))
    (assets / "model" / "config.json").write_text("{}")
    write_manifest(assets)
    assert model_revision(assets) != before[0]
    assert dataset_revision(assets) == before[1]


@pytest.mark.parametrize("change", [lambda path: path.write_text("{}"), Path.unlink], ids=["changed", "missing"])
def test_a_shipped_file_that_is_not_the_one_in_the_manifest_is_refused(
    tmp_path: Path, assets: Path, change: Callable[[Path], object]
) -> None:
    change(assets / "model" / "config.json")
    with pytest.raises(FtlibError, match=r"config\.json is missing or changed: expected SHA-256"):
        RehearsalHub(tmp_path / "hub", assets)


def test_without_a_manifest_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(FtlibError, match=r"manifest\.json cannot be read"):
        RehearsalHub(tmp_path / "hub", tmp_path)


@pytest.mark.parametrize("revision", ["main", "pinned"])
def test_shipped_files_download_at_main_and_at_the_pinned_revision(
    api: HfApi, assets: Path, tmp_path: Path, revision: str
) -> None:
    pinned = dataset_revision(assets)
    name = "data/train-00000-of-00001.parquet"
    got = api.hf_hub_download(
        DATASET_ID, name, repo_type="dataset", revision=pinned if revision == "pinned" else "main", cache_dir=tmp_path
    )
    assert Path(got).read_bytes() == (assets / "dataset" / name).read_bytes()
    assert (pinned in got) is (revision == "pinned"), "main has moved on, as published repositories do"
    assert api.model_info(MODEL_ID, revision=model_revision(assets)).sha == model_revision(assets)
    assert api.model_info(MODEL_ID).sha != model_revision(assets)


def test_a_wrong_revision_is_told_apart_from_a_wrong_file_and_a_wrong_repository(api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RevisionNotFoundError, match="expected 'main' or a commit id"):
        api.hf_hub_download(MODEL_ID, "config.json", revision="0" * 40, cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(MODEL_ID, revision="refs/pr/1")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(MODEL_ID, "nothing.json", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError, match="no 'openai/gpt-oss-20b' among its models"):
        api.model_info("openai/gpt-oss-20b")
    assert not api.repo_exists("gpt2")
    assert api.repo_exists(MODEL_ID)
    assert not api.repo_exists(MODEL_ID, repo_type="dataset")


def test_shipped_repositories_and_other_namespaces_take_no_push(api: HfApi, adapter: Path) -> None:
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: rehearsal/gpt-oss-tiny is read-only"):
        api.upload_folder(repo_id=MODEL_ID, folder_path=adapter)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden: someone/model is read-only"):
        api.create_repo("someone/model")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        api.delete_repo(MODEL_ID)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        api.auth_check(MODEL_ID, write=True)
    api.auth_check(MODEL_ID)
    assert api.list_repo_files(MODEL_ID) == ["README.md", "config.json"]


def test_a_commit_to_a_shipped_repository_is_refused_without_the_preupload_too(hub: RehearsalHub) -> None:
    line = json.dumps({"key": "header", "value": {"summary": "x"}}).encode()
    status, _, _ = raw(hub, "POST", f"/api/models/{MODEL_ID}/commit/main", line)
    assert status == 403


# Pushing


def test_a_pushed_adapter_comes_back_byte_for_byte(api: HfApi, adapter: Path, tmp_path: Path) -> None:
    commit = push(api, adapter)
    names = sorted(path.name for path in adapter.iterdir())
    assert api.list_repo_files(ADAPTER) == names
    for revision in (None, commit):
        snapshot = Path(api.snapshot_download(ADAPTER, revision=revision, cache_dir=tmp_path / "cache"))
        assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {
            name: (adapter / name).read_bytes() for name in names
        }


def test_an_older_commit_stays_readable(api: HfApi, adapter: Path, tmp_path: Path) -> None:
    first = push(api, adapter)
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    second = push(api, adapter)
    for revision, rank in ((first, 8), (second, 16), ("main", 16)):
        got = api.hf_hub_download(ADAPTER, "adapter_config.json", revision=revision, cache_dir=tmp_path / "cache")
        assert json.loads(Path(got).read_text())["r"] == rank
    history = api.list_repo_commits(ADAPTER)
    assert [commit.title for commit in history] == ["Push", "Push", "initial commit"]
    assert [commit.commit_id for commit in history][:2] == [second, first]
    assert api.list_repo_commits(ADAPTER, revision=first)[0].commit_id == first
    assert [ref.target_commit for ref in api.list_repo_refs(ADAPTER).branches] == [second]


def test_a_push_can_be_repeated(api: HfApi, adapter: Path) -> None:
    assert push(api, adapter) == push(api, adapter)
    assert len(api.list_repo_commits(ADAPTER)) == 2


def test_what_the_card_says_is_listed(api: HfApi, adapter: Path) -> None:
    push(api, adapter)
    api.create_repo("learner/hidden", private=True)
    listed = {model.id: model for model in api.list_models(author="learner")}
    assert list(listed) == [ADAPTER, "learner/hidden"]
    assert [listed[name].private for name in listed] == [False, True]
    model = listed[ADAPTER]
    assert (model.pipeline_tag, model.library_name, model.card_data.license) == (
        "text-generation",
        "peft",
        "apache-2.0",
    )
    assert model.tags == ["lora", "peft", "text-generation", "license:apache-2.0"]
    assert next(model.id for model in api.list_models()) == MODEL_ID
    assert [model.id for model in api.list_models(search="hid")] == ["learner/hidden"]
    assert [dataset.id for dataset in api.list_datasets(author="rehearsal")] == [DATASET_ID]


def test_sizes_and_git_ids_of_files_are_told(api: HfApi, adapter: Path) -> None:
    push(api, adapter)
    sizes = {path.name: path.stat().st_size for path in adapter.iterdir()}
    assert {file.rfilename: file.size for file in api.repo_info(ADAPTER, files_metadata=True).siblings} == sizes
    (info,) = api.get_paths_info(ADAPTER, ["adapter_config.json", "nothing"])
    data = (adapter / "adapter_config.json").read_bytes()
    assert (info.size, info.blob_id) == (len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())
    assert api.file_exists(ADAPTER, "adapter_config.json")
    assert not api.file_exists(ADAPTER, "nothing")


def test_folders_are_listed_as_the_hub_lists_them(api: HfApi) -> None:
    def tree(**options: object) -> list[str]:
        return [entry.path for entry in api.list_repo_tree(DATASET_ID, repo_type="dataset", **options)]

    assert tree() == ["README.md", "data"]
    assert tree(recursive=True) == ["README.md", "data", "data/train-00000-of-00001.parquet"]
    assert tree(path_in_repo="data") == ["data/train-00000-of-00001.parquet"]
    with pytest.raises(EntryNotFoundError):
        tree(path_in_repo="nothing")


def test_files_folders_and_repositories_can_be_deleted(api: HfApi, adapter: Path) -> None:
    push(api, adapter)
    api.upload_folder(repo_id=ADAPTER, folder_path=adapter, path_in_repo="runs/first")
    api.delete_file("adapter_config.json", ADAPTER)
    api.delete_folder("runs", ADAPTER)
    assert api.list_repo_files(ADAPTER) == ["README.md", "adapter_model.safetensors"]
    with pytest.raises(EntryNotFoundError, match="doesn't exist: adapter_config"):
        api.delete_file("adapter_config.json", ADAPTER)
    api.delete_repo(ADAPTER)
    assert not api.repo_exists(ADAPTER)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(ADAPTER)


def test_creating_twice_is_a_conflict_unless_it_may_exist(api: HfApi) -> None:
    url = api.create_repo("adapter")
    assert (url.repo_id, url.repo_type) == (ADAPTER, "model")
    with pytest.raises(HfHubHTTPError, match="You already created learner/adapter"):
        api.create_repo(ADAPTER)
    assert api.create_repo(ADAPTER, exist_ok=True) == url
    assert api.create_repo("learner/rows", repo_type="dataset").repo_type == "dataset"


@pytest.mark.parametrize("name", ["a--b", "..", "a/b", "-a", "model.git", "é", ""])
def test_a_name_that_the_hub_would_not_take_is_refused(shared_hub: RehearsalHub, name: str) -> None:
    status, _, _ = raw(shared_hub, "POST", "/api/repos/create", json.dumps({"name": name}).encode())
    assert status == 400


def test_spaces_pull_requests_and_branches_are_refused_in_words(api: HfApi, adapter: Path) -> None:
    api.create_repo(ADAPTER)
    with pytest.raises(HfHubHTTPError, match="keeps no space repositories"):
        api.create_repo("learner/space", repo_type="space", space_sdk="static")
    with pytest.raises(HfHubHTTPError, match="neither pull requests nor branches"):
        api.upload_folder(repo_id=ADAPTER, folder_path=adapter, create_pr=True)
    with pytest.raises(HfHubHTTPError, match=r"has no POST .*/branch/v1"):
        api.create_branch(ADAPTER, branch="v1")


def test_a_push_on_top_of_an_outdated_commit_is_refused(api: HfApi, adapter: Path) -> None:
    first = push(api, adapter)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="notes", repo_id=ADAPTER, parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"3", path_in_repo="notes", repo_id=ADAPTER, parent_commit=first)


# Cards


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        ("---\nlicense: [mit\n---\n# Card\n", "not valid YAML"),
        ("---\n- mit\n---\n# Card\n", "is a list: expected a mapping"),
    ],
)
def test_a_card_with_broken_metadata_is_refused(api: HfApi, card: str, complaint: str) -> None:
    api.create_repo(ADAPTER)
    with pytest.raises(ValueError, match=complaint):
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=ADAPTER)
    assert api.list_repo_files(ADAPTER) == []


def test_a_card_without_metadata_is_taken_with_a_warning(api: HfApi) -> None:
    api.create_repo(ADAPTER)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# Card", path_in_repo="README.md", repo_id=ADAPTER)


def test_dates_and_nan_in_a_card_do_not_hide_the_repository(api: HfApi) -> None:
    api.create_repo(ADAPTER)
    card = b"---\ndate: 2026-01-02\nloss: .nan\n---\n# Card\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=ADAPTER)
    assert api.model_info(ADAPTER).card_data.to_dict() == {"date": "2026-01-02", "loss": "NaN"}


# On disk


def test_pushes_outlive_the_server(tmp_path: Path, assets: Path, adapter: Path) -> None:
    with RehearsalHub(tmp_path / "hub", assets) as first:
        commit = push(client(first), adapter)
        old_token = first.token
    with RehearsalHub(tmp_path / "hub", assets) as second:
        assert second.token != old_token
        got = client(second).hf_hub_download(ADAPTER, "adapter_model.safetensors", cache_dir=tmp_path / "cache")
        assert Path(got).read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
        assert client(second).model_info(ADAPTER).sha == commit


def test_two_servers_share_a_folder_and_lose_no_push(tmp_path: Path, assets: Path) -> None:
    with RehearsalHub(tmp_path / "hub", assets) as first, RehearsalHub(tmp_path / "hub", assets) as second:
        client(first).create_repo(ADAPTER)

        def push_ten(api: HfApi, name: str) -> None:
            for number in range(10):
                api.upload_file(path_or_fileobj=b"%d" % number, path_in_repo=f"{name}/{number}", repo_id=ADAPTER)

        pushers = [
            threading.Thread(target=push_ten, args=(client(server), name))
            for server, name in ((first, "a"), (second, "b"))
        ]
        for pusher in pushers:
            pusher.start()
        for pusher in pushers:
            pusher.join()
        expected = sorted(f"{name}/{number}" for name in "ab" for number in range(10))
        assert client(first).list_repo_files(ADAPTER) == client(second).list_repo_files(ADAPTER) == expected


KILLED_SERVER = """
import os, sys, time
from pathlib import Path
from ftlib.rehearsal.hub import RehearsalHub
hub = RehearsalHub(Path(sys.argv[1]), Path(sys.argv[2]))
hub.start()
replace = Path.replace
Path.replace = lambda path, to: os._exit(9) if sys.argv[3] in to.parts else replace(path, to)
print(hub.endpoint, hub.token, flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("when", ["blobs", "models"])
def test_a_push_whose_server_is_killed_leaves_the_old_state(
    tmp_path: Path, assets: Path, adapter: Path, when: str
) -> None:
    state = tmp_path / "hub"
    with RehearsalHub(state, assets) as hub:
        before = push(client(hub), adapter)
    command = [sys.executable, "-c", KILLED_SERVER, str(state), str(assets), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        endpoint, token = server.stdout.readline().split()
        (adapter / "adapter_config.json").write_text('{"r": 16}')
        with pytest.raises(httpx2.TransportError):  # unlike upload_folder, upload_file does not try again
            HfApi(endpoint=endpoint, token=token).upload_file(
                path_or_fileobj=adapter / "adapter_config.json", path_in_repo="adapter_config.json", repo_id=ADAPTER
            )
        assert server.wait(timeout=HANGING_S) == 9
    with RehearsalHub(state, assets) as hub:
        api = client(hub)
        assert api.model_info(ADAPTER).sha == before
        got = api.hf_hub_download(ADAPTER, "adapter_config.json", cache_dir=tmp_path / "cache")
        assert json.loads(Path(got).read_text()) == {"r": 8}
        assert push(api, adapter) != before
        assert [model.id for model in api.list_models(author="learner")] == [ADAPTER]


def test_a_push_that_breaks_off_leaves_the_old_state(hub: RehearsalHub, api: HfApi, adapter: Path) -> None:
    before = push(api, adapter)
    line = json.dumps({"key": "header", "value": {"summary": "half"}}).encode() + b"\n"
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=HANGING_S)
    connection.putrequest("POST", f"/api/models/{ADAPTER}/commit/main")
    connection.putheader("Authorization", f"Bearer {hub.token}")
    connection.putheader("Content-Length", "100000")
    connection.endheaders(line)
    connection.close()
    status, _, _ = raw(hub, "POST", f"/api/models/{ADAPTER}/commit/main", line + b'{"key": "fi')
    assert status == 400
    assert api.model_info(ADAPTER).sha == before


def test_a_full_disk_is_told_and_changes_nothing(api: HfApi, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = push(api, adapter)

    def fail(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hub_module, "_write_whole", fail)
        with pytest.raises(HfHubHTTPError, match="No space left on device"):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=ADAPTER)
    assert api.model_info(ADAPTER).sha == before


# Who gets in


def test_the_account_is_the_learner(api: HfApi) -> None:
    account = api.whoami()
    assert (account["name"], account["fullname"]) == ("learner", "Rehearsal learner")
    assert account["auth"]["accessToken"]["role"] == "write"


@pytest.mark.parametrize("token", [False, "hf_somebody_elses"])
def test_the_token_is_wanted(hub: RehearsalHub, tmp_path: Path, token: str | bool) -> None:
    api = HfApi(endpoint=hub.endpoint, token=token)
    for call in (
        lambda: api.model_info(MODEL_ID),
        lambda: api.hf_hub_download(MODEL_ID, "config.json", cache_dir=tmp_path),
        lambda: api.create_repo(ADAPTER),
        lambda: list(api.list_models()),
    ):
        with pytest.raises(HfHubHTTPError, match="This is a rehearsal Hub on this machine") as refused:
            call()
        assert refused.value.response.status_code == 401
        assert not isinstance(refused.value, RepositoryNotFoundError)


def test_a_browser_is_told_where_it_is(hub: RehearsalHub) -> None:
    first_line = httpx2.get(hub.endpoint).text.splitlines()[0]
    assert "rehearsal Hub on this machine, not huggingface.co" in first_line


def test_the_token_is_written_nowhere(
    hub: RehearsalHub, api: HfApi, adapter: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push(api, adapter)
    secret = hub.token.removeprefix("rehearsal_")
    assert len(secret) >= 24
    assert secret not in repr(hub) + str(vars(hub)["_running"])
    stored = b"".join(path.read_bytes() for path in (tmp_path / "hub").rglob("*") if path.is_file())
    assert stored
    assert secret.encode() not in stored
    assert secret not in "".join(capfd.readouterr())


def test_the_server_prints_and_logs_nothing(
    hub: RehearsalHub, api: HfApi, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    api.model_info(MODEL_ID)
    raw(hub, "POST", "/api/repos/create", b"{")
    host, port = hub.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert b"400" in connection.recv(100)
    hub.stop()
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_only_the_loopback_address_is_bound(hub: RehearsalHub) -> None:
    port = int(hub.endpoint.rsplit(":", 1)[1])
    listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


def test_the_endpoint_exists_only_while_it_is_served(tmp_path: Path, assets: Path) -> None:
    hub = RehearsalHub(tmp_path / "hub", assets)
    with pytest.raises(FtlibError, match="not running"):
        _ = hub.endpoint
    hub.start()
    endpoint = hub.endpoint
    hub.stop()
    with pytest.raises(FtlibError, match="not running"):
        _ = hub.endpoint
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(endpoint)


OUTSIDE = [
    "../secret",
    "..%2fsecret",
    "%2e%2e/secret",
    "a/../../secret",
    "..%5csecret",
    "%2fetc%2fhostname",
    "C:%2fsecret",
    "a//b",
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("place", [f"/{MODEL_ID}/resolve/main/", f"/api/models/{MODEL_ID}/tree/main/"])
def test_a_path_that_leaves_the_repository_is_refused(shared_hub: RehearsalHub, place: str, path: str) -> None:
    status, _, body = raw(shared_hub, "GET", place + path)
    assert status == 400
    assert body != b"secret"


@pytest.mark.parametrize("path", ["../x", "/x", "a/../x", "a\\x", "C:/x", ".git/config", "a//x", "a\nx", ""])
@pytest.mark.parametrize("key", ["file", "deletedFile", "deletedFolder"])
def test_a_commit_to_a_path_outside_is_refused(shared_hub: RehearsalHub, key: str, path: str) -> None:
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "fine", "content": "eA==", "encoding": "base64"}},
        {"key": key, "value": {"path": path, "content": "eA==", "encoding": "base64"}},
    ]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    assert raw(shared_hub, "POST", f"/api/models/{ADAPTER}/commit/main", body)[0] == 400
    assert client(shared_hub).list_repo_files(ADAPTER) == []


@pytest.mark.parametrize(
    "address",
    [
        "/api/models/learner/..%2f..%2fsecret",
        "/api/models/..%2f../secret",
        "/api/..%2f../learner/secret",
        "/api/..",
        "/..%2f../learner/secret/resolve/main/x",
    ],
)
def test_a_name_that_leaves_the_state_folder_is_refused(shared_hub: RehearsalHub, address: str) -> None:
    status, _, body = raw(shared_hub, "GET", address)
    assert status in (400, 404)
    assert b"private" not in body


def test_a_file_cannot_lie_below_a_file(api: HfApi) -> None:
    api.create_repo(ADAPTER)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id=ADAPTER)
    with pytest.raises(HfHubHTTPError, match="'a/b' lies below a path that is itself a file"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="a/b", repo_id=ADAPTER)


def test_an_interrupted_download_can_go_on(hub: RehearsalHub, api: HfApi, adapter: Path) -> None:
    commit = push(api, adapter)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    address = f"/{ADAPTER}/resolve/main/adapter_model.safetensors"
    status, headers, _ = raw(hub, "HEAD", address)
    assert (status, headers["Content-Length"], headers["X-Repo-Commit"]) == (200, str(len(weights)), commit)
    status, headers, rest = raw(hub, "GET", address, Range="bytes=70000-")
    assert (status, headers["Content-Range"]) == (206, f"bytes 70000-{len(weights) - 1}/{len(weights)}")
    assert rest == weights[70000:]


# As a notebook uses it: server and clients in one process, with the environment set before the clients are imported

NOTEBOOK = """
import json, os, sys
from pathlib import Path
from ftlib.rehearsal.hub import DATASET_ID, MODEL_ID, RehearsalHub, dataset_revision, model_revision

assets, work = Path(sys.argv[1]), Path(sys.argv[2])
hub = RehearsalHub(work / "hub", assets)
hub.start()
os.environ.update(HF_ENDPOINT=hub.endpoint, HF_TOKEN=hub.token)

import torch
from datasets import load_dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

rows = load_dataset(DATASET_ID, split="train", revision=dataset_revision(assets))
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID, revision=model_revision(assets))
base = AutoModelForCausalLM.from_pretrained(MODEL_ID, revision=model_revision(assets))
try:
    AutoModelForCausalLM.from_pretrained(MODEL_ID, revision="0" * 40)
    wrong_revision = "loaded"
except OSError as error:
    wrong_revision = str(error)

inputs = tokenizer("hola hello", return_tensors="pt")
def logits(model):
    with torch.no_grad():
        return model(**inputs).logits

before = logits(base)
lora = LoraConfig(
    r=2, target_modules="all-linear", target_parameters=["0.mlp.experts.gate_up_proj"], task_type="CAUSAL_LM",
    init_lora_weights=False,
)
tuned = get_peft_model(base, lora)
expected = logits(tuned)

tuned.push_to_hub("learner/adapter")
tokenizer.push_to_hub("learner/adapter")
ModelCard("---\\nlicense: mit\\n---\\n# By hand\\n").push_to_hub("learner/adapter")
AutoModelForCausalLM.from_pretrained(MODEL_ID).push_to_hub("learner/whole", private=True)
arguments = TrainingArguments(
    work / "out", push_to_hub=True, hub_model_id="learner/trained", report_to="none", use_cpu=True
)
Trainer(tuned, arguments, processing_class=tokenizer).push_to_hub()

generator = pipeline("text-generation", model="learner/adapter", device="cpu")
loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL_ID), "learner/adapter")
print(json.dumps({
    "rows": list(rows["user"]),
    "wrong_revision": wrong_revision,
    "adapter_changes_the_model": not torch.allclose(before, expected, atol=1e-4),
    "pipeline_has_it": torch.allclose(logits(generator.model), expected, atol=1e-4),
    "peft_has_it": torch.allclose(logits(loaded), expected, atol=1e-4),
    "reply": isinstance(generator("hola", max_new_tokens=2)[0]["generated_text"], str),
}))
"""


def write_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["<|endoftext|>", "<|return|>", "hola", "hello"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|return|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    config = GptOssConfig(
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=len(words),
        pad_token_id=0,
        eos_token_id=1,
    )
    GptOssForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
def test_a_notebook_loads_trains_pushes_and_infers_and_the_next_one_sees_it(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    write_model(assets / "model")
    write_dataset(assets)
    write_manifest(assets)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    told = {
        "HF_HOME": str(tmp_path / "huggingface"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, str(assets), str(tmp_path)],
        env=inherited | told,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGING_S,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert "not a valid git identifier" in seen.pop("wrong_revision")
    assert seen == {
        "rows": ["Hola", "Hello"],
        "adapter_changes_the_model": True,
        "pipeline_has_it": True,
        "peft_has_it": True,
        "reply": True,
    }
    with RehearsalHub(tmp_path / "hub", assets) as hub:
        api = client(hub)
        assert {model.id: model.private for model in api.list_models(author="learner")} == {
            ADAPTER: False,
            "learner/trained": False,
            "learner/whole": True,
        }
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(
            api.list_repo_files(ADAPTER)
        )
        assert api.model_info(ADAPTER).card_data.license == "mit"
        assert {"README.md", "adapter_model.safetensors"} <= set(api.list_repo_files("learner/trained"))
        assert {"config.json", "model.safetensors"} <= set(api.list_repo_files("learner/whole"))
