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


def version_mark(tenant: str, digest: str | None) -> int:
    """Of a tenant's version; 0 for the bare model, which is never under suspicion."""
    return 0 if digest is None else _mark((tenant, digest))


def _mark(of: object) -> int:
    return int.from_bytes(blake2b(_encoder.encode(of), digest_size=8).digest(), "little", signed=True) or 1
