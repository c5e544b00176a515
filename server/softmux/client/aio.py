"""`AsyncClient`: what `Client` is, for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Unpack

import httpx

from softmux.client import calls, folder, replies
from softmux.client.calls import Call, Message, Sampling
from softmux.client.client import POLL, Lines, http_options, read_event
from softmux.client.errors import Broken, TimedOut, of_response, of_transport
from softmux.client.retry import Retry
from softmux.errors import SoftmuxError


class AsyncClient:
    """`Client` with the same methods, each to be awaited; `stream` is awaited, then iterated over with `async for`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        key: str | None = None,
        timeout: float = 600.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url, headers, limits = http_options(base_url, key, timeout)
        self._retry = retry or Retry()
        try:
            self._http = httpx.AsyncClient(base_url=self.base_url, headers=headers, timeout=limits, transport=transport)
        except httpx.InvalidURL as error:
            raise of_transport(error, self.base_url) from None
        self.adapters = AsyncAdapters(self)

    async def wait(self, seconds: float = 300.0) -> None:
        """Until the server serves requests. Raises `TimedOut` after so many seconds."""
        limit = time.monotonic() + seconds
        while True:
            try:
                await self.send(calls.READY, Retry(attempts=1))
                return
            except SoftmuxError as error:
                if time.monotonic() + POLL > limit:
                    raise TimedOut(f"{self.base_url} was not ready within {seconds:g} s: {error.message}") from None
            await asyncio.sleep(POLL)

    async def model(self) -> replies.Model:
        """The base model."""
        return replies.decoded(await self.send(calls.get("/v1/model")), replies.Model)

    async def upload(self, path: str | Path, task: str | None = None, *, activate: bool = True) -> replies.Version:
        """Publishes the folder that PEFT's `save_pretrained` wrote; the task is named after it unless told."""
        from softmux.formats.folder import load_folder

        def read() -> tuple[str, Mapping[str, bytes]]:
            return task or Path(path).resolve().name, load_folder(Path(path))

        name, files = await asyncio.to_thread(read)
        return await self.adapters.put(name, files, activate=activate)

    async def generate(
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
        return replies.decoded(await self.send(call), replies.Generation)

    async def stream(
        self,
        prompt: str | Sequence[int] | Sequence[str] | None = None,
        *,
        task: str | None = None,
        messages: Sequence[Message] | None = None,
        variables: Mapping[str, str] | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncStream:
        """As `generate`, its chunks as they come. What is refused is raised here, before the first."""
        call = calls.generate(prompt, task, messages, variables, sampling, stream=True)
        return AsyncStream(await self.send(call, stream=True), self.base_url)

    async def classify(
        self,
        texts: str | Sequence[str],
        *,
        task: str,
        stride: int | None = None,
        aggregation: Literal["none", "word"] = "none",
        priority: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109 - it is the server's to keep
    ) -> replies.Classification:
        """Labels of texts, or of their tokens."""
        call = calls.classify(texts, task, stride=stride, aggregation=aggregation, priority=priority, timeout=timeout)
        return replies.decoded(await self.send(call), replies.Classification)

    async def send(self, call: Call, retry: Retry | None = None, *, stream: bool = False) -> httpx.Response:
        """Makes a call of any route, for what has no method here. Raises what is not a success."""
        policy, attempt = retry or self._retry, 0
        while True:
            attempt += 1
            try:
                timeout = httpx.USE_CLIENT_DEFAULT if call.timeout is None else httpx.Timeout(call.timeout, connect=5)
                request = self._http.build_request(call.method, call.path, **call.arguments(), timeout=timeout)
                response = await self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                await response.aread()
                error = of_response(response)
                await response.aclose()
            except (httpx.HTTPError, httpx.InvalidURL) as failure:
                error = of_transport(failure, self.base_url)
            wait = policy.wait(call, error, attempt)
            if wait is None:
                raise error from None
            await asyncio.sleep(wait)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncAdapters:
    """The tasks of a server: `client.adapters`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, prefix: str = "", *, shared: bool = False) -> AsyncIterator[replies.Version]:
        """The active versions of all tasks, by name; `shared`: those that other tenants share."""
        cursor: str | None = None
        while True:
            path = "/v1/shared" if shared else "/v1/adapters"
            call = calls.get(path, limit="1000", prefix=prefix, cursor=cursor)
            page = replies.decoded(await self._client.send(call), replies.Page)
            for version in page.data:
                yield version
            cursor = page.next_cursor
            if cursor is None:
                return

    async def get(self, task: str) -> replies.Version:
        """The active version."""
        return replies.decoded(await self._client.send(calls.adapter(task)), replies.Version)

    async def versions(self, task: str) -> Sequence[replies.Version]:
        """All of them, newest first."""
        return replies.decoded(await self._client.send(calls.versions(task)), replies.Page).data

    async def put(self, task: str, files: Mapping[str, bytes], *, activate: bool = True) -> replies.Version:
        """Publishes files by their names: what `Client.upload` does with a folder's."""
        return replies.decoded(await self._client.send(calls.upload(task, files, activate=activate)), replies.Version)

    async def activate(self, task: str, version: int) -> replies.Version:
        """Rolls back, or forward."""
        return replies.decoded(await self._client.send(calls.activate(task, version)), replies.Version)

    async def delete(self, task: str) -> None:
        """The task with all its versions."""
        await self._client.send(calls.delete(task))

    async def file(self, task: str, version: int, name: str) -> bytes:
        """A file of a version, byte for byte."""
        return (await self._client.send(calls.file(task, version, name))).content

    async def download(self, task: str, path: str | Path, version: int | None = None) -> replies.Version:
        """All files of a version (the active one) into a new folder, as they were uploaded."""
        folder.check_free(Path(path))
        found = replies.chosen(await self.versions(task), version)
        files = {
            file.name: folder.checked(file, await self.file(task, found.version, file.name)) for file in found.files
        }
        await asyncio.to_thread(folder.write, Path(path), files)
        return found


class AsyncStream:
    """The chunks of a reply, as they come: iterate over it. Closing it early ends the request on the server."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self._url = url
        self._chunks = self._read()

    def __aiter__(self) -> AsyncIterator[replies.Chunk]:
        return self._chunks

    async def __anext__(self) -> replies.Chunk:
        return await anext(self._chunks)

    async def _read(self) -> AsyncIterator[replies.Chunk]:
        try:
            lines = Lines()
            async for data in self._response.aiter_bytes():
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
            await self.aclose()

    async def aclose(self) -> None:
        await self._response.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()
