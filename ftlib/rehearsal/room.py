"""One rehearsal Hub for a room of learners: accounts of their own, limits, and a leaderboard that anybody may look at.

It listens on the one address that the instructor names. It speaks plain HTTP, so others in the same network can read
what passes, but a token opens nothing beyond the room. Of what is pushed, only the metadata of a card is ever read.
"""

import hashlib
import math
import os
import re
import secrets
import socket
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from html import escape
from io import StringIO
from ipaddress import IPv4Address
from itertools import chain, count
from pathlib import Path, PureWindowsPath
from time import monotonic
from typing import NamedTuple

import psutil
import segno
from filelock import FileLock, Timeout
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ftlib.errors import FtlibError
from ftlib.rehearsal.hub import MALFORMED, Api, Repo, Server, metadata, new_token, refusal, write_whole

MOST_ACCOUNTS = 60
MOST_REPOS = 10  # of an account
MOST_BYTES = 2**26  # that an account may send in all: deleting a repository does not delete its files
MOST_FILES = 200  # in a push
MOST_HISTORY = 2**18  # bytes of a repository's record: hundreds of pushes of an adapter
LONGEST_BODY = 2**25
LONGEST_JOIN = 2**12
LONGEST_CARD = 2**14  # bytes in which the metadata has to end
WINDOW_S = 10  # within which each of these is counted:
MOST_REQUESTS = 300  # of an account
MOST_VISITS = 100  # of an address, without a token
MOST_JOINS = MOST_ACCOUNTS  # of an address: the whole room may have the same
BLOCK = 2**12  # what a disk takes for the smallest file
CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"  # those that nobody mistakes for others
RESERVED = ("api", "datasets", "models", "rehearsal")  # what addresses begin with
AGREEMENT, EXACT = "reasons_in_the_language_asked_for", "answers_exactly_as_the_reference"  # on notebook 5's card
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="10">
<title>Leaderboard</title>
<style>
:root {{ color-scheme: light dark; font: clamp(.9rem, 2vw, 2.2rem)/1.2 system-ui, sans-serif }}
body {{ margin: 1rem }}
h1 {{ font-size: 1.4em; margin: 0 0 .3em }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ border-bottom: 1px solid #8888; padding: .15em .4em; text-align: left; overflow-wrap: anywhere }}
.number {{ text-align: right; overflow-wrap: normal; font-variant-numeric: tabular-nums }}
td:nth-child(3) {{ font-size: .65em }}
tr:nth-child(-n+3) td {{ font-weight: 600 }}
@media (max-width: 40rem) {{ th:nth-child(3), td:nth-child(3) {{ display: none }} }}
</style>
<h1>Leaderboard</h1>
<table>
<thead><tr>
<th>#<th>learner<th>model<th class="number">agreement<th class="number">exact<th class="number">pushed
</thead>
<tbody>
{rows}
</tbody>
</table>
<p>{joined} joined. The numbers are what each model's card says. To join: <code>ftlib join {address}</code></p>
</html>
"""


class Account(BaseModel, frozen=True):
    """A learner as the room knows them."""

    shown: str  # the name as it was given
    token: str  # its SHA-256
    sent: int = 0  # bytes so far


class Accounts:
    """The room's learners by account name, kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file, self._type = file, TypeAdapter(dict[str, Account])
        try:
            self._all = self._type.validate_json(file.read_bytes()) if file.exists() else {}
        except ValueError:
            raise FtlibError(f"{file.name} of the room is damaged; delete its folder to begin anew") from None
        self._by_token = {account.token: name for name, account in self._all.items()}

    def __len__(self) -> int:
        return len(self._all)

    def join(self, shown: str) -> tuple[str, str]:
        """Open an account for a name; returns its name and its token, which is kept nowhere."""
        if not 0 < len(shown) <= 40 or not shown.isprintable():
            raise refusal(400, "expected a name of 1 to 40 letters")
        if len(self) >= MOST_ACCOUNTS:
            raise refusal(403, f"the room is full: expected at most {MOST_ACCOUNTS} accounts")
        plain = unicodedata.normalize("NFKD", shown).encode("ascii", "ignore").decode().lower()
        wanted = re.sub(r"[^a-z0-9]+", "-", plain)[:24].strip("-") or "learner"
        taken, token = {*self._all, *RESERVED}, new_token()
        names = chain([wanted], (f"{wanted}-{number}" for number in count(2)))
        name = next(name for name in names if name not in taken and not PureWindowsPath(name).is_reserved())
        self._set(name, Account(shown=shown, token=_digest(token)))
        return name, token

    def of(self, token: str) -> str | None:
        """The name of the account that a token belongs to."""
        return self._by_token.get(_digest(token))

    def shown(self, name: str) -> str:
        """A name as its learner gave it."""
        return self._all[name].shown if name in self._all else name

    def charge(self, name: str, size: int) -> None:
        """Count what an account sends, and refuse what is too much."""
        account = self._all[name]
        if account.sent + size > MOST_BYTES:
            raise refusal(413, f"{name} may push {MOST_BYTES:,} bytes in all, and has pushed {account.sent:,}")
        self._set(name, account.model_copy(update={"sent": account.sent + size}))

    def _set(self, name: str, account: Account) -> None:
        every = self._all | {name: account}
        write_whole(self._file, self._type.dump_json(every, indent=1))
        self._all, self._by_token = every, self._by_token | {account.token: name}


class Limit:
    """So many requests of each sender within a window of time."""

    def __init__(self, most: int) -> None:
        self._most, self._end, self._taken = most, 0.0, Counter[str]()

    def take(self, sender: str) -> None:
        """Count a request; refuse one too many."""
        if (now := monotonic()) >= self._end:
            self._end, self._taken = now + WINDOW_S, Counter()
        self._taken[sender] += 1
        if self._taken[sender] > self._most:
            wait = {"Retry-After": str(math.ceil(self._end - now))}
            raise HTTPException(429, f"expected at most {self._most} requests in {WINDOW_S} s; wait as long", wait)


class Entry(NamedTuple):
    """A learner's model on the leaderboard; -1 stands for what its card does not say."""

    agreement: float
    exact: float
    pushed: datetime
    repo: str

    @property
    def order(self) -> tuple[float, float, datetime]:
        """The best first and, among equals, the earliest."""
        return -self.agreement, -self.exact, self.pushed


class RoomApi(Api):
    """The rehearsal Hub's interface for the accounts of a room."""

    called = "the room's rehearsal Hub"

    def __init__(self, state_dir: Path, host: str, port: int) -> None:
        super().__init__(state_dir, self._member, host)
        state_dir.chmod(0o700)
        letters = [secrets.choice(CODE_LETTERS) for _ in range(8)]
        self.code, self.address = "".join([*letters[:4], "-", *letters[4:]]), f"http://{host}:{port}"
        self._accounts = Accounts(state_dir / "accounts.json")
        self._requests, self._visits, self._tries = Limit(MOST_REQUESTS), Limit(MOST_VISITS), Limit(MOST_JOINS)

    def routes(self) -> list[Route]:
        """What it answers: the Hub's interface to members; to visitors, the leaderboard and how to join."""
        join = self.guarded(self._join, lambda request: self._visitor(request, self._tries))
        page = self.guarded(self._leaderboard, lambda request: self._visitor(request, self._visits))
        own = [Route("/", page), Route("/join", join, methods=["POST"], max_body_size=LONGEST_JOIN)]
        return [*own, *super().routes()]

    def _member(self, request: Request) -> str:
        name = self._accounts.of(request.headers.get("authorization", "").removeprefix("Bearer "))
        if name is None:
            self._visitor(request, self._visits)
            raise refusal(401, "expected the token that `ftlib join` is given")
        self._requests.take(name)
        return name

    def _visitor(self, request: Request, limit: Limit) -> str:
        limit.take(request.client.host if request.client else "")
        return ""

    async def _join(self, request: Request) -> Response:
        asked = await request.json()
        given = re.sub(r"[\s-]", "", asked["code"]).upper()
        if not secrets.compare_digest(given.encode(), self.code.replace("-", "").encode()):
            raise refusal(403, "this is not the code that the instructor shows")
        account, token = self._accounts.join(asked["name"].strip())
        return JSONResponse({"account": account, "token": token})

    async def _commit(self, request: Request) -> Response:
        body = await request.body()
        files = len(body.splitlines())
        if files > MOST_FILES:
            raise refusal(413, f"found a push of {files} files, expected at most {MOST_FILES}")
        self._accounts.charge(request.state.account, len(body) + files * BLOCK)
        return await super()._commit(request)

    def _keep(self, repo: Repo) -> None:
        record = self._record(repo.id)
        if not record.exists() and len(list(record.parent.glob("*.json"))) >= MOST_REPOS:
            raise refusal(413, f"expected at most {MOST_REPOS} repositories of an account: delete one")
        if len(repo.model_dump_json()) > MOST_HISTORY:
            raise refusal(413, f"the history of {repo.id} is too long: delete it and push again")
        super()._keep(repo)

    async def _leaderboard(self, request: Request) -> Response:
        rows = "\n".join(
            f"<tr><td>{rank}<td>{escape(self._accounts.shown(owner))}<td>{escape(entry.repo)}"
            f'<td class="number">{_percent(entry.agreement)}<td class="number">{_percent(entry.exact)}'
            f'<td class="number">{entry.pushed.astimezone():%H:%M}'
            for rank, (owner, entry) in enumerate(self._best(), 1)
        )
        page = PAGE.format(rows=rows, joined=len(self._accounts), address=escape(self.address))
        return HTMLResponse(page, headers=HEADERS)

    def _best(self) -> list[tuple[str, Entry]]:
        """The best model of each learner, the best first."""
        best: dict[str, Entry] = {}
        for owner, entry in self._entries():
            best[owner] = min(best.get(owner, entry), entry, key=lambda each: each.order)
        return sorted(best.items(), key=lambda item: item[1].order)

    def _entries(self) -> Iterator[tuple[str, Entry]]:
        for record in sorted(self._state.glob("models/*/*.json")):
            with suppress(HTTPException, *MALFORMED):  # a damaged record hides no other
                repo = self._get("models", f"{record.parent.name}/{record.stem}")
                newest = repo.commits[0]
                card = newest.files.get("README.md")
                if newest.files and not repo.private:
                    shares = _shares(self._content(repo, "README.md", card)) if card else {}
                    measured = (shares.get(AGREEMENT, -1.0), shares.get(EXACT, -1.0))
                    yield record.parent.name, Entry(*measured, datetime.fromisoformat(newest.date), repo.id)


class RoomHub(Server):
    """The server of a room, on an address of this machine; a `with` block serves."""

    def __init__(self, state_dir: Path, address: str, port: int) -> None:
        _check_address(address, port)
        self._api = RoomApi(state_dir, address, port)
        self._in_use = FileLock(state_dir / ".room.lock")
        try:
            self._in_use.acquire(timeout=0)
        except Timeout:
            raise FtlibError("another `ftlib hub` serves this project's room; stop it first") from None
        super().__init__(self._api.app(LONGEST_BODY), address, port)

    @property
    def code(self) -> str:
        """What a learner needs to join."""
        return self._api.code

    def stop(self) -> None:
        """End the server; accounts and what was pushed stay on disk."""
        super().stop()
        self._in_use.release()

    def wait(self) -> None:
        """Return when the server has ended."""
        while self._thread.is_alive():
            time.sleep(1)

    def invitation(self) -> str:
        """What the instructor shows the room: how to join, and the leaderboard's address, also as a QR code."""
        picture = StringIO()
        segno.make(self.endpoint, micro=False).terminal(picture, compact=True)
        steps = f"Learners join with:  ftlib join {self.endpoint}\nThe room's code:     {self.code}"
        return f"{picture.getvalue()}\nLeaderboard:         {self.endpoint}\n{steps}\nCtrl-C ends it."


def _check_address(address: str, port: int) -> None:
    """Refuse what is not one address of this machine, in one line."""
    interfaces = chain.from_iterable(psutil.net_if_addrs().values())
    own = ", ".join(sorted(each.address for each in interfaces if each.family == socket.AF_INET))
    expected = f"expected one of this machine's: {own}"
    try:
        if IPv4Address(address).is_unspecified:
            raise FtlibError(f"--room {address} means every network, {expected}; name the room's")
        socket.create_server((address, port)).close()
    except ValueError:
        raise FtlibError(f"--room {address} is no IPv4 address, {expected}") from None
    except OSError as error:
        found = f"--room {address} --port {port} cannot be used ({os.strerror(error.errno or 0)})"
        raise FtlibError(f"{found}, {expected}; or try another --port") from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0 else "–"


@lru_cache(maxsize=4 * MOST_ACCOUNTS * MOST_REPOS)  # a file is named after what it holds
def _shares(card: Path) -> dict[str, float]:
    """The results in a card's metadata that are shares, by type; nothing of a card that is not as it should be."""
    try:
        with card.open("rb") as file:
            results = metadata(file.read(LONGEST_CARD).decode(errors="replace"))["model-index"][0]["results"]
        metrics = {metric["type"]: metric["value"] for result in results for metric in result["metrics"]}
    except (OSError, *MALFORMED):
        return {}
    return {kind: float(value) for kind, value in metrics.items() if type(value) in (int, float) and 0 <= value <= 1}
