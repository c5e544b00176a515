from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest

from softmux.errors import BlobDamaged, RegistryDown
from softmux.registry.blobs import BlobStore
from support.s3 import address, broken_s3, new_bucket, s3_server


def _sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    if request.param == "s3":
        url = request.getfixturevalue("s3_url")
        address(monkeypatch, url)
        return BlobStore(new_bucket(url))
    return BlobStore((tmp_path / "blobs with space").as_uri() if request.param == "file" else "memory:///")


def write(store: BlobStore, sha256: str, data: bytes) -> None:
    """As a failing disk or another program does."""
    digest = sha256.removeprefix("sha256:")
    obstore.put(store._store, f"default/{digest[:2]}/{digest}", data)


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


def test_a_damaged_blob_is_put_aside_and_healed_by_a_new_upload(store: BlobStore) -> None:
    data = b"good" * 100
    store.put("default", _sha(data), data)
    write(store, _sha(data), b"evil" * 100)
    with pytest.raises(BlobDamaged, match="is damaged"):
        store.get("default", _sha(data))
    assert list(store.names()) == [], "what was put aside is no blob"
    (aside,) = [found["path"] for part in obstore.list(store._store) for found in part]
    assert aside.startswith("quarantine/default/")
    assert bytes(obstore.get(store._store, aside).bytes()) == b"evil" * 100
    store.put("default", _sha(data), data)
    assert store.get("default", _sha(data)) == data


def test_an_upload_heals_a_blob_that_nobody_has_read_since_it_was_damaged(store: BlobStore) -> None:
    write(store, _sha(b"good"), b"evil")
    store.put("default", _sha(b"good"), b"good")
    assert store.get("default", _sha(b"good")) == b"good"


def test_names_are_of_all_tenants(store: BlobStore) -> None:
    for tenant, data in (("default", b"x"), ("acme", b"x"), ("acme", b"y")):
        store.put(tenant, _sha(data), data)
    assert sorted(store.names()) == sorted([("acme", _sha(b"x")), ("acme", _sha(b"y")), ("default", _sha(b"x"))])


def test_a_blob_collected_while_it_is_put_is_written_again(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a collector does whose grace period is shorter than the put."""
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


def test_many_put_and_delete_the_same_blob_and_none_of_them_fails(store: BlobStore) -> None:
    """Uploads of one content race with each other, and with a collector; who reads finds it whole, or not at all."""
    data = b"same" * 10_000
    outcomes: set[str] = set()

    def work(number: int) -> None:
        for _ in range(5):
            if number:
                store.put("default", _sha(data), data)
            else:
                store.delete("default", _sha(data))
            try:
                outcomes.add("whole" if store.get("default", _sha(data)) == data else "torn")
            except BlobDamaged as gone:
                outcomes.add("gone" if "is missing" in gone.message else gone.message)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result()
    assert outcomes <= {"whole", "gone"}
    store.put("default", _sha(data), data)
    assert store.get("default", _sha(data)) == data


@pytest.mark.parametrize("how", ["failing", "stalling", "away"])
def test_a_store_that_does_not_answer_is_down_and_nobody_waits_long_for_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def put() -> None:
        try:
            BlobStore("s3://bucket/softmux").put("default", _sha(b"x"), b"x")
        except RegistryDown as down:
            said.append(down.message)

    with broken_s3(how) as url:
        address(monkeypatch, url)
        waiting = threading.Thread(target=put, daemon=True)
        waiting.start()
        waiting.join(15)  # obstore by itself would try for three minutes
        assert not waiting.is_alive()
    assert "check that it is reachable" in said[0]


def test_an_unwritable_store_says_so(tmp_path: Path) -> None:
    store = BlobStore(tmp_path.as_uri())
    (tmp_path / "default").write_bytes(b"a file where a folder should be")
    with pytest.raises(RegistryDown, match="can't be used") as refused:
        store.put("default", _sha(b"x"), b"x")
    assert str(tmp_path) in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.public.startswith("the blob store can't be used at present: try again")
    assert str(tmp_path) not in refused.value.public


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/x", "s3://"])
def test_a_url_of_no_store_is_told_in_a_line(url: str) -> None:
    with pytest.raises(RegistryDown, match=r"write file:///FOLDER, s3://BUCKET") as refused:
        BlobStore(url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://u:secret@h:99999/", "s3://KEY:secret@", "foo://u:secret@h/", "foo://h/?k=secret"]
)
def test_a_url_is_told_without_what_may_be_a_secret(url: str) -> None:
    with pytest.raises(RegistryDown, match=r"the blob store \w+://") as refused:
        BlobStore(url)
    assert "secret" not in str(refused.value)


def test_a_folders_url_names_no_host() -> None:
    with pytest.raises(RegistryDown, match=r"file://data/blobs can't be had \(a folder's URL has three slashes\)"):
        BlobStore("file://data/blobs")


def test_nor_is_a_file_a_folder_of_blobs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryDown, match=r"\(Not a directory\): name a folder that can be written"):
        BlobStore((tmp_path / "file" / "blobs").as_uri())


def test_a_folder_that_is_not_to_be_made_is_made_by_the_first_put(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "blobs"
    store = BlobStore(folder.as_uri(), make=False)
    with pytest.raises(BlobDamaged, match="is missing"):
        store.get("default", _sha(b"x"))
    store.delete("default", _sha(b"x"))
    assert (list(store.names()), store.sweep(0.0)) == ([], 0)
    assert not folder.parent.exists()
    store.put("default", _sha(b"x"), b"x")
    assert store.get("default", _sha(b"x")) == b"x"
    assert list(store.names()) == [("default", _sha(b"x"))]
