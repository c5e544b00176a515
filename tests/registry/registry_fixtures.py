"""Adapters as the registry sees them (a manifest and bytes: their content does not matter to it), and waiting."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

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


def server_pid(url: str) -> int:
    """The process id of the Redis at `url`."""
    with redis.Redis.from_url(url, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
        return int(client.info("server")["process_id"])


def pid_if_up(url: str) -> int | None:
    """`server_pid`, or None while no Redis answers there."""
    try:
        return server_pid(url)
    except redis.RedisError:
        return None


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
