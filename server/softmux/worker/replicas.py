"""Several workers with the same model behind one face: each sequence goes where its adapter is warm, within bounded
load, and what has not begun when its worker dies begins at another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from softmux.errors import EngineDown, SoftmuxError
from softmux.routing.policies import Policy, WarmFirst
from softmux.types import ModelSpec
from softmux.worker.channel import Channel, SequenceFailed
from softmux.worker.client import Sent, WorkerClient, channel_of
from softmux.worker.merged import counted, merged, with_counted
from softmux.worker.messages import Admit, Admitted, Generate, Read, Spent, Stats
from softmux.worker.quarantine import Verdicts

_LEAST_SECONDS = 0.001
"""What is left of a deadline that has passed while its worker died: the next one says so."""
_NONE = Verdicts()


class Replicas:
    """`clients` are of one event loop. With a single one this is no more than that one's face.

    `free` is how many sequences a replica may have before another is warmed for its tasks' sake.

    While no worker is connected, `submit` and `admit` raise `EngineDown`.
    """

    def __init__(self, clients: Iterable[WorkerClient], *, free: int = 8, policy: Policy | None = None) -> None:
        self._clients = {str(number): client for number, client in enumerate(clients)}
        self._policy = policy or WarmFirst(random.Random(), free=free, warm_keys=8192)  # noqa: S311 - spreads load
        self._gone: dict[str, Stats] = {}
        """What the forerunners of each have counted."""
        self._merged: tuple[tuple[Stats | None, ...], Stats | None] = (), None

    @classmethod
    def of(cls, count: int, on_spent: Callable[[Spent], None] = lambda _: None, *, free: int = 8) -> Replicas:
        return cls((WorkerClient(on_spent) for _ in range(count)), free=free)

    # --- their connections -------------------------------------------------------------------------------------------

    async def connect(self, number: int, endpoint: str) -> ModelSpec:
        """As `WorkerClient.connect`, of one of them."""
        return await self._clients[str(number)].connect(endpoint)

    def lost(self, number: int, verdicts: Verdicts = _NONE) -> None:
        """A worker has died. What it had begun fails, and so does what the `verdicts` on that say not to run; the rest
        begins elsewhere, where another is up."""
        name = str(number)
        client = self._clients[name]
        if client.stats is not None:
            had = self._gone.get(name)
            self._gone[name] = counted(client.stats if had is None else with_counted(client.stats, had))
            client.forget_stats()
        self._policy.left(name)
        waiting = [] if len(self._clients) == 1 else client.take_back()
        client.lost()
        for sent in waiting:
            self._begin_elsewhere(sent, verdicts)

    def _begin_elsewhere(self, sent: Sent, verdicts: Verdicts) -> None:
        request, now = sent.request, time.monotonic()
        if request.deadline is not None:
            left = max(_LEAST_SECONDS, sent.at + request.deadline - now)
            request = msgspec.structs.replace(request, deadline=left)
        try:
            if request.content in verdicts.suspects or request.content in verdicts.requests:
                raise EngineDown("the engine has stopped with this request in its step; try again shortly")
            if request.version in verdicts.felling or request.version in verdicts.not_finite:
                raise EngineDown("the engine has stopped, and this adapter is not run any more")
            if request.version in verdicts.suspects:
                request = msgspec.structs.replace(request, suspect=True)
            self._send(Sent(request, sent.channel, now))
        except SoftmuxError as error:
            if isinstance(error, EngineDown):
                error.begun = True  # the one that died had it
            sent.channel.deliver(SequenceFailed(sent.id, error), now, last=True)

    def close(self) -> None:
        """Drops the connections for good; what still runs fails with `EngineDown`."""
        for client in self._clients.values():
            client.close()

    # --- what is known of them ---------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self._clients)

    @property
    def up(self) -> int:
        """How many answer."""
        return sum(client.ready for client in self._clients.values())

    @property
    def ready(self) -> bool:
        """Whether any answers."""
        return any(client.ready for client in self._clients.values())

    @property
    def spec(self) -> ModelSpec:
        """The model's description, known from the first `connect` on. Raises `EngineDown` before."""
        error: EngineDown | None = None
        for client in self._clients.values():
            try:
                return client.spec
            except EngineDown as down:
                error = down
        assert error is not None
        raise error

    @property
    def stats(self) -> Stats | None:
        """The workers' latest numbers together, the same object until one has told new ones. Counts go on from where a
        worker's forerunner ended. None before the first."""
        latest = tuple(client.stats for client in self._clients.values())
        if len(self._merged[0]) != len(latest) or any(a is not b for a, b in zip(self._merged[0], latest, strict=True)):
            told = [
                stats if name not in self._gone else with_counted(stats, self._gone[name])
                for name, stats in zip(self._clients, latest, strict=True)
                if stats is not None
            ]
            silent = [gone for name, gone in self._gone.items() if self._clients[name].stats is None]
            self._merged = latest, merged([*told, *silent])
        return self._merged[1]

    @property
    def gone(self) -> dict[str, Stats]:
        """By replica, what its forerunners have counted."""
        return dict(self._gone)

    def take_over(self, gone: Mapping[str, Stats]) -> None:
        """What forerunners have counted by what another says, where nothing is known of them here: they died before."""
        unknown = {name: stats for name, stats in gone.items() if name not in self._gone}
        if unknown:
            self._gone |= unknown
            self._merged = (), None

    @property
    def silent_seconds(self) -> float:
        """How long the one that has been silent longest, of those that are up, has sent nothing."""
        return max((client.silent_seconds for client in self._clients.values() if client.ready), default=0.0)

    @property
    def sequences(self) -> int:
        """How many sequences are in flight."""
        return sum(client.sequences for client in self._clients.values())

    async def refresh_stats(self, within: float = 0.25) -> Stats | None:
        """`stats` as of now, or what they were where a worker takes longer than `within` seconds."""
        await asyncio.gather(*(client.refresh_stats(within) for client in self._clients.values()))
        return self.stats

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(self, requests: Iterable[Generate | Read]) -> Channel:
        """Starts sequences whose outputs are read from one channel. `close` it when done. Raises `EngineDown`."""
        requests = list(requests)
        channel = channel_of(self.abort, requests)
        sent = 0
        try:
            for request in requests:
                self._send(Sent(request, channel, channel.made))
                sent += 1
        except SoftmuxError as error:
            channel.close()  # those that were sent before the last worker was gone
            if isinstance(error, EngineDown):
                error.begun = sent > 0
            raise
        return channel

    def _send(self, sent: Sent) -> None:
        up = {name: float(client.sequences) for name, client in self._clients.items() if client.ready}
        if not up:
            next(iter(self._clients.values())).send(sent)  # says why there is none
        if len(up) == 1:
            [name] = up
        else:
            adapter = sent.request.adapter
            key = None if adapter is None else f"{adapter.tenant}/{adapter.digest}"
            name = self._policy.rank(key, up)[0]
            self._policy.sent(key, name)
        self._clients[name].send(sent)

    def abort(self, sequence_id: str) -> None:
        """Ends a sequence, whose channel hears nothing more of it. Unknown ids are ignored."""
        for client in self._clients.values():
            client.abort(sequence_id)

    async def admit(self, request: Admit) -> Admitted:
        """The canary's report on an upload. Raises what the worker found wrong, or `EngineDown`."""
        up = [client for client in self._clients.values() if client.ready]
        idlest = min(up or self._clients.values(), key=lambda client: client.sequences)
        return await idlest.admit(request)
