"""Who calls, and what they may do."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from softmux.api.errors import error_response
from softmux.api.networks import Networks, parse_networks
from softmux.errors import Forbidden, SoftmuxError, Unauthorized
from softmux.registry.keys import Identity, KeyRing, Role
from softmux.types import DEFAULT_TENANT

_OPEN_PREFIXES = ("/health/", "/console/")
_OPEN_PATHS = frozenset({"/", "/console"})


ALONE = Identity(DEFAULT_TENANT, "admin", "")
"""Everyone, as long as no key was ever made; and whoever asks for /metrics from an allowed network."""


class Gate:
    """ASGI middleware: puts the caller's `Identity` into the request's state, or answers 401."""

    def __init__(self, app: ASGIApp, keys: KeyRing, metrics_networks: str = "") -> None:
        self._app = app
        self._keys = keys
        self._networks = parse_networks(metrics_networks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["principal"] = self._principal(scope)
        except SoftmuxError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _principal(self, scope: Scope) -> Identity:
        if not self._keys.has_keys():
            if not _is_own_page(scope):
                raise Forbidden("A page of another site may not call a server that has no keys; make a key first.")
            return ALONE
        if scope["path"] == "/metrics" and in_networks(scope, self._networks):
            return ALONE
        secret = _bearer(scope)
        found = self._keys.authenticate(secret) if secret else None
        if found is None:
            raise Unauthorized(
                "This key is unknown or was revoked; ask for a new one."
                if secret
                else "Send a key: the header Authorization: Bearer KEY."
            )
        return found


def is_open(path: str) -> bool:
    """Whether it takes no key: it holds no data."""
    return path.startswith(_OPEN_PREFIXES) or path in _OPEN_PATHS


def in_networks(scope: Scope, networks: Networks) -> bool:
    """Whether the request comes from an address in one of `networks`."""
    if not networks or scope.get("client") is None:
        return False
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except ValueError:
        return False
    return any(address in network for network in networks)


def principal_of(request: Request) -> Identity:
    """The caller of a request that passed the gate."""
    principal: Identity = request.state.principal
    return principal


def require(request: Request, role: Role) -> Identity:
    """The caller, who must have at least `role`. Raises `Forbidden`."""
    principal = principal_of(request)
    if not principal.may(role):
        raise Forbidden(f"This takes a key of the role {role}; yours is of the role {principal.role}.")
    return principal


def _is_own_page(scope: Scope) -> bool:
    """Whether a request is of no page in a browser (those say where they are from), or of a page of this server: not of
    another site or port, nor of a name that only leads here."""
    site = _header(scope, b"sec-fetch-site")
    if site is None:
        return True
    host = urlsplit(f"//{_header(scope, b'host') or ''}").hostname or ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return here and site in ("same-origin", "none")


def _bearer(scope: Scope) -> str | None:
    scheme, _, secret = (_header(scope, b"authorization") or "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def _header(scope: Scope, wanted: bytes) -> str | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("utf-8", errors="replace"))
    return None
