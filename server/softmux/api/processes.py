"""The server's API processes: started, handed clients' connections in turn, told what changes, started again.

The server accepts and passes each connection on, rather than letting the processes accept by themselves: so the load
is even however clients come, none waits at a process that has died, and one that leaves loses nobody's request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from softmux.api.control import (
    Answer,
    ApiConfig,
    Broke,
    Changed,
    Cleared,
    Count,
    Counted,
    End,
    Idle,
    Leaving,
    Line,
    Reached,
    Ready,
    Released,
    Report,
    State,
)
from softmux.errors import InternalError
from softmux.telemetry.samples import Samples, summed
from softmux.worker.pauses import Pauses

log = logging.getLogger(__name__)

API_COMMAND = (sys.executable, "-m", "softmux.api.process")

_FIRST_PAUSE = 0.1
_START_ATTEMPTS = 3
"""Before all have been ready once, a process is not started more often than this."""
_PULSE_SECONDS = 1.0
_SILENT_SECONDS = 3.0
"""A process that has said nothing for so long gets no connections while another does."""
_HANGING_SECONDS = 8.0
_STARTING_SECONDS = 120.0
"""The same for one that was never ready: it may still be importing, on a machine that has other work."""
_END_SECONDS = 10.0


class _Process:
    """One process, from its start to its end."""

    def __init__(self, child: asyncio.subprocess.Process, line: Line, connections: socket.socket) -> None:
        self.child, self.line = child, line
        self._connections: socket.socket | None = connections
        self.ready = asyncio.Event()
        self.idle = asyncio.Event()
        self.leaving = asyncio.Event()
        self.reached: dict[int, int] = {}
        """By worker, after how many restarts came the one that it has reached last."""
        self.counted: Samples = ()
        self.heard = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        return time.monotonic() - self.heard

    def reaches(self, workers: Sequence[int]) -> bool:
        """Whether it can serve by one of those that are up: a replica that comes back beside others is no reason to
        send clients away until all have met it."""
        up = {number: restarts for number, restarts in enumerate(workers) if restarts >= 0}
        return not up or any(self.reached.get(number) == restarts for number, restarts in up.items())

    def hand(self, connection: socket.socket) -> bool:
        """Whether it was given the connection; not where it has not taken those before, or is gone."""
        if self._connections is None:
            return False
        try:
            socket.send_fds(self._connections, [b"\0"], [connection.fileno()])
        except OSError:
            return False
        return True

    def hand_no_more(self) -> None:
        """It sees the end of its connections' socket once it has taken all that it was handed."""
        if self._connections is not None:
            self._connections.close()
            self._connections = None

    async def count(self, within: float) -> None:
        answer = await self.line.ask(Count, within)
        if answer is not None:
            self.counted = answer.samples


