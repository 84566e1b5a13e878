"""Keeps tokens, keys and write links out of everything that a person, a log or a file is shown.

What is secret is known in two ways: by its value, where this machine holds it (environment, cached log-in), and by its
shape, where it comes from elsewhere (a Hub's answer, a link with a signature in it). `redact` takes both out of a text.
"""

import base64
import html
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

REMOVED = "[secret removed]"

# Shorter values are switches, numbers and everyday words, which would be taken out of every text that has them; and
# with fewer different characters ("xxxxxxxx") they are placeholders. Real tokens have at least 16 characters.
MIN_LENGTH = 8
MIN_DIFFERENT = 4
# Whole words: TOKENIZERS_PARALLELISM and MONKEY hold no secret. HF_TOKEN_PATH or KEY_ID are about one and are none.
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|(?:API)?KEY|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING|SAS)(?:_|$)"
)
_ABOUT_A_SECRET = re.compile(r"_(?:DIR|FILE|ID|NAME|PATH|TYPE|URI|URL)$")

# No pattern runs over a quote, a backslash or "<": JSON and HTML stay whole when they are redacted as text.
_SHAPES = [
    re.compile(pattern)
    for pattern in (
        r"()(?:hf|api_org)_(?:[a-z]+_)?[A-Za-z0-9]{20,}(?:\.[\w-]+)*",  # Hugging Face
        r"()rehearsal_[\w-]{32}",
        r"()eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*",  # a JSON web token, as Azure's are
        r"([Bb]earer(?:\s|%20|\+)+)[\w.~+/=-]{20,}",
        r"(write_token(?:=|%3D))[\w.~%-]{8,}",  # trackio
        r"(sig(?:=|%3D))[\w+/=%-]{20,}",  # the signature of an Azure link
        r"(AccountKey(?:=|%3D))[\w+/=%-]{20,}",
        r"(://)[^\s/:@\"'\\<>]+:[^\s/@\"'\\<>]+(?=@)",  # name and password in an address
    )
]
_STORED = re.compile(r"^\s*(?:hf_token|refresh_token)\s*[=:]\s*(\S+)", re.MULTILINE)
# What was secret once stays so, also when `start` has hidden a person's own token from a rehearsal.
_seen: set[str] = set()


def redact(text: str) -> str:
    """Take every secret out of a text, also where it stands URL-encoded, escaped, or in base64."""
    for form in _forms(known_secrets()):
        text = text.replace(form, REMOVED)
    for shape in _SHAPES:
        text = shape.sub(rf"\1{REMOVED}", text)
    return text


def known_secrets() -> frozenset[str]:
    """The secrets that this process has met up to now: in its environment and in huggingface_hub's cached log-in."""
    for value in (*_in_environment(), *_in_cached_login()):
        lines = (line.strip() for line in value.splitlines())  # a private key is shown line by line
        _seen.update(line for line in lines if len(line) >= MIN_LENGTH and len(set(line)) >= MIN_DIFFERENT)
    return frozenset(_seen)


def guard_kernel() -> None:
    """From now on, let what this notebook shows pass `redact`: streams, results, displays and errors alike.

    They leave the kernel as messages, each packed into JSON by one function. In plain Python there is nothing to guard.
    """
    known_secrets()
    if "ipykernel" not in sys.modules:
        return
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or isinstance(kernel.session.pack, _GuardedPack):
        return
    kernel.session.pack = _GuardedPack(kernel.session.pack)
    for stream in (sys.stdout, sys.stderr):
        # ipykernel repeats on the terminal, as it is, what a child process or a C library prints.
        if hasattr(stream, "_original_stdstream_copy"):
            stream._original_stdstream_copy = os.open(os.devnull, os.O_WRONLY)


@dataclass(frozen=True)
class _GuardedPack:
    """The function that packs a kernel's messages, with the secrets taken out of what it packs."""

    pack: Callable[[Any], bytes]

    def __call__(self, content: Any) -> bytes:
        # jupyter_client lets text that is no Unicode pass in this way, too.
        packed = self.pack(content).decode("utf-8", "surrogateescape")
        return redact(packed).encode("utf-8", "surrogateescape")


def _in_environment() -> Iterator[str]:
    for name in list(os.environ):
        value = os.environ.get(name, "")  # another thread may just have removed it
        if _SECRET_NAME.search(name.upper()) and not _ABOUT_A_SECRET.search(name.upper()) and not _exists(value):
            yield value


def _in_cached_login() -> Iterator[str]:
    """The tokens of `hf auth login`, from its files: huggingface_hub reads its settings when it is imported."""
    own = Path("~/.cache/huggingface/token")
    token_paths = {
        own,
        Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface/token",
        Path(os.environ.get("HF_HOME", own.parent)) / "token",
        Path(os.environ.get("HF_TOKEN_PATH", own)),
    }
    for path in token_paths:
        yield _content(path)
        yield from _STORED.findall(_content(path.with_name("stored_tokens")))


def _content(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):  # the latter where a person has no home
        return ""


def _exists(value: str) -> bool:
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long for a path, or with a character that no path has
        return False


@lru_cache(maxsize=8)
def _forms(secrets: frozenset[str]) -> list[str]:
    """How the secrets may stand in a text, longest first, so that none is cut short by a part of it."""
    forms = set(secrets)
    for secret in secrets:
        forms |= {quote(secret), quote(secret, safe=""), quote_plus(secret), html.escape(secret), repr(secret)[1:-1]}
        forms |= set(_base64_forms(secret.encode("utf-8", "surrogateescape")))
    for _ in range(2):  # a cell may show JSON, and notebooks are JSON
        forms |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (True, False)}
    return sorted(forms, key=len, reverse=True)


def _base64_forms(secret: bytes) -> Iterator[str]:
    """What base64 makes of a secret that begins one, two or no bytes after a group of three, in both alphabets."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).rstrip(b"=").decode()
        # The characters at either end also hold bits of what stands beside the secret.
        whole = encoded[(0, 2, 3)[before] : -1 if (before + len(secret)) % 3 else None]
        yield from (whole, whole.replace("+", "-").replace("/", "_"))
