"""`softmux bench [WHAT]`: measures, prints a table, and writes JSON where asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from softmux.bench.benches import BENCHES, DEFAULT, ROOMS
from softmux.bench.command import command


def main(arguments: Sequence[str] | None = None) -> int:
    return command(_run, arguments)


def _run(words: Sequence[str]) -> int | None:
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(told())
        return 0
    what, *rest = words if words and not words[0].startswith("-") else [DEFAULT, *words]
    if what not in BENCHES:
        sys.stderr.write(f"There is no bench {what}.\n\n{told()}")
        return 2
    bench = BENCHES[what]
    status: int | None = getattr(import_module(f"softmux.bench.{bench.module}"), bench.main)(rest)
    return status


def told() -> str:
    """What there is, by room."""
    width = max(map(len, BENCHES))
    lines = [f"softmux bench [WHAT] [OPTIONS], by default {DEFAULT}. `softmux bench WHAT --help` lists options."]
    for room, benches in ROOMS.items():
        lines += ["", f"{room}:", *(f"  {name:{width}}  {bench.about}" for name, bench in benches.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
