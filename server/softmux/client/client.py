"""`Client`: one server, call by call."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Unpack

import httpx

from softmux.client import calls, folder, replies
from softmux.client.calls import Call, Message, Sampling
from softmux.client.errors import Broken, TimedOut, of_event, of_response, of_transport
from softmux.client.retry import Retry
from softmux.errors import SoftmuxError

DEFAULT_URL = "http://127.0.0.1:8000"
POLL = 0.25


def http_options(base_url: str | None, key: str | None, timeout: float) -> tuple[str, dict[str, str], httpx.Timeout]:
    """Address, headers and timeouts, from what was given or the environment."""
    url = base_url or os.environ.get("SOFTMUX_URL") or DEFAULT_URL
    secret = key if key is not None else os.environ.get("SOFTMUX_KEY")
    headers = {"user-agent": "softmux-client"} | ({"authorization": f"Bearer {secret}"} if secret else {})
    return url, headers, httpx.Timeout(timeout, connect=min(5.0, timeout))


class Client:
    """A server at `base_url` (or SOFTMUX_URL, or 127.0.0.1:8000), called with `key` (or SOFTMUX_KEY).

    `timeout` bounds each wait for the network, in seconds; a request's own deadline is its field `timeout`. What may
    safely be sent again is, as `retry` says. Every call raises a `SoftmuxError`. Use it with `with`, or `close` it;
    threads may share one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        key: str | None = None,
        timeout: float = 600.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url, headers, limits = http_options(base_url, key, timeout)
        self._retry = retry or Retry()
        try:
            self._http = httpx.Client(base_url=self.base_url, headers=headers, timeout=limits, transport=transport)
        except httpx.InvalidURL as error:
            raise of_transport(error, self.base_url) from None
        self.adapters = Adapters(self)

    def wait(self, seconds: float = 300.0) -> None:
        """Until the server serves requests. Raises `TimedOut` after so many seconds."""
        limit = time.monotonic() + seconds
        while True:
            try:
                self.send(calls.READY, Retry(attempts=1)).close()
                return
            except SoftmuxError as error:
                if time.monotonic() + POLL > limit:
                    raise TimedOut(f"{self.base_url} was not ready within {seconds:g} s: {error.message}") from None
            time.sleep(POLL)

    def model(self) -> replies.Model:
        """The base model."""
        return replies.decoded(self.send(calls.get("/v1/model")), replies.Model)

    def upload(self, path: str | Path, task: str | None = None, *, activate: bool = True) -> replies.Version:
        """Publishes the folder that PEFT's `save_pretrained` wrote; the task is named after it unless told."""
        from softmux.formats.folder import load_folder

        name = task or Path(path).resolve().name
        return self.adapters.put(name, load_folder(Path(path)), activate=activate)

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | None = None,
        *,
        task: str | None = None,
        messages: Sequence[Message] | None = None,
        variables: Mapping[str, str] | None = None,
        **sampling: Unpack[Sampling],
    ) -> replies.Generation:
        """Text for a prompt, by a task (`task`, `task@3`, `tenant/task`) or the bare model."""
        call = calls.generate(prompt, task, messages, variables, sampling, stream=False)
        return replies.decoded(self.send(call), replies.Generation)

    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[str] | None = None,
        *,
        task: str | None = None,
        messages: Sequence[Message] | None = None,
        variables: Mapping[str, str] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """As `generate`, its chunks as they come. What is refused is raised here, before the first."""
        call = calls.generate(prompt, task, messages, variables, sampling, stream=True)
        return Stream(self.send(call, stream=True), self.base_url)

    def classify(
        self,
        texts: str | Sequence[str],
        *,
        task: str,
        stride: int | None = None,
        aggregation: Literal["none", "word"] = "none",
        priority: int = 0,
        timeout: float | None = None,
    ) -> replies.Classification:
        """Labels of texts, or of their tokens."""
        call = calls.classify(texts, task, stride=stride, aggregation=aggregation, priority=priority, timeout=timeout)
        return replies.decoded(self.send(call), replies.Classification)

    def send(self, call: Call, retry: Retry | None = None, *, stream: bool = False) -> httpx.Response:
        """Makes a call of any route, for what has no method here. Raises what is not a success."""
        policy, attempt = retry or self._retry, 0
        while True:
            attempt += 1
            try:
                timeout = httpx.USE_CLIENT_DEFAULT if call.timeout is None else httpx.Timeout(call.timeout, connect=5)
                request = self._http.build_request(call.method, call.path, **call.arguments(), timeout=timeout)
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                response.read()
                error = of_response(response)
                response.close()
            except (httpx.HTTPError, httpx.InvalidURL) as failure:
                error = of_transport(failure, self.base_url)
            wait = policy.wait(call, error, attempt)
            if wait is None:
                raise error from None
            time.sleep(wait)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Adapters:
    """The tasks of a server: `client.adapters`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, prefix: str = "", *, shared: bool = False) -> Iterator[replies.Version]:
        """The active versions of all tasks, by name; `shared`: those that other tenants share."""
        cursor: str | None = None
        while True:
            path = "/v1/shared" if shared else "/v1/adapters"
            call = calls.get(path, limit="1000", prefix=prefix, cursor=cursor)
            page = replies.decoded(self._client.send(call), replies.Page)
            yield from page.data
            cursor = page.next_cursor
            if cursor is None:
                return

    def get(self, task: str) -> replies.Version:
        """The active version."""
        return replies.decoded(self._client.send(calls.adapter(task)), replies.Version)

    def versions(self, task: str) -> Sequence[replies.Version]:
        """All of them, newest first."""
        return replies.decoded(self._client.send(calls.versions(task)), replies.Page).data

    def put(self, task: str, files: Mapping[str, bytes], *, activate: bool = True) -> replies.Version:
        """Publishes files by their names: what `Client.upload` does with a folder's."""
        return replies.decoded(self._client.send(calls.upload(task, files, activate=activate)), replies.Version)

    def activate(self, task: str, version: int) -> replies.Version:
        """Rolls back, or forward."""
        return replies.decoded(self._client.send(calls.activate(task, version)), replies.Version)

    def delete(self, task: str) -> None:
        """The task with all its versions."""
        self._client.send(calls.delete(task))

    def file(self, task: str, version: int, name: str) -> bytes:
        """A file of a version, byte for byte."""
        return self._client.send(calls.file(task, version, name)).content

    def download(self, task: str, path: str | Path, version: int | None = None) -> replies.Version:
        """All files of a version (the active one) into a new folder, as they were uploaded."""
        folder.check_free(Path(path))
        found = replies.chosen(self.versions(task), version)
        files = {file.name: folder.checked(file, self.file(task, found.version, file.name)) for file in found.files}
        folder.write(Path(path), files)
        return found


