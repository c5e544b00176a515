"""Files by their hash, in a folder or an object store (`file://`, `s3://`, …), through obstore. Thread-safe; blocks."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from softmux.errors import BlobDamaged, RegistryDown
from softmux.folders import make_private
from softmux.registry.addresses import shown

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

log = logging.getLogger(__name__)

_ASIDE = "quarantine"
_PUTS = 5
"""How often a put writes a blob anew that somebody deletes under its hands."""
_PATIENCE: ClientConfig = {"connect_timeout": "1s", "read_timeout": "5s", "timeout": "300s"}
"""Over a network: a file may take long as long as it moves, and a store that stands still is away."""
_RETRY: RetryConfig = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=3),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(milliseconds=500), "base": 2},
}
_IMPATIENCE: ClientConfig = {"connect_timeout": "500ms", "timeout": "700ms"}
"""For the question whether a store answers at all, before an upload is sent: one that is away is told in a second."""


def default_blob_url(data: Path) -> str:
    """Where blobs lie without a setting: `<data>/blobs`."""
    return (data.absolute() / "blobs").as_uri()


class BlobStore:
    """Blobs of each tenant under `<tenant>/<first two hex digits>/<hex digest>`.

    A put is atomic (obstore writes beside and renames) and durable on return: object stores promise that, and a local
    file and the folders it is named in are synced here, since obstore's local store leaves that to the system.
    Raises `RegistryDown` where `url` names no store, or the store can't be reached or is full. `make`: a folder that
    is not there is made at once, and not by the first put.
    """

    def __init__(self, url: str, *, make: bool = True) -> None:
        self.url, self._told = url, shown(url)
        self._opened: ObjectStore | None = None
        self._quick: ObjectStore | None = None
        self._root: Path | None = None
        try:
            self._open(url, make)
        except OSError as error:
            raise RegistryDown(
                f"the blob store {self._told} can't be had ({error.strerror}): name a folder that can be written"
            ) from error
        except (BaseError, ValueError) as error:
            said = "" if self._told != url else f" ({str(error).partition(chr(10))[0]})"  # which may repeat the URL
            raise RegistryDown(
                f"the blob store {self._told} can't be had{said}: write file:///FOLDER, s3://BUCKET or another object "
                "store's URL"
            ) from None

    def _open(self, url: str, make: bool) -> None:
        if urlsplit(url).scheme == "file":
            if urlsplit(url).netloc not in ("", "localhost"):
                raise ValueError("a folder's URL has three slashes")
            self._root = Path(unquote(urlsplit(url).path))
            if make:
                self._make()
        elif urlsplit(url).scheme == "memory":
            self._opened = from_url(url)
        else:
            self._opened = from_url(url, client_options=_PATIENCE | _plain(), retry_config=_RETRY)
            self._quick = from_url(
                url, client_options=_IMPATIENCE | _plain(), retry_config={**_RETRY, "max_retries": 0}
            )

    def _make(self) -> None:
        if self._root is not None:
            make_private(self._root)

    @property
    def _store(self) -> ObjectStore:
        """Raises `FileNotFoundError` for a folder that nobody made yet: then nothing is in it."""
        if self._opened is None:
            assert self._root is not None  # every other store is opened at once
            if not self._root.is_dir():
                raise FileNotFoundError(f"there is no folder {self._root}")
            self._opened = LocalStore(self._root)
        return self._opened

    def put(self, tenant: str, sha256: str, data: bytes) -> None:
        """Makes `data` readable under its hash (`sha256:…`). A sound blob already there stays; a damaged one is
        put aside and replaced, and one that a collector deletes meanwhile is written again."""
        path = _path(tenant, sha256)
        if self._quick is not None:
            self._there(self._quick, path)
        for _ in range(_PUTS):
            try:
                self.get(tenant, sha256)
            except BlobDamaged:
                try:
                    self._make()
                    obstore.put(self._store, path, data)
                except (BaseError, OSError) as error:
                    raise self._down(error) from error
            if self._kept(path):  # also one found there: its writer may not have come so far
                return
        again = "as often as it was put: send the upload again"
        raise RegistryDown(
            f"file {sha256} was deleted from {self._told} {again}", public=f"file {sha256} was deleted {again}"
        )

    def get(self, tenant: str, sha256: str) -> bytes:
        """The blob's bytes, hash checked. Raises `BlobDamaged` where it is gone or another: then it is put aside."""
        path = _path(tenant, sha256)
        try:
            data = bytes(obstore.get(self._store, path).bytes())
        except (NotFoundError, FileNotFoundError) as error:
            raise BlobDamaged(
                f"file {sha256} is missing from {self._told}: upload the adapter again",
                public=f"file {sha256} is missing from the blob store: upload the adapter again",
            ) from error
        except (BaseError, OSError) as error:
            raise self._down(error) from error
        if "sha256:" + hashlib.sha256(data).hexdigest() != sha256:
            aside = self._quarantine(path)
            raise BlobDamaged(
                f"file {sha256} in {self._told} is damaged (moved to {aside}): check the disk, and upload the adapter "
                "again",
                public=f"file {sha256} in the blob store is damaged: upload the adapter again",
            )
        return data

    def delete(self, tenant: str, sha256: str) -> None:
        """Removes a blob, which may be gone already."""
        try:
            obstore.delete(self._store, _path(tenant, sha256))
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise self._down(error) from error

    def names(self) -> Iterator[tuple[str, str]]:
        """(tenant, `sha256:…`) of every blob there is, in no order; what was put aside is none."""
        if self._root is not None and not self._root.is_dir():
            return
        try:
            for part in obstore.list(self._store):
                for found in part:
                    tenant, _, name = found["path"].partition("/")
                    digest = name.rpartition("/")[2]
                    if tenant != _ASIDE and name == f"{digest[:2]}/{digest}":
                        yield tenant, f"sha256:{digest}"
        except (BaseError, OSError) as error:
            raise self._down(error) from error

    def sweep(self, older_than: float) -> int:
        """Local files only: removes what writers left that were killed while they put a blob, and how many it was.

        `older_than` (s) must be longer than any put takes.
        """
        if self._root is None:
            return 0
        swept = 0
        for path in self._root.glob("*/*/*#*"):  # how obstore names a file before it is whole
            try:
                if time.time() - path.stat().st_mtime > older_than:
                    path.unlink()
                    swept += 1
            except OSError:  # whole, or swept by another, meanwhile
                continue
        return swept

    def _quarantine(self, path: str) -> str:
        aside = f"{_ASIDE}/{path}-{time.time_ns()}"
        log.error("blob %s in %s does not match its hash; moving it to %s", path, self._told, aside)
        try:
            obstore.rename(self._store, path, aside)
        except (NotFoundError, FileNotFoundError):
            pass  # another reader moved it first
        except (BaseError, OSError) as error:
            raise self._down(error) from error
        return aside

    def _there(self, store: ObjectStore, path: str) -> bool:
        try:
            obstore.head(store, path)
        except (NotFoundError, FileNotFoundError):
            return False
        except (BaseError, OSError) as error:
            raise self._down(error) from error
        return True

    def _kept(self, path: str) -> bool:
        """Whether it is there and stays. False: it is gone.

        A local file is synced, and every folder from it up to the root, which may be new.
        """
        if self._root is None:
            return self._there(self._store, path)
        try:
            target = self._root / path
            for place in (target, *(folder for folder in target.parents if folder.is_relative_to(self._root))):
                descriptor = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._down(error) from error
        return True

    def _down(self, error: Exception) -> RegistryDown:
        said = str(error).partition("\n")[0]  # obstore dumps its own structures behind that
        return RegistryDown(
            f"the blob store {self._told} can't be used ({said}): check that it is reachable and not full",
            public="the blob store can't be used at present: try again shortly; tasks in memory are served meanwhile",
        )


def _plain() -> ClientConfig:
    """Options replace what obstore would read of this in the environment, so it is read here."""
    said = (os.environ.get(f"{kind}_ALLOW_HTTP", "") for kind in ("AWS", "AZURE", "GOOGLE"))
    return {"allow_http": any(word.lower() in ("1", "true", "yes") for word in said)}


def _path(tenant: str, sha256: str) -> str:
    digest = sha256.removeprefix("sha256:")
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"not a SHA-256: {sha256!r}")
    return f"{tenant}/{digest[:2]}/{digest}"
