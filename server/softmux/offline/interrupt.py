"""SIGINT and SIGTERM, put off to where they do no harm."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While entered, neither signal raises wherever it happens to come, which may be in the middle of a library's
    clean-up or of a line that is being written: the first one waits for `check`, after `wake` has been called. Another
    one raises `KeyboardInterrupt` at once. A signal that is ignored, as a shell ignores Ctrl-C for what it runs in the
    background, stays so. Entered in the main thread, as `signal.signal` asks."""

    def __init__(self) -> None:
        self.wake: Callable[[], object] = _nothing
        """Called by the signal, whatever runs then: for who waits for something else."""
        self._came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if a signal came."""
        if self._came:
            raise KeyboardInterrupt

    def _take(self, *_: object) -> None:
        self.check()
        self._came = True
        self.wake()


def _nothing() -> None: ...
