"""A real server, asked by the official client; and what ends it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml
from helpers import HANGING_S, ROOT
from transformers import PreTrainedTokenizerFast

from ftlib.errors import FtlibError
from ftlib.export import serve

QUESTION: Any = [
    {"role": "system", "content": "reasoning language: English"},
    {"role": "user", "content": "What is the capital of Portugal?"},
]


@pytest.fixture(scope="module")
def server(gguf: Path, shipped_tokenizer: PreTrainedTokenizerFast) -> Iterator[serve.Server]:
    running = serve.Server(gguf, template=str(shipped_tokenizer.chat_template), date="2025-08-05")
    yield running
    running.close()


@pytest.fixture
def client(server: serve.Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0)


def test_chat_tells_reasoning_from_answer_and_streams_the_same(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "local", "messages": QUESTION, "max_tokens": 128, "temperature": 0}
    message: Any = client.chat.completions.create(**settings).choices[0].message
    assert message.reasoning_content
    assert message.content
    assert "<|" not in message.reasoning_content + message.content
    pieces: list[Any] = [chunk.choices[0].delta for chunk in client.chat.completions.create(**settings, stream=True)]
    assert "".join(getattr(piece, "reasoning_content", None) or "" for piece in pieces) == message.reasoning_content
    assert "".join(piece.content or "" for piece in pieces) == message.content


def test_responses_and_reasoning_effort_are_understood(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="local", input="What is the capital of Portugal?", max_output_tokens=128, temperature=0
    )
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert client.chat.completions.create(model="local", messages=QUESTION, reasoning_effort="low", max_tokens=8)


def test_wrong_key_is_refused(server: serve.Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.base_url, api_key="another").chat.completions.create(
            model="local", messages=QUESTION
        )


def test_of_twenty_requests_at_once_none_is_lost_also_after_one_was_cancelled(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="local", messages=QUESTION, max_tokens=128, stream=True)
    next(iter(stream))
    stream.close()
    replies = serve.replies(client, [QUESTION] * 20, max_tokens=128)
    assert len(replies) == 20
    assert {reply.final for reply in replies} == {replies[0].final}
    assert all(reply.analysis and reply.complete for reply in replies)
    cut = serve.replies(client, [QUESTION], max_tokens=3)
    assert not cut[0].complete


def test_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(FtlibError, match=r"^llama\.cpp cannot serve broken\.gguf; is it a whole GGUF file"):
        serve.Server(tmp_path / "broken.gguf")
    with pytest.raises(FtlibError, match=r"^found no none\.gguf in .*; run `ftlib export --to gguf` first$"):
        serve.Server(tmp_path / "none.gguf")


@pytest.mark.parametrize("key", ["        ", "short", "x" * 300, "with a blank", "line\nline"])
def test_key_that_no_client_could_send_is_refused(key: str, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.KEY, key)
    with pytest.raises(FtlibError, match=r"^FTLIB_SERVE_KEY is not a valid key: expected 8 to 200 letters"):
        serve.Server(gguf)


def test_port_in_use_is_named(server: serve.Server, gguf: Path) -> None:
    port = int(server.base_url.split(":")[2].split("/")[0])
    with pytest.raises(FtlibError, match=rf"^port {port} cannot be used \(Address already in use\); name another one$"):
        serve.Server(gguf, port=port)


def test_server_that_ends_by_itself_is_an_error(gguf: Path) -> None:
    running = serve.Server(gguf)
    running._process.kill()
    with pytest.raises(FtlibError, match=r"^the server has ended by itself \(code -9\)"):
        running.wait()
    running.close()


def test_server_ends_with_whoever_started_it(gguf: Path) -> None:
    """Also when that was killed, and could close nothing."""
    code = (
        "import os, sys; from pathlib import Path; from ftlib.export.serve import Server\n"
        "server = Server(Path(sys.argv[1])); print(server._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.run([sys.executable, "-c", code, gguf], env=environment, capture_output=True, text=True)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(started.stdout)).wait(HANGING_S)


def test_template_writes_a_given_date(shipped_tokenizer: PreTrainedTokenizerFast) -> None:
    template = serve.dated(str(shipped_tokenizer.chat_template), "2025-08-05")
    assert "strftime_now(" not in template
    assert "'2025-08-05'" in template
    assert serve.dated(template, "") == template


def test_files_for_other_servers_name_what_notebook_06_writes(notebooks: Any) -> None:
    cells = "\n".join(notebooks.cells("06_export_and_serve"))
    assert re.findall(r"^FROM \./(.+)$", (ROOT / "docs/serving/Modelfile").read_text(), re.MULTILINE) == ["mxfp4.gguf"]
    (service,) = yaml.safe_load((ROOT / "docs/serving/compose.yml").read_text())["services"].values()
    assert service["volumes"] == ["./mxfp4:/model:ro"]
    assert all(f'export / "{name}"' in cells for name in ("mxfp4", "mxfp4.gguf"))
    assert service["ports"] == ["127.0.0.1:8000:8000"], "others on the network are not to reach it"
    assert re.fullmatch(r"vllm/vllm-openai:v\d+\.\d+\.\d+", service["image"])
