"""Tasks and versions for the simulation: published, rolled back and deleted while requests run on them."""

from __future__ import annotations

import random

from softmux.scheduler.radix import RootKey
from support.simulated_engine import Adapter, Shelf, chain


class Tasks:
    """Tasks by (tenant, name): all versions ever, and the active one. A request resolves its task when it comes, and
    keeps that version; a deleted version can't be loaded any more, but runs on where it is loaded."""

    def __init__(self, draw: random.Random, shelf: Shelf, base: tuple[str, str]) -> None:
        self._draw, self._shelf, self._base = draw, shelf, base
        self._versions: dict[tuple[str, str], list[Adapter]] = {}
        self._active: dict[tuple[str, str], Adapter] = {}
        self._published = 0

    def resolve(self, tenant: str) -> Adapter | None:
        """The active version of some task of the tenant's; None: it has none."""
        found = [adapter for (owner, _), adapter in sorted(self._active.items()) if owner == tenant]
        return self._draw.choice(found) if found else None

    def change(self) -> None:
        """One of what publishers do."""
        draw = self._draw
        task = (draw.choice("ab"), draw.choice(["task", "other-task"]))
        if task not in self._active or draw.random() < 0.5:
            self._publish(task)
        elif draw.random() < 0.7:
            self._active[task] = draw.choice(self._versions[task])
        else:
            del self._active[task]
            for adapter in self._versions.pop(task):
                adapter.fails = True

    def _publish(self, task: tuple[str, str]) -> None:
        draw = self._draw
        self._published += 1
        key = RootKey(task[0], f"{task[1]}#{self._published}", *self._base)
        adapter = Adapter(
            key, learned=draw.randint(1, 6), trained=draw.random() < 0.2, delay=draw.choice([0, 2, 30]),
            poisoned=draw.random() < 0.1, delta=draw.random() < 0.3, flaky=draw.random() < 0.2,
        )  # fmt: skip
        if adapter.trained:
            adapter.compiled = chain(key, [-1 - i for i in range(adapter.learned)])
        self._shelf.adapters[key] = adapter
        self._versions.setdefault(task, []).append(adapter)
        self._active[task] = adapter
