from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

from softmux.api.control import Answer, Changed, Count, Line, Ready, State
from softmux.telemetry.samples import Sample


def between(story: Callable[[Line, Line], Awaitable[None]]) -> None:
    async def run() -> None:
        one, other = socket.socketpair()
        lines = await Line.over(one), await Line.over(other)
        await asyncio.wait_for(story(*lines), 60)
        for line in lines:
            line.close()

    asyncio.run(run())


def test_messages_come_in_order_and_questions_find_their_answers() -> None:
    async def story(one: Line, other: Line) -> None:
        async def answering() -> list[object]:
            told: list[object] = []
            waiting: list[Count | Changed] = []
            while (message := await other.hear()) is not None:
                if isinstance(message, (Count, Changed)):
                    waiting.append(message)
                    if len(waiting) == 2:  # the later one first
                        for question in reversed(waiting):
                            other.send(Answer(question.id, (Sample(type(question).__name__, (), 1.0),)))
                else:
                    told.append(message)
            return told

        async def hearing() -> None:
            assert await one.hear() is None

        answerer, hearer = asyncio.create_task(answering()), asyncio.create_task(hearing())
        state = State(workers=(3, -1), restarts=3)
        one.send(state)
        counted, seen = await asyncio.gather(
            one.ask(Count, 5), one.ask(lambda number: Changed(number, "default", None), 5)
        )
        assert counted is not None
        assert seen is not None
        assert [answer.samples[0].name for answer in (counted, seen)] == ["Count", "Changed"]
        one.send(Ready())
        one.close()
        assert await answerer == [state, Ready()]
        other.close()
        await hearer

    between(story)


def test_a_question_ends_with_its_time_or_with_the_other_end() -> None:
    async def story(one: Line, other: Line) -> None:
        hearing = asyncio.create_task(one.hear())
        assert await one.ask(Count, 0.05) is None
        began = time.monotonic()
        asking = asyncio.create_task(one.ask(Count, 15))
        await asyncio.sleep(0.05)
        other.close()
        assert await asking is None
        assert await hearing is None
        assert await one.ask(Count, 15) is None
        assert time.monotonic() - began < 14
        one.send(Ready())  # nothing happens

    between(story)
