"""What the worker's loader thread reads of the registry: versions by their digest."""

from __future__ import annotations

import msgspec

from softmux.errors import BlobDamaged, VersionNotFound
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import SyncConnection
from softmux.registry.files import file_bytes
from softmux.registry.keyspace import of_tenant
from softmux.types import Manifest

_manifest = msgspec.json.Decoder(Manifest)


class BlobReader:
    """Thread-safe; connects at the first read. `redis_url` and `blob_url` as `Registry` has them."""

    def __init__(self, redis_url: str, blob_url: str | None) -> None:
        self._connection = SyncConnection(redis_url)
        self._blobs = BlobStore(blob_url) if blob_url else None

    def read(self, tenant: str, digest: str) -> tuple[Manifest, dict[str, bytes]]:
        """The version `digest` (`sha256:…`) and its files, hashes checked; also of a task deleted not long ago.

        Raises `VersionNotFound`, `BlobDamaged`, `RegistryDown`: the last also where the whole registry is missing, and
        no version of it has to be uploaded again.
        """
        try:
            return self._read(tenant, digest)
        except (VersionNotFound, BlobDamaged):
            self._connection.check_there()
            raise

    def _read(self, tenant: str, digest: str) -> tuple[Manifest, dict[str, bytes]]:
        data = self._connection.call(lambda client: client.hget(of_tenant(tenant, "manifests"), digest))
        if data is None:
            raise VersionNotFound(f"the registry no longer has version {digest}: upload it again")
        manifest = _manifest.decode(data)
        hashes = [entry.sha256 for entry in manifest.files]
        inline = (
            self._connection.call(lambda client: client.hmget(of_tenant(tenant, "files"), hashes)) if hashes else []
        )
        pairs = zip(manifest.files, inline, strict=True)
        return manifest, {entry.name: file_bytes(tenant, entry, data, self._blobs) for entry, data in pairs}

    def close(self) -> None:
        self._connection.close()
