"""A rehearsal Hub on this machine: the real clients push and download here without an account or a network.

It listens on the loopback address, asks for a token and serves the part of the Hub's API that the notebooks use;
`room` serves many learners with it. It answers no web page, and no request keeps it busy for long. The shipped model
and data set are read-only. Pushed repositories outlive the server in a state folder: one JSON file each, replaced whole
by every commit, and the files' contents under their git ids in `blobs/`.
"""

import asyncio
import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import parse_qs

import uvicorn
import yaml
from filelock import FileLock
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ftlib.errors import FtlibError
from ftlib.profiles.schema import REPO_ID
from ftlib.rehearsal import ASSETS

ACCOUNT = "learner"
MODEL_ID = "rehearsal/gpt-oss-tiny"
DATASET_ID = "rehearsal/multilingual-thinking-sample"

_SHIPPED = {("models", MODEL_ID): "model", ("datasets", DATASET_ID): "dataset"}  # a repository's folder of the assets
_HOST = "127.0.0.1"
_LONGEST_BODY = 2**28  # an adapter of the published model, as text
_LONGEST_METADATA = 2**16  # characters; more would keep the parser busy for seconds
_DEEPEST_METADATA = 20  # a card's results lie six deep
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
_PATIENCE_S = 60.0  # for a whole request
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # what handlers make of bad bodies


class File(BaseModel, frozen=True):
    """A file's git blob id, by which clients recognise unchanged files, and its size."""

    oid: str
    size: int


class Commit(BaseModel, frozen=True):
    """All files of a repository at one time, by path."""

    id: str
    date: str
    title: str
    files: dict[str, File]


class Repo(BaseModel, frozen=True):
    """A repository with its commits, newest first."""

    id: str
    private: bool
    commits: tuple[Commit, ...]

    def at(self, revision: str) -> Commit:
        """Find the commit that "main" or a full commit id names."""
        for commit in self.commits:
            if revision in ("main", commit.id):
                return commit
        raise refusal(404, f"{self.id} has no revision {revision!r}: expected 'main' or a commit id", "Revision")


Handler = Callable[[Request], Awaitable[Response]]
AccountOf = Callable[[Request], str]  # whose token a request carries; it raises the refusal of any other


def new_token() -> str:
    """A token of a kind that `session.redaction` knows."""
    return f"rehearsal_{secrets.token_urlsafe(24)}"


def revision(folder: str) -> str:
    """The pinned commit of the shipped "model" or "dataset": 40 hex digits that follow from its files' SHA-256."""
    files = _manifest(folder)
    return hashlib.sha1("".join(f"{sha256} {path}\n" for path, sha256 in files.items()).encode()).hexdigest()


def _manifest(folder: str) -> dict[str, str]:
    files: dict[str, str] = json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))["files"]
    return {name.removeprefix(f"{folder}/"): files[name] for name in sorted(files) if name.startswith(f"{folder}/")}


def _git_file(data: bytes) -> File:
    return File(oid=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), size=len(data))


def refusal(status: int, message: str, missing: str = "Repo") -> HTTPException:
    """An error answer; with a 404, `missing` tells the client what was not found: "Repo", "Revision" or "Entry"."""
    return HTTPException(status, message, {"X-Error-Code": f"{missing}NotFound"} if status == 404 else {})


