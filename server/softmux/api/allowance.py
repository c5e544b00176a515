"""What an API process may still spend of one tenant's limits, and what it has spent. Of one event loop; never waits."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from softmux.registry.budgets import LEASE_SECONDS, SLOT_SECONDS, Drawn, Order, Presence, Side, Slot
from softmux.registry.tenants import Limits

_SHRINKS = 4
"""A lease is drawn anew, beside those who spend it, once this fraction of what is spent in its time is left."""
_TELL_SECONDS = 20.0
"""What runs so long is told again, so that it goes on counting."""
_BUSY = 4
"""Requests in a lease's time from which on that is done."""


@dataclass(slots=True)
class _Lease:
    """Drawn in Redis' `slot`, and good until the monotonic time `until`."""

    slot: int
    until: float
    requests: int
    tokens: int


@dataclass(slots=True)
class Spent:
    """What one request took: of a lease (Redis' `slot`), or of the own share (None); `at` is its half second here."""

    tokens: int
    slot: int | None
    at: int
    began: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """What Redis said no to: a request of `tokens`. It holds until `until`."""

    answer: Drawn
    tokens: int
    until: float


@dataclass(slots=True)
class Allowance:
    """Of one tenant. Times are monotonic seconds, but `offset`, which makes Redis' of them."""

    limits: Limits
    window: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an order is under way."""
    waiting_requests: int = 0
    waiting_tokens: int = 0
    in_flight: int = 0
    held: int = 0
    """Tokens in flight that Redis counts as this process's; the others' part begins behind it."""
    left_requests: int = 0
    left_tokens: int = 0
    """What was left for all, leases aside, when Redis was last asked."""
    whole_requests: float = 0.0
    whole_tokens: float = 0.0
    """When the limits are whole again."""
    duration: float = 1.0
    """Of a request, in seconds, of late."""
    touched: float = 0.0
    refilling: bool = False
    refusal: Refusal | None = None
    _told_at: float = 0.0
    _leases: list[_Lease] = field(default_factory=list)
    _changes: dict[int, list[int]] = field(default_factory=dict)
    """By Redis' half second: how many more requests and tokens count there, or fewer."""
    _spent: dict[int, list[int]] = field(default_factory=dict)
    """By half second: requests and tokens spent here, from leases or the own share."""
    _untold: dict[int, list[int]] = field(default_factory=dict)
    """The part of it that Redis does not know of."""

    def stale(self, now: float) -> bool:
        """Whether Redis has something to be told."""
        if self._changes or self._untold or any(lease.until <= now for lease in self._leases):
            return True
        if self.limits.tokens_in_flight is None:
            return False
        return self.held != self.in_flight or (self.in_flight > 0 and now - self._told_at > _TELL_SECONDS)

    @property
    def requests_left(self) -> int:
        return max(0, self.left_requests) + sum(lease.requests for lease in self._leases)

    @property
    def tokens_left(self) -> int:
        return max(0, self.left_tokens) + sum(lease.tokens for lease in self._leases)

    def set(self, limits: Limits) -> None:
        """The limits are others now: what was drawn under the former ones goes back."""
        self.limits, self.refusal = limits, None
        self._return_leases(math.inf)

    # --- spending ----------------------------------------------------------------------------------------------------

    def take(self, tokens: int, now: float) -> Spent | None:
        """Spends a request and its tokens of what is at hand; None where that is not enough."""
        if self.limits.tokens_in_flight is not None and self.in_flight + tokens > self.held:
            return None
        rates = self.limits.requests_per_minute is not None, self.limits.tokens_per_minute is not None
        if not any(rates):
            return self._book(tokens, now, None)
        for lease in self._leases:
            if now < lease.until and lease.requests >= rates[0] and (lease.tokens >= tokens or not rates[1]):
                lease.requests -= rates[0]
                lease.tokens -= tokens if rates[1] else 0
                return self._book(tokens, now, lease.slot)
        return None

    def take_share(self, tokens: int, now: float, presence: Presence) -> Spent | str:
        """Spends of the process's own share while Redis is away; or the limit that is reached."""
        limits, (requests, spent) = self.limits, self._sums(now)
        for name, limit, would in (
            ("requests_per_minute", limits.requests_per_minute, requests + 1),
            ("tokens_per_minute", limits.tokens_per_minute, spent + tokens),
            ("tokens_in_flight", limits.tokens_in_flight, self.in_flight + tokens),
        ):
            if limit is not None and would > share(limit, presence):
                return name
        taken = self._book(tokens, now, None)
        untold = self._untold.setdefault(taken.at, [0, 0])
        untold[0] += 1
        untold[1] += tokens
        self.whole_requests = self.whole_tokens = (taken.at + 1) * SLOT_SECONDS + self.window
        return taken

    def share_left(self, now: float, presence: Presence) -> tuple[int, int]:
        """Requests and tokens of the own share."""
        requests, tokens = self._sums(now)
        most = self.limits.requests_per_minute or 0, self.limits.tokens_per_minute or 0
        return max(0, share(most[0], presence) - requests), max(0, share(most[1], presence) - tokens)

    def settle(self, spent: Spent, tokens: int, now: float, offset: float) -> None:
        """The request is over and used `tokens`: the rest of what it took is free again."""
        rest = max(0, spent.tokens - tokens)
        self.refusal = None
        self.in_flight -= spent.tokens
        self.duration += (now - spent.began - self.duration) / 4
        if spent.at in self._spent:
            self._spent[spent.at][1] -= rest
        if spent.slot is None and spent.at in self._untold:
            self._untold[spent.at][1] -= rest
        elif rest and self.limits.tokens_per_minute is not None:
            self._change(self._slot(spent.at, offset) if spent.slot is None else spent.slot, 0, -rest)

    def share_wait(self, name: str, tokens: int, now: float, presence: Presence) -> float:
        """Seconds until the own share has room again for what `take_share` refused."""
        if name == "tokens_in_flight":
            return self.duration
        side = 0 if name == "requests_per_minute" else 1
        limit = self.limits.requests_per_minute if side == 0 else self.limits.tokens_per_minute
        need = self._sums(now)[side] + (1 if side == 0 else tokens) - share(limit or 0, presence)
        for at, amounts in sorted(self._spent.items()):
            need -= amounts[side]
            if need <= 0:
                return (at + 1) * SLOT_SECONDS + self.window - now
        return self.window

    # --- orders ------------------------------------------------------------------------------------------------------

    def order(self, tokens: int, now: float, offset: float) -> Order:
        """What to ask Redis for so that a request of `tokens` can go on, and those behind it. Gives back all else."""
        self._return_leases(math.inf)
        self.held = self.in_flight
        requests, spent = self._pace(now)
        return Order(
            Side(self.limits.requests_per_minute, 1, max(requests, self.waiting_requests)),
            Side(self.limits.tokens_per_minute, tokens, max(spent, self.waiting_tokens)),
            Side(self.limits.tokens_in_flight, tokens, max(spent, self.waiting_tokens)),
            self.in_flight,
            self._told(offset),
        )

    def refill(self, now: float) -> Order | None:
        """What to draw ahead, beside those who spend; None while there is enough."""
        requests, tokens = self._pace(now)
        fresh = [lease for lease in self._leases if now < lease.until]
        if requests < _BUSY or self.refilling or self.turn.locked():
            return None
        short = sum(lease.requests for lease in fresh) * _SHRINKS < requests
        if self.limits.tokens_per_minute is not None:
            short = short or sum(lease.tokens for lease in fresh) * _SHRINKS < tokens
        if not short:
            return None
        return Order(
            Side(self.limits.requests_per_minute, 0, requests), Side(self.limits.tokens_per_minute, 0, tokens),
            Side(None), None,
        )  # fmt: skip

    def news(self, now: float, offset: float) -> Order | None:
        """What Redis has to be told; None where that is nothing."""
        if not self.stale(now):
            return None
        self._return_leases(now)
        self.held, self._told_at = self.in_flight, now
        limits = self.limits
        return Order(
            Side(limits.requests_per_minute),
            Side(limits.tokens_per_minute),
            Side(limits.tokens_in_flight),
            self.in_flight,
            self._told(offset),
        )

    def lost(self, order: Order) -> None:
        """An order's answer was lost: what was to be given back is not (it may have been), what was to be told is."""
        for change in order.changes:
            self._change(change.slot, max(0, change.requests), max(0, change.tokens))

    def drawn(self, order: Order, answer: Drawn, sent: float, now: float) -> None:
        """Takes what was granted; `sent` is when the order was."""
        requests, tokens = answer.requests, answer.tokens
        if requests.granted or tokens.granted:
            until = sent + LEASE_SECONDS
            self._leases.append(_Lease(answer.slot, until, requests.granted, tokens.granted))
        if order.used is not None:
            self.held += answer.in_flight.granted
        self.left_requests, self.whole_requests = requests.left, now + requests.reset
        self.left_tokens, self.whole_tokens = tokens.left, now + tokens.reset

    # --- the books ---------------------------------------------------------------------------------------------------

    def _book(self, tokens: int, now: float, slot: int | None) -> Spent:
        at = math.floor(now / SLOT_SECONDS)
        if at not in self._spent:
            for old in [one for one in self._spent if (one + 1) * SLOT_SECONDS + self.window <= now]:
                del self._spent[old]
                self._untold.pop(old, None)
            self._spent[at] = [0, 0]
        self._spent[at][0] += 1
        self._spent[at][1] += tokens
        self.in_flight += tokens
        self.touched = now
        return Spent(tokens, slot, at, now)

    def _sums(self, now: float) -> tuple[int, int]:
        counted = [amounts for at, amounts in self._spent.items() if (at + 1) * SLOT_SECONDS + self.window > now]
        return sum(requests for requests, _ in counted), sum(tokens for _, tokens in counted)

    def _pace(self, now: float) -> tuple[int, int]:
        """Requests and tokens of the busier of this half second and the one before."""
        at = math.floor(now / SLOT_SECONDS)
        both = [self._spent.get(one, [0, 0]) for one in (at - 1, at)]
        return max(one[0] for one in both), max(one[1] for one in both)

    def _return_leases(self, now: float) -> None:
        """Those that are over at `now`."""
        for lease in [lease for lease in self._leases if lease.until <= now]:
            self._leases.remove(lease)
            if lease.requests or lease.tokens:
                self._change(lease.slot, -lease.requests, -lease.tokens)

    def _change(self, slot: int, requests: int, tokens: int) -> None:
        if not requests and not tokens:
            return
        change = self._changes.setdefault(slot, [0, 0])
        change[0] += requests
        change[1] += tokens
        if len(self._changes) > 2 * self.window / SLOT_SECONDS:  # Redis has been away: the oldest counts no more
            del self._changes[min(self._changes)]

    def _told(self, offset: float) -> tuple[Slot, ...]:
        for at, (requests, tokens) in self._untold.items():
            self._change(self._slot(at, offset), requests, tokens)
        changes = tuple(Slot(slot, *amounts) for slot, amounts in self._changes.items())
        self._changes, self._untold = {}, {}
        return changes

    def _slot(self, at: int, offset: float) -> int:
        """Redis' half second for one here; the later one, where it touches two."""
        return math.floor((at * SLOT_SECONDS + offset) / SLOT_SECONDS) + 1


def share(limit: int, presence: Presence) -> int:
    """One process's part of a limit; the parts of all add up to it."""
    return limit // presence.count + (presence.rank < limit % presence.count)
