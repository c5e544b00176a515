"""The places for uploads: one tenant can't have all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from softmux.api.uploads import UploadPlaces
from support.served import upload_parts
from support.tenants import Shared

BOUNDARY = "b"


def test_of_one_tenant_half_are_taken_at_most() -> None:
    async def story() -> None:
        places, end = UploadPlaces(4), asyncio.Event()
        inside: list[str] = []

        async def upload(tenant: str) -> None:
            async with places.of(tenant):
                inside.append(tenant)
                await end.wait()

        running = [asyncio.create_task(upload(tenant)) for tenant in (*("a" * 6), "b", "c", "d")]
        for _ in range(20):
            await asyncio.sleep(0)
        assert sorted(inside) == ["a", "a", "b", "c"]
        end.set()
        await asyncio.gather(*running)
        assert sorted(inside) == sorted([*("a" * 6), "b", "c", "d"])
        del running
        assert not places._own

    asyncio.run(story())


def test_who_waits_and_leaves_takes_no_place() -> None:
    async def story() -> None:
        places = UploadPlaces(2)
        async with places.of("a"):
            waiting = asyncio.create_task(places.of("a").__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            async with places.of("b"):
                pass
        async with places.of("a"):
            pass

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_tenant_that_sends_slowly_keeps_nobody_else_waiting(shared: Shared, adapters: dict[str, Path]) -> None:
    """Both API processes have more of its uploads, begun and not ended, than there are places."""
    address = urlsplit(shared.server.url)
    head = (
        "PUT /v1/adapters/slow HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n"
        f"authorization: Bearer {shared.keys['acme/publisher']['key']}\r\n"
        f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n--{BOUNDARY}\r\n"
    )

    async def story() -> None:
        slow = [await asyncio.open_connection(address.hostname, address.port) for _ in range(16)]
        for _, writer in slow:
            writer.write(head.encode())
            await writer.drain()
        answers = [asyncio.create_task(reader.read(1)) for reader, _ in slow]
        await asyncio.sleep(0.5)  # they are being read
        for task in ("quick-1", "quick-2"):
            parts = upload_parts(adapters["prompt-tuning"])
            put = await asyncio.to_thread(shared.client("beta").put, f"/v1/adapters/{task}", files=parts)
            assert put.status_code in (200, 201)
        assert not any(answer.done() for answer in answers), "not because a slow one had been given up"
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        for _, writer in slow:
            writer.close()

    asyncio.run(story())
