"""A rehearsal Hub on this machine, not huggingface.co: real clients push and download here without an account.

It listens on the loopback address alone and speaks the part of the Hub's API that huggingface_hub, transformers,
datasets, peft and trl use in the notebooks. The shipped model and data set are read-only and come from the package.
What is pushed lives in a state folder and outlives the server: a JSON file a repository, replaced whole by each
commit, and file contents under their git ids in `blobs/`. Deleting a repository removes its JSON file only.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self
from urllib.parse import parse_qs, unquote

import uvicorn
import yaml
from filelock import FileLock
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ftlib.errors import FtlibError
from ftlib.rehearsal import ASSETS

ACCOUNT = "learner"
MODEL_ID = "rehearsal/gpt-oss-tiny"
DATASET_ID = "rehearsal/multilingual-thinking-sample"

_KINDS = {"model": "models", "dataset": "datasets"}  # as a body names them, and as an address does
_FRONT_MATTER = re.compile(r"\A\s*---[\r\n]+(.*?)[\r\n]+---(?:[\r\n]|\Z)", re.DOTALL)
_NAME = re.compile(r"\b[\w\-.]{1,96}\b", re.ASCII)  # huggingface_hub's own rule
# RepoCard.validate sends no token, and neither does a person who opens the address in a browser.
_OPEN_PATHS = ("/", "/api/validate-yaml")


class File(BaseModel, frozen=True):
    """A file's size in bytes and git blob id, by which clients know the files that have not changed."""

    oid: str
    size: int


class Commit(BaseModel, frozen=True):
    """All files of a repository at one time, by path."""

    id: str
    date: str
    title: str
    message: str
    files: dict[str, File]


class Repo(BaseModel, frozen=True):
    """A repository with its commits, newest first; `kind` is "models" or "datasets"."""

    kind: str
    id: str
    private: bool
    commits: tuple[Commit, ...]

    @property
    def owner(self) -> str:
        """The account or organisation in front of the name."""
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit:
        """Find the commit that "main" or a full commit id names."""
        for commit in self.commits:
            if revision in ("main", commit.id):
                return commit
        message = f"{self.id} has no revision {revision!r}: expected 'main' or a commit id such as {self.commits[0].id}"
        raise _refusal(404, message, "RevisionNotFound")


def model_revision(assets_dir: Path = ASSETS) -> str:
    """Name the pinned commit of the shipped model: 40 hex digits that follow from its files' SHA-256."""
    return _revision(_manifest(assets_dir, "model"))


def dataset_revision(assets_dir: Path = ASSETS) -> str:
    """Name the one commit of the shipped data set, as `model_revision` does for the model."""
    return _revision(_manifest(assets_dir, "dataset"))


def _manifest(assets_dir: Path, folder: str) -> dict[str, str]:
    path = assets_dir / "manifest.json"
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise FtlibError(f"{path} cannot be read ({error!r}): expected the list of ftlib's shipped files.") from error
    return {name.removeprefix(f"{folder}/"): files[name] for name in sorted(files) if name.startswith(f"{folder}/")}


def _revision(files: dict[str, str]) -> str:
    return hashlib.sha1("".join(f"{sha256} {path}\n" for path, sha256 in files.items()).encode()).hexdigest()


def _git_file(data: bytes) -> File:
    return File(oid=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), size=len(data))


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _refusal(status: int, message: str, code: str = "", commit: str = "") -> HTTPException:
    headers = {"X-Error-Code": code, "X-Repo-Commit": commit}
    return HTTPException(status, message, {name: value for name, value in headers.items() if value})


def _checked_path(path: str) -> str:
    parts = set(path.split("/"))
    if PureWindowsPath(path).anchor or "\\" in path or not path.isprintable() or parts & {"", ".", "..", ".git"}:
        raise _refusal(400, f"{path!r} is no path inside a repository: expected a relative one such as 'data/a.txt'")
    return path


