"""A folder that is written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder to fill. It takes the place of `out`, and of what is there, once the block has ended well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "new"
        made.mkdir()
        yield made
        if out.exists():
            out.rename(Path(scratch) / "old")
        made.rename(out)