def metadata(card: str) -> dict[str, Any]:
    """The YAML mapping between the "---" lines that a model card begins with; ValueError if that is something else.

    It takes no aliases, a few lines of which can grow without end, and no deep nesting, which takes minutes to parse.
    """
    first, *rest = card.lstrip().splitlines() or [""]
    text = "\n".join(takewhile(lambda line: line != "---", rest)) if first == "---" and "---" in rest else ""
    if len(text) > _LONGEST_METADATA:
        raise ValueError("too long")
    depth = 0
    try:
        for event in yaml.parse(text, _LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST_METADATA:
                raise ValueError("an alias, or too deep")
        values = yaml.load(text or "{}", _LOADER)
    except yaml.YAMLError as error:
        raise ValueError("no YAML") from error
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    return values


def _is_whole(content: Path, file: File) -> bool:
    """Whether a file holds what its id says, and so is neither damaged nor a link to something else."""
    return content.is_file() and _git_file(content.read_bytes()) == file


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that a reader, or a kill half-way, finds whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _read_shipped(repo_id: str, folder: str) -> Repo:
    files = {}
    for path, sha256 in _manifest(folder).items():
        shipped = ASSETS / folder / path
        data = shipped.read_bytes() if shipped.is_file() else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise FtlibError(f"{shipped} is missing or changed: expected SHA-256 {sha256}; install ftlib again")
        files[path] = _git_file(data)
    pinned = Commit(id=revision(folder), date="2025-08-05T00:00:00.000Z", title="Shipped with ftlib", files=files)
    # As in published repositories, main has moved on: only a pinned request gets the pinned commit.
    main = pinned.model_copy(update={"id": hashlib.sha1(pinned.id.encode()).hexdigest()})
    return Repo(id=repo_id, private=False, commits=(main, pinned))


def _check_own(request: Request, repo_id: str) -> None:
    account = request.state.account
    if not repo_id.startswith(f"{account}/"):
        raise refusal(403, f"{repo_id} is read-only: expected an id that starts with {account}/")


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or str(PurePosixPath(path)) != path or not {"/", "..", ".git"}.isdisjoint(parts):
        raise refusal(400, f"{path!r} is no path in a repository: expected one such as 'folder/file'")


async def _own_model(request: Request) -> str:
    """The id in the body of a request to create or delete a repository."""
    asked = await request.json()
    if (kind := asked.get("type") or "model") != "model":
        raise refusal(400, f"it takes no {kind} repositories: expected a model")
    repo_id = f"{asked.get('organization') or request.state.account}/{asked['name']}"
    _check_own(request, repo_id)
    return repo_id


def _entries(files: dict[str, File]) -> dict[str, dict[str, Any]]:
    """Every file and folder of a commit by path, as the Hub's tree describes them."""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in sorted(files.items()):
        for folder in [str(parent) for parent in PurePosixPath(path).parents][-2::-1]:
            entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        entries[path] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    return entries


class Api:
    """The Hub's HTTP interface, for requests that carry an account's token to the address that it listens on."""

    called = "a rehearsal Hub on this machine"

    def __init__(self, state_dir: Path, account_of: AccountOf, host: str = _HOST) -> None:
        self._state, self._account_of, self._host = state_dir, account_of, host
        state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(state_dir / ".lock")  # several servers may share the folder
        self._shipped = {place: _read_shipped(place[1], folder) for place, folder in _SHIPPED.items()}

    def routes(self) -> list[Route]:
        """What it answers."""
        repo, file = "/api/{kind}/{owner}/{name}", "/{owner}/{name}/resolve/{revision}/{path:path}"
        table: list[tuple[str, str, Handler]] = [
            ("POST", "/api/validate-yaml", self._validate_yaml),
            ("GET", "/api/whoami-v2", self._whoami),
            ("POST", "/api/repos/create", self._create),
            ("DELETE", "/api/repos/delete", self._delete),
            ("GET", repo, self._info),
            ("GET", repo + "/revision/{revision}", self._info),
            ("GET", repo + "/tree/{revision}{path:path}", self._tree),
            ("POST", repo + "/paths-info/{revision}", self._paths_info),
            ("GET", repo + "/commits/{revision}", self._commits),
            ("GET", repo + "/auth-check/write", self._auth_check),
            ("POST", repo + "/preupload/{revision}", self._preupload),
            ("POST", repo + "/commit/{revision}", self._commit),
            ("GET", "/{kind}" + file, self._resolve),
            ("GET", file, self._resolve),
        ]
        known = self._account_of
        return [Route(path, self.guarded(handler, known), methods=[method]) for method, path, handler in table]

    def app(self, longest_body: int = _LONGEST_BODY) -> Starlette:
        """The application to serve, which refuses a body of more bytes."""
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[self._host])  # no name that somebody else pointed here
        errors = dict.fromkeys((HTTPException, OSError, *MALFORMED), self._explain)
        return Starlette(
            routes=self.routes(), middleware=[hosts], exception_handlers=errors, max_body_size=longest_body
        )

    def guarded(self, handler: Handler, account_of: AccountOf) -> Handler:
        """A handler that finds in `request.state.account` who asks, and that no web page and no slow client reaches."""

        async def answer(request: Request) -> Response:
            if "origin" in request.headers:
                raise refusal(403, "it answers programs: found a request of a web page")
            request.state.account = account_of(request)
            async with asyncio.timeout(_PATIENCE_S):
                return await handler(request)

        return answer

    def _record(self, repo_id: str) -> Path:
        """Where a pushed model is kept; an id that could lead out of the folder is refused."""
        if not REPO_ID.fullmatch(repo_id):
            raise refusal(404, f"{repo_id!r} is not a valid id: expected letters, digits, '-', '_' and '.'")
        return self._state / "models" / f"{repo_id}.json"

    def _get(self, kind: str, repo_id: str) -> Repo:
        """Read a repository as it is on disk now, whichever server pushed to it; `kind` is "models" or "datasets"."""
        if shipped := self._shipped.get((kind, repo_id)):
            return shipped
        if kind != "models" or not (record := self._record(repo_id)).is_file():
            known = f"{MODEL_ID}, {DATASET_ID} or what was pushed here"
            raise refusal(404, f"no {repo_id!r} among its {kind}: expected {known}; for huggingface.co change profile")
        with suppress(ValueError):
            repo = Repo.model_validate_json(record.read_bytes())
            if repo.id == repo_id:
                return repo
        place = f"hub/models/{repo_id}.json in the run's folder"
        raise refusal(422, f"its record of {repo_id} is damaged: delete {place} and push again")

    def _append(self, repo: Repo, files: dict[str, File], title: str) -> Commit:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = Commit(id=secrets.token_hex(20), date=now, title=title, files=files)
        self._keep(repo.model_copy(update={"commits": (commit, *repo.commits)}))
        return commit

    def _keep(self, repo: Repo) -> None:
        write_whole(self._record(repo.id), repo.model_dump_json(indent=1).encode())

    def _located(self, request: Request) -> tuple[Repo, Commit, str]:
        """Find the repository, commit and path that a request's address names."""
        given = request.path_params
        repo = self._get(given.get("kind", "models"), f"{given['owner']}/{given['name']}")
        return repo, repo.at(given.get("revision", "main")), given.get("path", "").strip("/")

    def _content(self, repo: Repo, path: str, file: File) -> Path:
        shipped = ASSETS / ("model" if repo.id == MODEL_ID else "dataset") / path
        return shipped if repo in self._shipped.values() else self._state / "blobs" / file.oid

    async def _validate_yaml(self, request: Request) -> Response:
        card, errors = (await request.json())["content"], []
        try:
            metadata(card)
        except ValueError:
            errors = [{"message": "the card's metadata is not a YAML mapping such as 'license: mit'"}]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def _whoami(self, request: Request) -> Response:
        auth = {"accessToken": {"role": "write"}}
        return JSONResponse({"type": "user", "name": request.state.account, "orgs": [], "auth": auth})

    async def _create(self, request: Request) -> Response:
        repo_id = await _own_model(request)
        with self._lock:
            if made := not self._record(repo_id).exists():
                private = (await request.json()).get("visibility") == "private"
                self._append(Repo(id=repo_id, private=private, commits=()), {}, "initial commit")
        return JSONResponse({"name": repo_id, "url": f"{request.base_url}{repo_id}"}, 200 if made else 409)

    async def _delete(self, request: Request) -> Response:
        repo_id = await _own_model(request)
        self._get("models", repo_id)
        self._record(repo_id).unlink()  # the blobs stay
        return JSONResponse({})

    async def _info(self, request: Request) -> Response:
        repo, commit, _ = self._located(request)
        files = sorted(commit.files.items())
        siblings = [{"rfilename": path, "size": file.size, "blobId": file.oid} for path, file in files]
        about = {"id": repo.id, "sha": commit.id, "private": repo.private, "tags": []}
        return JSONResponse(about | {"siblings": siblings})

    async def _tree(self, request: Request) -> Response:
        repo, commit, folder = self._located(request)
        prefix = f"{folder}/" if folder else ""
        below = {path: entry for path, entry in _entries(commit.files).items() if path.startswith(prefix)}
        if folder and not below:
            raise refusal(404, f"{repo.id} has no folder {folder!r} at {commit.id}", "Entry")
        recursive = request.query_params.get("recursive", "").lower() == "true"
        return JSONResponse([below[path] for path in below if recursive or "/" not in path.removeprefix(prefix)])

    async def _paths_info(self, request: Request) -> Response:
        entries = _entries(self._located(request)[1].files)
        asked = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([entries[path] for path in asked if path in entries])

    async def _commits(self, request: Request) -> Response:
        commits, missing = self._located(request)[0].commits, {"message": "", "authors": []}
        return JSONResponse([commit.model_dump(exclude={"files"}) | missing for commit in commits])

    async def _auth_check(self, request: Request) -> Response:
        _check_own(request, self._located(request)[0].id)
        return JSONResponse({})

    async def _preupload(self, request: Request) -> Response:
        # A client that is told a file's id leaves the file out if it has not changed, so a push can be repeated.
        repo, commit, _ = self._located(request)
        files = commit.files.items()
        known = {path: {"oid": file.oid} for path, file in files if _is_whole(self._content(repo, path, file), file)}
        paths = [file["path"] for file in (await request.json())["files"]]
        mode = {"uploadMode": "regular", "shouldIgnore": False}
        return JSONResponse({"files": [{"path": path, **mode, **known.get(path, {})} for path in paths]})

    async def _commit(self, request: Request) -> Response:
        repo, commit, _ = self._located(request)
        _check_own(request, repo.id)
        if "create_pr" in request.query_params or commit != repo.commits[0]:
            raise refusal(400, "it has neither pull requests nor branches: expected a push to 'main'")
        header, *operations = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        if any(operation["key"] != "file" for operation in operations):
            raise refusal(400, "it only adds and replaces files")
        contents = {each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in operations}
        files = {path: _git_file(data) for path, data in contents.items()}
        for path, data in contents.items():
            _check_path(path)
            write_whole(self._state / "blobs" / files[path].oid, data)
        with self._lock:
            repo = self._get("models", repo.id)
            commit = self._append(repo, repo.commits[0].files | files, header["value"]["summary"])
        url = f"{request.base_url}{repo.id}/commit/{commit.id}"
        return JSONResponse({"success": True, "commitUrl": url, "commitOid": commit.id})

    async def _resolve(self, request: Request) -> Response:
        repo, commit, path = self._located(request)
        if path not in commit.files:
            raise refusal(404, f"{repo.id} has no file {path!r} at {commit.id}", "Entry")
        file = commit.files[path]
        content = self._content(repo, path, file)
        if not _is_whole(content, file):
            raise refusal(422, f"its copy of {path!r} in {repo.id} is damaged: push again")
        return FileResponse(content, headers={"ETag": f'"{file.oid}"', "X-Repo-Commit": commit.id})

    async def _explain(self, request: Request, error: Exception) -> Response:
        """Answer with an error in the body and, since the answer to a HEAD request has none, in a header too."""
        if isinstance(error, HTTPException):
            answer = error
        elif isinstance(error, TimeoutError):
            answer = HTTPException(408, f"expected the whole request within {_PATIENCE_S:.0f} s")
        elif isinstance(error, OSError):
            answer = HTTPException(500, f"cannot use its folder: {error.strerror}")
        else:
            answer = HTTPException(400, f"the request is malformed ({type(error).__name__})")
        message = f"This is {self.called}: {answer.detail}"
        headers = {**(answer.headers or {}), "X-Error-Message": message.encode("ascii", "replace").decode()}
        return JSONResponse({"error": message}, answer.status_code, headers)