def _checked_id(repo_id: str) -> str:
    named = all(_NAME.fullmatch(part) and not part.endswith(".git") for part in repo_id.split("/"))
    if not named or repo_id.count("/") > 1 or "--" in repo_id or ".." in repo_id:
        raise _refusal(400, f"{repo_id!r} is no valid id: expected owner/name, of letters, digits, '-', '_' and '.'")
    return repo_id


def _write_whole(path: Path, data: bytes) -> None:
    """Write so that a reader, or a kill half-way, meets the old file or the new one and never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _apply(files: dict[str, File], operations: list[dict[str, Any]]) -> tuple[dict[str, File], dict[str, bytes]]:
    """Work out what a commit's operations make of `files`, and which contents are new."""
    files, contents = dict(files), {}
    for operation in operations:
        key, path = operation["key"], _checked_path(operation["value"]["path"].removesuffix("/"))
        if key == "file":
            data = base64.b64decode(operation["value"]["content"], validate=True)
            files[path] = _git_file(data)
            contents[files[path].oid] = data
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))]
            if not gone:
                raise _refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise _refusal(400, f"Found the operation {key!r}: expected file, deletedFile or deletedFolder")
    for path in files:
        if any(str(folder) in files for folder in PurePosixPath(path).parents):
            raise _refusal(400, f"{path!r} lies below a path that is itself a file: expected a folder there")
    return files, contents


class RepoStore:
    """Repositories on disk: the shipped two, read-only, and those pushed under `state_dir`.

    Args:
        state_dir: Where pushed repositories and their blobs are kept; made when first needed.
        assets_dir: Holds manifest.json and the files it lists under model/ and dataset/.

    Raises:
        FtlibError: A shipped file is missing or is not the one in the manifest.
    """

    def __init__(self, state_dir: Path, assets_dir: Path) -> None:
        self._state = state_dir
        self._assets = assets_dir
        self._shipped = [self._read_shipped("model", MODEL_ID), self._read_shipped("dataset", DATASET_ID)]

    def _read_shipped(self, folder: str, repo_id: str) -> Repo:
        expected = _manifest(self._assets, folder)
        files = {}
        for path, sha256 in expected.items():
            shipped = self._assets / folder / path
            data = shipped.read_bytes() if shipped.is_file() else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise FtlibError(f"{shipped} is missing or changed: expected SHA-256 {sha256}; install ftlib again.")
            files[path] = _git_file(data)
        date = _timestamp((self._assets / "manifest.json").stat().st_mtime)
        pinned = Commit(id=_revision(expected), date=date, title="Shipped with ftlib", message="", files=files)
        # As with published repositories, main has moved on: who does not ask for the pinned commit gets another one.
        later = hashlib.sha1(f"after {pinned.id}".encode()).hexdigest()
        main = pinned.model_copy(update={"id": later, "title": "A later commit, the same files"})
        return Repo(kind=_KINDS[folder], id=repo_id, private=False, commits=(main, pinned))

    def _lock(self) -> FileLock:
        self._state.mkdir(parents=True, exist_ok=True)
        return FileLock(self._state / ".lock")

    def _record(self, kind: str, repo_id: str) -> Path:
        return self._state / kind / f"{_checked_id(repo_id)}.json"

    def repos(self, kind: str) -> list[Repo]:
        """List all repositories of a kind, the shipped one first."""
        records = sorted((self._state / kind).glob("*/*.json"))
        pushed = [Repo.model_validate_json(record.read_bytes()) for record in records]
        return [repo for repo in self._shipped if repo.kind == kind] + pushed

    def get(self, kind: str, repo_id: str) -> Repo:
        """Read one repository as it is on disk now, whichever server pushed to it."""
        for repo in self._shipped:
            if (repo.kind, repo.id) == (kind, repo_id):
                return repo
        try:
            return Repo.model_validate_json(self._record(kind, repo_id).read_bytes())
        except FileNotFoundError:
            message = f"The rehearsal Hub on this machine has no {repo_id!r} among its {kind}: expected {MODEL_ID}, "
            message += f"{DATASET_ID} or what was pushed to {ACCOUNT}/; for huggingface.co choose another profile"
            raise _refusal(404, message, "RepoNotFound") from None

    def content(self, repo: Repo, commit: Commit, path: str) -> Path:
        """Find where a file's bytes lie on disk."""
        if path not in commit.files:
            raise _refusal(404, f"{repo.id} has no file {path!r} at {commit.id}", "EntryNotFound", commit.id)
        if repo in self._shipped:
            return self._assets / ("model" if repo.kind == "models" else "dataset") / path
        return self._state / "blobs" / commit.files[path].oid

    def check_writable(self, repo_id: str) -> None:
        """Refuse what does not belong to the account."""
        if not repo_id.startswith(f"{ACCOUNT}/"):
            raise _refusal(
                403, f"{repo_id} is read-only on the rehearsal Hub: expected an id that starts with {ACCOUNT}/"
            )

    def create(self, kind: str, repo_id: str, *, private: bool) -> bool:
        """Make an empty repository; False where it is there already."""
        self.check_writable(repo_id)
        with self._lock():
            if self._record(kind, repo_id).exists():
                return False
            self._append(Repo(kind=kind, id=repo_id, private=private, commits=()), {}, "initial commit", "")
            return True

    def delete(self, kind: str, repo_id: str) -> None:
        """Remove a repository and its history."""
        self.check_writable(repo_id)
        with self._lock():
            self.get(kind, repo_id)
            self._record(kind, repo_id).unlink()

    def commit(self, kind: str, repo_id: str, header: dict[str, Any], operations: list[dict[str, Any]]) -> Commit:
        """Apply a commit's operations, all of them or none."""
        self.check_writable(repo_id)
        with self._lock():
            repo = self.get(kind, repo_id)
            head = repo.commits[0]
            if header.get("parentCommit", head.id) != head.id:
                raise _refusal(412, f"{repo_id} is at {head.id}: expected {header['parentCommit']}; fetch it again")
            files, contents = _apply(head.files, operations)
            for oid, data in contents.items():
                _write_whole(self._state / "blobs" / oid, data)
            return self._append(repo, files, header["summary"], header.get("description", ""))

    def _append(self, repo: Repo, files: dict[str, File], title: str, message: str) -> Commit:
        date = _timestamp(time.time())
        draft = Commit(id="", date=date, title=title, message=message, files=files)
        seed = repo.kind + repo.id + "".join(old.id for old in repo.commits) + draft.model_dump_json()
        commit = draft.model_copy(update={"id": hashlib.sha1(seed.encode()).hexdigest()})
        longer = repo.model_copy(update={"commits": (commit, *repo.commits)})
        _write_whole(self._record(repo.kind, repo.id), longer.model_dump_json(indent=1).encode())
        return commit


