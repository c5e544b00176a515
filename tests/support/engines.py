"""An engine in this process, with adapters from folders, for tests that need no registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from softmux.engine.engine import Engine
from softmux.errors import SoftmuxError
from softmux.formats.folder import load_folder, read_adapter
from softmux.scheduler.radix import RootKey
from softmux.settings import Settings
from softmux.types import DEFAULT_TENANT, Output, SamplingParams, TokenLogprobs
from support.learned import prompt_files


class FolderSource:
    """An adapter source over folders, by digest; counts how often each was fetched."""

    def __init__(self) -> None:
        self.files: dict[str, Mapping[str, bytes]] = {}
        self.fetched: list[str] = []

    def __call__(self, key: RootKey) -> Mapping[str, bytes]:
        assert key.digest is not None
        self.fetched.append(key.digest)
        return self.files[key.digest]


class Finished:
    """What one sequence brought."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.reason: str | None = None
        self.cached = 0
        self.scores = b""
        self.error: SoftmuxError | None = None

    def hear(self, output: Output) -> None:
        self.tokens.extend(output.tokens)
        self.logprobs.extend(output.logprobs)
        self.cached += output.cached_tokens
        self.scores += output.scores
        self.reason = output.finish_reason


class TestEngine:
    """`add` sequences, `run` until all have ended, look at `done`."""

    __test__ = False

    def __init__(self, model: Path, disk_folder: Path | None = None, **settings: Any) -> None:
        chosen = {"device": "cpu", "dtype": "float32", "kv_tokens": 4096, "max_rows": 64, "max_step_tokens": 64}
        source = FolderSource()
        self._begin(Engine(Settings(model=str(model), **(chosen | settings)), source, disk_folder=disk_folder), source)

    def _begin(self, engine: Engine, source: FolderSource) -> None:
        self.engine, self.source = engine, source
        self.done: dict[str, Finished] = {}
        self.batches: list[Any] = []
        self._count = 0

    def adapter(self, folder: Path, tenant: str = DEFAULT_TENANT) -> tuple[RootKey, int]:
        """Makes a folder's adapter known: its key, and its number of virtual tokens."""
        files = load_folder(folder)
        manifest = read_adapter(files, self.engine.spec).manifest
        self.source.files[manifest.digest] = files
        return self.engine.key(tenant, manifest.digest), manifest.virtual_tokens

    def learned(self, name: str, vectors: torch.Tensor, tenant: str = DEFAULT_TENANT) -> RootKey:
        """Makes a prompt-tuning adapter of these vectors known to the source, under a digest of that name."""
        self.source.files[name] = prompt_files(vectors)
        return self.engine.key(tenant, name)

    def text(self, tokens: list[int], root: RootKey, **sampling: Any) -> str:
        """Adds a sequence whose tokens, virtual ones included, are laid out already; `sample` as in `add`."""
        return self.add(tokens, root, 0, **sampling)

    def forget_kv(self) -> None:
        """Empties the prefix cache (nothing may be running)."""
        scheduler = self.engine.scheduler
        scheduler.cache.clear()

    def virtual_tokens_run(self) -> int:
        """Learned vectors that went through the model since `batches` was last cleared."""
        return sum(
            sum(token < 0 for token in chunk.sequence.prompt[chunk.start : chunk.start + chunk.count])
            for batch in self.batches
            for chunk in batch.chunks
        )

    def add(
        self, ids: list[int], root: RootKey | None = None, virtual: int = 0, sample: int = 0,
        trained_prefix: bool = False, **sampling: Any,
    ) -> str:  # fmt: skip
        self._count += 1
        name = str(self._count)
        self.done[name] = Finished()
        self.engine.add(
            name,
            (*(-1 - i for i in range(virtual)), *ids),
            SamplingParams(**sampling),
            root=root or self.engine.key(DEFAULT_TENANT, None),
            now=0.0,
            sample=sample,
            trained_prefix=trained_prefix,
        )
        return name

    def read(self, ids: list[int], root: RootKey | None = None, virtual: int = 0, **reading: Any) -> str:
        """Adds a sequence that is read: by a head, or for its last tokens' likelihood."""
        self._count += 1
        name = str(self._count)
        self.done[name] = Finished()
        tokens = (*(-1 - i for i in range(virtual)), *ids)
        self.engine.read(name, tokens, root=root or self.engine.key(DEFAULT_TENANT, None), now=0.0, **reading)
        return name

    def step(self) -> None:
        news = self.engine.step()
        if news.batch is not None and len(news.batch):
            self.batches.append(news.batch)
        for sequence, output in news.each():
            self.done[sequence.id].hear(output)
        for sequence, error in news.failed:
            self.done[sequence.id].error = error

    def run(self) -> None:
        while self.engine.scheduler.running or len(self.engine.scheduler.waiting) or not self.engine.idle:
            self.step()
        self.engine.check_integrity()

    def close(self) -> None:
        self.engine.close()
