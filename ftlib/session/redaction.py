"""Takes out of a text the secrets that this machine holds, by their value, and those of others, by their shape."""

import base64
import html
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus

REMOVED = "[secret removed]"
MIN_LENGTH = 8  # shorter values are switches and everyday words
MIN_DIFFERENT = 4  # characters; "xxxxxxxx" is a placeholder
# Whole words, so not TOKENIZERS_PARALLELISM or MONKEY; and HF_TOKEN_PATH or KEY_ID hold no secret themselves.
_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|(API)?KEY|PASSW(OR)?D|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING|SAS)(_|$)"
    r"|_(PAT|PASS|PWD)$|(^|_)AUTH$"  # PWD alone is the working folder
)
_ABOUT_A_SECRET = re.compile(r"_(?:DIR|FILE|ID|NAME|PATH|TYPE|URI|URL)$")
# No pattern runs over a quote, a backslash or "<", so JSON and HTML stay whole.
_SHAPES = (
    r"()(?:hf|api_org)_(?:[a-z]+_)?[A-Za-z0-9]{20,}(?:\.[\w-]+)*",  # Hugging Face
    r"()rehearsal_[\w-]{32}",
    r"()(?<![\w-])(?:gh[oprsu]_|github_pat_|glpat-|xox[abeoprs]-)[\w-]{16,}",  # GitHub, GitLab, Slack
    r"(hooks\.slack\.com/services/)[\w/]{20,}",
    r"()(?<![\w-])sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}",  # OpenAI and others
    r"((?i:aws_secret_access_key|aws_session_token)\W{1,8})[\w+/=]{40,}",
    r"()eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*",  # a JSON web token, as Azure's are
    r"([Bb]earer(?:\s|%20|\+)+)[\w.~+/=-]{20,}",
    r"([Bb]asic(?:\s|%20|\+)+)(?=[\w+/]*\d)(?=[\w+/]*[A-Z])[\w+/]{12,}={0,2}",
    r"(write_token(?:=|%3D))[\w.~%-]{8,}",  # trackio
    r"(sig(?:=|%3D))[\w+/=%-]{20,}",  # the signature of an Azure link
    r"(AccountKey(?:=|%3D))[\w+/=%-]{20,}",
    r"(://)[^\s/:@\"'\\<>]+:[^\s/@\"'\\<>]+(?=@)",  # name and password in an address
    r"(://)[^\s/:@\"'\\<>]{20,}(?=@)",  # or a token alone
)
_STORED = re.compile(r"^\s*(?:hf_token|refresh_token)\s*[=:]\s*(\S+)", re.MULTILINE)
_seen: set[str] = set()  # also what `start` has hidden from a rehearsal


def redact(text: str) -> str:
    """Take every secret out of a text, also where it is URL-encoded, escaped, or in base64."""
    for form in _forms(known_secrets()):
        text = text.replace(form, REMOVED)
    for shape in _SHAPES:
        text = re.sub(shape, rf"\1{REMOVED}", text)
    return text


def known_secrets() -> frozenset[str]:
    """The secrets that this process has met so far, in its environment and in huggingface_hub's cached log-in."""
    for value in (*_in_environment(), *_in_cached_login()):
        lines = (line.strip() for line in value.splitlines())  # a private key is shown line by line
        _seen.update(line for line in lines if len(line) >= MIN_LENGTH and len(set(line)) >= MIN_DIFFERENT)
    return frozenset(_seen)


def _in_environment() -> Iterator[str]:
    for name, value in os.environ.copy().items():
        is_path = os.path.exists(value)  # noqa: PTH110 (Path.exists fails on some texts that are no path)
        if _SECRET.search(name.upper()) and not _ABOUT_A_SECRET.search(name.upper()) and not is_path:
            yield value


def _in_cached_login() -> Iterator[str]:
    """The tokens of `hf auth login`, from its files: huggingface_hub must not be imported before `start`."""
    own = Path("~/.cache/huggingface/token")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME", cache))
    for token in {own, cache / "token", home / "token", Path(os.environ.get("HF_TOKEN_PATH", own))}:
        for path in (token, token.with_name("stored_tokens")):
            with suppress(OSError, RuntimeError):  # the latter where a person has no home
                text = path.expanduser().read_text(encoding="utf-8", errors="replace")
                yield from [text] if path == token else _STORED.findall(text)


@lru_cache(maxsize=8)
def _forms(secrets: frozenset[str]) -> list[str]:
    """How the secrets may be written in a text, longest first, so that no part of one is replaced before the whole."""
    forms = set(secrets)
    for secret in secrets:
        forms |= {quote(secret), quote(secret, safe=""), quote_plus(secret), html.escape(secret), repr(secret)[1:-1]}
        for before in range(3):  # base64 differs by where the secret begins in a group of three bytes
            encoded = base64.b64encode(bytes(before) + secret.encode("utf-8", "surrogateescape")).rstrip(b"=").decode()
            # The characters at either end also hold bits of the neighbouring text.
            inner = encoded[(0, 2, 3)[before] : -1 if (before + len(secret.encode("utf-8", "replace"))) % 3 else None]
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    for _ in range(2):  # a cell may show JSON, and notebooks are JSON
        forms |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (True, False)}
    return sorted(forms, key=len, reverse=True)
