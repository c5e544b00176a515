"""What is known of every answer, whatever becomes of its request."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from softmux.api.observe import InFlight, Observe
from softmux.telemetry.exposition import Metrics


async def _fails_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a secret")


async def _fails_midway(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("a secret")


def _asked(app: ASGIApp, metrics: Metrics, in_flight: InFlight) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Observe(app, metrics, in_flight))
        async with httpx.AsyncClient(transport=transport, base_url="http://softmux") as client:
            return await client.patch("/v1/tenants/acme", headers={"x-request-id": "mine"})

    return asyncio.run(ask())


def test_what_nobody_foresaw_is_answered_named_and_counted() -> None:
    metrics, in_flight = Metrics(lambda: None), InFlight()
    answer = _asked(_fails_at_once, metrics, in_flight)
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("internal", "server_error")
    assert "secret" not in error["message"]
    assert 'softmux_http_requests_total{method="PATCH",status="500"} 1.0' in metrics.render().decode()
    assert in_flight.count == 0


def test_nor_is_a_second_answer_begun_where_one_has() -> None:
    metrics, in_flight = Metrics(lambda: None), InFlight()
    with pytest.raises(RuntimeError):
        _asked(_fails_midway, metrics, in_flight)
    assert 'softmux_http_requests_total{method="PATCH",status="200"} 1.0' in metrics.render().decode()
    assert in_flight.count == 0
