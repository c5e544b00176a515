"""The disk tier: compiled adapters as files of one folder, least recently used ones giving way."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from pathlib import Path

from softmux.engine.host_adapter import HostAdapter
from softmux.scheduler.radix import RootKey

log = logging.getLogger(__name__)


class DiskTier:
    """Up to `budget` bytes under `folder`. A cache: any file may be lost, a damaged one is dropped and said so.

    Used by the loader's thread alone.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._budget = budget
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.tmp"):
            unfinished.unlink(missing_ok=True)
        found = sorted(folder.glob("*.kv"), key=lambda path: path.stat().st_mtime)
        self._sizes = OrderedDict((path.name, path.stat().st_size) for path in found)
        self._used = sum(self._sizes.values())

    @staticmethod
    def _name(key: RootKey) -> str:
        return hashlib.sha256(repr(tuple(key)).encode()).hexdigest() + ".kv"

    def get(self, key: RootKey) -> HostAdapter | None:
        name = self._name(key)
        if name not in self._sizes:
            return None
        try:
            adapter = HostAdapter.from_bytes((self._folder / name).read_bytes())
        except (OSError, ValueError) as error:
            log.warning("dropped %s from the disk tier: %s", name, error)
            self._drop(name)
            return None
        self._sizes.move_to_end(name)
        return adapter

    def put(self, key: RootKey, adapter: HostAdapter) -> None:
        name = self._name(key)
        content = adapter.to_bytes()
        if name in self._sizes or len(content) > self._budget:
            return
        while self._used + len(content) > self._budget:
            self._drop(next(iter(self._sizes)))
        temporary = self._folder / f"{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(content)
            temporary.replace(self._folder / name)
        except OSError as error:
            log.warning("could not write to the disk tier: %s", error)
            temporary.unlink(missing_ok=True)
            return
        self._sizes[name] = len(content)
        self._used += len(content)

    def _drop(self, name: str) -> None:
        self._used -= self._sizes.pop(name)
        (self._folder / name).unlink(missing_ok=True)
