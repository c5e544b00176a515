"""An engine in its user's own process, over adapters given as files: no registry, no worker, no messages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from softmux.engine.engine import Engine, StepNews
from softmux.engine.packed import PackedModel
from softmux.formats.folder import Adapter, read_adapter
from softmux.formats.layout import virtual_ids
from softmux.scheduler.radix import RootKey
from softmux.settings import Settings
from softmux.types import DEFAULT_TENANT, KV_METHODS

_NAP = 0.0002
"""Seconds to wait where nothing can run until an adapter has been loaded."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter's, or the bare model's, requests belong: the root of their keys and values, the ids of its
    virtual tokens, and whether these are trained keys and values (`Engine.add`'s `trained_prefix`)."""

    root: RootKey
    virtual: tuple[int, ...] = ()
    trained_prefix: bool = False


class LocalEngine:
    """`engine`, and the adapters (their files by name) by number, in the order in which they came. Close it."""

    def __init__(
        self,
        settings: Settings,
        adapters: Iterable[Mapping[str, bytes]] = (),
        *,
        disk_folder: Path | None = None,
        model: PackedModel | None = None,
    ) -> None:
        self._files: dict[str | None, Mapping[str, bytes]] = {}
        self._places: list[Place] = []
        self.engine = Engine(settings, lambda key: self._files[key.digest], disk_folder=disk_folder, model=model)
        self._bare = Place(self.engine.key(DEFAULT_TENANT, None))
        try:
            self.register(adapters)
        except BaseException:
            self.close()
            raise

    def register(self, adapters: Iterable[Mapping[str, bytes]]) -> None:
        """More adapters, numbered on from those there are. Raises what `read_adapter` raises."""
        for files in adapters:
            self.adopt(files)

    def adopt(self, files: Mapping[str, bytes]) -> Adapter:
        """One more adapter, as it was read. Raises what `read_adapter` raises."""
        adapter = read_adapter(files, self.engine.spec)
        manifest = adapter.manifest
        self._files[manifest.digest] = files
        root = self.engine.key(DEFAULT_TENANT, manifest.digest)
        self._places.append(Place(root, virtual_ids(manifest.virtual_tokens), manifest.method in KV_METHODS))
        return adapter

    def place(self, number: int | None) -> Place:
        """An adapter's place; None: the bare model's."""
        return self._bare if number is None else self._places[number]

    def step(self) -> StepNews:
        """`Engine.step`, which rests a moment where nothing could run."""
        news = self.engine.step()
        if not (news.outputs or news.plain or news.failed or news.ran):
            time.sleep(_NAP)
        return news

    def forget(self) -> None:
        """Makes everything cold: no KV in the pool, no adapter in host memory."""
        self.forget_texts()
        for place in self._places:
            self.engine.tiers.forget(place.root)
            self.engine.runner.vocabulary.forget(place.root)

    def forget_texts(self) -> None:
        """Empties the KV pool but leaves the adapters in host memory."""
        self.engine.scheduler.cache.clear()

    def close(self) -> None:
        self.engine.close()
