"""Folders that hold what is nobody else's business: tenants' adapters, hashed keys, caches of both."""

from __future__ import annotations

from pathlib import Path


def make_private(folder: Path) -> None:
    """Makes the folder, and what is missing of those above, for this user alone. What is there stays as it is."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
