"""Adapters as the registry sees them: a manifest and bytes. Their content does not matter to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from softmux.formats.digest import adapter_digest, file_entries
from softmux.types import Manifest

BASE = "sha256:" + hashlib.sha256(b"base").hexdigest()
OTHER_BASE = "sha256:" + hashlib.sha256(b"other base").hexdigest()
LARGE = 200_000


def adapter(seed: int | str = 0, *, size: int = 100, base: str = BASE) -> tuple[Manifest, Mapping[str, bytes]]:
    """An adapter whose weights have `size` bytes: the same for the same arguments, else another."""
    block = hashlib.sha256(f"{seed}".encode()).digest()
    files = {
        "adapter_config.json": b'{"peft_type": "PROMPT_TUNING"}',
        "adapter_model.safetensors": (block * (size // 32 + 1))[:size],
    }
    entries = file_entries(files)
    manifest = Manifest(
        digest=adapter_digest(entries, base),
        method="prompt_tuning",
        base_fingerprint=base,
        files=entries,
        virtual_tokens=20,
        parameters=20 * 64,
    )
    return manifest, files
