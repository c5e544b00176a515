from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from softmux.errors import BlobDamaged, RegistryDown
from softmux.registry.blobs import BlobStore


def _sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore((tmp_path / "blobs with space").as_uri() if request.param == "file" else "memory:///")


def test_what_was_put_is_got(store: BlobStore) -> None:
    for data in (b"", b"x", bytes(range(256)) * 1000):
        store.put("default", _sha(data), data)
        store.put("default", _sha(data), data)
        assert store.get("default", _sha(data)) == data


def test_tenants_and_hashes_are_apart(store: BlobStore) -> None:
    store.put("default", _sha(b"x"), b"x")
    with pytest.raises(BlobDamaged, match="upload the adapter again"):
        store.get("acme", _sha(b"x"))
    with pytest.raises(BlobDamaged):
        store.get("default", _sha(b"y"))


def test_deleting_twice_is_no_error(store: BlobStore) -> None:
    store.put("default", _sha(b"x"), b"x")
    store.delete("default", _sha(b"x"))
    store.delete("default", _sha(b"x"))
    with pytest.raises(BlobDamaged):
        store.get("default", _sha(b"x"))


def test_a_name_that_is_no_hash_is_refused(store: BlobStore) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        store.get("default", "sha256:../../../etc/passwd")


def test_a_damaged_blob_is_put_aside_and_healed_by_a_new_upload(tmp_path: Path) -> None:
    store = BlobStore(tmp_path.as_uri())
    data = b"good" * 100
    store.put("default", _sha(data), data)
    [path] = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(b"evil" * 100)
    with pytest.raises(BlobDamaged, match="is damaged"):
        store.get("default", _sha(data))
    [aside] = [path for path in (tmp_path / "quarantine").rglob("*") if path.is_file()]
    assert aside.read_bytes() == b"evil" * 100
    store.put("default", _sha(data), data)
    assert store.get("default", _sha(data)) == data


def test_a_blob_collected_while_it_is_put_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a collector does whose grace period is shorter than the put."""
    store = BlobStore(tmp_path.as_uri())
    store.put("default", _sha(b"x"), b"x")
    found, left = store.get, 2

    def collected(tenant: str, sha256: str) -> bytes:
        nonlocal left
        data = found(tenant, sha256)
        if left:
            left -= 1
            store.delete(tenant, sha256)
        return data

    monkeypatch.setattr(store, "get", collected)
    store.put("default", _sha(b"x"), b"x")
    monkeypatch.undo()
    assert store.get("default", _sha(b"x")) == b"x"


def test_an_unwritable_store_says_so(tmp_path: Path) -> None:
    store = BlobStore(tmp_path.as_uri())
    (tmp_path / "default").write_bytes(b"a file where a folder should be")
    with pytest.raises(RegistryDown, match="can't be used"):
        store.put("default", _sha(b"x"), b"x")