def _card_metadata(card: str) -> dict[str, Any]:
    """Parse a card's YAML front matter: empty where there is none, ValueError where it is no mapping."""
    block = _FRONT_MATTER.match(card)
    try:
        metadata = (yaml.safe_load(block[1]) if block else None) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata is not valid YAML: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata is a {type(metadata).__name__}: expected a mapping such as 'license: mit'")
    # YAML knows dates and NaN, the JSON of an answer does not.
    plain: dict[str, Any] = json.loads(json.dumps(metadata, default=str), parse_constant=str)
    return plain


def _describe(repo: Repo, commit: Commit, card: dict[str, Any], *, sizes: bool) -> dict[str, Any]:
    """Tell about a repository what the Hub tells, as far as a rehearsal has it."""
    named = {key: card[key] for key in ("library_name", "pipeline_tag") if card.get(key)}
    tags = card.get("tags") or []
    licenses = [f"license:{card['license']}"] if card.get("license") else []
    return named | {
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.id,
        "createdAt": repo.commits[-1].date,
        "lastModified": repo.commits[0].date,
        "private": repo.private,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*(tags if isinstance(tags, list) else [tags]), *named.values(), *licenses],
        "cardData": card,
        "siblings": [
            {"rfilename": path} | ({"size": file.size, "blobId": file.oid} if sizes else {})
            for path, file in sorted(commit.files.items())
        ],
    }


