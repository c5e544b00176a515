"""What is left of the tenants' limits, in Redis, for all processes of all servers: they draw from it and give back.

**Requests and tokens a minute** are counted in a sliding window of slots of half a second, by Redis' clock. A process
draws a *lease*, which it may spend within `LEASE_SECONDS`; a slot counts for that, and for its own width, longer than
the window, so that in no window of that length, wherever it begins, more is spent than the limit. **Tokens in flight**
are what each live process says it holds; one that has not been heard of for `ALIVE_SECONDS` holds nothing.

No library does this: `limits` (5.8) grants all or nothing and takes nothing back, so that it would have to be asked for
every request; and of its strategies the fixed window allows twice the limit about its border, the sliding counter
estimates, and the moving window keeps an entry for each token.

An order is sent once and never again: one whose answer is lost has at most taken what nobody spends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softmux.registry.connection import Connection
from softmux.registry.keyspace import PROCESSES, of_tenant

WINDOW_SECONDS = 60.0
SLOT_SECONDS = 0.5
LEASE_SECONDS = 0.5
ALIVE_SECONDS = 10.0
"""A living process is heard of every three."""

_BEAT = """
local function beat(processes, id, alive)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
  redis.call('ZREMRANGEBYSCORE', processes, '-inf', string.format('%.6f', now - alive))
  redis.call('ZADD', processes, string.format('%.6f', now), id)
  local living, count, rank = {}, 0, 0
  for _, other in ipairs(redis.call('ZRANGE', processes, 0, -1)) do
    living[other] = true
    count = count + 1
    if other < id then rank = rank + 1 end
  end
  return now, living, count, rank
end
"""

BEAT = (
    _BEAT
    + """