class ApiProcesses:
    """`run` keeps `count` processes of `config` alive until `end`; `hand` gives one of them a connection.

    `command` is what a process is started with, `heed` what is done with what it reports. All methods belong to one
    event loop.
    """

    def __init__(self, config: ApiConfig, count: int, *, command: Sequence[str] = API_COMMAND) -> None:
        self.heed: Callable[[Report], None] = lambda report: None
        self._config, self._count, self._command = config, count, tuple(command)
        self._alive: list[_Process] = []
        self._state = State()
        self._gone: Samples = ()
        """What processes counted that have ended."""
        self._turn = 0
        self._all_ready = asyncio.Event()
        self._ending = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Raises `InternalError` where a process never becomes ready."""
        keeping = [asyncio.create_task(self._keep()) for _ in range(self._count)]
        pulse = asyncio.create_task(self._pulse())
        try:
            await asyncio.gather(*keeping)
            pulse.cancel()
            while self._tasks:  # of those that left by themselves
                await asyncio.wait(self._tasks)
        finally:
            for task in (pulse, *keeping, *self._tasks):
                task.cancel()
            for process in self._alive:
                _kill(process.child)

    async def ready(self) -> None:
        """Waits until all have been ready at once."""
        await self._all_ready.wait()

    def tell(self, change: Callable[[State], State]) -> None:
        """All processes, and those to come, hear of the new state."""
        state = change(self._state)
        self._state = msgspec.structs.replace(state, everywhere=self._everywhere(state))
        for process in self._alive:
            process.line.send(self._state)

    def hand(self, connection: socket.socket) -> bool:
        """Passes a client's connection on; it is the caller's to close. False where no process can take it now."""
        there = [process for process in self._alive if not process.leaving.is_set()]
        taking = [process for process in there if process.ready.is_set()]
        if not taking and not self._state.started:  # a server that starts says so, where it is asked
            taking = there
        taking = [process for process in taking if process.silent_seconds < _SILENT_SECONDS] or taking
        # One that has reached a worker answers with more than its regret.
        taking = [process for process in taking if process.reaches(self._state.workers)] or taking
        for _ in taking:
            self._turn += 1
            if taking[self._turn % len(taking)].hand(connection):
                return True
        return False

    async def see(self, tenant: str, task: str | None, *, but: _Process | None = None, within: float = 0.9) -> None:
        """Returns once every process (`but` one) has taken notice of a change, or could not within so many seconds."""
        others = [process for process in self._alive if process is not but and process.ready.is_set()]
        await asyncio.gather(
            *(other.line.ask(lambda number: Changed(number, tenant, task), within) for other in others)
        )

    async def drained(self) -> None:
        """Tells all that the server drains, and returns when nothing runs in any of them."""
        self.tell(lambda state: msgspec.structs.replace(state, draining=True))
        await asyncio.gather(*(process.idle.wait() for process in self._alive))

    async def end(self) -> None:
        """Ends all, by force where they do not listen. Nothing is started any more."""
        self._ending.set()
        for process in self._alive:
            process.line.send(End())
        children = [process.child for process in self._alive]
        waits = [asyncio.create_task(child.wait()) for child in children]
        if waits:
            await asyncio.wait(waits, timeout=_END_SECONDS)
        for child in children:
            _kill(child)

    # --- the life of one ---------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        pauses, failures = Pauses(_FIRST_PAUSE), 0
        while not self._ending.is_set() and not self._state.draining:
            began = time.monotonic()
            process = await self._start()
            over = self._task(self._see_off(process))
            leaving = asyncio.create_task(process.leaving.wait())
            await asyncio.wait((over, leaving), return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not over.done():
                log.info("API process %d leaves, and another takes its place", process.child.pid)
                continue
            if self._ending.is_set() or self._state.draining:
                return
            code = over.result()
            failures = 0 if process.ready.is_set() else failures + 1
            if failures >= _START_ATTEMPTS and not self._all_ready.is_set():
                raise InternalError(
                    f"an API process ended {failures} times before it was ready, last with code {code}; "
                    "what it wrote above says why"
                )
            pause = pauses.after(time.monotonic() - began, served=process.ready.is_set())
            log.error("API process %d ended with code %s; another is started", process.child.pid, code)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)

    async def _start(self) -> _Process:
        control, their_control = socket.socketpair()
        connections, their_connections = socket.socketpair()
        theirs = (their_control, their_connections)
        try:
            config = msgspec.structs.replace(
                self._config,
                processes=self._count,
                control=their_control.fileno(),
                connections=their_connections.fileno(),
            )
            # Its own session: Ctrl-C is for the server, which tells its processes when to end.
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[end.fileno() for end in theirs],
                start_new_session=True,
            )
        except BaseException:
            control.close()
            connections.close()
            raise
        finally:
            for end in theirs:
                end.close()
        assert child.stdin is not None
        child.stdin.write(msgspec.json.encode(config) + b"\n")
        connections.setblocking(False)
        process = _Process(child, await Line.over(control), connections)
        process.line.send(self._state)
        self._alive.append(process)
        self._task(self._hear(process))
        if self._ending.is_set():  # `end` came while it was being started, and could not see it
            _kill(child)
        return process

    async def _see_off(self, process: _Process) -> int:
        """Waits for its end and books it; its exit code."""
        try:
            return await process.child.wait()
        finally:
            self._alive.remove(process)
            self._look_around()
            process.idle.set()
            process.hand_no_more()
            process.line.close()
            self._gone = summed((self._gone, process.counted))

    # --- what they say -----------------------------------------------------------------------------------------------

    async def _hear(self, process: _Process) -> None:
        while (message := await process.line.hear()) is not None:
            match message:
                case Ready():
                    process.ready.set()
                    self._look_around()
                    if sum(one.ready.is_set() for one in self._alive) >= self._count:
                        self._all_ready.set()
                case Reached():
                    process.reached[message.worker] = message.restarts
                    self._look_around()
                case Idle():
                    process.idle.set()
                case Leaving():
                    process.leaving.set()
                    process.hand_no_more()
                    self._look_around()
                case Counted():
                    process.counted = message.samples
                case Count():
                    self._task(self._count_for(process, message))
                case Changed():
                    self._task(self._see_for(process, message))
                case Cleared() | Broke() | Released():
                    self.heed(message)

    def _everywhere(self, state: State) -> bool:
        taking = [process for process in self._alive if process.ready.is_set() and not process.leaving.is_set()]
        up = any(restarts >= 0 for restarts in state.workers)
        return up and bool(taking) and all(process.reaches(state.workers) for process in taking)

    def _look_around(self) -> None:
        if self._everywhere(self._state) != self._state.everywhere:
            self.tell(lambda state: state)

    async def _count_for(self, process: _Process, question: Count) -> None:
        others = [other for other in self._alive if other is not process]
        await asyncio.gather(*(other.count(0.25) for other in others))
        counted = summed((self._gone, *(other.counted for other in others)))
        process.line.send(Answer(question.id, counted))

    async def _see_for(self, process: _Process, change: Changed) -> None:
        await self.see(change.tenant, change.task, but=process)
        process.line.send(Answer(change.id))

    async def _pulse(self) -> None:
        """Keeps what each has counted, so that little is lost should one be killed, and ends one that hangs."""
        while True:
            await asyncio.sleep(_PULSE_SECONDS)
            for process in list(self._alive):
                self._task(self._feel(process))

    async def _feel(self, process: _Process) -> None:
        before = process.counted
        await process.count(_HANGING_SECONDS)
        if process.counted is not before:
            process.heard = time.monotonic()
            return
        limit = _HANGING_SECONDS if process.ready.is_set() else _STARTING_SECONDS
        if process in self._alive and process.silent_seconds > limit:
            log.error("API process %d has been silent for %.0f s: killed", process.child.pid, limit)
            _kill(process.child)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
