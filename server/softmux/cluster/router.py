"""softmux's routing as a request router of Ray Serve's: each handle to the replicas has one."""

from __future__ import annotations

from random import Random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from softmux.routing.policies import LeastLoaded, Policy, RandomChoice, WarmFirst


class AdapterRouter(RequestRouter):  # type: ignore[misc]  # Ray's classes are untyped
    """Loads are Serve's count of requests under way: its own, and what replicas said when they were asked last.

    Serve takes the first replica of the ranking that has room (`max_ongoing_requests`), so one that is full is passed
    over even where no other is warm.
    """

    def initialize_state(self, policy: str = "warm_first", **options: Any) -> None:
        random = Random()  # noqa: S311 - balances load
        self._policy: Policy
        if policy == "warm_first":
            self._policy = WarmFirst(random, **options)
        else:
            self._policy = RandomChoice(random) if policy == "random" else LeastLoaded(random)
        self._known: set[str] = set()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        for gone in self._known - named.keys():
            self._policy.left(gone)
        self._known = set(named)
        key, without = _asked(pending_request)
        loads = {name: self.replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in named.items()}
        ranked = self._policy.rank(key, loads)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        first = [name for name in ranked if name not in without]
        # Where no other is left, one of those may be well again: first who has had longest for it.
        last = [name for name in without if name in named]
        return [[named[name]] for name in first + last]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._policy.sent(_asked(pending_request)[0], replica_id.unique_id)


def _asked(pending: PendingRequest | None) -> tuple[str | None, tuple[str, ...]]:
    """What `Replica.answer` is called with: the key, and the replicas to pass over."""
    if pending is None:
        return None, ()
    return pending.kwargs.get("key"), pending.kwargs.get("without", ())
