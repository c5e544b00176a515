"""An API process that answers nothing: it says what one says to its server, and reaches a worker only once the file
`SLOW_API_FOLDER/<its number>` is there. The states it is told it writes to `<its number>.states`, one a line. It says
that it is ready once no file `starting` is there."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import msgspec

from softmux.api.control import ApiConfig, End, Line, Reached, Ready, State


async def main() -> None:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=ApiConfig)
    folder = Path(os.environ["SLOW_API_FOLDER"])
    number = next(n for n in range(9) if not (folder / f"{n}.states").exists())
    with (folder / f"{number}.states").open("xb", buffering=0) as states:
        line = await Line.over(socket.socket(fileno=config.control))
        while (folder / "starting").exists():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)
        line.send(Ready())
        reaching: set[asyncio.Task[None]] = set()

        async def reach(restarts: int) -> None:
            while not (folder / f"{number}").exists():  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.01)
            line.send(Reached(0, restarts))

        while not isinstance(message := await line.hear(), End | None):
            if isinstance(message, State):
                states.write(msgspec.json.encode(message) + b"\n")
                if message.workers and not reaching:
                    reaching.add(asyncio.create_task(reach(message.workers[0])))


if __name__ == "__main__":
    asyncio.run(main())
