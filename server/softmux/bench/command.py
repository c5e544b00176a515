"""How `softmux bench` says what it refuses, and what is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from softmux.errors import SoftmuxError

_OF_BENCH = "pip install 'softmux[bench,tune]' brings what the bench needs"
_BROUGHT_BY = {
    "ray": "pip install 'softmux[ray,bench]' brings what a cluster needs",
    **dict.fromkeys(("aiohttp", "matplotlib", "jsonschema", "peft"), _OF_BENCH),
}


def command(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> int:
    """The status to end with after `main` of `arguments`, by default the process's own. What is refused, or is not
    installed, is a line of stderr and 2; anything else keeps its traceback."""
    try:
        return main(list(sys.argv[1:] if arguments is None else arguments)) or 0
    except SoftmuxError as error:
        return _complain(f"{error.param}: {error.message}" if error.param else error.message)
    except ModuleNotFoundError as error:
        if error.name not in _BROUGHT_BY:
            raise
        return _complain(f"{error}: {_BROUGHT_BY[error.name]}")


def _complain(words: str) -> int:
    Console(stderr=True, markup=False).print(words, style="red")
    return 2
