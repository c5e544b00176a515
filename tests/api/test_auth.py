"""Who gets past the gate, and from where."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from softmux.api.auth import Gate
from softmux.api.networks import parse_networks
from softmux.registry.registry import Registry

SECRET = "a key of \u00fcmlauts, 16+"


async def _shows_who(scope: Scope, receive: Receive, send: Send) -> None:
    principal = scope.get("state", {}).get("principal")
    await PlainTextResponse("nobody" if principal is None else principal.key_id)(scope, receive, send)


@pytest.mark.parametrize(
    ("path", "address", "key", "status"),
    [
        ("/metrics", "10.1.2.3", None, 200),
        ("/metrics", "10.1.2.3", "wrong", 200),
        ("/metrics", "11.1.2.3", None, 401),
        ("/metrics", "2001:db8::7", None, 200),
        ("/metrics/", "10.1.2.3", None, 401),
        ("/v1/model", "10.1.2.3", None, 401),
        ("/v1/model", "11.1.2.3", SECRET, 200),
        ("/v1/model", "11.1.2.3", "wrong", 401),
        ("/health/live", "11.1.2.3", None, 200),
        ("/healthy", "11.1.2.3", None, 401),
        ("/", "11.1.2.3", None, 200),
        ("/console/app.js", "11.1.2.3", None, 200),
        ("/openapi.json", "11.1.2.3", None, 401),
    ],
)
def test_a_key_an_open_path_or_a_network_for_metrics(
    tmp_path: Path, path: str, address: str, key: str | None, status: int
) -> None:
    async def ask() -> httpx.Response:
        registry = await Registry.open(None, tmp_path)
        try:
            await registry.keys.ensure_admin_key(SECRET)
            gate = Gate(_shows_who, registry.keys, "10.0.0.0/8, 2001:db8::/32")
            transport = httpx.ASGITransport(gate, client=(address, 5))
            headers = {} if key is None else {"authorization": f"Bearer {key}".encode()}
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.get(path, headers=headers)
        finally:
            await registry.close()

    response = asyncio.run(ask())
    assert response.status_code == status
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("site", "host", "status"),
    [
        ("cross-site", "127.0.0.1:8000", 403),
        ("same-site", "localhost:8000", 403),  # another port of this machine
        ("same-origin", "rebound.example:8000", 403),  # a name of somebody's that was made to lead here
        ("same-origin", "127.0.0.1:8000", 200),
        ("none", "localhost:8000", 200),
        ("same-origin", "[::1]:8000", 200),
        (None, "gateway.internal", 200),
    ],
)
def test_a_page_of_another_site_does_not_drive_a_server_without_keys(
    tmp_path: Path, site: str | None, host: str, status: int
) -> None:
    async def ask() -> int:
        registry = await Registry.open(None, tmp_path)
        try:
            transport = httpx.ASGITransport(Gate(_shows_who, registry.keys))
            headers = {"host": host} | ({} if site is None else {"sec-fetch-site": site})
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return (await http.post("/v1/keys", headers=headers)).status_code
        finally:
            await registry.close()

    assert asyncio.run(ask()) == status


def test_a_network_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/40"):
        parse_networks("127.0.0.0/8 10.0.0.0/40")
