"""The worker's loop: messages in, one step, messages out."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import zmq

from softmux.engine.engine import Engine, StepNews
from softmux.engine.parallel.together import lead, meet
from softmux.engine.tiers import AdapterSource
from softmux.errors import BadRequest, DeadlineExceeded, InvalidRequest, NotFinite, SoftmuxError
from softmux.recorder import FlightRecorder
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.settings import Settings
from softmux.types import KV_METHODS, Output
from softmux.worker.canary import CLIENT, Canary
from softmux.worker.compiling import Compiling, CompilingRequests
from softmux.worker.crew import Crew
from softmux.worker.messages import (
    LATE,
    PROTOCOL,
    Abort,
    Admit,
    Failed,
    Generate,
    Hello,
    Ping,
    Read,
    ToClient,
    ToWorker,
    Welcome,
)
from softmux.worker.outbox import messages
from softmux.worker.probation import Probation, Suspect
from softmux.worker.spending import Spending
from softmux.worker.stats import WorkerStats

log = logging.getLogger(__name__)

_STATS_SECONDS = 0.5
_IDLE_SECONDS = 0.25
_STUCK_SECONDS = 0.002
"""How long the loop rests when rows wait for room: a client's abort or an adapter's arrival ends it."""


class Worker:
    """Serves one engine to any number of API processes over a ROUTER socket. `run` returns on SIGTERM."""

    def __init__(
        self,
        endpoint: str,
        settings: Settings,
        source: AdapterSource,
        disk_folder: Path | None,
        recorder: FlightRecorder | None = None,
        crew: Crew | None = None,
    ) -> None:
        """`crew`: the processes that hold the model with this one, and have been started."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self.engine = Engine(
            settings, source, on_arrival=self.wake, disk_folder=disk_folder, recorder=recorder,
            ranks=meet(settings, 0, crew.meeting) if crew is not None else None,
        )  # fmt: skip
        if crew is not None:
            lead(self.engine, crew.endpoints)
        self._recorder = self.engine.recorder
        self._stats = WorkerStats(self.engine)
        self._probation = Probation()
        self._compiling = CompilingRequests()
        self._spending = Spending(settings.max_rows)
        self._canary = Canary(self.engine)
        self._socket: Any = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)  # a slow client's tokens wait in memory rather than being dropped
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a client that has gone is told to us, not passed over
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._encoder = msgspec.msgpack.Encoder()
        self._clients: set[bytes] = set()
        self._stopping = False

    def wake(self) -> None:
        """Ends the loop's rest. Called from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        self._stopping = True
        self.wake()

    def run(self, supervisor: int | None = None) -> None:
        """Serves until `stop`, or until its parent is another than `supervisor` (None: than now), who may have died
        while the model was being loaded."""
        parent = os.getppid() if supervisor is None else supervisor
        gc.collect()
        gc.freeze()  # the model and the pools live as long as the process: no collection need walk them again
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle: it drains, then ends us
        told = 0.0
        rest = 0.0
        while not self._stopping:
            self._recorder.serve()
            self._receive(rest)
            self._take_turns()
            news = self.engine.step()
            self._deliver(news)
            self._expire()
            now = time.monotonic()
            if now - told >= _STATS_SECONDS:
                told = now
                if os.getppid() != parent:
                    log.warning("the server is gone: the worker ends, too")
                    break
                self._tell_stats()
            rest = 0.0 if news.ran else _IDLE_SECONDS if self.engine.idle else _STUCK_SECONDS
        self._tell_stats()
        if self.engine.idle:
            self.engine.check_integrity()  # a leak shows in the log, and in the exit code
            log.info("every row, page and reference is accounted for")
        self.engine.close()
        self._socket.close()

    # --- in ----------------------------------------------------------------------------------------------------------

    def _receive(self, rest: float) -> None:
        for source, _ in self._poller.poll(round(rest * 1000)):
            if source == self._wake_read:
                os.read(self._wake_read, 4096)
        while True:
            try:
                client, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._clients.add(client)
            try:
                self._handle(client, self._decoder.decode(payload))
            except msgspec.DecodeError as error:
                log.error("a message that is not of protocol %d: %s", PROTOCOL, error)

    def _handle(self, client: bytes, message: ToWorker) -> None:
        match message:
            case Generate() | Read():
                self._take(client, message)
            case Abort():
                self._compiling.abort(client, message.id)
                self._probation.abort(client, message.id)
                self.engine.scheduler.abort(client, message.id)
            case Admit():
                for owner, answer in self._canary.start(client, message, time.monotonic()):
                    self._send(owner, answer)
            case Hello():
                self._hello(client, message)
            case Ping():
                self._tell_stats()

    def _hello(self, client: bytes, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            error = BadRequest(f"the API speaks protocol {hello.protocol}, the worker {PROTOCOL}: restart both")
            self._send(client, Failed(id="", code=error.code, message=error.message))
            return
        self._compiling.abort(client)
        self._probation.abort(client)
        self.engine.scheduler.abort_client(client)  # a client that came back has forgotten its sequences
        self._send(client, Welcome(protocol=PROTOCOL, model=self.engine.spec))

    def _take(self, client: bytes, message: Generate | Read) -> None:
        now = time.monotonic()
        try:
            _check_layout(message)
            if isinstance(message, Generate) and not self._compiled(one := Compiling(client, message, now)):
                self._compiling.wait(one)
            else:
                self._queue(client, message, now)
        except SoftmuxError as error:
            self._fail(client, message.id, error)

    def _compiled(self, one: Compiling) -> bool:
        """Whether its grammar, if it has any, is there; it is on its way otherwise."""
        grammar = one.message.sampling.grammar
        return grammar is None or self.engine.grammars.expect(one.message.tenant, grammar)

    def _queue(self, client: bytes, message: Generate | Read, came: float) -> None:
        if message.suspect:
            self._probation.wait(Suspect(client, message, came))
        else:
            self._start(client, message, came)

    def _take_turns(self) -> None:
        """Grammars that were compiled let their requests go on. A suspect's turn comes when the one before has
        ended."""
        for one in self._compiling.take(self._compiled):
            try:
                self._queue(one.client, one.message, one.came)
            except SoftmuxError as error:
                self._fail(one.client, one.message.id, error)
        while (suspect := self._probation.turn()) is not None:
            try:
                self._probation.began(self._start(suspect.client, suspect.message, suspect.came))
            except SoftmuxError as error:
                self._fail(suspect.client, suspect.message.id, error)

    def _start(self, client: bytes, message: Generate | Read, came: float) -> Sequence:
        """Queues a sequence that came at that time. Raises as `Engine.add` and `Engine.read` do."""
        root = self._root(message)
        deadline = None if message.deadline is None else came + message.deadline
        marks = (message.content, message.version)
        trained = message.adapter is not None and message.adapter.method in KV_METHODS
        if isinstance(message, Generate):
            sequence = self.engine.add(
                message.id, message.tokens, message.sampling, root=root, now=came, client=client,
                trained_prefix=trained, sample=message.sample, deadline=deadline, priority=message.priority,
                weight=message.weight, marks=marks,
            )  # fmt: skip
        else:
            sequence = self.engine.read(
                message.id, message.tokens, root=root, now=came, head=message.head, trained_prefix=trained,
                scored=message.scored, client=client, deadline=deadline, priority=message.priority,
                weight=message.weight, marks=marks,
            )  # fmt: skip
        if message.adapter is not None:
            sequence.task, sequence.method = message.adapter.task, message.adapter.method
            self._stats.residents.began(sequence)
        return sequence

    def _root(self, message: Generate | Read) -> RootKey:
        adapter = message.adapter
        return (
            self.engine.key(message.tenant, None)
            if adapter is None
            else self.engine.key(message.tenant, adapter.digest, adapter.tenant)
        )

    # --- out ---------------------------------------------------------------------------------------------------------

    def _deliver(self, news: StepNews) -> None:
        self._stats.observe(news)
        self._spending.observe(news)
        outputs: defaultdict[bytes, list[Output]] = defaultdict(list)
        for sequence, output in news.outputs:
            if sequence.client == CLIENT:
                for owner, answer in self._canary.heard(sequence, output):
                    self._send(owner, answer)
            else:
                outputs[sequence.client].append(output)
        for client, message in messages(outputs, news.plain):
            self._send(client, message)
        for sequence, error in news.failed:
            self._failed(sequence, error)

    def _expire(self) -> None:
        now = time.monotonic()
        for sequence in self.engine.scheduler.expired(now):
            self._failed(sequence, DeadlineExceeded(LATE))
        lost: list[Compiling | Suspect] = [*self._compiling.late(now), *self._probation.late(now)]
        for late in lost:
            self._fail(late.client, late.message.id, DeadlineExceeded(LATE))

    def _failed(self, sequence: Sequence, error: SoftmuxError) -> None:
        if sequence.client == CLIENT:
            for owner, answer in self._canary.failed(sequence, error):
                self._send(owner, answer)
        else:
            self._fail(sequence.client, sequence.id, error)

    def _fail(self, client: bytes, sequence_id: str, error: SoftmuxError) -> None:
        not_finite = isinstance(error, NotFinite)
        if error.public != error.message:
            log.warning("a sequence ends with %s: %s", error.code, error.message)
        self._send(
            client,
            Failed(id=sequence_id, code=error.code, message=error.public, param=error.param, not_finite=not_finite),
        )

    def _tell_stats(self) -> None:
        self._stats.measure(time.monotonic())
        snapshot = self._stats.snapshot()
        spent = self._spending.told()
        for client in list(self._clients):
            if client in spent:
                self._send(client, spent[client])
            self._send(client, snapshot)

    def _send(self, client: bytes, message: ToClient) -> None:
        try:
            self._socket.send_multipart([client, self._encoder.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            log.info("a client is gone: its sequences are ended")
            self._clients.discard(client)
            self._compiling.abort(client)
            self._probation.abort(client)
            self.engine.scheduler.abort_client(client)


def _check_layout(message: Generate | Read) -> None:
    """What would fail a whole step is refused here: an input that its adapter can't run."""
    adapter, tokens = message.adapter, message.tokens
    if adapter is None or not tokens:
        return
    if -min(tokens) > adapter.virtual_tokens:
        raise InvalidRequest(
            f"virtual token {-1 - min(tokens)}: the adapter has {adapter.virtual_tokens}", param="prompt"
        )
    if adapter.method in KV_METHODS and tokens[-1] < 0:
        raise InvalidRequest("a prefix needs a prompt of one token at least behind it", param="prompt")
