"""API keys. A key is shown once; Redis keeps its SHA-256, which is enough for 32 random bytes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from softmux.errors import InvalidRequest, NotFound, RegistryDown
from softmux.registry import scripts
from softmux.registry.connection import Connection
from softmux.registry.follower import Change
from softmux.registry.keyspace import AUDIT, CHANGES, KEYS, SEQ, TENANTS
from softmux.registry.tenants import no_tenant
from softmux.types import DEFAULT_TENANT

log = logging.getLogger(__name__)

Role = Literal["user", "publisher", "admin"]
ROLES: tuple[Role, ...] = ("user", "publisher", "admin")
"""Each may do all that the ones before it may."""

GRACE_SECONDS = 300.0
"""How long keys already known go on while Redis is away."""
OUTSIDE_ID = "outside"
"""The id of the admin key set from outside."""
_OUTSIDE_LENGTH = 16


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. `hash` is the hex SHA-256 of the whole key, `prefix` its first characters, to tell
    keys apart by eye."""

    id: str
    tenant: str
    role: Role
    hash: str
    prefix: str
    created_at: float
    revoked_at: float | None = None


class Identity(msgspec.Struct, frozen=True):
    """Who calls."""

    tenant: str
    role: Role
    key_id: str

    @property
    def actor(self) -> str:
        """As the audit log names it: the tenant and the key's id."""
        return f"{self.tenant}/{self.key_id or 'no key'}"

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


_record = msgspec.json.Decoder(KeyRecord)


class KeyRing:
    """Keys in Redis, and a view of them in memory that a `Follower` feeds. `clock`: monotonic seconds."""

    def __init__(
        self, connection: Connection, *, grace: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._grace = grace
        self._clock = clock
        self._by_hash: dict[str, KeyRecord] = {}
        self._any = False
        self._confirmed: float | None = None
        self._reading = asyncio.Lock()  # so that a later read never loses to an earlier one

    def authenticate(self, secret: str) -> Identity | None:
        """Who holds `secret`; None for an unknown or revoked key. From memory.

        Raises `RegistryDown` once Redis has been away for longer than the grace period.
        """
        if self._confirmed is None or self._clock() - self._confirmed > self._grace:
            raise RegistryDown(
                "keys can't be checked: the registry has been out of reach for too long; bring Redis back"
            )
        presented = _hash(secret)
        record = self._by_hash.get(presented)
        if record is None or not hmac.compare_digest(record.hash, presented):
            return None
        return Identity(record.tenant, record.role, record.id)

    def has_keys(self) -> bool:
        """Whether a key was ever seen, revoked ones included: neither the last one's end nor another registry in the
        place of this one opens the server."""
        return self._any

    async def create_key(self, tenant: str, role: Role, *, actor: str) -> tuple[str, str]:
        """The new key's id, and the key itself, which can't be had again. Raises `NotFound` for an unknown tenant."""
        if role not in ROLES:
            raise InvalidRequest(f"there is no role {role!r}: it is one of {', '.join(ROLES)}", param="role")
        key_id = secrets.token_hex(6)
        secret = f"sk-softmux-{key_id}-{secrets.token_urlsafe(32)}"
        await self._put(
            KeyRecord(
                id=key_id,
                tenant=tenant,
                role=role,
                hash=_hash(secret),
                prefix=secret[: len(f"sk-softmux-{key_id}-") + 4],
                created_at=time.time(),
            ),
            actor,
            "key.create",
        )
        return key_id, secret

    async def revoke_key(self, key_id: str, *, actor: str) -> KeyRecord:
        """Revokes it here at once, elsewhere as soon as the change is seen. Raises `NotFound`."""
        data = await self._connection.call(lambda client: client.hget(KEYS, key_id))
        if data is None:
            raise NotFound(f"there is no key {key_id!r}: `softmux key list` shows the ids", param="id")
        record = _record.decode(data)
        if record.revoked_at is None:
            record = msgspec.structs.replace(record, revoked_at=time.time())
            record = await self._put(record, actor, "key.revoke")
        return record

    async def list_keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Oldest first, revoked ones included."""
        records = await self._read()
        return sorted((r for r in records if tenant in (None, r.tenant)), key=lambda r: (r.created_at, r.id))

    async def ensure_admin_key(self, secret: str) -> None:
        """Makes `secret` the one admin key set from outside; another one set so before ends.

        Set again it changes nothing, and does not bring back one that was revoked. Raises `InvalidRequest` for fewer
        than 16 characters.
        """
        if len(secret) < _OUTSIDE_LENGTH:
            raise InvalidRequest(
                f"the admin key has {len(secret)} characters: give at least {_OUTSIDE_LENGTH}, better 32 random ones",
                param="admin_key",
            )
        data = await self._connection.call(lambda client: client.hget(KEYS, OUTSIDE_ID))
        if data is not None and hmac.compare_digest(_record.decode(data).hash, _hash(secret)):
            if _record.decode(data).revoked_at is not None:
                log.warning("the admin key set from outside was revoked and stays so: set another one")
            return
        await self._put(
            KeyRecord(
                id=OUTSIDE_ID,
                tenant=DEFAULT_TENANT,
                role="admin",
                hash=_hash(secret),
                prefix="",
                created_at=time.time(),
            ),
            "start",
            "key.create",
        )

    async def reload(self) -> None:
        async with self._reading:
            records = await self._connection.mirrored(self._read)
            self._by_hash = {record.hash: record for record in records if record.revoked_at is None}
            self._any = self._any or bool(records)
            self.confirm()

    async def apply(self, changes: Sequence[Change]) -> None:
        if any(change.kind == "keys" for change in changes):
            await self.reload()

    def confirm(self) -> None:
        self._confirmed = self._clock()

    async def _read(self) -> list[KeyRecord]:
        data = await self._connection.call(lambda client: client.hvals(KEYS))
        return [_record.decode(item) for item in data]

    async def _put(self, record: KeyRecord, actor: str, action: str) -> KeyRecord:
        """What is there now: where another revoked the key meanwhile, that."""
        detail = msgspec.json.encode({"key": record.id, "role": record.role})
        reply = await self._connection.script(
            scripts.PUT_KEY,
            [SEQ, CHANGES, AUDIT, TENANTS, KEYS],
            [record.tenant, record.id, msgspec.json.encode(record), actor, action, detail],
        )
        if reply[0] == b"no_tenant":
            raise no_tenant(record.tenant)
        try:
            await self.reload()
        except RegistryDown as error:  # what was done is done; the follower sees it when Redis is back
            log.warning("the change to key %s will count with the registry's return: %s", record.id, error.message)
        return _record.decode(reply[1])


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
