"""The rehearsal Hub, as the real clients meet it."""

import contextlib
import hashlib
import http.client
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from helpers import HANGING_S
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ftlib.errors import FtlibError
from ftlib.rehearsal import ASSETS
from ftlib.rehearsal import hub as hub_module
from ftlib.rehearsal.hub import DATASET_ID, MODEL_ID, RehearsalHub, revision

ADAPTER = "learner/adapter"
CARD = "---\nlicense: apache-2.0\n---\n# An adapter\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RehearsalHub]:
    with RehearsalHub(tmp_path / "hub") as running:
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


def push(api: HfApi, folder: Path) -> str:
    api.create_repo(ADAPTER, exist_ok=True)
    return api.upload_folder(repo_id=ADAPTER, folder_path=folder, commit_message="Push").oid


def raw(hub: RehearsalHub, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    """The status of a request that is sent exactly as written, as a well-behaved client would not."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=HANGING_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Authorization": f"Bearer {hub.token}", **headers})
        return connection.getresponse().status


@pytest.mark.parametrize("gone", [False, True], ids=["changed", "missing"])
def test_a_shipped_file_that_is_not_the_one_in_the_manifest_is_refused(
    tmp_path: Path, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "ASSETS", shutil.copytree(ASSETS, tmp_path / "assets"))
    path = tmp_path / "assets/model/config.json"
    path.unlink() if gone else path.write_text("{}")
    with pytest.raises(FtlibError, match=r"config\.json is missing or changed: expected SHA-256"):
        RehearsalHub(tmp_path / "hub")


def test_main_has_moved_on_from_the_pinned_revision(api: HfApi, tmp_path: Path) -> None:
    pinned, name = revision("dataset"), "data/train-00000-of-00001.parquet"
    for asked in (pinned, "main"):
        got = api.hf_hub_download(DATASET_ID, name, repo_type="dataset", revision=asked, cache_dir=tmp_path)
        assert Path(got).read_bytes() == (ASSETS / "dataset" / name).read_bytes()
        assert (pinned in got) is (asked == pinned)
    model = revision("model")
    assert api.model_info(MODEL_ID, revision=model).sha == model != api.model_info(MODEL_ID).sha


def test_what_is_missing_is_told_apart(api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RevisionNotFoundError, match="expected 'main' or a commit id"):
        api.hf_hub_download(MODEL_ID, "config.json", revision="0" * 40, cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(MODEL_ID, "nothing.json", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError, match="no 'openai/gpt-oss-20b' among its models"):
        api.model_info("openai/gpt-oss-20b")
    assert not api.repo_exists(MODEL_ID, repo_type="dataset")


def test_only_the_accounts_own_models_can_be_written(api: HfApi, adapter: Path) -> None:
    for write in (
        lambda: api.upload_folder(repo_id=MODEL_ID, folder_path=adapter),
        lambda: api.create_repo("someone/model"),
        lambda: api.delete_repo(MODEL_ID),
        lambda: api.auth_check(MODEL_ID, write=True),
    ):
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            write()
    with pytest.raises(HfHubHTTPError, match="takes no dataset repositories"):
        api.create_repo("rows", repo_type="dataset")


def test_a_pushed_adapter_comes_back_byte_for_byte_and_outlives_the_server(tmp_path: Path, adapter: Path) -> None:
    expected = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with RehearsalHub(tmp_path / "hub") as first:
        commit, token = push(client(first), adapter), first.token
    with RehearsalHub(tmp_path / "hub") as second:
        assert second.token != token
        for asked in (None, commit):
            snapshot = client(second).snapshot_download(ADAPTER, revision=asked, cache_dir=tmp_path / "cache")
            assert {path.name: path.read_bytes() for path in Path(snapshot).iterdir()} == expected


def test_commits_are_kept_and_a_push_can_be_repeated(api: HfApi, adapter: Path, tmp_path: Path) -> None:
    first = push(api, adapter)
    assert push(api, adapter) == first, "nothing has changed"
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    second = push(api, adapter)
    for asked, rank in ((first, 8), (second, 16), ("main", 16)):
        got = api.hf_hub_download(ADAPTER, "adapter_config.json", revision=asked, cache_dir=tmp_path / "cache")
        assert json.loads(Path(got).read_text())["r"] == rank
    assert [commit.title for commit in api.list_repo_commits(ADAPTER)] == ["Push", "Push", "initial commit"]
    with pytest.raises(HfHubHTTPError, match="neither pull requests nor branches"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=ADAPTER, create_pr=True)


def test_files_and_folders_are_listed_with_sizes_and_git_ids(api: HfApi, adapter: Path) -> None:
    push(api, adapter)
    sizes = {path.name: path.stat().st_size for path in adapter.iterdir()}
    assert {file.rfilename: file.size for file in api.model_info(ADAPTER, files_metadata=True).siblings} == sizes
    (info,) = api.get_paths_info(ADAPTER, ["adapter_config.json", "nothing"])
    data = (adapter / "adapter_config.json").read_bytes()
    assert (info.size, info.blob_id) == (len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())

    def tree(**options: object) -> list[str]:
        return [entry.path for entry in api.list_repo_tree(DATASET_ID, repo_type="dataset", **options)]

    assert tree() == ["README.md", "data"]
    assert tree(recursive=True) == ["README.md", "data", "data/train-00000-of-00001.parquet"]
    assert tree(path_in_repo="data") == ["data/train-00000-of-00001.parquet"]


def test_repositories_are_created_once_are_private_if_asked_and_can_be_deleted(api: HfApi) -> None:
    url = api.create_repo("adapter", private=True)
    assert api.model_info(ADAPTER).private
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(ADAPTER)
    assert api.create_repo(ADAPTER, exist_ok=True) == url
    api.delete_repo(ADAPTER)
    assert not api.repo_exists(ADAPTER)


@pytest.mark.parametrize(
    "metadata", ["license: [mit", "- mit", "a: &a [mit]\nb: *a", "a: " + "x" * 70_000, "a: " + "[" * 99 + "]" * 99]
)
def test_a_card_with_broken_metadata_is_refused(api: HfApi, metadata: str) -> None:
    api.create_repo(ADAPTER)
    with pytest.raises(ValueError, match="not a YAML mapping"):
        api.upload_file(
            path_or_fileobj=f"---\n{metadata}\n---\n# Card\n".encode(), path_in_repo="README.md", repo_id=ADAPTER
        )
    assert api.list_repo_files(ADAPTER) == []


def test_two_servers_share_a_folder_and_lose_no_push(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "hub") as first, RehearsalHub(tmp_path / "hub") as second:
        client(first).create_repo(ADAPTER)

        def push_ten(api: HfApi, name: str) -> None:
            for number in range(10):
                api.upload_file(path_or_fileobj=b"%d" % number, path_in_repo=f"{name}/{number}", repo_id=ADAPTER)

        with ThreadPoolExecutor() as pool:
            list(pool.map(push_ten, (client(first), client(second)), "ab"))
        expected = sorted(f"{name}/{number}" for name in "ab" for number in range(10))
        assert client(first).list_repo_files(ADAPTER) == client(second).list_repo_files(ADAPTER) == expected


@pytest.mark.parametrize("folder", ["blobs", "models"])
def test_a_push_that_fails_half_way_is_reported_and_changes_nothing(
    api: HfApi, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    before, replace = push(api, adapter), Path.replace

    def fail(path: Path, to: Path) -> Path:
        if folder in to.parts:
            raise OSError(28, "No space left on device")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(HfHubHTTPError, match="No space left on device"):
        api.upload_file(path_or_fileobj=b'{"r": 16}', path_in_repo="adapter_config.json", repo_id=ADAPTER)
    assert api.model_info(ADAPTER).sha == before
    got = api.hf_hub_download(ADAPTER, "adapter_config.json", cache_dir=tmp_path / "cache")
    assert json.loads(Path(got).read_text()) == {"r": 8}


def test_a_damaged_repository_is_named_and_hides_no_other_and_another_push_repairs_it(
    hub: RehearsalHub, api: HfApi, adapter: Path, tmp_path: Path
) -> None:
    """Also a link to something outside is not what its id says."""
    push(api, adapter)
    api.create_repo("other")
    (info,) = api.get_paths_info(ADAPTER, ["README.md"])
    blob = tmp_path / "hub/blobs" / info.blob_id
    outside = tmp_path / "outside"
    outside.write_text("A secret")
    for damage in (lambda: blob.write_text(CARD.replace("An", "in")), lambda: blob.symlink_to(outside), blob.mkdir):
        blob.unlink()
        damage()
        with pytest.raises(LocalEntryNotFoundError) as raised:
            api.hf_hub_download(ADAPTER, "README.md", cache_dir=tmp_path / "cache")
        assert "its copy of 'README.md' in learner/adapter is damaged: push again" in str(raised.value.__cause__)
        blob.rmdir() if blob.is_dir() else None
    push(api, adapter)
    got = api.hf_hub_download(ADAPTER, "README.md", cache_dir=tmp_path / "cache")
    assert (Path(got).read_text(), outside.read_text()) == (CARD, "A secret")
    record = tmp_path / f"hub/models/{ADAPTER}.json"
    whole = record.read_bytes()
    for broken in (whole[:50], b"", b"[]", b"\xff", whole.replace(b"learner/", b"learned/")):
        record.write_bytes(broken)
        with pytest.raises(
            HfHubHTTPError, match=r"damaged: delete hub/models/learner/adapter.json in the run's folder"
        ):
            api.model_info(ADAPTER)
    assert api.model_info("learner/other").sha


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}])
def test_no_web_page_is_answered(hub: RehearsalHub, headers: dict[str, str]) -> None:
    assert raw(hub, "GET", f"/api/models/{MODEL_ID}") == 200
    assert raw(hub, "GET", f"/api/models/{MODEL_ID}", **headers) in (400, 403)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"name": {}}', b"\xff", b"[" * 10_000, b'{"key": "file"}\n{}'])
def test_a_malformed_request_is_the_senders_mistake(hub: RehearsalHub, api: HfApi, body: bytes) -> None:
    api.create_repo(ADAPTER)
    repo = f"/api/models/{ADAPTER}"
    for path in ("/api/validate-yaml", "/api/repos/create", f"{repo}/preupload/main", f"{repo}/commit/main"):
        assert 400 <= raw(hub, "POST", path, body) < 410
    assert api.list_repo_files(ADAPTER) == []


def test_no_request_keeps_it_busy(hub: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = json.dumps({"content": "---\n" + "\n" * 30_000}).encode()
    assert raw(hub, "POST", "/api/validate-yaml", blank) == 200
    assert raw(hub, "POST", "/api/validate-yaml", **{"Content-Length": "999999999"}) == 413
    monkeypatch.setattr(hub_module, "_PATIENCE_S", 0.1)
    assert raw(hub, "POST", "/api/validate-yaml", **{"Content-Length": "9"}) == 408


@pytest.mark.parametrize("token", [False, "hf_somebody_elses"])
def test_the_token_is_required(hub: RehearsalHub, tmp_path: Path, token: str | bool) -> None:
    api = HfApi(endpoint=hub.endpoint, token=token)
    for call in (
        lambda: api.model_info(MODEL_ID),
        lambda: api.hf_hub_download(MODEL_ID, "config.json", cache_dir=tmp_path),
        lambda: api.create_repo(ADAPTER),
        lambda: api._validate_yaml(CARD),
    ):
        with pytest.raises(HfHubHTTPError, match="This is a rehearsal Hub on this machine") as refused:
            call()
        assert refused.value.response.status_code == 401
    assert client(hub).whoami()["name"] == "learner"


def test_the_token_is_written_nowhere_and_the_server_prints_nothing(
    hub: RehearsalHub, api: HfApi, adapter: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push(api, adapter)
    raw(hub, "POST", "/api/repos/create", b"{")
    hub.stop()
    stored = [path.read_bytes() for path in (tmp_path / "hub").rglob("*") if path.is_file()]
    assert stored
    assert hub.token.encode() not in b"".join(stored)
    assert capfd.readouterr() == ("", "")


def test_only_the_loopback_address_is_bound(hub: RehearsalHub) -> None:
    port = int(hub.endpoint.rsplit(":", 1)[1])
    listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


def test_no_path_or_name_leaves_the_folders(hub: RehearsalHub, tmp_path: Path) -> None:
    record = {"id": "learner/secret", "private": False, "commits": []}
    for folder in (tmp_path, tmp_path / "hub"):
        (folder / "secret.json").write_text(json.dumps(record))
    for name in ("..", "../../secret", "a/b", "-a", "é", "", "a--b", "a..b", "a.git"):
        assert raw(hub, "POST", "/api/repos/create", json.dumps({"name": name}).encode()) == 404
    assert not list((tmp_path / "hub").rglob("models/**/*.json"))
    client(hub).create_repo(ADAPTER)
    for path in ("../file", "/file", "a//b", ".", "", ".git/config"):
        lines = {"value": {"summary": ""}}, {"key": "file", "value": {"path": path, "content": ""}}
        assert raw(hub, "POST", f"/api/models/{ADAPTER}/commit/main", "\n".join(map(json.dumps, lines)).encode()) == 400
    outside = ("../manifest.json", "..%2fmanifest.json", "%2e%2e/manifest.json")
    files = [f"/{MODEL_ID}/resolve/main/{path}" for path in outside]
    repos = [f"/api/{name}" for name in ("models/learner/..%2f..%2fsecret", "models/..%2f../secret", "../x/secret")]
    assert {raw(hub, "GET", address) for address in files + repos} == {404}
