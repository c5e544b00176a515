"""A version's files, put into a folder: all of them, or nothing."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from softmux.client.errors import Broken
from softmux.client.replies import File
from softmux.errors import InvalidRequest


def check_free(folder: Path) -> None:
    """Raises `InvalidRequest` where something is there."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidRequest(f"{folder} is there already; give a new folder, or an empty one.", param="folder")


def checked(file: File, data: bytes) -> bytes:
    """Raises `Broken` where it is not what the version says."""
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found.removeprefix("sha256:") != file.sha256.removeprefix("sha256:"):
        raise Broken(f"{file.name} came as {found}, and is {file.sha256}; try again.")
    return data


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes them beside the folder, then moves them in at once."""
    check_free(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}-") as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        for name, data in files.items():
            (whole / name).write_bytes(data)
        if folder.exists():
            folder.rmdir()
        shutil.move(whole, folder)
