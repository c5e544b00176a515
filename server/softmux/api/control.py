"""What the server and its API processes tell each other: small typed messages, both ways over one socket each.

A question carries a number and is answered by an `Answer` with the same one. Either side may ask: a process asks the
server about, or tells it for, all the others.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from softmux.telemetry.samples import Samples
from softmux.worker.messages import Stats
from softmux.worker.quarantine import Verdicts


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an API process is told at its start, as one line of JSON on its standard input: arguments can be read by
    every user of the machine, and a registry's URL may hold a password.

    `control` and `connections` are descriptors it inherits: the socket of its `Line`, and the one over which it is
    handed clients' connections. `tokenizer` is the file of an `ExportedTokenizer`, there once the server is `started`.
    """

    settings: dict[str, Any]
    endpoints: tuple[str, ...]
    registry_url: str
    blob_url: str | None
    tokenizer: str
    processes: int = 1
    """How many there are of this one's kind."""
    control: int = -1
    connections: int = -1


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


class State(_Message, frozen=True, kw_only=True):
    """What all processes must agree on; sent whole with every change, and first of all."""

    workers: tuple[int, ...] = ()
    """Of each, how often it was started again; −1 while none waits at its endpoint, its model loaded."""
    restarts: int = 0
    """How often any was started again."""
    tokenizer: bool = False
    """The tokenizer's file is there."""
    started: bool = False
    """All that a start does is done."""
    everywhere: bool = False
    """Every process that takes connections has reached a worker that is up."""
    draining: bool = False
    """No new work is taken; a process says `Idle` when it has none left."""
    deaths: dict[str, int] = {}
    """How often a worker died, by cause."""
    fell: frozenset[int] = frozenset()
    """The requests in the steps that the last of them died in."""
    gone: dict[str, Stats] = {}
    """What dead workers have counted, by `Replicas.gone`: a process that starts later would count from 0 else."""
    verdicts: Verdicts = Verdicts()
    """Who is under suspicion of it, or in quarantine."""


class Ready(_Message, frozen=True):
    """This process can serve: it has the registry, the tokenizer, and the worker where one is up."""


class Reached(_Message, frozen=True):
    """This process has reached a worker: its number, and after how many restarts it came."""

    worker: int
    restarts: int


class Idle(_Message, frozen=True):
    """Nothing runs here any more, and the server drains."""


class Leaving(_Message, frozen=True):
    """This process was told by a signal to end: it takes no more connections, and ends when those it has are gone."""


class Counted(_Message, frozen=True):
    """All that a process counted, as its last words."""

    samples: Samples


class End(_Message, frozen=True):
    """Stop answering, and end."""


class Cleared(_Message, frozen=True):
    """A request under suspicion, or of such a version, ended well. Marks are those of `softmux.marks`."""

    content: int
    version: int


class Broke(_Message, frozen=True):
    """A row of the version gave what is not finite."""

    version: int


class Released(_Message, frozen=True):
    """The version was activated or uploaded again."""

    version: int


class Count(_Message, frozen=True):
    """To a process: what has it counted? From one: what have all the others?"""

    id: int


class Changed(_Message, frozen=True):
    """A task (or, where `task` is None, a key) was changed through another process; answered once that is seen here.
    From a process: answered once all the others have seen it."""

    id: int
    tenant: str
    task: str | None


class Answer(_Message, frozen=True):
    id: int
    samples: Samples = ()


Report = Cleared | Broke | Released
"""What a process tells of requests and versions, for the server's book."""
Message = (
    State | Ready | Reached | Idle | Leaving | Counted | End | Count | Changed | Answer | Cleared | Broke | Released
)


class Line:
    """One end of such a socket. Of one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._ids = itertools.count()
        self._over = False
        """The other end is gone."""
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    @classmethod
    async def over(cls, end: socket.socket) -> Line:
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Never waits; nothing happens where the other end is gone."""
        if self._writer.is_closing():
            return
        payload = self._encoder.encode(message)
        self._writer.write(len(payload).to_bytes(4, "big") + payload)

    async def hear(self) -> Message | None:
        """The next message that is no answer; None once the other end is gone."""
        while True:
            try:
                length = int.from_bytes(await self._reader.readexactly(4), "big")
                message: Message = self._decoder.decode(await self._reader.readexactly(length))
            except (asyncio.IncompleteReadError, OSError):
                self._over = True
                for waiting in self._asked.values():
                    if not waiting.done():
                        waiting.set_exception(TimeoutError("the other end is gone"))
                return None
            if not isinstance(message, Answer):
                return message
            asked = self._asked.pop(message.id, None)
            if asked is not None and not asked.done():
                asked.set_result(message)

    async def ask(self, question: Callable[[int], Count | Changed], within: float) -> Answer | None:
        """The answer; None where none came within so many seconds. Something must be in `hear` meanwhile."""
        if self._over:
            return None
        number = next(self._ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.send(question(number))
        try:
            async with asyncio.timeout(within):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._asked.pop(number, None)

    def close(self) -> None:
        self._writer.close()