class Server:
    """Serves an application; use `start` and `stop`, or a `with` block."""

    def __init__(self, app: Starlette, host: str = _HOST, port: int = 0) -> None:
        self.endpoint, self._app, self._host, self._port = "", app, host, port

    def start(self) -> None:
        """Serve from a daemon thread, on a free port if the port is 0; return once it answers."""
        quiet: dict[str, Any] = {"log_config": None, "log_level": "critical"}  # a notebook shows no server's log
        plain: dict[str, Any] = {"lifespan": "off", "ws": "none", "loop": "asyncio", "timeout_graceful_shutdown": 1}
        self._server = uvicorn.Server(uvicorn.Config(self._app, self._host, self._port, **quiet, **plain))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise FtlibError(f"the rehearsal Hub did not start on {self._host}; restart the kernel")
            time.sleep(0.01)
        host, port = self._server.servers[0].sockets[0].getsockname()
        self.endpoint = f"http://{host}:{port}"

    def stop(self) -> None:
        """End the server; what was pushed stays on disk."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class RehearsalHub(Server):
    """The Hub on this machine. Once it has started, point HF_ENDPOINT at `endpoint` and HF_TOKEN at `token`."""

    def __init__(self, state_dir: Path) -> None:
        self.token = new_token()
        super().__init__(Api(state_dir, self._account_of).app())

    def _account_of(self, request: Request) -> str:
        given = request.headers.get("authorization", "").encode()
        if not secrets.compare_digest(given, f"Bearer {self.token}".encode()):
            raise refusal(401, "expected the token that ftlib's session put in HF_TOKEN")
        return ACCOUNT
