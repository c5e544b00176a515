"""The Python client, against a real server and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from softmux import errors
from softmux.api.schemas import GenerateBody
from softmux.client import (
    AsyncClient,
    Broken,
    Client,
    Retry,
    SoftmuxError,
    TimedOut,
    UnexpectedAnswer,
    Unreachable,
    calls,
)
from support.served import Served

QUICK = Retry(attempts=3, first=0.01, longest=1.0)


class Scripted:
    """A server that answers each request as it was told: (status, headers, body), or None: it hangs up."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes] | None] = []
        self.asked: list[str] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                script.asked.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = script.answers.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = "chunk" in headers.get("content-type", "")

            do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


def refusal(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    error = {"message": f"it is {code}", "type": "x", "param": "task", "code": code}
    return status, headers, json.dumps({"error": error}).encode()


VERSIONS = (200, {}, b'{"data": []}')
GENERATION = (
    200,
    {},
    b'{"id": "gen-1", "object": "generation", "created": 1, "model": "m", "adapter": null, "later": 1, "choices": '
    b'[{"index": 0, "text": "x", "finish_reason": "stop", "logprobs": null}], "usage": '
    b'{"prompt_tokens": 1, "virtual_tokens": 0, "cached_tokens": 0, "completion_tokens": 1, "total_tokens": 2}}',
)


def test_a_task_from_upload_to_deletion(server: Served, adapters: dict[str, Path], tmp_path: Path) -> None:
    with Client(server.url) as client:
        client.wait(5)
        assert client.model().context_length == 512
        first = client.upload(adapters["prompt-tuning"], "uploaded")
        second = client.upload(adapters["prefix-tuning"], "uploaded", activate=False)
        assert (first.version, first.active, second.version, second.active) == (1, True, 2, False)
        assert first.checks
        assert client.adapters.get("uploaded").version == 1
        assert [version.version for version in client.adapters.versions("uploaded")] == [2, 1]
        assert [version.task for version in client.adapters.list("uploaded")] == ["uploaded"]
        assert client.adapters.activate("uploaded", 2).active
        reply = client.generate("a film", task="uploaded", max_tokens=5, seed=1, return_token_ids=True)
        assert reply.adapter is not None
        assert (reply.adapter.version, len(reply.choices[0].token_ids)) == (2, reply.usage.completion_tokens)
        with client.stream("a film", task="uploaded", max_tokens=5) as stream:
            chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == reply.text
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        downloaded = client.adapters.download("uploaded", tmp_path / "copy", version=1)
        assert downloaded.digest == first.digest
        for file in downloaded.files:
            assert (tmp_path / "copy" / file.name).read_bytes() == (adapters["prompt-tuning"] / file.name).read_bytes()
        with pytest.raises(errors.InvalidRequest, match="there already"):
            client.adapters.download("uploaded", tmp_path / "copy")
        with pytest.raises(errors.VersionNotFound, match="no version 7; there are: 2, 1"):
            client.adapters.download("uploaded", tmp_path / "other", version=7)
        client.adapters.delete("uploaded")
        with pytest.raises(errors.TaskNotFound) as gone:
            client.generate("a", task="uploaded")
        assert (gone.value.code, gone.value.status, gone.value.param) == ("task_not_found", 404, "task")


def test_the_async_client_answers_the_same(server: Served, adapters: dict[str, Path], tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            await client.wait(5)
            version = await client.upload(adapters["prompt-tuning"], "async")
            reply, again = await asyncio.gather(
                client.generate("a film", task="async", max_tokens=4),
                client.generate("a film", task=f"async@{version.version}", max_tokens=4),
            )
            assert reply.text == again.text
            async with await client.stream("a film", task="async", max_tokens=4) as stream:
                assert "".join([chunk.text async for chunk in stream]) == reply.text
            assert [found.task async for found in client.adapters.list("async")] == ["async"]
            assert (await client.adapters.download("async", tmp_path / "copy")).digest == version.digest
            assert (await client.model()).layers == 2
            with pytest.raises(errors.WrongTaskKind):
                await client.classify("a", task="async")
            assert (await client.adapters.activate("async", 1)).active
            await client.adapters.delete("async")
            with pytest.raises(errors.TaskNotFound):
                await client.adapters.get("async")

    asyncio.run(run())


def test_a_stream_left_early_ends_its_request(server: Served) -> None:
    with Client(server.url) as client:
        with client.stream("a", max_tokens=400, ignore_eos=True) as stream:
            next(stream)
        with client.stream("a", max_tokens=3) as stream:
            assert sum(1 for _ in stream) >= 1
        with pytest.raises(errors.InvalidRequest):
            client.stream("a", max_tokens=0)


def test_what_the_engine_has_not_begun_is_asked_again_as_told(scripted: Scripted) -> None:
    scripted.answers = [refusal(503, "overloaded", **{"Retry-After": "0"}), refusal(429, "rate_limited"), GENERATION]
    with Client(scripted.url, retry=QUICK) as client:
        assert client.generate("a").text == "x"
    assert len(scripted.asked) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(503, "engine_down"), errors.EngineDown),
        (refusal(429, "quota_exceeded"), errors.QuotaExceeded),
        (refusal(500, "internal"), errors.InternalError),
        (refusal(429, "rate_limited", **{"Retry-After": "60"}), errors.RateLimited),
        (refusal(418, "teapot"), UnexpectedAnswer),
        ((502, {}, b"<html>bad gateway</html>"), UnexpectedAnswer),
        (None, Broken),
        ((200, {}, b"{}"), UnexpectedAnswer),
    ],
)
def test_what_may_have_run_or_will_not_help_is_not_asked_again(
    scripted: Scripted, answer: tuple[int, dict[str, str], bytes] | None, kind: type[SoftmuxError]
) -> None:
    scripted.answers = [answer, GENERATION]
    with Client(scripted.url, retry=QUICK) as client, pytest.raises(kind) as raised:
        client.generate("a")
    assert type(raised.value) is kind
    assert len(scripted.asked) == 1


