"""The tenants' limits as requests meet them: admitted and charged, or told when to come again.

A request is charged one request, and the tokens of its prompts and all it may generate; when it ends, what it did not
use is given back. An API process spends of what it drew from Redis ahead, or asks for more: that is one short exchange
for all that wait. While Redis is away, each process has an equal share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from softmux.api.allowance import Allowance, Refusal, Spent, share
from softmux.errors import Overloaded, QuotaExceeded, RateLimited, RegistryDown
from softmux.registry.budgets import SLOT_SECONDS, Budgets, Drawn, Order, Presence
from softmux.registry.tenants import Tenants
from softmux.telemetry.exposition import Metrics

log = logging.getLogger(__name__)

_BEAT_SECONDS = 3.0
_REMEMBERED_SECONDS = 0.25
"""For so long Redis is not asked again for what it has just refused."""
_IDLE_SECONDS = 300.0
_TRIES = 10
"""A lease may be over by the time this process, held up, looks at it."""


class Charge(Protocol):
    """What a request was charged. `headers` are its answer's."""

    headers: Mapping[str, str]

    def settle(self, tokens: int) -> None:
        """The request is over and used so many tokens. Call it once, however it ended."""


class _Free:
    headers: Mapping[str, str] = {}

    def settle(self, tokens: int) -> None:
        pass


FREE: Charge = _Free()


@dataclass(slots=True)
class _Charged:
    headers: Mapping[str, str]
    limiter: Limiter
    allowance: Allowance
    spent: Spent

    def settle(self, tokens: int) -> None:
        self.limiter.settled(self.allowance, self.spent, tokens)


