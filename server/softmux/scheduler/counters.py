"""How much of the engine each tenant has had: the virtual token counters that say whose turn it is.

VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588): a tenant's counter grows
by what is computed for it, over its weight,

    c_i += (w_p · input tokens computed + w_q · tokens chosen) / weight_i

and whoever waits with the least counter is next. A tenant that comes back to the queue is lifted to the least of those
who wait (or to what the last who left it had), so that nobody saves up turns while away. Then, of any two tenants that
wait from t1 to t2, with U = max(w_p · longest input, w_q · M) and M the tokens that one batch's rows can come to:

    | W_i / weight_i - W_j / weight_j | <= 2 U / least weight        (W: what was computed for each in [t1, t2))

Tokens found in the cache cost nothing: nobody waited for the device over them, and a tenant's cache is its own. Tokens
that are computed again after a preemption cost again, as they take the device again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

INPUT_COST = 1.0
OUTPUT_COST = 2.0
"""What a token costs that is computed as input, and one that is chosen: the paper's w_p and w_q."""


@dataclass(slots=True)
class _Tenant:
    number: int
    sequences: int = 0
    """Of it, not ended."""


class VirtualTokenCounters:
    """A tenant has a number from its first `enter`; after its last `leave` the number goes to another once its counter
    says nothing any more, being no higher than a newcomer's would be."""

    def __init__(self, *, input_cost: float = INPUT_COST, output_cost: float = OUTPUT_COST) -> None:
        self.input_cost, self.output_cost = input_cost, output_cost
        self.had: npt.NDArray[np.float64] = np.zeros(4)
        """The counters, by number."""
        self._per_token = np.ones(4)
        """1 / weight."""
        self._waits = np.zeros(4, np.bool_)
        """Who has a sequence in the queue that can be next; `_waiting` are their numbers."""
        self._waiting: set[int] = set()
        self._coming = np.zeros(4, np.int64)
        """The order of that sequence."""
        self._queued = np.zeros(4, np.int64)
        """How many sequences of it are in the queue."""
        self._tenants: dict[str, _Tenant] = {}
        self._free = [3, 2, 1, 0]
        self._present = 0
        self._left_with = 0.0
        """What the last tenant that left the queue had had."""

    # --- tenants -----------------------------------------------------------------------------------------------------

    def enter(self, tenant: str, weight: float = 1.0) -> int:
        """A sequence of the tenant has come; its number. `weight` counts from now on."""
        known = self._tenants.get(tenant)
        if known is None:
            known = self._tenants[tenant] = _Tenant(self._new_number())
        self._present += known.sequences == 0
        known.sequences += 1
        self._per_token[known.number] = 1.0 / weight
        return known.number

    def leave(self, tenant: str) -> None:
        """A sequence of the tenant has ended. With the last of all a busy period ends: nobody has had anything of the
        next one."""
        known = self._tenants[tenant]
        known.sequences -= 1
        self._present -= known.sequences == 0
        if not self._present:
            self.had[:] = 0.0
            self._left_with = 0.0

    def number(self, tenant: str) -> int:
        """Of a tenant that has entered."""
        return self._tenants[tenant].number

    def had_by(self, tenant: str) -> float:
        """The tenant's counter, 0 where it is forgotten."""
        known = self._tenants.get(tenant)
        return float(self.had[known.number]) if known is not None else 0.0

    def weight(self, tenant: str) -> float:
        """By which the tenant's tokens count, 1 where it is forgotten."""
        known = self._tenants.get(tenant)
        return 1.0 / float(self._per_token[known.number]) if known is not None else 1.0

    def _new_number(self) -> int:
        if not self._free:
            least = self._least_waiting()
            said = [name for name, one in self._tenants.items() if not one.sequences and self.had[one.number] <= least]
            self._free = [self._tenants.pop(name).number for name in said]
        if not self._free:
            size = len(self.had)
            self._free = list(range(2 * size - 1, size - 1, -1))
            self.had = np.concatenate([self.had, np.zeros(size)])
            self._per_token = np.concatenate([self._per_token, np.ones(size)])
            self._waits = np.concatenate([self._waits, np.zeros(size, np.bool_)])
            self._coming = np.concatenate([self._coming, np.zeros(size, np.int64)])
            self._queued = np.concatenate([self._queued, np.zeros(size, np.int64)])
        number = self._free.pop()
        self.had[number] = 0.0  # lifted when it comes to wait
        return number

    # --- whose turn --------------------------------------------------------------------------------------------------

    def queue(self, number: int, count: int, coming: int | None) -> None:
        """`count` sequences of a tenant are in the queue. `coming`: the order of the one that can be next; None where
        none can. A tenant that had none of these and has one now is lifted."""
        self._queued[number] = count
        if coming is None:
            if number in self._waiting:
                self._waits[number] = False
                self._waiting.discard(number)
                self._left_with = float(self.had[number])
            return
        if number not in self._waiting:
            self.had[number] = max(self.had[number], self._least_waiting())
            self._waits[number] = True
            self._waiting.add(number)
        self._coming[number] = coming

    def grew(self, number: int, count: int) -> None:
        """`count` sequences of a tenant are in the queue, and the one that can be next is the same."""
        self._queued[number] = count

    def _least_waiting(self) -> float:
        return float(self.had[self._waits].min()) if self._waits.any() else self._left_with

    def least(self, under_way: Collection[int] = (), *, waiting: bool = True) -> int | None:
        """Who has had least of those `under_way` and (`waiting`) of those who wait; None where there is nobody. Between
        equals it is one under way, then whose next came first."""
        if not under_way and len(self._waiting) < 2:  # as most often: there is nothing to compare
            return next(iter(self._waiting), None) if waiting else None
        mask = self._waits.copy() if waiting else np.zeros_like(self._waits)
        mask[list(under_way)] = True
        candidates = np.flatnonzero(mask)
        if len(candidates) > 1:
            had = self.had[candidates]
            candidates = candidates[had == had.min()]
        if len(candidates) > 1:
            coming = self._coming[candidates]
            if under_way:
                coming[np.isin(candidates, list(under_way))] = -1
            candidates = candidates[coming.argmin() :]
        return int(candidates[0]) if len(candidates) else None

    def most_queued(self) -> int:
        """Who has most sequences in the queue for its weight."""
        return int((self._queued * self._per_token).argmax())

    def queued_share(self, number: int) -> float:
        """How many sequences it has in the queue for its weight."""
        return float(self._queued[number] * self._per_token[number])

    # --- what it cost ------------------------------------------------------------------------------------------------

    def charge(self, number: int, computed: int, chosen: int) -> None:
        cost = self.input_cost * computed + self.output_cost * chosen
        self.had[number] += cost * self._per_token[number]

    def charge_decodes(self, accounts: npt.NDArray[np.int64], rows: npt.NDArray[np.integer]) -> None:
        """One token is chosen for each of `rows`, whose tenants' numbers are in the column `accounts`."""
        if not len(rows):
            return
        if self._present == 1:  # alone, as most often: nothing to tell apart
            self.charge(accounts[rows[0]], 0, len(rows))
            return
        counts = np.bincount(accounts[rows], minlength=len(self.had))
        self.had += counts * (self.output_cost * self._per_token)

    def check_integrity(self, sequences: Iterable[str]) -> None:
        """`sequences`: the tenant of each that has not ended."""
        living: dict[str, int] = {}
        for tenant in sequences:
            living[tenant] = living.get(tenant, 0) + 1
        assert living == {name: one.sequences for name, one in self._tenants.items() if one.sequences}
        assert self._present == len(living)
        taken = [one.number for one in self._tenants.values()]
        assert sorted([*self._free, *taken]) == list(range(len(self.had))), "tenants' numbers do not add up"
        assert sorted(self._waiting) == np.flatnonzero(self._waits).tolist()
