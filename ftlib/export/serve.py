"""Serves a GGUF file on this machine, through an OpenAI-compatible API, and asks it many questions at once.

Run as a program, this file is the server: it tells its address, and ends with its standard input.
"""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.dataset.harmony import Reply
from ftlib.errors import FtlibError

if TYPE_CHECKING:
    from openai import OpenAI

SLOTS = 4  # requests that are answered at once
SMALL_BYTES = 1e8  # a smaller model is not made faster by threads, which wait for one another
KEY = "FTLIB_SERVE_KEY"  # a variable, since every user of a machine sees what stands on a command line


class Server:
    """A GGUF file, served by llama.cpp on 127.0.0.1 until it is closed or this process ends."""

    def __init__(self, file: Path, template: str = "", date: str = "", port: int = 0, context: int = 2048) -> None:
        """Start it, and wait until it answers.

        Args:
            file: the model.
            template: the chat template to use, if not the one in the file.
            date: what the template writes as today's date, if not today's.
            port: 0 for one that is free.
            context: the longest conversation in tokens.

        Raises:
            FtlibError: there is no such file, or llama.cpp does not take it.
        """
        if not file.is_file():
            raise FtlibError(
                f"found no {file.name} in {file.resolve().parent.name}/; run `ftlib export --to gguf` first"
            )
        self.api_key = os.environ.get(KEY) or secrets.token_urlsafe(24)
        if not re.fullmatch(r"[!-~]{8,200}", self.api_key):
            raise FtlibError(f"{KEY} is not a valid key: expected 8 to 200 letters, digits and signs without blanks")
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                raise FtlibError(f"port {port} cannot be used ({error.strerror}); name another one") from None
        settings = {"file": str(file), "template": dated(template, date), "port": port, "context": context}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(settings)],
            env=os.environ | {KEY: self.api_key},
            stdin=subprocess.PIPE,  # which ends with this process, and the server with it
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        lines: Any = self._process.stdout
        address = next((line for line in lines if line.startswith("http")), "").strip()
        self.base_url = f"{address}/v1"
        if not address:
            self.close()
            raise FtlibError(f"llama.cpp cannot serve {file.name}; is it a whole GGUF file of a model?")

    def wait(self) -> None:
        """Serve until Ctrl-C; an FtlibError if the server ends by itself."""
        try:
            code = self._process.wait()
        except KeyboardInterrupt:
            self.close()
            return
        raise FtlibError(f"the server has ended by itself (code {code}); did it run out of memory?")

    def close(self) -> None:
        """Stop it, also while it answers."""
        with self._process:
            self._process.terminate()


def dated(template: str, date: str) -> str:
    """A chat template that writes a given date; llama.cpp does not read the macro of `harmony.pin_date`."""
    return re.sub(r"strftime_now\([^)]*\)", f"'{date}'", template) if date else template


def replies(client: "OpenAI", conversations: Sequence[Sequence[Any]], max_tokens: int) -> list[Reply]:
    """Ask several conversations at once, greedily; a reply that is cut at `max_tokens` is not `complete`."""

    def ask(messages: Sequence[Any]) -> Reply:
        completions = client.chat.completions
        answer = completions.create(model="local", messages=list(messages), max_tokens=max_tokens, temperature=0)
        choice = answer.choices[0]
        analysis, final = getattr(choice.message, "reasoning_content", None) or "", choice.message.content or ""
        return Reply(analysis, final, "", complete=choice.finish_reason == "stop")

    with ThreadPoolExecutor(SLOTS) as pool:
        return list(pool.map(ask, conversations))


def _serve(file: str, template: str, port: int, context: int) -> None:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.chat_template = file, template
    settings.port, settings.api_keys = port, [os.environ[KEY]]
    settings.n_ctx, settings.n_parallel = context * SLOTS, SLOTS
    settings.warmup, settings.model_alias = False, {"local"}  # or it would tell the file's path
    settings.cpuparams.n_threads = 1 if Path(file).stat().st_size < SMALL_BYTES else os.cpu_count() or 1
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # no one waits for a request that is being answered


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
