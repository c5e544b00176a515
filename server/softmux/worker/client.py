"""The API's end of the wire: one DEALER socket on the event loop, many sequences over it.

One message of the worker carries the new tokens of a whole step, so it is taken apart in one callback, without a task
or a queue per token: each `Channel` collects what is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq

from softmux.errors import EngineDown, InternalError, NotFinite, SoftmuxError, from_code
from softmux.types import ModelSpec, Output
from softmux.worker.channel import Channel, SequenceFailed
from softmux.worker.messages import (
    PROTOCOL,
    Abort,
    Admit,
    Admitted,
    Failed,
    Generate,
    Hello,
    Outputs,
    Ping,
    Read,
    Spent,
    Stats,
    ToClient,
    ToWorker,
    Welcome,
)

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Sent:
    """A sequence in flight: where its outputs go, and the worker's number for it, once it has told it."""

    request: Generate | Read
    channel: Channel
    at: float
    """When it was sent first; monotonic, seconds."""
    number: int = -1
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.request.id


def channel_of(abort: Callable[[str], None], requests: Sequence[Generate | Read]) -> Channel:
    """Where the outputs of these are read."""
    sampling = next((request.sampling for request in requests if isinstance(request, Generate)), None)
    return Channel(abort, (request.id for request in requests), sampling)


