"""The disk tier: adapters as files of one folder, least recently used ones giving way."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path

from softmux.engine.arena import Empty, pageable
from softmux.engine.host_adapter import HostAdapter
from softmux.folders import make_private
from softmux.scheduler.radix import RootKey

log = logging.getLogger(__name__)


class DiskTier:
    """Up to `budget` bytes under `folder`. A cache: any file may be lost, a damaged one is dropped and said so.

    Read and written by several threads; files are put in their place whole, so no reader sees half of one.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self.budget = budget
        make_private(folder)
        for unfinished in folder.glob("*.tmp"):
            unfinished.unlink(missing_ok=True)
        found = sorted(((path.stat(), path.name) for path in folder.glob("*.kv")), key=lambda one: one[0].st_mtime)
        self._lock = threading.Lock()
        self._sizes = OrderedDict((name, stat.st_size) for stat, name in found)
        self._used = sum(self._sizes.values())
        self.damaged = 0
        """Files that were there and could not be read, or were not what was written."""

    @staticmethod
    def _name(key: RootKey) -> str:
        return hashlib.sha256(repr(tuple(key)).encode()).hexdigest() + ".kv"

    def __len__(self) -> int:
        """Adapters."""
        return len(self._sizes)

    @property
    def used(self) -> int:
        """Bytes of its files."""
        return self._used

    def __contains__(self, key: RootKey) -> bool:
        return self._name(key) in self._sizes

    def get(self, key: RootKey, empty: Empty = pageable) -> HostAdapter | None:
        """The adapter, in memory from `empty`; None where it is not here, or not whole."""
        name = self._name(key)
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        try:
            return HostAdapter.read(self._folder / name, empty)
        except (OSError, ValueError) as error:
            log.warning("dropped %s from the disk tier: %s", name, error)
            with self._lock:
                self._drop(name)
                self.damaged += 1
            return None

    def put(self, key: RootKey, adapter: HostAdapter) -> None:
        """Writes it, in place of an earlier file of the same adapter."""
        name = self._name(key)
        temporary = self._folder / f"{name}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            size = adapter.write(temporary)
            with self._lock:
                if size > self.budget:
                    temporary.unlink()
                    return
                self._used -= self._sizes.pop(name, 0)
                while self._used + size > self.budget:
                    self._drop(next(iter(self._sizes)))
                temporary.replace(self._folder / name)
                self._sizes[name] = size
                self._used += size
        except OSError as error:
            log.warning("could not write to the disk tier: %s", error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _drop(self, name: str) -> None:
        size = self._sizes.pop(name, None)
        if size is not None:
            self._used -= size
            with contextlib.suppress(OSError):
                (self._folder / name).unlink(missing_ok=True)
