"""What tenants have used, by day (UTC) and task, in Redis: added up from the increments of all API processes.

A process sends its increments in numbered batches, each of which is booked wholly and once, however often it is sent:
beside the totals lies the number of the process's last batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec
import redis.asyncio

from softmux.registry.connection import Connection
from softmux.registry.keyspace import DELETED_TENANTS, TENANTS, flushed, of_tenant

_MARK_SECONDS = 7 * 86400
"""How long a batch may be on its way."""
_DAYS_A_READ = 100
_MOST_TASKS = 10_000
OTHER_TASKS = "(other)"
"""Where usage is booked of tasks beyond those that are kept apart: combinations have as many names as orders."""

FLUSH = """
-- KEYS: mark, then a day's usage and its tenant's days, each; ARGV: number, seconds the mark stays,
-- how many fields a day has at most, the task of those beyond, then for each: the day, its number, how many fields, and
-- (field, amount) of each. Answers whether the batch is new.
local number = tonumber(ARGV[1])
if tonumber(redis.call('GET', KEYS[1]) or '-1') >= number then return 0 end
local most, others = tonumber(ARGV[3]), ARGV[4]
local at = 5
for i = 2, #KEYS, 2 do
  local last = at + 2 + 2 * tonumber(ARGV[at + 2])
  for place = at + 3, last, 2 do
    local field = ARGV[place]
    if redis.call('HLEN', KEYS[i]) >= most and redis.call('HEXISTS', KEYS[i], field) == 0 then
      field = others .. string.match(field, ':[^:]*$')
    end
    redis.call('HINCRBY', KEYS[i], field, ARGV[place + 1])
  end
  redis.call('ZADD', KEYS[i + 1], ARGV[at + 1], ARGV[at])
  at = last + 1
end
redis.call('SET', KEYS[1], number, 'EX', ARGV[2])
return 1
"""

FORGET = """
-- KEYS: a tenant's days; ARGV: the first day to keep, by its number; what the keys of days begin with.
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1])
for _, day in ipairs(old) do
  redis.call('DEL', ARGV[2] .. day)
  redis.call('ZREM', KEYS[1], day)
end
return #old
"""


class Used(msgspec.Struct, frozen=True):
    """What requests used. `gpu_microseconds` are estimated: a step's duration is shared out by tokens computed."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    virtual_tokens: int = 0
    gpu_microseconds: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(*(one + two for one, two in zip(self.values(), other.values(), strict=True)))

    def __sub__(self, other: Used) -> Used:
        return Used(*(one - two for one, two in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        return tuple(getattr(self, field) for field in self.__struct_fields__)


class UsageKey(msgspec.Struct, frozen=True):
    """A day (`2026-11-24`), who asked, and for which task (as the tenant names it; `(base)` is the bare model)."""

    day: str
    tenant: str
    task: str


def today() -> date:
    return datetime.now(UTC).date()


class UsageStore:
    """`most_tasks` of a tenant and day are told apart, as good as; more than that many are booked together."""

    def __init__(self, connection: Connection, *, most_tasks: int = _MOST_TASKS) -> None:
        self._connection = connection
        self._most_fields = most_tasks * len(Used.__struct_fields__)

    async def flush(self, process: str, number: int, batch: Sequence[tuple[UsageKey, Used]]) -> bool:
        """Books a batch; False where it had been booked already. `number` is above that of the process's batch before,
        and a batch's contents never change. Raises `RegistryDown`: then it may or may not be booked; send it again."""
        grouped: dict[tuple[str, str], list[str | int]] = {}
        for key, used in batch:
            fields = grouped.setdefault((key.day, key.tenant), [])
            for name, value in zip(Used.__struct_fields__, used.values(), strict=True):
                if value:
                    fields += [f"{key.task}:{name}", value]
        keys = [flushed(process)]
        args: list[str | int] = [number, _MARK_SECONDS, self._most_fields, OTHER_TASKS]
        for (day, tenant), fields in grouped.items():
            keys += [of_tenant(tenant, f"usage:{day}"), of_tenant(tenant, "usage_days")]
            args += [day, date.fromisoformat(day).toordinal(), len(fields) // 2, *fields]
        booked: int = await self._connection.script(FLUSH, keys, args)
        return bool(booked)

    async def forget(self, before: date) -> int:
        """Deletes all tenants' usage of the days before that one; how many days it were. Not by Redis' own expiry: a
        backup leaves out what expires. Raises `RegistryDown`."""
        count = 0
        for name in await self.tenants():
            keys = [of_tenant(name, "usage_days")]
            count += await self._connection.script(FORGET, keys, [before.toordinal(), of_tenant(name, "usage:")])
        return count

    async def tenants(self) -> list[str]:
        """Whoever may have used something, by name: those that were deleted, too. Raises `RegistryDown`."""
        names: set[bytes] = set()
        for known in (TENANTS, DELETED_TENANTS):
            names.update(await self._connection.call(lambda client, known=known: client.hkeys(known)))  # type: ignore[misc]
        return sorted(name.decode() for name in names)

    async def read(self, tenants: Sequence[str], first: date, last: date) -> list[tuple[UsageKey, Used]]:
        """The days from `first` to `last`, by day, tenant and task. Raises `RegistryDown`."""
        wanted = [
            ((first + timedelta(days=number)).isoformat(), tenant)
            for number in range((last - first).days + 1)
            for tenant in tenants
        ]
        found: list[tuple[UsageKey, Used]] = []
        for start in range(0, len(wanted), _DAYS_A_READ):
            part = wanted[start : start + _DAYS_A_READ]

            async def read(client: redis.asyncio.Redis, part: list[tuple[str, str]] = part) -> list[dict[bytes, bytes]]:
                async with client.pipeline(transaction=False) as pipe:
                    for day, tenant in part:
                        pipe.hgetall(of_tenant(tenant, f"usage:{day}"))
                    replies: list[dict[bytes, bytes]] = await pipe.execute()
                return replies

            for (day, tenant), stored in zip(part, await self._connection.call(read), strict=True):
                found += [(UsageKey(day, tenant, task), used) for task, used in sorted(_by_task(stored).items())]
        return found


def _by_task(stored: dict[bytes, bytes]) -> dict[str, Used]:
    amounts: dict[str, dict[str, int]] = {}
    for field, amount in stored.items():
        task, _, name = field.decode().rpartition(":")
        if name in Used.__struct_fields__:
            amounts.setdefault(task, {})[name] = int(amount)
    return {task: Used(**values) for task, values in amounts.items()}
