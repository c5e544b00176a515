"""Where published adapters are: on a server, or in a registry that is at hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from softmux.errors import InvalidRequest
from softmux.types import DEFAULT_TENANT, Manifest

if TYPE_CHECKING:
    from softmux.client import Client
    from softmux.client.replies import Version
    from softmux.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Published:
    """A version of a task. `base` is the fingerprint of the base that it was made for, `files` their names."""

    task: str
    version: int
    digest: str
    method: str
    base: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.task}@{self.version}"


class Library(Protocol):
    """What one tenant may use. Every call raises `SoftmuxError` where it can't be asked."""

    def find(self, task: str, version: int | None, base: str) -> Published:
        """The version of that number, or the one active for `base`. Raises `TaskNotFound`, `VersionNotFound`."""

    def active(self, base: str) -> Sequence[Published]:
        """The tenant's own tasks, as they are active for `base`, by name."""

    def files(self, one: Published) -> dict[str, bytes]:
        """Its files, byte for byte."""


class ServerLibrary:
    """The tasks of a server, by its client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def find(self, task: str, version: int | None, base: str) -> Published:
        from softmux.client.replies import chosen

        return _of_server(chosen(self._client.adapters.versions(task), version), task)

    def active(self, base: str) -> Sequence[Published]:
        return [_of_server(one, one.task) for one in self._client.adapters.list() if one.base_fingerprint == base]

    def files(self, one: Published) -> dict[str, bytes]:
        return {name: self._client.adapters.file(one.task, one.version, name) for name in one.files}


def _of_server(one: Version, task: str) -> Published:
    files = tuple(file.name for file in one.files)
    return Published(task, one.version, one.digest, one.method, one.base_fingerprint, files)


class RegistryLibrary:
    """The tasks of `tenant` in the registry itself, whether a server runs on it or not. It is opened when it is first
    asked; use it with `with`."""

    def __init__(self, redis: str | None, data: Path, tenant: str = DEFAULT_TENANT) -> None:
        self._redis, self._data, self._tenant = redis, data, tenant
        self._runner = asyncio.Runner()
        self._opened: Registry | None = None

    def find(self, task: str, version: int | None, base: str) -> Published:
        if "/" in task:
            raise InvalidRequest(
                f"{task} is another tenant's, and a registry is read as one tenant: give --tenant and the task's own "
                "name, or ask a server with --url.",
                param="method.init_from",
            )
        registry, tenant = self._registry(), self._tenant
        found = registry.active(tenant, task, base) if version is None else registry.version(tenant, task, version)
        record = self._runner.run(found)
        return _of_registry(task, record.version, record.manifest)

    def active(self, base: str) -> Sequence[Published]:
        registry = self._registry()
        found: list[Published] = []
        cursor: str | None = None
        while True:
            page = self._runner.run(registry.tasks(self._tenant, base, limit=1000, cursor=cursor))
            found += [_of_registry(one.task, one.version, one.manifest) for one in page.data]
            cursor = page.next_cursor
            if cursor is None:
                return found

    def files(self, one: Published) -> dict[str, bytes]:
        registry = self._registry()
        return {name: self._runner.run(registry.file(self._tenant, one.task, one.version, name)) for name in one.files}

    def _registry(self) -> Registry:
        from softmux.registry.registry import Registry

        if self._opened is None:
            self._opened = self._runner.run(Registry.open(self._redis, self._data, begin=False))
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._runner.run(self._opened.close())
        self._runner.close()

    def __enter__(self) -> RegistryLibrary:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _of_registry(task: str, version: int, manifest: Manifest) -> Published:
    files = tuple(entry.name for entry in manifest.files)
    return Published(task, version, manifest.digest, manifest.method, manifest.base_fingerprint, files)