class WorkerClient:
    """Connects to a worker, and again after it was restarted. All methods belong to one event loop.

    `on_spent` hears how the engine's time was spent.

    While no worker is connected, `submit`, `generate` and `admit` raise `EngineDown`.
    """

    def __init__(self, on_spent: Callable[[Spent], None] = lambda _: None) -> None:
        self._on_spent = on_spent
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket: Any = None
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToClient)
        self._streams: dict[str, Sent] = {}
        self._numbered: dict[int, Sent] = {}
        self._admissions: dict[str, asyncio.Future[Admitted]] = {}
        self._welcome: asyncio.Future[ModelSpec] | None = None
        self._down: SoftmuxError | None = EngineDown("the engine is starting; try again shortly")
        self._spec: ModelSpec | None = None
        self._stats: Stats | None = None
        self._heard = 0.0
        self._fresh: asyncio.Future[None] | None = None

    # --- the connection ----------------------------------------------------------------------------------------------

    async def connect(self, endpoint: str) -> ModelSpec:
        """Connects to the worker that binds `endpoint` (ipc://…), now or later, and waits until its model is loaded.

        Any earlier connection is dropped, and what ran over it fails. Raises the worker's error where it speaks
        another protocol, or `EngineDown` where it has died by then.
        """
        self.fail_all(EngineDown("the engine is starting; try again shortly"))
        self._loop = asyncio.get_running_loop()
        self._welcome = self._loop.create_future()
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)  # the scheduler's queue is what bounds the waiting, not the socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.connect(endpoint)
        self._socket, self._fd = socket, socket.getsockopt(zmq.FD)
        self._loop.add_reader(self._fd, self._receive)
        self._send(Hello())
        spec = await self._welcome
        self._check_up()  # it may have died since it said so
        return spec

    def close(self) -> None:
        """Drops the connection for good; what still runs fails with `EngineDown`."""
        self.fail_all(EngineDown("the server is shutting down"))
        self._context.term()

    def fail_all(self, error: SoftmuxError) -> None:
        """The worker has died: everything in flight fails with `error`, and so does what is asked until `connect`. What
        it may have said last is not heard any more: its numbers have been taken for those of the dead."""
        self._down = error
        self._detach()
        streams, self._streams, self._numbered = self._streams, {}, {}
        for stream in streams.values():
            stream.channel.deliver(SequenceFailed(stream.id, _again(error, begun=True)), time.monotonic(), last=True)
        admissions, self._admissions = self._admissions, {}
        for admission in admissions.values():
            if not admission.done():
                admission.set_exception(_again(error, begun=True))
        if self._fresh is not None:
            self._fresh.set_result(None)
            self._fresh = None
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(error)
            self._welcome.exception()  # retrieved: nobody may be waiting any more

    def lost(self) -> None:
        """`fail_all`, in the words for a worker that has died and is started again."""
        self.fail_all(EngineDown("the engine has stopped and is being started again; try again shortly"))

    # --- what is known of the worker ---------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._down is None

    @property
    def spec(self) -> ModelSpec:
        """The model's description, known from the first `connect` on. Raises `EngineDown` before."""
        if self._spec is None:
            raise _again(self._down or EngineDown("the engine is starting; try again shortly"))
        return self._spec

    @property
    def stats(self) -> Stats | None:
        """The worker's latest numbers; they come about once a second. None before the first."""
        return self._stats

    def forget_stats(self) -> None:
        """They are of a worker that is no more."""
        self._stats = None

    @property
    def silent_seconds(self) -> float:
        """How long the worker has sent nothing. A long step is silent, too."""
        return time.monotonic() - self._heard

    @property
    def sequences(self) -> int:
        """How many sequences are in flight over this connection."""
        return len(self._streams)

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(self, requests: Iterable[Generate | Read]) -> Channel:
        """Starts sequences whose outputs are read from one channel. `close` it when done. Raises `EngineDown`."""
        requests = list(requests)
        channel = channel_of(self.abort, requests)
        for request in requests:
            self.send(Sent(request, channel, channel.made))
        return channel

    def send(self, sent: Sent) -> None:
        """Starts a sequence whose channel is there already. Raises `EngineDown`."""
        self._check_up()
        self._streams[sent.id] = sent
        self._send(sent.request)

    def take_back(self) -> list[Sent]:
        """Forgets the sequences of which nothing has come, so that another worker can begin them. For a worker that is
        no more: before `lost`."""
        unbegun = [sent for sent in self._streams.values() if sent.id not in sent.channel.told]
        for sent in unbegun:
            self._drop(sent.id)
        return unbegun

    async def generate(self, request: Generate) -> AsyncIterator[Output]:
        """The outputs of one sequence, until its last. Raises the error it failed with. Leaving early aborts it."""
        channel = self.submit([request])
        try:
            while events := await channel.events():
                for event in events:
                    if isinstance(event, SequenceFailed):
                        raise event.error
                    yield event
        finally:
            channel.close()

    def abort(self, sequence_id: str) -> None:
        """Ends a sequence, whose channel hears nothing more of it. Unknown ids are ignored."""
        if self._drop(sequence_id) is not None and self._down is None:
            self._send(Abort(id=sequence_id))

    async def refresh_stats(self, within: float = 0.25) -> Stats | None:
        """`stats` as of now, or what they were where the worker takes longer than `within` seconds."""
        if self._down is None:
            if self._fresh is None:
                self._fresh = asyncio.get_running_loop().create_future()
                self._send(Ping())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._fresh), within)
        return self._stats

    async def admit(self, request: Admit) -> Admitted:
        """The canary's report on an upload. Raises what the worker found wrong, or `EngineDown`."""
        self._check_up()
        answer: asyncio.Future[Admitted] = asyncio.get_running_loop().create_future()
        self._admissions[request.id] = answer
        self._send(request)
        try:
            return await answer
        finally:
            self._admissions.pop(request.id, None)

    def _check_up(self) -> None:
        if self._down is not None:
            raise _again(self._down)

    # --- the socket --------------------------------------------------------------------------------------------------

    def _send(self, message: ToWorker) -> None:
        self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        # The socket's descriptor is edge-triggered, and sending may swallow the edge of a message that came meanwhile.
        if self._loop is not None and self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        while self._socket is not None:
            try:
                payload = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._heard = time.monotonic()
            try:
                message = self._decoder.decode(payload)
            except msgspec.DecodeError as error:
                log.error("the worker sent what is not of protocol %d: %s", PROTOCOL, error)
                continue
            self._dispatch(message)

    def _dispatch(self, message: ToClient) -> None:
        match message:
            case Outputs():
                self._deliver(message)
            case Failed():
                self._failed(message)
            case Admitted():
                admission = self._admissions.pop(message.id, None)
                if admission is not None and not admission.done():
                    admission.set_result(message)
            case Stats():
                self._stats = message
                if self._fresh is not None:
                    self._fresh.set_result(None)
                    self._fresh = None
            case Spent():
                self._on_spent(message)
            case Welcome():
                self._welcomed(message)

    def _deliver(self, message: Outputs) -> None:
        """Outputs of sequences aborted a moment ago are passed over."""
        now = self._heard
        for output in message.outputs:
            stream = self._streams.get(output.id)
            if stream is None:
                continue
            last = output.finish_reason is not None
            if last:
                self._drop(output.id)
            elif output.number >= 0:
                stream.number = output.number
                self._numbered[output.number] = stream
            stream.channel.deliver(output, now, last=last)
        for number, token in message.columns():
            stream = self._numbered.get(number)
            if stream is not None:
                stream.channel.deliver_token(stream.id, token, now)

    def _drop(self, sequence_id: str) -> Sent | None:
        """Nothing is delivered to that sequence from here on."""
        stream = self._streams.pop(sequence_id, None)
        if stream is not None:
            self._numbered.pop(stream.number, None)
        return stream

    def _failed(self, message: Failed) -> None:
        error = (
            NotFinite(message.message)
            if message.not_finite
            else from_code(message.code, message.message, message.param)
        )
        stream = self._drop(message.id)
        if stream is not None:
            stream.channel.deliver(SequenceFailed(message.id, error), self._heard, last=True)
            return
        waiting = self._admissions.pop(message.id, None) if message.id else self._welcome
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)

    def _welcomed(self, message: Welcome) -> None:
        if self._welcome is None or self._welcome.done():
            return
        if message.protocol == PROTOCOL:
            self._spec, self._down = message.model, None
            self._welcome.set_result(message.model)
        else:
            error = InternalError(f"the worker speaks protocol {message.protocol}, the API {PROTOCOL}: restart both")
            self._welcome.set_exception(error)

    def _detach(self) -> None:
        if self._socket is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._socket.close()
        self._socket = None


def _again(error: SoftmuxError, *, begun: bool = False) -> SoftmuxError:
    """An equal error: one object raised in many places would gather all their tracebacks. `begun`: of a request."""
    again = type(error)(error.message, param=error.param, retry_after=error.retry_after)
    if isinstance(again, EngineDown):
        again.begun = begun
    return again
