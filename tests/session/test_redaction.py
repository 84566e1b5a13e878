"""What is secret is taken out of a text, and nothing else is."""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from helpers import ROOT

from ftlib.rehearsal import ASSETS
from ftlib.session import redaction
from ftlib.session.redaction import REMOVED, known_secrets, redact

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4xY7z" + "LkJhGf"
ODD = "a/b+c=d\"e'f&g h\\i<é>"  # every form of it differs from it


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person who has nothing secret, and a process that has met nothing secret."""
    monkeypatch.setattr(redaction, "_seen", set())
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME", *(n for n in os.environ if "TOKEN" in n or "KEY" in n)):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


NAMES = [
    "HF_TOKEN",
    "my_api_key",
    "AZURE_CLIENT_SECRET",
    "DB_PASSWORD",
    "STORAGE_CONNECTION_STRING",
    "SAS",
    "KEY_1",
    "HF_PAT",
    "DB_PASS",
    "MYSQL_PWD",
    "NPM_AUTH",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_whose_name_says_so_is_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "correct horse")
    assert redact("say correct horse.") == f"say {REMOVED}."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "sometimes"),
        ("USE_TOKEN", "true"),
        ("API_KEY", "xxxxxxxxxxxxxxxx"),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("PWD", "/a/folder/that/was/deleted"),
        ("SSH_AUTH_SOCK", "/a/socket/that/was/deleted"),
        ("GOOGLE_APPLICATION_CREDENTIALS", str(Path(__file__))),
    ],
)
def test_a_switch_a_path_an_id_or_a_placeholder_is_not(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert known_secrets() == frozenset()
    assert redact(f"{name}={value}") == f"{name}={value}"


@pytest.mark.parametrize("variable", [None, "HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN_PATH"])
def test_a_cached_log_in_is_secret_wherever_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    folder = home / {None: ".cache/huggingface", "XDG_CACHE_HOME": "mine/huggingface"}.get(variable, "mine")
    folder.mkdir(parents=True)
    (folder / "token").write_text("the-active-token\n")
    stored = "[one]\nhf_token = the-active-token\n[two]\nhf_token=the-other-token\nrefresh_token = the-refresh-token\n"
    (folder / "stored_tokens").write_text(stored)
    if variable:
        monkeypatch.setenv(variable, str(home / "mine" / ("token" if variable == "HF_TOKEN_PATH" else "")))
    assert known_secrets() == {"the-active-token", "the-other-token", "the-refresh-token"}


def test_what_was_secret_once_stays_so_and_a_key_is_taken_out_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`start` looks first, then takes the person's token out of a rehearsal's environment."""
    monkeypatch.setenv("MY_TOKEN", "-----BEGIN KEY-----\nMIIEvQIBADANBg\n-----END KEY-----\n")
    known_secrets()
    monkeypatch.setenv("MY_TOKEN", "MIIEvQIBADANBg-battery")  # a longer secret goes whole
    assert redact("MIIEvQIBADANBg, MIIEvQIBADANBg-battery") == f"{REMOVED}, {REMOVED}"


