"""Malformed uploads are each a readable 4xx, and none costs memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from formats_fixtures import make_spec

from softmux.errors import SoftmuxError
from softmux.formats.folder import read_adapter
from support.malformed import Files, malformed

METHODS = ("prompt", "mlp", "lstm", "prefix", "projection")


def test_every_malformed_upload_is_a_readable_4xx(saved: Callable[[str, str], Files]) -> None:
    spec = make_spec()
    wrong: list[str] = []
    count = 0
    tracemalloc.start()
    try:
        for method in METHODS:
            good = saved("gqa", method)
            read_adapter(good, spec)
            for what, files in malformed(good):
                count += 1
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                verdict = judge(files, spec)
                used = tracemalloc.get_traced_memory()[1] - before
                if used > 32 << 20:
                    verdict = f"used {used:,} bytes"
                if verdict is not None:
                    wrong.append(f"{method}: {what}: {verdict}")
    finally:
        tracemalloc.stop()
    assert not wrong, "\n".join(wrong)
    assert count >= 300


def judge(files: Files, spec: Any) -> str | None:
    """What is wrong with how the server takes `files`; None for a readable 4xx."""
    try:
        read_adapter(files, spec)
    except SoftmuxError as error:
        if not 400 <= error.status < 500:
            return f"status {error.status}"
        if len(error.message) <= 20 or len(error.message) > 2000 or not error.message.isprintable():
            return f"unreadable: {error.message[:200]!r}"
        if not error.param or len(error.param) > 200:
            return f"param {str(error.param)[:200]!r}"
        return None
    except Exception as error:
        return f"raised {error!r}"[:300]
    return "accepted"
