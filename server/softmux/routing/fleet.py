"""The replicas there are, what each has under way, and which one takes the next request."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from softmux.errors import EngineDown
from softmux.routing.policies import Policy


@dataclass(slots=True)
class _Member:
    """One life of a replica: what began in it ends in it, whoever has its name by then."""

    load: int = 0
    leaving: bool = False


class Fleet:
    """For a router that sends and counts by itself. Belongs to one thread, or one event loop."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._members: dict[str, _Member] = {}

    @property
    def loads(self) -> Mapping[str, int]:
        """Requests under way at each replica, at those that are leaving, too."""
        return {name: member.load for name, member in self._members.items()}

    def join(self, replica: str) -> None:
        """Takes requests from now on. One that comes back under a name it had is a new one: nothing is warm there."""
        self._policy.left(replica)
        self._members[replica] = _Member()

    def drain(self, replica: str) -> None:
        """Takes no new request; what it has under way ends there, and then it has left. Unknown ones are no error."""
        if (member := self._members.get(replica)) is not None:
            member.leaving = True
            self._leave_if_done(replica, member)

    def lost(self, replica: str) -> None:
        """Is gone with all that it had under way. Unknown ones are no error: several requests find out at once."""
        self._members.pop(replica, None)
        self._policy.left(replica)

    def choose(self, key: str | None, without: Container[str] = ()) -> str:
        """Where a request of `key` goes: to none of `without`, where it failed. Raises `EngineDown` if none is left."""
        loads = {name: member.load for name, member in self._members.items() if not member.leaving}
        for replica in self._policy.rank(key, loads):
            if replica not in without:
                return replica
        raise EngineDown("no replica takes requests just now: try again", retry_after=1)

    @contextmanager
    def sending(self, key: str | None, without: Container[str] = ()) -> Iterator[str]:
        """Chooses a replica, and counts the request there until the block ends."""
        replica = self.choose(key, without)
        member = self._members[replica]
        member.load += 1
        self._policy.sent(key, replica)
        try:
            yield replica
        finally:
            member.load -= 1
            self._leave_if_done(replica, member)

    def check_integrity(self) -> None:
        """Nobody has less than nothing to do, and those that leave have something."""
        assert all(member.load >= 0 for member in self._members.values())
        assert all(member.load for member in self._members.values() if member.leaving)

    def _leave_if_done(self, replica: str, member: _Member) -> None:
        if member.leaving and not member.load and self._members.get(replica) is member:
            self.lost(replica)
