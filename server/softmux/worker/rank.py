"""`python -m softmux.worker.rank`, its `RankConfig` on standard input: started by rank 0, never by hand."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from softmux.errors import InternalError, SelfTestFailed
from softmux.settings import Settings
from softmux.worker.config import REFUSED, RankConfig

if TYPE_CHECKING:
    from softmux.engine.packed import PackedModel
    from softmux.engine.parallel.ranks import Ranks

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def main() -> None:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=RankConfig)
    _die_with(config.leader)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # rank 0 says when to end
    code = 1
    try:
        code = serve(config)
    except Exception:
        log.exception("rank %d ends of an error", config.rank)
    logging.shutdown()
    os._exit(code)  # communicators of CUDA are not taken down one by one


def serve(config: RankConfig, make: Callable[[Settings, Ranks], PackedModel] | None = None) -> int:
    """Does what rank 0 says until it says no more; the exit code. `make`: its part of the model, if not from files."""
    settings = Settings(**config.settings)
    logging.basicConfig(
        level=settings.log_level.upper(), format=f"rank {config.rank} %(levelname)s %(name)s: %(message)s"
    )
    from transformers.utils import logging as transformers_logging

    from softmux.engine.engine import Engine
    from softmux.engine.parallel.follower import Follower
    from softmux.engine.parallel.together import meet

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    def source(_: object) -> dict[str, bytes]:
        raise InternalError("adapters come from rank 0")

    try:
        ranks = meet(settings, config.rank, Path(config.meeting))
        model = None if make is None else make(settings, ranks)
        engine = Engine(settings, source, ranks=ranks, model=model)
    except (SelfTestFailed, OSError, ValueError) as error:  # rank 0 says the same, as a rule
        print(error, file=sys.stderr)  # noqa: T201 - the supervisor shows this line
        return REFUSED
    follower = Follower(engine.runner, config.orders, config.gifts)
    gc.collect()
    gc.freeze()  # as rank 0 does
    follower.run()
    return 0


def _die_with(leader: int) -> None:
    """The kernel kills this process when the thread that started it is gone. Not on Linux, it looks itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(leader,), daemon=True).start()
    if os.getppid() != leader:
        os._exit(1)


def _watch(leader: int) -> None:
    while os.getppid() == leader:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