def _entries(files: dict[str, File]) -> dict[str, dict[str, Any]]:
    """Describe every file and folder of a commit as the Hub's tree does, by path."""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in sorted(files.items()):
        for folder in [str(parent) for parent in PurePosixPath(path).parents][-2::-1]:
            inside = "".join(f"{name} {files[name].oid}\n" for name in sorted(files) if name.startswith(f"{folder}/"))
            oid = hashlib.sha1(inside.encode()).hexdigest()
            entries[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
        entries[path] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    return entries


class _Api:
    """The Hub's HTTP interface over a store."""

    def __init__(self, store: RepoStore) -> None:
        self._store = store

    def app(self) -> Starlette:
        repo, file = "/api/{kind}/{owner}/{name}", "/resolve/{revision}/{path:path}"
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/", self.welcome),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/repos/create", self.create),
            ("DELETE", "/api/repos/delete", self.delete),
            ("GET", "/api/{kind}", self.listing),
            ("GET", "/api/{kind}/{name}", self.info),
            ("GET", repo, self.info),
            ("GET", repo + "/revision/{revision}", self.info),
            ("GET", repo + "/tree/{revision}", self.tree),
            ("GET", repo + "/tree/{revision}/{path:path}", self.tree),
            ("POST", repo + "/paths-info/{revision}", self.paths_info),
            ("GET", repo + "/refs", self.refs),
            ("GET", repo + "/commits/{revision}", self.commits),
            ("GET", repo + "/auth-check", self.auth_check),
            ("GET", repo + "/auth-check/{write}", self.auth_check),
            ("POST", repo + "/preupload/{revision}", self.preupload),
            ("POST", repo + "/commit/{revision}", self.commit),
            ("GET", "/{kind}/{owner}/{name}" + file, self.resolve),
            ("GET", "/{owner}/{name}" + file, self.resolve),
            ("GET", "/{name}" + file, self.resolve),
        ]
        routes = [Route(path, handler, methods=[method]) for method, path, handler in table]
        return Starlette(
            routes=[*routes, Route("/{path:path}", self.unknown, methods=["GET", "POST", "PUT", "DELETE"])],
            exception_handlers=dict.fromkeys((HTTPException, ValueError, LookupError, TypeError, OSError), _explain),
        )

    def _kind(self, request: Request) -> str:
        kind = str(request.path_params.get("kind", "models"))
        if kind not in _KINDS.values():
            raise _refusal(404, f"The rehearsal Hub keeps no {kind!r}: expected models or datasets")
        return kind

    def _located(self, request: Request) -> tuple[Repo, Commit, str]:
        """Find the repository, commit and path that a request's address names."""
        given = {name: unquote(value) for name, value in request.path_params.items()}
        # On huggingface.co a few names, "gpt2" say, have no owner: none of them is here.
        repo_id = f"{given['owner']}/{given['name']}" if "owner" in given else given["name"]
        repo = self._store.get(self._kind(request), repo_id)
        path = given.get("path", "")
        return repo, repo.at(given.get("revision", "main")), path and _checked_path(path)

    def _summary(self, repo: Repo, commit: Commit, *, sizes: bool) -> dict[str, Any]:
        card: dict[str, Any] = {}
        if "README.md" in commit.files:
            # A card that cannot be parsed must not hide its repository.
            with suppress(ValueError):
                card = _card_metadata(self._store.content(repo, commit, "README.md").read_text(encoding="utf-8"))
        return _describe(repo, commit, card, sizes=sizes)

    async def welcome(self, request: Request) -> Response:
        text = "This is a rehearsal Hub on this machine, not huggingface.co: what is pushed here stays here.\n"
        return PlainTextResponse(f"{text}It serves {MODEL_ID}, {DATASET_ID} and what was pushed to {ACCOUNT}/.\n")

    async def validate_yaml(self, request: Request) -> Response:
        try:
            metadata = _card_metadata((await request.json())["content"])
        except ValueError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return JSONResponse({"errors": [], "warnings": warnings})

    async def whoami(self, request: Request) -> Response:
        auth = {"type": "access_token", "accessToken": {"displayName": "rehearsal", "role": "write"}}
        account = {"type": "user", "id": ACCOUNT, "name": ACCOUNT, "fullname": "Rehearsal learner", "orgs": []}
        return JSONResponse(account | {"auth": auth})

    async def create(self, request: Request) -> Response:
        asked = await request.json()
        kind, repo_id = _wanted(asked)
        answer = {"name": repo_id, "url": _web_url(request, kind, repo_id)}
        if self._store.create(kind, repo_id, private=asked.get("visibility") == "private"):
            return JSONResponse(answer)
        return JSONResponse(answer | {"error": f"You already created {repo_id} on the rehearsal Hub"}, 409)

    async def delete(self, request: Request) -> Response:
        self._store.delete(*_wanted(await request.json()))
        return JSONResponse({})

    async def listing(self, request: Request) -> Response:
        author, search = request.query_params.get("author"), request.query_params.get("search", "").lower()
        repos = [repo for repo in self._store.repos(self._kind(request)) if author in (None, repo.owner)]
        found = [repo for repo in repos if search in repo.id.lower()]
        return JSONResponse([self._summary(repo, repo.commits[0], sizes=False) for repo in found])

    async def info(self, request: Request) -> Response:
        repo, commit, _ = self._located(request)
        return JSONResponse(self._summary(repo, commit, sizes="blobs" in request.query_params))

    async def tree(self, request: Request) -> Response:
        repo, commit, folder = self._located(request)
        prefix = f"{folder}/" if folder else ""
        below = {path: entry for path, entry in _entries(commit.files).items() if path.startswith(prefix)}
        if folder and not below:
            raise _refusal(404, f"{repo.id} has no folder {folder!r} at {commit.id}", "EntryNotFound")
        recursive = request.query_params.get("recursive", "").lower() == "true"
        return JSONResponse([below[path] for path in below if recursive or "/" not in path.removeprefix(prefix)])

    async def paths_info(self, request: Request) -> Response:
        _, commit, _ = self._located(request)
        entries = _entries(commit.files)
        asked = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([entries[path] for path in asked if path in entries])

    async def refs(self, request: Request) -> Response:
        _, commit, _ = self._located(request)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit.id}
        return JSONResponse({"branches": [main], "converts": [], "tags": [], "pullRequests": []})

    async def commits(self, request: Request) -> Response:
        repo, newest, _ = self._located(request)
        history = repo.commits[repo.commits.index(newest) :]
        authors = {"authors": [{"user": repo.owner}]}
        return JSONResponse([commit.model_dump(exclude={"files"}) | authors for commit in history])

    async def auth_check(self, request: Request) -> Response:
        repo, _, _ = self._located(request)
        if "write" in request.path_params:
            self._store.check_writable(repo.id)
        return JSONResponse({})

    def _located_for_push(self, request: Request) -> tuple[Repo, Commit]:
        repo, commit, _ = self._located(request)
        self._store.check_writable(repo.id)
        if "create_pr" in request.query_params or commit != repo.commits[0]:
            raise _refusal(400, "The rehearsal Hub has neither pull requests nor branches: expected a push to 'main'")
        return repo, commit

    async def preupload(self, request: Request) -> Response:
        _, commit = self._located_for_push(request)
        paths = [_checked_path(file["path"]) for file in (await request.json())["files"]]
        # Told the id of the file that is there, a client leaves an unchanged one out: a push can be repeated.
        oids = {path: commit.files[path].oid if path in commit.files else None for path in paths}
        answer = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oids[path]} for path in paths]
        return JSONResponse({"files": answer})

    async def commit(self, request: Request) -> Response:
        repo, _ = self._located_for_push(request)
        header, *operations = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        commit = self._store.commit(repo.kind, repo.id, header["value"], operations)
        url = f"{_web_url(request, repo.kind, repo.id)}/commit/{commit.id}"
        return JSONResponse({"success": True, "commitUrl": url, "commitOid": commit.id})

    async def resolve(self, request: Request) -> Response:
        repo, commit, path = self._located(request)
        content = self._store.content(repo, commit, path)
        headers = {"ETag": f'"{commit.files[path].oid}"', "X-Repo-Commit": commit.id}
        return FileResponse(content, headers=headers, media_type="application/octet-stream")

    async def unknown(self, request: Request) -> Response:
        raise _refusal(
            404, f"The rehearsal Hub has no {request.method} {request.url.path}: expected a push or download"
        )


