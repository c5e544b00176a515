"""Tenants: who shares the server, what share of it each has, and what limits it keeps to."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping, Sequence

import msgspec

from softmux.errors import Conflict, InvalidRequest, NotFound, RegistryDown
from softmux.registry import scripts
from softmux.registry.connection import Connection
from softmux.registry.follower import Change
from softmux.registry.keyspace import AUDIT, CHANGES, DELETED_TENANTS, KEYS, SEQ, TENANTS, check_name, of_tenant
from softmux.types import DEFAULT_TENANT

log = logging.getLogger(__name__)

LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0
"""Of each other they differ by no more than a counter of tokens can hold beside a token: were a weight next to nothing,
whoever comes while that tenant waits would begin with a counter that its own tokens no longer move."""
_MOST_LIMIT = 2**53


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant may use; None is no limit, 0 nothing at all."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_in_flight: int | None = None
    """Of all its requests that wait or run: their prompts, and what they may generate."""
    stored_bytes: int | None = None
    """Of the files of all its versions."""
    adapters: int | None = None
    """Tasks it may have."""


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant. `created_at`: Unix s. `weight`: its share of the engine beside other tenants' that want it, too."""

    name: str
    created_at: float
    weight: float = 1.0
    limits: Limits = Limits()


class InUse(msgspec.Struct, frozen=True):
    """Why a tenant is not deleted: how many tasks and keys it has."""

    tasks: int
    keys: int


_record = msgspec.json.Decoder(TenantRecord | float)


def no_tenant(name: str) -> NotFound:
    return NotFound(f"there is no tenant {name!r}: create it with `softmux tenant create {name}`", param="tenant")


def decode_tenant(name: str, data: bytes) -> TenantRecord:
    """A tenant as Redis has it: its record, or the time it was made, which is all that was kept once."""
    record = _record.decode(data)
    return record if isinstance(record, TenantRecord) else TenantRecord(name=name, created_at=record)


