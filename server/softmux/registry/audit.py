"""The audit log: one entry for each change that somebody made, written by the script that makes the change."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from softmux.errors import InvalidRequest
from softmux.registry.connection import Connection
from softmux.registry.keyspace import AUDIT

_CHUNK = 1000
_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}\Z")  # what Redis takes has 64 bits


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what. `id` orders the entries, `at` (Unix s) is Redis' clock.

    `actor` is `<tenant>/<key id>`, `cli` for the command line, `start` for what a server's start does by itself.
    `action` is `task.publish`, `task.activate`, `task.delete`, `task.share`, `task.unshare`, `tenant.create`,
    `tenant.set`, `tenant.delete`, `key.create` or `key.revoke`. `tenant` is whose thing was changed; `detail` has what
    the action changed beyond that, by its names.
    """

    id: str
    at: float
    actor: str
    action: str
    tenant: str
    task: str | None
    version: int | None
    digest: str | None
    detail: dict[str, Any]


class AuditPage(msgspec.Struct, frozen=True):
    """Oldest first, or newest. `next_after` is None where there is nothing more, as yet."""

    data: tuple[AuditEntry, ...]
    next_after: str | None


class AuditLog:
    """Reads the log. There is nothing here, nor anywhere in softmux, that changes or trims it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(
        self, *, after: str | None = None, limit: int = 100, tenant: str | None = None, newest: bool = False
    ) -> AuditPage:
        """Up to `limit` entries beyond the id `after`, of changes to `tenant`'s things alone where one is named. They
        are told from the oldest on, or, where `newest`, from the newest back.

        Raises `InvalidRequest` for an `after` that is no entry's id, `RegistryDown`.
        """
        if after is not None and not _ID.match(after):
            raise InvalidRequest(f"{after[:50]!r} is no entry's id: give the next_after of a page", param="after")
        found: list[AuditEntry] = []
        first, last = ("+", "-") if newest else ("-", "+")
        start = first if after is None else f"({after}"
        while True:
            chunk = await self._connection.call(
                lambda client, start=start: (client.xrevrange if newest else client.xrange)(  # type: ignore[misc]
                    AUDIT, start, last, count=_CHUNK
                )
            )
            for entry_id, fields in chunk:
                if tenant is None or fields[b"tenant"].decode() == tenant:
                    if len(found) == limit:
                        return AuditPage(tuple(found), found[-1].id)
                    found.append(_entry(entry_id.decode(), fields))
            if len(chunk) < _CHUNK:
                return AuditPage(tuple(found), None)
            start = f"({chunk[-1][0].decode()}"


def _entry(entry_id: str, fields: dict[bytes, bytes]) -> AuditEntry:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    return AuditEntry(
        id=entry_id,
        at=int(entry_id.partition("-")[0]) / 1000,
        actor=text["actor"],
        action=text["action"],
        tenant=text["tenant"],
        task=text["task"] or None,
        version=int(text["version"]) if text["version"] else None,
        digest=text["digest"] or None,
        detail=msgspec.json.decode(text["detail"], type=dict[str, Any]) if text["detail"] else {},
    )
