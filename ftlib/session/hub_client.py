"""The Hub: a client that retries what may succeed later, an early check of access, and its errors in one line."""

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from ftlib.errors import FtlibError
from ftlib.profiles import Hub

TIMEOUT_S = 5.0  # for a question that takes the Hub no time
# Seconds without progress, not of a whole transfer. The Hub answers a commit only when it has stored it.
PATIENCE_S = {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": None}
WAITS_S = (1, 2, 4, 8)
LONGEST_S = 20  # no attempt after the second begins later, and no Retry-After is followed for longer
COMMIT = re.compile(rb"[0-9a-f]{40}")
UNHEARD = (httpx2.ConnectError, httpx2.ConnectTimeout)
BROKEN = (httpx2.ReadError, httpx2.RemoteProtocolError)
LOST = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
OUT_OF_REACH = "the Hub is out of reach"
LOG_IN = "run `hf auth login` in a terminal, or set HF_TOKEN"
ADVICE = {
    401: f"{LOG_IN} to a valid token",
    403: "use a token that may write there, or change hub.push_target",
    404: "check hub.push_target and hub.model",
    **dict.fromkeys((409, 412), "wait until nobody else pushes there"),
    429: "give it a few minutes",
}


class PatientClient(httpx2.Client):
    """huggingface_hub's HTTP client, with timeouts and with new attempts after an error that may pass."""

    def __init__(self, token: str = "") -> None:
        """With a token for the requests that huggingface_hub sends without: the rehearsal Hub wants one on each."""
        from huggingface_hub.utils._http import hf_request_event_hook

        self._was_answered = False
        own: dict[str, Any] = {"headers": {"Authorization": f"Bearer {token}"}} if token else {}
        hooks = {"request": [hf_request_event_hook]}
        super().__init__(event_hooks=hooks, follow_redirects=True, timeout=httpx2.Timeout(**PATIENCE_S), **own)

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request up to five times; one whose body cannot be read twice, or that nobody ever heard, once."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        # After a HEAD that nobody answers, huggingface_hub itself looks into its cache and then asks again.
        may_pass = BROKEN if request.method == "HEAD" else (HfHubHTTPError, *LOST)
        waits = list(WAITS_S) if isinstance(request.stream, httpx2.ByteStream) else []
        begun = time.monotonic()
        while True:
            try:
                return self._attempt(request, options)
            except (*UNHEARD, *may_pass) as error:
                if isinstance(error, UNHEARD) and not self._was_answered:
                    # As it does offline, a library then looks into its cache, and does not try again on its own.
                    raise OfflineModeIsEnabled(str(error)) from error
                if not isinstance(error, may_pass):
                    raise
                late = len(waits) < len(WAITS_S) and time.monotonic() - begun > LONGEST_S
                if (late or not waits) and isinstance(error, HfHubHTTPError):
                    raise
                if late or not waits:  # huggingface_hub's own retries, which would begin again, let this one through
                    raise httpx2.TransportError(str(error), request=request) from error
                asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
                print(f"{_told(error)}; trying again", file=sys.stderr)
                time.sleep(max(waits.pop(0), min(int(asked), LONGEST_S) if asked.isdecimal() else 0))

    def _attempt(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        from huggingface_hub import hf_raise_for_status

        response = super().send(request, **options)
        self._was_answered = True
        status, is_commit = response.status_code, "/commit/" in request.url.path
        # Elsewhere a conflict says that a repository exists already, which huggingface_hub expects.
        may_pass = status in (408, 429) or status >= 500 or (status in (409, 412) and is_commit)
        if may_pass and request.method != "HEAD":
            response.read()
            hf_raise_for_status(response)
        return response


def explain(error: BaseException, command: str = "") -> str:
    """An error of the Hub, or one that it caused, in one line, with the command to push later; "" for any other."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, (httpx2.HTTPError, ConnectionError)):
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    if found is None:
        return ""
    status = int(found.response.status_code) if hasattr(found, "response") else 0
    otherwise = "wait until it is well again" if status >= 500 else "look at the repository and your account there"
    advice = _missing(found) or ADVICE.get(status, otherwise) if status else "check the network and the proxy"
    if status == 401 and "ftlib join" in _says(found):
        advice = "join the room again with `ftlib join`"
    then = f", then run `{command}`; the saved adapter is complete and unchanged" if command else ""
    return f"{_told(found)}; {advice}{then}"


def _told(error: BaseException) -> str:
    """What happened, in our own words: an error's text, or a far Hub's, may hold a secret."""
    if not hasattr(error, "response"):
        return f"{OUT_OF_REACH} ({type(error.__cause__ or error).__name__})"
    status, says = int(error.response.status_code), _says(error)
    told = f"the Hub answers {status} {httpx2.codes.get_reason_phrase(status)}".rstrip()
    return f"{told} ({says})" if says and status not in ADVICE else told


def _says(error: Any) -> str:
    """A rehearsal Hub's own words: no other Hub is spoken to without encryption."""
    is_near = error.response.request.url.scheme == "http"
    return str(error.response.headers.get("X-Error-Message", "")) if is_near else ""


def _missing(error: BaseException) -> str:
    """Which repository or revision was not found, and where the profile names it; "" for any other error."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"accept the conditions of {error.repo_id} on its page there, and {LOG_IN}"
    if not isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)) or not error.repo_id:
        return ""
    kind, key, pin = "model", "hub.push_target and hub.model", "hub.model_revision"
    if error.repo_type == "dataset":
        kind, key, pin = "data set", "data.dataset", "data.revision"
    if isinstance(error, RevisionNotFoundError):
        asked = re.search(r"/(?:revision|resolve|tree)/([^/]+)", error.response.request.url.path)
        return f"{kind} {error.repo_id} has no revision {asked[1] if asked else ''!r}; check {pin}"
    return f"there is no {kind} {error.repo_id}, or your token may not see it; check {key}"


def check_access(hub: Hub, command: str = "") -> str:
    """Check early that the adapter may be pushed; returns the id of the repository, which need not exist yet."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    token = get_token()
    if not token:
        raise FtlibError(f"found no token, expected one that may write to hub.push_target {hub.push_target}; {LOG_IN}")
    try:
        account = whoami(token)
        repo = target(hub, account)
        if not may_write(account, repo):
            raise FtlibError(f"found a token of {account['name']} that may not write to {repo}; {ADVICE[403]}")
        public = not HfApi().model_info(repo, timeout=TIMEOUT_S).private
        HfApi().auth_check(repo, write=True)
    except RepositoryNotFoundError:
        return repo
    except Exception as error:
        if line := explain(error, command):
            raise FtlibError(line) from None
        raise
    if public and hub.private:
        found = f"found {repo} public, expected a private repository, as hub.private = true says"
        raise FtlibError(f"{found}; make it private on the Hub, or change hub.private or hub.push_target")
    return repo


def check_download(repo: str, revision: str | None = None) -> None:
    """Compare a model's cached files with the Hub's checksums, if it is cached; FtlibError if one is damaged.

    It reads them all: 13 GB for the published base, 10 to 30 s. Without a revision, it looks at the newest one.
    """
    from huggingface_hub import HfApi, constants, file_download

    folder = file_download.repo_folder_name(repo_id=repo, repo_type="model")
    cached = Path(constants.HF_HUB_CACHE, folder)
    if not cached.is_dir():
        return
    try:
        revision = revision or str(HfApi().model_info(repo, timeout=TIMEOUT_S).sha)
        is_there = (cached / "snapshots" / revision).is_dir()
        found = HfApi().verify_repo_checksums(repo, revision=revision).mismatches if is_there else []
    except Exception as error:
        if line := explain(error):
            raise FtlibError(line) from None
        raise
    damaged = [str(file["path"]) for file in found]
    refs = [path for path in (cached / "refs").rglob("*") if path.is_file()]
    damaged += [path.relative_to(cached).as_posix() for path in refs if not COMMIT.fullmatch(path.read_bytes())]
    if damaged:
        advice = f"delete {folder}/ in the Hub's cache and run this again, which downloads it anew"
        raise FtlibError(f"the cached {', '.join(damaged)} of {repo}: found another checksum than the Hub's; {advice}")


def whoami(token: str) -> dict[str, Any]:
    """What the Hub knows about a token, as HfApi.whoami tells, within `TIMEOUT_S`."""
    from huggingface_hub import constants, get_session, hf_raise_for_status

    headers = {"Authorization": f"Bearer {token}"}
    response = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=headers, timeout=TIMEOUT_S)
    hf_raise_for_status(response)
    return dict(response.json())


def target(hub: Hub, account: Mapping[str, Any]) -> str:
    """The full id of the push target: in the token's own account where the profile names no other."""
    return hub.push_target if "/" in hub.push_target else f"{account['name']}/{hub.push_target}"


def may_write(account: Mapping[str, Any], repo: str) -> bool:
    """Whether a token may write to a repository, as far as `whoami` tells."""
    owner = repo.split("/")[0]
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", [])
        writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        return bool(writable & {owner, repo})
    organisations = [found["name"] for found in account.get("orgs", []) if found.get("roleInOrg") != "read"]
    return token.get("role") != "read" and owner in (account["name"], *organisations)
