"""Addresses of registries and stores, as people may see them."""

from __future__ import annotations


def shown(url: str) -> str:
    """`url` without its credentials and options; of one in which nobody can tell where they end, the scheme alone."""
    scheme, slashes, rest = url.partition("://")
    if not slashes or scheme == "file":
        return url if scheme == "file" or "@" not in url else "…"
    if scheme == "unix":  # behind the first slash is a path
        user, slash, path = rest.partition("/")
        return f"{scheme}://{user.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
    if "@" in rest.partition("?")[2]:
        return f"{scheme}://…"
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