-- KEYS: processes; ARGV: process alive. Answers {now, how many live, this one's place among them}.
local now, _, count, rank = beat(KEYS[1], ARGV[1], tonumber(ARGV[2]))
return {string.format('%.6f', now), count, rank}
"""
)

DRAW = (
    _BEAT
    + """
-- KEYS: processes requests tokens in_flight
-- ARGV: process alive span width, then for requests, tokens and tokens in flight: limit (empty: none) need want;
--       what the process has in flight (empty: as it is), then (slot, requests, tokens) for each change of a slot.
-- Answers {granted?, now, slot, count, rank, then for each of the three: granted left wait reset}, times in ms.
local id, alive, span, width = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local used, first_change = ARGV[14], 15
local now, living, count, rank = beat(KEYS[1], id, alive)
local slot = math.floor(now / width)
local reply = {1, string.format('%.6f', now), slot, count, rank}

local function change(key, at, by)
  if by > 0 or (by < 0 and redis.call('HEXISTS', key, at) == 1) then
    if redis.call('HINCRBY', key, at, string.format('%d', by)) < 0 then redis.call('HSET', key, at, '0') end
  end
end
for i = first_change, #ARGV, 3 do
  change(KEYS[2], ARGV[i], tonumber(ARGV[i + 1]))
  change(KEYS[3], ARGV[i], tonumber(ARGV[i + 2]))
end

local sides = {}
for side = 1, 3 do
  local at = 5 + (side - 1) * 3
  local limit = tonumber(ARGV[at])
  local one = {limit = limit, need = tonumber(ARGV[at + 1]), want = tonumber(ARGV[at + 2]), wait = 0, reset = 0}
  if limit and side < 3 then
    local sum, slots, old = 0, {}, {}
    local stored = redis.call('HGETALL', KEYS[side + 1])
    for i = 1, #stored, 2 do
      local start = tonumber(stored[i]) * width
      local amount = tonumber(stored[i + 1])
      if start <= now - span then
        table.insert(old, stored[i])
      elseif amount > 0 then
        sum = sum + amount
        table.insert(slots, {start, amount})
        one.reset = math.max(one.reset, start + span - now)
      end
    end
    if #old > 0 then redis.call('HDEL', KEYS[side + 1], unpack(old)) end
    one.left = limit - sum
    if one.need > 0 and one.need > one.left then
      reply[1] = 0
      one.wait = -1
      local free = one.left
      table.sort(slots, function(a, b) return a[1] < b[1] end)
      for _, entry in ipairs(slots) do
        free = free + entry[2]
        if free >= one.need then
          one.wait = entry[1] + span - now
          break
        end
      end
    end
  elseif limit then
    one.left = limit - (tonumber(used) or 0)
    local stored = redis.call('HGETALL', KEYS[4])
    for i = 1, #stored, 2 do
      if not living[stored[i]] then
        redis.call('HDEL', KEYS[4], stored[i])
      elseif stored[i] ~= id or used == '' then
        one.left = one.left - tonumber(stored[i + 1])
      end
    end
    if one.need > 0 and one.need > one.left then reply[1] = 0 end
  end
  sides[side] = one
end

for side, one in ipairs(sides) do
  local granted = 0
  if one.limit then
    if reply[1] == 1 then  -- beyond what is needed, never more than leaves as much for each other process, and half
      granted = math.max(one.need, math.min(one.want, math.floor(one.left / (2 * count))))
    end
    one.left = one.left - granted
    if side < 3 then
      if granted > 0 then
        redis.call('HINCRBY', KEYS[side + 1], string.format('%d', slot), string.format('%d', granted))
        one.reset = slot * width + span - now
      end
      redis.call('PEXPIRE', KEYS[side + 1], string.format('%d', (span + width) * 1000))
    elseif used ~= '' then
      local held = tonumber(used) + granted
      if held > 0 then
        redis.call('HSET', KEYS[4], id, string.format('%d', held))
        redis.call('PEXPIRE', KEYS[4], string.format('%d', alive * 6000))
      else
        redis.call('HDEL', KEYS[4], id)
      end
    end
  end
  for _, value in ipairs({granted, one.left or 0, one.wait * 1000, one.reset * 1000}) do
    table.insert(reply, math.ceil(value))
  end
end
return reply
"""
)

LEAVE = "return redis.call('ZREM', KEYS[1], ARGV[1])"


@dataclass(frozen=True, slots=True)
class Side:
    """One limit of an order: None is none. `need` is granted with all the others' or not at all; up to `want` more."""

    limit: int | None
    need: int = 0
    want: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """A change of what was drawn in a slot: what was not spent comes back as a negative number."""

    slot: int
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Order:
    """What a process draws for a tenant. `used`: what it has in flight without this; None leaves that as it is."""

    requests: Side
    tokens: Side
    in_flight: Side
    used: int | None
    changes: tuple[Slot, ...] = ()


@dataclass(frozen=True, slots=True)
class Presence:
    """Redis' clock (Unix s), how many processes live, and this one's place among them, from 0."""

    now: float
    count: int
    rank: int


@dataclass(frozen=True, slots=True)
class Part:
    """The answer to a `Side`: what was granted, what all have left, in how many seconds a need that was not met will be
    there (negative: never), and in how many the limit is whole again."""

    granted: int
    left: int
    wait: float
    reset: float


@dataclass(frozen=True, slots=True)
class Drawn:
    granted: bool
    presence: Presence
    slot: int
    requests: Part
    tokens: Part
    in_flight: Part


class Budgets:
    """One process's way to them; `process` is its name. All calls raise `RegistryDown` within `answer` seconds: an
    order that is not answered by then counts as lost, and Redis as away."""

    def __init__(
        self,
        url: str,
        process: str,
        *,
        window: float = WINDOW_SECONDS,
        answer: float = 0.25,
        alive: float = ALIVE_SECONDS,
    ) -> None:
        self._connection = Connection(url, budget=0.0, read_timeout=answer)
        self._process = process
        self._alive = alive
        self._span = window + LEASE_SECONDS + SLOT_SECONDS
        self.window = window

    async def draw(self, tenant: str, order: Order) -> Drawn:
        keys = [PROCESSES, *(of_tenant(tenant, f"limits:{kind}") for kind in ("requests", "tokens", "in_flight"))]
        args: list[str | int | float] = [self._process, self._alive, self._span, SLOT_SECONDS]
        for side in (order.requests, order.tokens, order.in_flight):
            args += ["" if side.limit is None else side.limit, side.need, side.want]
        args.append("" if order.used is None else order.used)
        for change in order.changes:
            args += [change.slot, change.requests, change.tokens]
        reply = await self._connection.script(DRAW, keys, args)
        parts = [_part(reply[at : at + 4]) for at in (5, 9, 13)]
        return Drawn(bool(reply[0]), Presence(float(reply[1]), reply[3], reply[4]), reply[2], *parts)

    async def beat(self) -> Presence:
        """Says that this process lives."""
        now, count, rank = await self._connection.script(BEAT, [PROCESSES], [self._process, self._alive])
        return Presence(float(now), count, rank)

    async def leave(self) -> None:
        """This process ends: its share is the others'."""
        await self._connection.script(LEAVE, [PROCESSES], [self._process])

    async def close(self) -> None:
        await self._connection.close()


def _part(reply: Sequence[int]) -> Part:
    granted, left, wait, reset = reply
    return Part(granted, left, wait / 1000, reset / 1000)
