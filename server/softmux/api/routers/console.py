"""The console: `/`, and its files below `/console/`. They are open and hold no data; each call they make has a key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from softmux.api.replies import AccessReply, answers
from softmux.api.services import services_of
from softmux.errors import NotFound

router = APIRouter(tags=["console"])

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    data: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """All there is to serve, by its path below `/console/`; the page itself is `index.html`. Read once."""
    return dict(_read(files("softmux") / "console", ""))


def _read(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif kind := _TYPES.get("." + entry.name.rpartition(".")[2]):
            data = entry.read_bytes()
            found.append((prefix + entry.name, Asset(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')))
    return found


def _answer(request: Request, name: str) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"The console has no file “{name[:100]}”.")
    headers = {**_HEADERS, "etag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.data, media_type=asset.media_type, headers=headers)


@router.get("/", response_class=Response, summary="The console", responses={200: {"content": {"text/html": {}}}})
async def page(request: Request) -> Response:
    return _answer(request, "index.html")


@router.get("/console/access", responses=answers(AccessReply), response_model=None, summary="Whether a key is needed")
async def access(request: Request) -> dict[str, bool]:
    return {"keys": services_of(request).registry.keys.has_keys()}


async def file(request: Request) -> Response:
    name = request.path_params["path"]
    return _answer(request, name) if name else RedirectResponse("../", headers=_HEADERS)


async def to_page(_: Request) -> Response:
    return RedirectResponse("./", headers=_HEADERS)


router.add_route("/console", to_page, ["GET"], include_in_schema=False)
router.add_route("/console/{path:path}", file, ["GET"], include_in_schema=False)
