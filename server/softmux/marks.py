"""Numbers by which requests and versions are known again after they have felled a worker: names of their content.

They say nothing of what was asked, are equal in every process, and are never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

_encoder = msgspec.msgpack.Encoder()


def content_mark(tenant: str, digest: str | None, tokens: Sequence[int], wish: object) -> int:
    """Of a sequence: whose it is, on which adapter, its input ids, and what is wished of it (its sampling, or what is
    read). Whoever sends the same again has the same mark."""
    return _mark((tenant, digest, tokens, wish))


def version_mark(tenant: str, digest: str | None, owner: str | None = None) -> int:
    """Of `owner`'s version (`tenant`'s own where not given) as `tenant` asks for it: what one tenant's requests do is
    not held against another's. 0 for the bare model, which is never under suspicion."""
    if digest is None:
        return 0
    version, asker = _mark((owner or tenant, digest)), _mark(tenant)
    return (version >> 32 << 32 | asker & 0xFFFFFFFF) or 1


def same_version(one: int, other: int) -> bool:
    """Whether two version marks are of one version, whoever asks."""
    return one >> 32 == other >> 32


def _mark(of: object) -> int:
    return int.from_bytes(blake2b(_encoder.encode(of), digest_size=8).digest(), "little", signed=True) or 1
