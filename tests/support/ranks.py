"""An engine over several processes: rank 0 in the test's own, the others forked from a server that has torch loaded."""

from __future__ import annotations

import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

from softmux.engine.engine import Engine
from softmux.engine.parallel.together import lead, meet
from softmux.settings import Settings
from softmux.worker.config import RankConfig
from softmux.worker.crew import Crew
from softmux.worker.rank import serve
from support.engines import FolderSource, TestEngine

_MAKER = multiprocessing.get_context("forkserver")
_MAKER.set_forkserver_preload(["softmux.engine.parallel.together", "softmux.engine.parallel.follower"])


class _Forked:
    """A `softmux.worker.crew.Process`."""

    def __init__(self, config: RankConfig) -> None:
        self._process = _MAKER.Process(target=_serve, args=(config,), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("rank", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _serve(config: RankConfig) -> None:
    raise SystemExit(serve(config))


class RanksEngine(TestEngine):
    """As `TestEngine`, over `size` processes that meet in `folder`."""

    def __init__(self, model: Path, folder: Path, size: int, **settings: Any) -> None:
        chosen: dict[str, Any] = {"device": "cpu", "dtype": "float32", "kv_tokens": 4096, "max_rows": 64}
        chosen |= {"max_step_tokens": 64, "model": str(model), "tensor_parallel": size, "log_level": "warning"}
        told = Settings(**(chosen | settings))
        self.crew = Crew(size, folder, told.model_dump(mode="json"), _Forked)
        self.ranks = meet(told, 0, self.crew.meeting)
        self._begin(Engine(told, source := FolderSource(), ranks=self.ranks), source)
        lead(self.engine, self.crew.endpoints)

    def close(self) -> None:
        super().close()
        self.crew.end()
        self.ranks.close()