class Tenants:
    """Tenants in Redis, and a view of them in memory that a `Follower` feeds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._records: dict[str, TenantRecord] = {}
        self._reading = asyncio.Lock()  # so that a later read never loses to an earlier one

    def get(self, name: str) -> TenantRecord:
        """From memory. A tenant not heard of (made, or deleted, this very moment) is one of weight 1 and no limits."""
        return self._records.get(name) or TenantRecord(name=name, created_at=0.0)

    def shared_out(self) -> list[TenantRecord]:
        """Those of a weight of their own, or with a limit. From memory."""
        return [record for record in self._records.values() if record.weight != 1.0 or record.limits != Limits()]

    def any_limited(self) -> bool:
        """Whether any tenant's requests are limited. From memory."""
        return any(
            limit is not None
            for record in self._records.values()
            for limit in (
                record.limits.requests_per_minute, record.limits.tokens_per_minute, record.limits.tokens_in_flight
            )
        )  # fmt: skip

    async def list(self) -> list[TenantRecord]:
        """By name, from Redis."""
        return sorted((await self._read()).values(), key=lambda record: record.name)

    async def find(self, name: str) -> TenantRecord:
        """From Redis. Raises `NotFound`."""
        return decode_tenant(name, await self._stored(name))

    async def create(
        self, name: str, *, weight: float = 1.0, limits: Limits | None = None, actor: str
    ) -> tuple[TenantRecord, bool]:
        """The tenant, and whether it is new: one that is there stays as it is.

        Raises `InvalidRequest`, and `Conflict` for the name of one that was deleted.
        """
        check_name(name, "tenant")
        record = TenantRecord(name=name, created_at=time.time(), weight=weight, limits=limits or Limits())
        _check(record)
        present = await self._put(record, b"", actor, "tenant.create")
        return (record, True) if present is None else (decode_tenant(name, present), False)

    async def set(
        self, name: str, *, weight: float | None = None, limits: Mapping[str, int | None] | None = None, actor: str
    ) -> TenantRecord:
        """Changes the weight, or the limits named by their fields, and nothing else.

        Raises `NotFound`, and `InvalidRequest` for what can't be a weight or a limit.
        """
        unknown = set(limits or ()) - set(Limits.__struct_fields__)
        if unknown:
            raise InvalidRequest(
                f"there is no limit {min(unknown)!r}: it is one of {', '.join(Limits.__struct_fields__)}",
                param="limits",
            )
        stored = await self._stored(name)
        while True:
            before = decode_tenant(name, stored)
            record = msgspec.structs.replace(
                before,
                weight=before.weight if weight is None else weight,
                limits=msgspec.structs.replace(before.limits, **(limits or {})),
            )
            _check(record)
            if record == before:
                return before
            present = await self._put(record, stored, actor, "tenant.set")
            if present is None:
                return record
            if not present:
                raise no_tenant(name)
            stored = present  # another change came between: this one is made on top of it

    async def delete(self, name: str, *, actor: str) -> InUse | None:
        """Deletes a tenant that has neither tasks nor keys; else does nothing, and says what it has.

        Its name is never given again: what is kept under it elsewhere (shares, usage, the audit log) goes on meaning
        it. Raises `NotFound`, and `InvalidRequest` for the tenant that every registry has.
        """
        if name == DEFAULT_TENANT:
            raise InvalidRequest(f"the tenant {name!r} is every registry's own and stays", param="tenant")
        kinds = ("tasks", "counters", "tombstones", "shares")
        reply = await self._connection.script(
            scripts.DELETE_TENANT,
            [SEQ, CHANGES, AUDIT, TENANTS, DELETED_TENANTS, KEYS, *(of_tenant(name, kind) for kind in kinds)],
            [name, uuid.uuid4().hex, actor],
        )
        if reply[0] == b"no_tenant":
            raise no_tenant(name)
        if reply[0] == b"in_use":
            return InUse(tasks=reply[1], keys=reply[2])
        await self._reload_if_up(name)
        return None

    async def reload(self) -> None:
        async with self._reading:
            self._records = await self._connection.mirrored(self._read)

    async def apply(self, changes: Sequence[Change]) -> None:
        if any(change.kind == "tenant" for change in changes):
            await self.reload()

    def confirm(self) -> None:
        """What it knows stays good however old it is."""

    async def _read(self) -> dict[str, TenantRecord]:
        stored: dict[bytes, bytes] = await self._connection.call(lambda client: client.hgetall(TENANTS))
        return {name.decode(): decode_tenant(name.decode(), data) for name, data in stored.items()}

    async def _stored(self, name: str) -> bytes:
        data: bytes | None = await self._connection.call(lambda client: client.hget(TENANTS, name))
        if data is None:
            raise no_tenant(name)
        return data

    async def _put(self, record: TenantRecord, expected: bytes, actor: str, action: str) -> bytes | None:
        """Puts `record` in the place of `expected` (empty: of nothing); where another one is there, answers that."""
        detail = msgspec.json.encode({"weight": record.weight, "limits": record.limits})
        reply = await self._connection.script(
            scripts.PUT_TENANT,
            [SEQ, CHANGES, AUDIT, TENANTS, DELETED_TENANTS],
            [record.name, expected, msgspec.json.encode(record), actor, action, detail],
        )
        if reply[0] == b"other":
            return bytes(reply[1])
        if reply[0] == b"deleted":
            raise Conflict(
                f"tenant {record.name!r} was deleted, and its name is not given again: choose another", param="name"
            )
        await self._reload_if_up(record.name)
        return None

    async def _reload_if_up(self, name: str) -> None:
        try:
            await self.reload()
        except RegistryDown as error:  # what was done is done; the follower sees it when Redis is back
            log.warning("the change to tenant %s will count with the registry's return: %s", name, error.message)


def _check(record: TenantRecord) -> None:
    if not LEAST_WEIGHT <= record.weight <= MOST_WEIGHT:  # not a number is neither
        raise InvalidRequest(
            f"a weight is {LEAST_WEIGHT:g} at least and {MOST_WEIGHT:g} at most, not {record.weight}", param="weight"
        )
    for name in Limits.__struct_fields__:
        value = getattr(record.limits, name)
        if value is not None and not 0 <= value <= _MOST_LIMIT:
            raise InvalidRequest(f"{name} is a whole number from 0 on, or none, not {value}", param=f"limits.{name}")
