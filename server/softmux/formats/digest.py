"""A version's name: SHA-256 over all of its files and the base they were admitted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from softmux.types import FileEntry


def sha256(data: bytes) -> str:
    """`sha256:` and the hex digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_entries(files: Mapping[str, bytes]) -> tuple[FileEntry, ...]:
    """The entries of `files`, sorted by name."""
    return tuple(FileEntry(name, sha256(files[name]), len(files[name])) for name in sorted(files))


def adapter_digest(entries: Iterable[FileEntry], base_fingerprint: str) -> str:
    """`sha256:…` over the canonical JSON (UTF-8, keys sorted, no spaces)
    `{"base":…,"files":[[name,sha256,size],…],"format":"softmux-adapter-1"}`, files sorted by name.

    The rule never changes: registries hold names made by it. Another rule would be another `format`.
    """
    canonical = {
        "base": base_fingerprint,
        "files": sorted([entry.name, entry.sha256, entry.size] for entry in entries),
        "format": "softmux-adapter-1",
    }
    return sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