class Stream:
    """The chunks of a reply, as they come: iterate over it. Closing it early ends the request on the server."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self._url = url
        self._chunks = self._read()

    def __iter__(self) -> Iterator[replies.Chunk]:
        return self._chunks

    def __next__(self) -> replies.Chunk:
        return next(self._chunks)

    def _read(self) -> Iterator[replies.Chunk]:
        try:
            lines = Lines()
            for data in self._response.iter_bytes():
                for line in lines.of(data):
                    chunk = read_event(line)
                    if chunk == "done":
                        return
                    if isinstance(chunk, replies.Chunk):
                        yield chunk
            raise Broken(f"The stream from {self._url} ended in the middle of the reply.")
        except httpx.HTTPError as failure:
            raise of_transport(failure, self._url) from None
        finally:
            self.close()

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Lines:
    """The whole lines of a stream that comes in any pieces. They end where events' lines do: httpx's own end at U+2028
    and its like, too, which may stand in a text."""

    def __init__(self) -> None:
        self._torn = b""

    def of(self, data: bytes) -> list[str]:
        """Those that `data` completes."""
        *whole, self._torn = (self._torn + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


def read_event(line: str) -> replies.Chunk | Literal["done"] | None:
    """What a line of a stream says. Raises the error of an event that tells one."""
    data = replies.event_data(line)
    if data is None:
        return None
    if data == "[DONE]":
        return "done"
    if data.startswith('{"error"'):
        raise of_event(data)
    return replies.decode(data, replies.Chunk)
