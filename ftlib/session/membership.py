"""A learner's place in a room: the token that `ftlib join` is given, kept for `start` and sent to no other address."""

import re
from pathlib import Path
from typing import Annotated

import httpx2
from pydantic import BaseModel, Field

from ftlib.errors import FtlibError
from ftlib.profiles.schema import ROOM

TIMEOUT_S = 10.0
FILE = "room.json"


class Member(BaseModel, frozen=True):
    """Who this learner is in a room."""

    address: str
    account: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    token: Annotated[str, Field(pattern=r"^rehearsal_[\w-]{32}$")]


def join(folder: Path, address: str, name: str, code: str) -> Member:
    """Join the room at an address and keep the token in `folder`, where this user alone can read it.

    Raises:
        FtlibError: the address is none of a room, nobody answers there, or the room refuses.
    """
    if not re.fullmatch(ROOM, address):
        raise FtlibError(f"found the address {address}, expected one such as http://192.168.1.10:8765; copy it whole")
    try:
        asked = {"name": name, "code": code}
        answer = httpx2.post(f"{address}/join", json=asked, timeout=TIMEOUT_S, trust_env=False)  # a room has no proxy
        if refused := answer.headers.get("X-Error-Message", ""):
            raise FtlibError(f"{refused}; correct it, and run `ftlib join` again")
        member = Member.model_validate({**answer.json(), "address": address})
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, TypeError) as error:
        found = f"no room's Hub answers at {address} ({type(error).__name__})"
        raise FtlibError(f"{found}; check the address, and that you are in the room's network") from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)  # an old file would keep its permissions
    (folder / FILE).touch(mode=0o600, exist_ok=False)
    (folder / FILE).write_text(member.model_dump_json(), encoding="utf-8")
    return member


def token(folder: Path, address: str) -> str:
    """The token for the room at an address; FtlibError if `ftlib join` has not joined it from this project."""
    try:
        member = Member.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValueError):
        member = None
    if member is None or member.address != address:
        found = f"a member of {member.address}" if member else "no member of a room"
        raise FtlibError(f"hub.endpoint = {address!r}: found {found}, expected one of this; run `ftlib join {address}`")
    return member.token
