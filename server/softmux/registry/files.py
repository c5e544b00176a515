"""A version's files, wherever they lie: small ones in Redis, large ones in the blob store."""

from __future__ import annotations

import hashlib

from softmux.errors import BlobDamaged
from softmux.registry.blobs import BlobStore
from softmux.registry.keyspace import INLINE_BYTES
from softmux.types import FileEntry


def is_inline(entry: FileEntry) -> bool:
    return entry.size <= INLINE_BYTES


def file_bytes(tenant: str, entry: FileEntry, inline: bytes | None, blobs: BlobStore | None) -> bytes:
    """The bytes of `entry`, hash checked; `inline` is what Redis has under its hash. Blocks.

    Raises `BlobDamaged` where they are gone or others, `RegistryDown` where the blob store can't be reached.
    """
    if is_inline(entry):
        if inline is None or "sha256:" + hashlib.sha256(inline).hexdigest() != entry.sha256:
            raise BlobDamaged(
                f"file {entry.name} ({entry.sha256}) is missing or damaged in Redis: upload the adapter again"
            )
        return inline
    if blobs is None:
        raise BlobDamaged(f"file {entry.name} lies in a blob store, and none is given: pass the server's blob URL")
    return blobs.get(tenant, entry.sha256)