def _wanted(asked: dict[str, Any]) -> tuple[str, str]:
    """Read kind and id from the body of a request to create or delete a repository."""
    kind = asked.get("type", "model")
    if kind not in _KINDS:
        raise _refusal(400, f"The rehearsal Hub keeps no {kind} repositories: expected a model or a dataset")
    return _KINDS[kind], f"{asked.get('organization') or ACCOUNT}/{asked['name']}"


def _web_url(request: Request, kind: str, repo_id: str) -> str:
    return f"{request.base_url}{'' if kind == 'models' else f'{kind}/'}{repo_id}"


async def _explain(request: Request | None, error: Exception) -> Response:
    """Answer a refusal in the body and, as the answer to a HEAD request has none, in a header too."""
    status, headers, message = 400, {}, f"The rehearsal Hub cannot read this request ({type(error).__name__}: {error})"
    if isinstance(error, HTTPException):
        status, headers, message = error.status_code, dict(error.headers or {}), error.detail
    elif isinstance(error, OSError):
        status, message = 500, f"The rehearsal Hub cannot use its folder: {error}"
    headers["X-Error-Message"] = " ".join(message.split()).encode("ascii", "replace").decode()
    return JSONResponse({"error": message}, status, headers)


class _Gate:
    """Lets in who has the token, and hands on the path as it was sent: a quoted "/" does not separate segments."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1")
        given = dict(scope["headers"]).get(b"authorization", b"")
        app = self._app
        if path not in _OPEN_PATHS and not secrets.compare_digest(given, self._expected):
            message = "This is a rehearsal Hub on this machine: expected the token that ftlib's session put in HF_TOKEN"
            app = await _explain(None, _refusal(401, message))
        await app({**scope, "path": path}, receive, send)


class RehearsalHub:
    """The server. `start` it, point HF_ENDPOINT at `endpoint` and HF_TOKEN at `token`; or use it in a `with` block.

    Args:
        state_dir: Where pushed repositories are kept; several servers may share it.
        assets_dir: The shipped model and data set with their manifest.

    Raises:
        FtlibError: The shipped files are missing or changed, or the server does not start.
    """

    def __init__(self, state_dir: Path, assets_dir: Path = ASSETS) -> None:
        self.token = f"rehearsal_{secrets.token_urlsafe(24)}"
        self._app = _Gate(_Api(RepoStore(state_dir, assets_dir)).app(), self.token)
        self._running: tuple[uvicorn.Server, threading.Thread, socket.socket] | None = None

    @property
    def endpoint(self) -> str:
        """The address to set HF_ENDPOINT to; raises FtlibError while the server is not running."""
        if self._running is None:
            raise FtlibError("The rehearsal Hub is not running: expected start() before its endpoint is asked for.")
        host, port = self._running[2].getsockname()
        return f"http://{host}:{port}"

    def start(self) -> None:
        """Serve on a free port of the loopback address from a daemon thread; return once it answers."""
        # Only where the protocol is named does asyncio turn Nagle's algorithm off, which costs 40 ms a request.
        listener = socket.socket(proto=socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        # A notebook's output is no place for a server's log.
        config = uvicorn.Config(
            self._app,
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="rehearsal-hub", daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise FtlibError("The rehearsal Hub did not start: expected a server on 127.0.0.1; restart the kernel.")
            time.sleep(0.01)
        self._running = server, thread, listener

    def stop(self) -> None:
        """End the server; what was pushed stays on disk."""
        if self._running is not None:
            server, thread, listener = self._running
            server.should_exit = True
            thread.join()
            listener.close()
            self._running = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