def test_what_the_engine_never_had_is_asked_again(scripted: Scripted) -> None:
    def down(begun: bool) -> tuple[int, dict[str, str], bytes]:
        error = {"message": "it is down", "type": "x", "param": None, "code": "engine_down", "begun": begun}
        return 503, {}, json.dumps({"error": error}).encode()

    scripted.answers = [down(begun=False), GENERATION, down(begun=True)]
    with Client(scripted.url, retry=QUICK) as client:
        assert client.generate("a").text == "x"
        with pytest.raises(errors.EngineDown) as raised:
            client.generate("a")
    assert raised.value.begun
    assert len(scripted.asked) == 3


def test_reading_is_asked_again_after_anything_that_may_pass(scripted: Scripted) -> None:
    with Client(scripted.url, retry=QUICK) as client:
        for answer in (None, refusal(503, "engine_down"), (502, {}, b"bad gateway")):
            scripted.answers = [answer, VERSIONS]
            assert client.adapters.versions("t") == ()
        scripted.answers = [None, None, None]
        with pytest.raises(Broken):
            client.adapters.versions("t")
        scripted.answers = [None]
        with pytest.raises(Broken):
            client.adapters.delete("t")
    assert scripted.answers == []


def test_a_stream_that_breaks_or_tells_an_error_raises(scripted: Scripted) -> None:
    chunk = b'data: {"id": "g", "created": 1, "model": "m", "choices": [{"index": 0, "text": "x"}]}\n\n'
    told = b"data: " + refusal(503, "engine_down")[2] + b"\n\ndata: [DONE]\n\n"
    with Client(scripted.url, retry=QUICK) as client:
        for body, kind in ((chunk, Broken), (chunk + told, errors.EngineDown)):
            scripted.answers = [(200, {"content-type": "text/event-stream"}, body)]
            stream = client.stream("a")
            assert next(stream).text == "x"
            with pytest.raises(kind):
                next(stream)


def test_no_server_is_told_from_a_slow_one(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://127.0.0.1:9", "nonsense", "http://[half"):
        with pytest.raises(Unreachable), Client(url, retry=Retry(attempts=1)) as client:
            client.generate("a")
    with Client("http://127.0.0.1:9") as client, pytest.raises(TimedOut, match="not ready within 0 s"):
        client.wait(0)
    monkeypatch.setenv("SOFTMUX_URL", scripted.url)
    monkeypatch.setenv("SOFTMUX_KEY", "sk-x")
    scripted.answers = [VERSIONS]
    with Client() as client:
        assert client.adapters.versions("t") == ()
        assert client.base_url == scripted.url


def test_waits_keep_to_the_server_and_to_their_bounds() -> None:
    call, retry = calls.get("/x"), Retry(attempts=4, first=1, longest=8, chance=random.Random(1))
    refused = errors.Overloaded("x", retry_after=3)
    told = [retry.wait(call, refused, attempt) for attempt in (1, 2, 3, 4)]
    assert [wait is not None and 3 <= wait <= 3 + 0.5 * 2**tries for tries, wait in enumerate(told[:3])] == [True] * 3
    assert told[3] is None
    untold = [retry.wait(call, Broken("x"), attempt) or 0 for attempt in (1, 2, 3)]
    assert [0.5 * 2**tries <= wait <= 2**tries for tries, wait in enumerate(untold)] == [True] * 3
    assert retry.wait(call, errors.Overloaded("x", retry_after=9), 1) is None


def test_the_fields_are_the_servers() -> None:
    given = set(calls.Sampling.__annotations__) | {"prompt", "messages", "variables", "stream"}
    assert given == set(GenerateBody.model_fields)


def test_importing_it_loads_no_model_and_no_server() -> None:
    heavy = ("torch", "transformers", "fastapi", "pydantic", "numpy", "redis", "typer")
    code = f"import sys, softmux.client; print([name for name in {heavy!r} if name in sys.modules])"
    ran: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_an_event_ends_at_its_line_alone(scripted: Scripted, sign: str) -> None:
    """Python's `splitlines`, which httpx's lines follow, ends lines at these, too, and a text may hold them."""
    text = f"one{sign}two"
    chunk = GENERATION[2].decode().replace('"x"', json.dumps(text, ensure_ascii=False))
    body = f"data: {chunk}\r\n\r\n: a remark\n\ndata: [DONE]\n\n".encode()
    headers = {"content-type": "text/event-stream"}
    scripted.answers = [(200, headers, body), (200, headers, body)]
    with Client(scripted.url, retry=QUICK) as client:
        assert [chunk.text for chunk in client.stream("x")] == [text]

    async def read() -> list[str]:
        async with AsyncClient(scripted.url, retry=QUICK) as client:
            return [chunk.text async for chunk in await client.stream("x")]

    assert asyncio.run(read()) == [text]
