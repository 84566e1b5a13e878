"""The rehearsal Hub on a bad day: it answers the requests that a test picks with a fault, and counts them."""

import asyncio
import re
import socket
import struct
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from ftlib.rehearsal.hub import RehearsalHub

STALL_S = 2.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultyHub(RehearsalHub):
    """Its faults are a status, "reset" (at once), "stall" (no answer), "cut short" (half of one), "reset half-way"."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self._healthy, self._app = self._app, self
        self.waits: list[float] = []  # the seconds that its clients would have waited
        self.recover()

    def fail(self, fault: str, request: str, times: float) -> None:
        """From here on, answer the first `times` requests whose method and path match a pattern with a fault."""
        self._fault, self._request, self._left, self.failed = fault, re.compile(request), times, 0

    def recover(self) -> None:
        """Be well again."""
        self._left, self.failed = 0.0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = f"{scope['method']} {scope['path']}"
        if not self._left or not self._request.fullmatch(request):
            await self._healthy(scope, receive, send)
            return
        self._left -= 1
        self.failed += 1
        if self._fault.isdecimal():
            after = {"Retry-After": "7"} if self._fault == "429" else {}
            gossip = {"error": f"Bearer {self.token} was not welcome"}  # a bad Hub may say anything
            await JSONResponse(gossip, int(self._fault), after)(scope, receive, send)
            return
        if self._fault == "stall":
            await asyncio.sleep(STALL_S)
        elif self._fault != "reset":
            await self._half(scope, receive, send)
        await _hang_up(send, reset=self._fault.startswith("reset"))

    async def _half(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do as asked, and send half of the answer, below the headers of the whole."""
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._healthy(scope, receive, keep)
        body = b"".join(message.get("body", b"") for message in answer[1:])
        await send(answer[0])
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        await asyncio.sleep(0.02)  # a reset overtakes what has not arrived


async def _hang_up(send: Any, *, reset: bool) -> None:
    transport = send.__self__.transport  # uvicorn's, since nothing stands between it and this Hub
    if reset:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.close()
    await asyncio.sleep(0)  # uvicorn would otherwise still answer for a request that had no answer