class Limiter:
    """One API process's. `run` keeps it current; `admit` asks nobody for a tenant without limits. `least`: so many
    processes share a limit at least, whatever was heard of them."""

    def __init__(
        self, tenants: Tenants, budgets: Budgets, metrics: Metrics, *, least: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._tenants, self._budgets, self._metrics, self._clock = tenants, budgets, metrics, clock
        self._allowances: dict[str, Allowance] = {}
        self._presence = Presence(0.0, least, 0)
        self._least = least
        self._offset = 0.0
        """Redis' clock beside this process's."""
        self._away = False
        self._beaten = float("-inf")
        self._refilling: set[asyncio.Task[None]] = set()

    async def admit(self, tenant: str, tokens: int) -> Charge:
        """Charges a request of up to `tokens`. Raises `RateLimited`, or `QuotaExceeded` where no wait would help."""
        try:
            return await self._admit(tenant, tokens)
        except RateLimited as error:
            self._metrics.limited(error.param or "", tenant)
            raise

    async def _admit(self, tenant: str, tokens: int) -> Charge:
        limits = self._tenants.get(tenant).limits
        if limits.requests_per_minute is None and limits.tokens_per_minute is None and limits.tokens_in_flight is None:
            return FREE
        allowance = self._allowances.get(tenant)
        if allowance is None:
            allowance = self._allowances[tenant] = Allowance(limits, self._budgets.window)
        elif allowance.limits != limits:
            allowance.set(limits)
        self._check_size(allowance, tokens)
        if not allowance.waiting_requests and (spent := allowance.take(tokens, self._clock())) is not None:
            self._refill(tenant, allowance)
            return self._charged(allowance, spent)
        allowance.waiting_requests += 1
        allowance.waiting_tokens += tokens
        try:
            async with allowance.turn:
                return self._charged(allowance, await self._spend(tenant, allowance, tokens))
        finally:
            allowance.waiting_requests -= 1
            allowance.waiting_tokens -= tokens

    async def run(self) -> None:
        """Gives back, tells, and says that this process lives, for as long as it is not cancelled."""
        while True:
            await asyncio.sleep(SLOT_SECONDS)
            await self._keep_up()

    async def close(self) -> None:
        """Gives back all that was drawn."""
        await asyncio.gather(*self._refilling)
        for tenant, allowance in self._allowances.items():
            allowance.set(allowance.limits)
            await self._tell(tenant, allowance)
        if self._beaten > float("-inf") and not self._away:
            with contextlib.suppress(RegistryDown):
                await self._budgets.leave()
        await self._budgets.close()

    def settled(self, allowance: Allowance, spent: Spent, tokens: int) -> None:
        allowance.settle(spent, tokens, self._clock(), self._offset)

    # --- one request -------------------------------------------------------------------------------------------------

    async def _spend(self, tenant: str, allowance: Allowance, tokens: int) -> Spent:
        for _ in range(_TRIES):
            now = self._clock()
            if (spent := allowance.take(tokens, now)) is not None:
                return spent
            if self._away:
                return self._spend_share(allowance, tokens, now)
            self._check_refused(allowance, tokens, now)
            order = allowance.order(tokens, now, self._offset)
            answer = await self._draw(tenant, allowance, order)
            if answer is not None and not answer.granted:
                allowance.refusal = Refusal(answer, tokens, now + _REMEMBERED_SECONDS)
                self._check_refused(allowance, tokens, now)
        raise Overloaded("The server is too busy to keep to your limits; retry later.")

    async def _draw(self, tenant: str, allowance: Allowance, order: Order) -> Drawn | None:
        """The answer, booked; None where Redis is away."""
        sent = self._clock()
        try:
            answer = await self._budgets.draw(tenant, order)
        except RegistryDown as error:
            allowance.lost(order)
            self._gone(error)
            return None
        now = self._clock()
        self._here(answer.presence, now)
        allowance.drawn(order, answer, sent, now)
        self._metrics.drew("granted" if answer.granted else "refused")
        return answer

    def _check_size(self, allowance: Allowance, tokens: int) -> None:
        limits = allowance.limits
        for name in ("tokens_per_minute", "tokens_in_flight"):
            limit: int | None = getattr(limits, name)
            if limit is not None and tokens > limit:
                raise QuotaExceeded(
                    f"This request may take {tokens} tokens (its prompt, and max_tokens for each choice), more than "
                    f"your limit {name} of {limit}: shorten the prompt, or lower max_tokens or n.",
                    param=name,
                    retry_after=self._budgets.window,
                    headers=self._headers(allowance),
                )
        if limits.requests_per_minute == 0:
            raise QuotaExceeded(
                "Your limit requests_per_minute is 0: ask the administrator.",
                param="requests_per_minute", retry_after=self._budgets.window, headers=self._headers(allowance),
            )  # fmt: skip

    def _check_refused(self, allowance: Allowance, tokens: int, now: float) -> None:
        """Raises `RateLimited` where Redis has just said no to as much."""
        refusal = allowance.refusal
        if refusal is None or now >= refusal.until:
            return
        limits, answer = allowance.limits, refusal.answer
        if limits.requests_per_minute is not None and answer.requests.left < 1:
            raise self._limited(allowance, "requests_per_minute", answer.requests.wait)
        if limits.tokens_per_minute is not None and answer.tokens.left < tokens <= refusal.tokens:
            raise self._limited(allowance, "tokens_per_minute", answer.tokens.wait)
        if limits.tokens_in_flight is not None and answer.in_flight.left < tokens <= refusal.tokens:
            raise self._limited(allowance, "tokens_in_flight", allowance.duration)

    def _spend_share(self, allowance: Allowance, tokens: int, now: float) -> Spent:
        spent = allowance.take_share(tokens, now, self._presence)
        if isinstance(spent, str):
            raise self._limited(allowance, spent, allowance.share_wait(spent, tokens, now, self._presence))
        return spent

    def _limited(self, allowance: Allowance, name: str, wait: float) -> RateLimited:
        limit = getattr(allowance.limits, name)
        what = f"Your limit {name} of {limit} is reached"
        if self._away:
            what += f" (this process's share of it, {share(limit, self._presence)}, while the registry is out of reach)"
        headers = self._headers(allowance)
        return RateLimited(f"{what}: try again in {wait:.1f} s.", param=name, retry_after=wait, headers=headers)

    def _charged(self, allowance: Allowance, spent: Spent) -> Charge:
        return _Charged(self._headers(allowance), self, allowance, spent)

    def _headers(self, allowance: Allowance) -> dict[str, str]:
        """OpenAI's, for the limits a minute that are set."""
        limits, now = allowance.limits, self._clock()
        requests_left, tokens_left = allowance.requests_left, allowance.tokens_left
        if self._away:
            requests_left, tokens_left = allowance.share_left(now, self._presence)
        found: dict[str, str] = {}
        for what, limit, left, whole in (
            ("requests", limits.requests_per_minute, requests_left, allowance.whole_requests),
            ("tokens", limits.tokens_per_minute, tokens_left, allowance.whole_tokens),
        ):
            if limit is not None:
                if now >= whole and not self._away:  # as far as this process knows: it has not drawn for so long
                    left = limit
                found[f"x-ratelimit-limit-{what}"] = str(limit)
                found[f"x-ratelimit-remaining-{what}"] = str(left)
                found[f"x-ratelimit-reset-{what}"] = duration(max(0.0, whole - now))
        return found

    # --- in the background -------------------------------------------------------------------------------------------

    def _refill(self, tenant: str, allowance: Allowance) -> None:
        if self._away or (order := allowance.refill(self._clock())) is None:
            return
        allowance.refilling = True

        async def refill() -> None:
            try:
                await self._draw(tenant, allowance, order)
            finally:
                allowance.refilling = False

        task = asyncio.create_task(refill())
        self._refilling.add(task)
        task.add_done_callback(self._refilling.discard)

    async def _keep_up(self) -> None:
        now = self._clock()
        if (self._away or now - self._beaten >= _BEAT_SECONDS) and self._tenants.any_limited():
            try:
                self._here(await self._budgets.beat(), self._clock())
            except RegistryDown as error:
                self._gone(error)
        if self._away:
            return
        for tenant, allowance in list(self._allowances.items()):
            if allowance.stale(now):
                async with allowance.turn:
                    await self._tell(tenant, allowance)
            elif not allowance.in_flight and now - allowance.touched > _IDLE_SECONDS and not allowance.turn.locked():
                del self._allowances[tenant]

    async def _tell(self, tenant: str, allowance: Allowance) -> None:
        if not self._away and (order := allowance.news(self._clock(), self._offset)) is not None:
            await self._draw(tenant, allowance, order)

    def _here(self, presence: Presence, now: float) -> None:
        if self._away:
            log.info("the registry counts limits again")
        count = max(presence.count, self._least)
        self._presence = Presence(presence.now, count, presence.rank)
        self._offset, self._beaten, self._away = presence.now - now, now, False

    def _gone(self, error: RegistryDown) -> None:
        if not self._away:
            log.warning("limits are this process's own share for now: %s", error.message)
        self._away = True
        self._metrics.drew("unanswered")


def duration(seconds: float) -> str:
    """As OpenAI writes one: `1m0.5s`, `12ms`."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
