"""What gathers in a channel between two readings, without a worker."""

from __future__ import annotations

import asyncio

import pytest

from softmux.errors import Overloaded
from softmux.types import Output
from softmux.worker.channel import Channel, SequenceFailed


def test_tokens_that_come_one_by_one_are_read_as_one_output_a_sequence() -> None:
    async def story() -> None:
        channel = Channel(lambda _: None, ["a", "b"])
        channel.deliver(Output(id="a", number=1, tokens=(10,), cached_tokens=3), 1.0, last=False)
        channel.deliver(Output(id="b", number=2, tokens=(20,)), 1.0, last=False)
        for step, token in enumerate((11, 12, 13)):
            channel.deliver_token("a", token, 2.0 + step)
            channel.deliver_token("b", token + 10, 2.0 + step)
        assert channel.told == {"a": 4, "b": 4}
        assert await channel.arrivals() == [
            ((1.0,), Output(id="a", number=1, tokens=(10,), cached_tokens=3)),
            ((1.0,), Output(id="b", number=2, tokens=(20,))),
            ([2.0, 3.0, 4.0], Output(id="a", tokens=(11, 12, 13))),
            ([2.0, 3.0, 4.0], Output(id="b", tokens=(21, 22, 23))),
        ]
        channel.deliver_token("b", 24, 5.0)
        assert await channel.events() == [Output(id="b", tokens=(24,))], "what was read is not read again"

    asyncio.run(story())


def test_what_comes_with_more_than_a_token_keeps_its_place() -> None:
    """A preempted row says so in an output of its own, between tokens."""

    async def story() -> None:
        channel = Channel(lambda _: None, ["a", "b"])
        channel.deliver_token("a", 1, 1.0)
        channel.deliver(Output(id="a", tokens=(2, 3)), 2.0, last=False)
        channel.deliver_token("a", 4, 3.0)
        channel.deliver(SequenceFailed("b", Overloaded("no room")), 4.0, last=True)
        channel.deliver(Output(id="a", tokens=(5,), finish_reason="length"), 5.0, last=True)
        *before, (times, failed), (_, last) = await channel.arrivals(whole=True)
        assert [(times, event.tokens) for times, event in before] == [  # type: ignore[union-attr]
            ([1.0], (1,)),
            ((2.0,), (2, 3)),
            ([3.0], (4,)),
        ]
        assert (times, failed.id, last.id) == ((4.0,), "b", "a")
        assert await channel.arrivals() == []

    asyncio.run(story())


@pytest.mark.parametrize("whole", [False, True])
def test_a_token_wakes_the_reader_of_parts_alone(whole: bool) -> None:
    async def story() -> None:
        channel = Channel(lambda _: None, ["a"])
        reading = asyncio.ensure_future(channel.arrivals(whole=whole))
        await asyncio.sleep(0)
        channel.deliver_token("a", 1, 1.0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert reading.done() is not whole
        channel.deliver(Output(id="a", tokens=(2,), finish_reason="length"), 2.0, last=True)
        assert [event.id for _, event in await reading] == ["a"] * (1 + whole)

    asyncio.run(story())
