"""Whether the Hub lets us push, what is tried again where it does not answer, and what a person is told in the end."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2
from tenacity import (
    AttemptManager,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
)

from ftlib.errors import FtlibError
from ftlib.profiles import Hub

TIMEOUT_S = 5.0
"""How long a question that takes the Hub no time may take."""

# A conflict passes once the other commit is through. 401, 403 and 404 stay what they are until a person does something.
RETRIED = {408, 409, 412, 429}
# huggingface_hub repeats some requests by itself, for 23 s. After such a one a second attempt is enough, or a person
# would wait for minutes; what fails at once is tried five times, within 15 s.
RETRYING_ENDS = (stop_after_delay(20) & stop_after_attempt(2)) | stop_after_attempt(5)
LONGEST_WAIT_S = 30
# The last two are what the library for large files, hf_xet, raises.
LOST = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    json.JSONDecodeError,
    ConnectionError,
    TimeoutError,
)
LOG_IN = "run `hf auth login` in a terminal, or set HF_TOKEN"
ADVICE = {
    401: f"{LOG_IN} to a token that is valid",
    403: "use a token that may write there, or change hub.push_target",
    404: "check hub.push_target, and that your token may see it",
    409: "wait until nobody else pushes there",
    412: "wait until nobody else pushes there",
    429: "give it a few minutes",
}


def check_access(hub: Hub, command: str = "") -> str:
    """Make sure, before anything that takes long, that the adapter may be pushed at its end.

    Args:
        hub: where it would go.
        command: where there is an adapter already, the command line that pushes it later, for a person to read.

    Returns:
        The id of the repository that it will go to, which need not exist yet.

    Raises:
        FtlibError: there is no token, the Hub is out of reach or refuses it, it may not write to the target, or the
            target is public where the profile wants it private.
    """
    with _in_one_line(_later(command) if command else ""):
        repo: str = _retrying()(_writable_target, hub)
    return repo


def _writable_target(hub: Hub) -> str:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    token = get_token()
    if not token:
        raise FtlibError(f"found no token, expected one that may write to hub.push_target {hub.push_target}; {LOG_IN}")
    account = whoami(token)
    repo = target(hub, account)
    if not may_write(account, repo):
        raise FtlibError(f"found a token of {account['name']} that may not write to {repo}; {ADVICE[403]}")
    api = HfApi()
    try:
        public = not api.model_info(repo, timeout=TIMEOUT_S).private
        api.auth_check(repo, write=True)
    except RepositoryNotFoundError:
        return repo
    if public and hub.private:
        raise FtlibError(
            f"found {repo} public, expected a private repository, as hub.private = true says; make it private on the "
            "Hub, or change hub.private or hub.push_target"
        )
    return repo


def whoami(token: str) -> dict[str, Any]:
    """What the Hub knows of a token; huggingface_hub's own `whoami` would wait longer for it.

    Raises:
        HfHubHTTPError: the Hub refuses the token, or is not well.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status

    headers = {"Authorization": f"Bearer {token}"}
    response = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=headers, timeout=TIMEOUT_S)
    hf_raise_for_status(response)
    account: dict[str, Any] = response.json()
    return account


def target(hub: Hub, account: Mapping[str, Any]) -> str:
    """The full id of the push target: in the token's own account where the profile names no other."""
    owner, _, name = hub.push_target.rpartition("/")
    return f"{owner or account['name']}/{name}"


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


def attempts(command: str) -> Iterator[AttemptManager]:
    """Try what is below `with attempt:` until the Hub does it, or until trying again helps no more.

    Args:
        command: the command line that does it later, for a person to read.

    Raises:
        FtlibError: the Hub did not do it: what it answered, and what to do. An error of something else stays as it is.
    """
    with _in_one_line(_later(command)):
        yield from _retrying()


def _later(command: str) -> str:
    return f", then run `{command}`; the saved adapter is complete and unchanged"


def _retrying() -> Retrying:
    return Retrying(
        retry=retry_if_exception(_may_pass), stop=RETRYING_ENDS, wait=_wait, before_sleep=_announce, reraise=True
    )


@contextmanager
def _in_one_line(then: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found = _of_the_hub(error)
        if found is None:
            raise
        raise FtlibError(f"{_told(found)}; {_advice(_status(found))}{then}") from None


def _advice(status: int) -> str:
    if not status:
        return "check the network and the proxy"
    otherwise = "wait until it is well again" if status >= 500 else "look at the repository and your account there"
    return ADVICE.get(status, otherwise)


def _of_the_hub(error: BaseException | None) -> BaseException | None:
    """The Hub's part in an error: itself, or what it was raised from, as where transformers could not download."""
    while error is not None and not isinstance(error, (httpx2.HTTPError, *LOST)):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error


def _status(error: BaseException) -> int:
    """The status of the Hub's answer; 0 where there was none."""
    return int(error.response.status_code) if hasattr(error, "response") else 0


def _may_pass(error: BaseException) -> bool:
    found = _of_the_hub(error)
    if found is None:
        return False
    return _status(found) in RETRIED or _status(found) >= 500 or isinstance(found, LOST)


def _wait(state: RetryCallState) -> float:
    """1, 2, 4 and 8 seconds, or longer if the Hub asks for it."""
    response = getattr(_failure(state), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    asked_s = min(int(asked), LONGEST_WAIT_S) if asked.isdigit() else 0
    return max(asked_s, wait_exponential()(state))


def _announce(state: RetryCallState) -> None:
    print(f"{_told(_failure(state))}; trying again", file=sys.stderr)


def _failure(state: RetryCallState) -> BaseException:
    found = _of_the_hub(state.outcome.exception() if state.outcome else None)
    assert found is not None, "nothing else is tried again"
    return found


def _told(error: BaseException) -> str:
    """What happened, in words of our own: an error's text, or the Hub's, may carry what nobody else should read."""
    if _status(error):
        return f"the Hub answers {_status(error)} {httpx2.codes.get_reason_phrase(_status(error))}".rstrip()
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer cannot be read"
    return f"the Hub is out of reach ({type(error).__name__})"
