"""A step's tokens from the scheduler's columns over the wire into the channels of the requests they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np
import zmq

from softmux.scheduler.news import PlainTokens
from softmux.scheduler.radix import RootKey
from softmux.scheduler.rows import RowTable
from softmux.scheduler.sequence import Sequence
from softmux.types import Output, SamplingParams
from softmux.worker.client import WorkerClient
from softmux.worker.messages import PROTOCOL, Generate, Outputs, ToClient, ToWorker, Welcome
from softmux.worker.outbox import messages
from support.echo_worker import SPEC


def plain(*rows: tuple[int, bytes, int]) -> PlainTokens:
    """Rows of (number, client, token)."""
    table = RowTable(len(rows), 8)
    for number, client, _ in rows:
        one = Sequence(f"s{number}", client, RootKey("a", None, "f", "d"), [3], SamplingParams(max_tokens=2), 0.0)
        one.order = number
        table.seat(one)
    return PlainTokens.of(table, np.arange(len(rows)), np.array([token for _, _, token in rows], np.int64))


def test_each_client_has_one_message_of_what_is_its_own() -> None:
    special = {b"x": [Output(id="s1", number=1, tokens=(7,))], b"z": [Output(id="s9", finish_reason="length")]}
    told = messages(special, plain((5, b"x", 50), (1 << 40, b"y", 128_255), (6, b"x", 0)))
    again = {client: msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToClient) for client, message in told}
    assert len(again) == len(told) == 3
    assert {client: list(message.columns()) for client, message in again.items()} == {
        b"x": [(5, 50), (6, 0)],
        b"y": [(1 << 40, 128_255)],
        b"z": [],
    }
    assert {client: list(message.outputs) for client, message in again.items()} == {**special, b"y": []}


def test_nothing_new_is_no_message() -> None:
    assert messages({}, None) == []
    assert messages({}, plain()) == []


def over_the_wire(folder: Path, story: Callable[[WorkerClient, Callable[[Outputs], None]], Awaitable[None]]) -> None:
    """Runs `story` with a client and a way to send it what a worker would."""
    endpoint = f"ipc://{folder}/w.sock"
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind(endpoint)
    names: list[bytes] = []

    def welcome() -> None:
        name, payload = socket.recv_multipart()
        msgspec.msgpack.decode(payload, type=ToWorker)
        names.append(name)
        socket.send_multipart([name, msgspec.msgpack.encode(Welcome(protocol=PROTOCOL, model=SPEC))])

    async def run() -> None:
        client = WorkerClient()
        try:
            await asyncio.wait_for(asyncio.gather(client.connect(endpoint), asyncio.to_thread(welcome)), 30)
            await asyncio.wait_for(
                story(client, lambda message: socket.send_multipart([names[0], msgspec.msgpack.encode(message)])), 10
            )
        finally:
            client.close()

    try:
        asyncio.run(run())
    finally:
        socket.close(linger=0)


def test_columns_reach_the_sequences_whose_numbers_the_first_output_told(tmp_path: Path) -> None:
    def request(name: str) -> Generate:
        return Generate(id=name, tenant="a", tokens=(3,), sampling=SamplingParams())

    async def story(client: WorkerClient, send: Callable[[Outputs], None]) -> None:
        first, second = client.submit([request("a"), request("b")]), client.submit([request("c")])

        def columns(**tokens: int) -> Outputs:
            numbers = np.array([{"a": 70, "b": 71, "c": 72, "d": 73}[name] for name in tokens], np.int64)
            values = np.array(list(tokens.values()), np.int32)
            return Outputs(numbers=numbers.tobytes(), tokens=values.tobytes())

        send(Outputs(outputs=tuple(Output(id=n, number=70 + i, tokens=(i,)) for i, n in enumerate("abc"))))
        send(columns(a=10, b=11, c=12, d=13))  # nobody here knows of d
        heard: list[tuple[str, tuple[int, ...]]] = []
        while len(heard) < 4:
            heard += [(e.id, e.tokens) for e in await first.events()]  # type: ignore[union-attr]
        assert heard == [("a", (0,)), ("b", (1,)), ("a", (10,)), ("b", (11,))]
        first.abort("a")
        send(columns(a=20, b=21, c=22))
        send(Outputs(outputs=(Output(id="b", number=71, tokens=(31,), finish_reason="length"),)))
        send(columns(b=41, c=42))
        send(Outputs(outputs=(Output(id="c", number=72, finish_reason="stop"),)))
        arrived = await second.arrivals(whole=True)
        assert second.told == {"c": 4}
        assert [len(times) for times, _ in arrived] == [1, 3, 1], "a time for each token that came by itself"
        times = [at for some, _ in arrived for at in some]
        assert times == sorted(times)
        tokens = [(e.id, e.tokens) for _, e in arrived]  # type: ignore[union-attr]
        assert tokens == [("c", (2,)), ("c", (12, 22, 42)), ("c", ())]
        rest = [(e.id, e.tokens) for _, e in await first.arrivals(whole=True)]  # type: ignore[union-attr]
        assert rest == [("b", (21,)), ("b", (31,))], "what was aborted or has ended hears no more"
        assert client.sequences == 0
        assert not client._numbered

    over_the_wire(tmp_path, story)