@pytest.mark.parametrize(
    "encode",
    [
        str, quote, lambda secret: quote(secret, safe=""), html.escape, repr, json.dumps,
        lambda secret: json.dumps(secret, ensure_ascii=False), lambda secret: json.dumps(json.dumps(repr(secret))),
        lambda secret: base64.b64encode(f"{secret}:".encode()).decode(),
        lambda secret: base64.b64encode(f"u{secret}:".encode()).decode(),
        lambda secret: base64.b64encode(f"us{secret}:".encode()).decode(),
        lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    ],
)  # fmt: skip
def test_no_form_of_a_secret_stays(monkeypatch: pytest.MonkeyPatch, encode: Callable[[str], str]) -> None:
    monkeypatch.setenv("MY_API_KEY", ODD)
    shown = redact(f"before {encode(ODD)} after")
    assert re.fullmatch(r"before .*\[secret removed\].* after", shown)
    assert encode(ODD).strip("='\"")[4:-6] not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Invalid token {TOKEN}.", f"Invalid token {REMOVED}."),
        (f"\x1b[31m{TOKEN}\x1b[0m", f"\x1b[31m{REMOVED}\x1b[0m"),
        (f"https://user:{TOKEN}@huggingface.co/x", f"https://user:{REMOVED}@huggingface.co/x"),
        ("hf_oauth_eyJhbGciOiJFZERTQSJ9abc.eyJzdWIiOiIx.Sig-na_ture", REMOVED),
        ("api_org_" + "abcDEF123" * 4, REMOVED),
        ("rehearsal_0123456789abcdef-_ABCDEFGHIJKLMN", REMOVED),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3.dozjgNryP4J3jVmN, so", f"token {REMOVED}, so"),
        ("'Authorization': 'Bearer abcdefghijklmnopqrstuvw'", f"'Authorization': 'Bearer {REMOVED}'"),
        (r"{\nauthorization: bearer abcdefghijklmnopqrstuvw\n", rf"{{\nauthorization: bearer {REMOVED}\n"),
        ('src="http://127.0.0.1:7860/?write_token=AbC-12_3xyz&a=b"', f'src="http://127.0.0.1:7860/?write_token={REMOVED}&a=b"'),
        ("next=%3Fwrite_token%3DAbC-12_3xyz", f"next=%3Fwrite_token%3D{REMOVED}"),
        ("https://x.blob.core.windows.net/c?sv=2024&sig=AbCdEfGhIjKlMnOpQr%2Bs%3D", f"https://x.blob.core.windows.net/c?sv=2024&sig={REMOVED}"),
        ("AccountName=x;AccountKey=AbCdEfGhIjKlMnOpQrSt+/==;End", f"AccountName=x;AccountKey={REMOVED};End"),
        ("proxy http://me:pa55word@proxy:3128", f"proxy http://{REMOVED}@proxy:3128"),
        ("git clone https://0123456789abcdef0123456789abcdef@host/x", f"git clone https://{REMOVED}@host/x"),
        ("key ghp_" + "aB3dE6" * 6 + ".", f"key {REMOVED}."),
        ("github_pat_11ABCDEFG0_" + "aB3dE6gH9j" * 5, REMOVED),
        ("xoxb-123456789012-" + "aB3dE6gH9j" * 2, REMOVED),
        ("https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXX", f"https://hooks.slack.com/services/{REMOVED}"),
        ("OPENAI=sk-proj-" + "aB3dE6gH9j" * 4, f"OPENAI={REMOVED}"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", f"aws_secret_access_key = {REMOVED}"),
        ("Authorization: Basic dXNlcjpwYTU1d29yZA==", f"Authorization: Basic {REMOVED}"),
    ],
)  # fmt: skip
def test_secrets_from_elsewhere_are_known_by_their_shape(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert json.loads(redact(json.dumps([text]))) == [expected], "JSON stays JSON"


@pytest.mark.parametrize(
    "text",
    [
        "A bearer of good news, bearer of responsibilities. The key, the token and the secret of it: 8 tokens a row.",
        "openai/gpt-oss-20b at 6cee5e81ee83917806bbde320786a8fb61efebee",
        "learner/gpt-oss-tiny-multilingual-reasoner, hf_hub_download, hf_transfer, HF_TOKEN, rehearsal_endpoint",
        f"sha256:{hashlib.sha256(b'adapter').hexdigest()}  adapter_model.safetensors",
        "http://127.0.0.1:8080/api/models/x@main, https://huggingface.co:443/a/b, me@example.org",
        "sig=0.05, config=abc, design=blue, trackio.init(embed=False, write_token=None)",
        "Basic responsibilities, basic-understanding, a risk-averse-and-long-dashed-word, sk-learn-pipelines-in-depth",
        "https://me@example.org/x, git+ssh://git@github.com/a/b, gh_pages, ghp_short, git blob 0123456789abcdef@main",
        "¿Cuál es el capital de Australia? <|channel|>analysis<|message|>L'utilisateur demande…",
    ],
)
def test_ordinary_text_is_left_alone(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert redact(text) == text


def test_models_and_notebooks_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    weights = base64.b64encode(b"".join(path.read_bytes() for path in ASSETS.rglob("*.safetensors"))).decode()
    for text in (weights, *(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))):
        assert redact(text) == text
