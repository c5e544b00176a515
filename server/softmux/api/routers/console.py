"""The console: `/`, and its files below `/console/`. They are open and hold no data; each call they make has a key.

The page of the routes is of these files, too, and of Swagger UI's: nothing is asked of another address. `/docs` takes a
key as every route does, which a browser sends by a proxy alone; `/console/routes.html` is the same and asks for it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from softmux.api.assets import HEADERS, Asset, answer, read
from softmux.api.replies import AccessReply, answers
from softmux.api.services import services_of
from softmux.errors import NotFound

router = APIRouter(tags=["console"])


@cache
def assets() -> dict[str, Asset]:
    """All there is to serve, by its path below `/console/`; the console itself is `index.html`, `/docs` is
    `docs/page.html`, and Swagger UI lies below `swagger/`. Read once."""
    swagger = files("fastapi_standalone_docs") / "static" / "swagger"
    return read(files("softmux") / "console") | read(swagger, "swagger/")


def _answer(request: Request, name: str) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"The console has no file “{name[:100]}”.")
    return answer(request, asset)


@router.get("/", response_class=Response, summary="The console", responses={200: {"content": {"text/html": {}}}})
async def page(request: Request) -> Response:
    return _answer(request, "index.html")


@router.get("/console/access", responses=answers(AccessReply), response_model=None, summary="Whether a key is needed")
async def access(request: Request) -> dict[str, bool]:
    return {"keys": services_of(request).registry.keys.has_keys()}


async def docs(request: Request) -> Response:
    return _answer(request, "docs/page.html")


async def file(request: Request) -> Response:
    name = request.path_params["path"]
    return _answer(request, name) if name else RedirectResponse("../", headers=HEADERS)


async def to_page(_: Request) -> Response:
    return RedirectResponse("./", headers=HEADERS)


router.add_route("/docs", docs, ["GET"], include_in_schema=False)
router.add_route("/console", to_page, ["GET"], include_in_schema=False)
router.add_route("/console/{path:path}", file, ["GET"], include_in_schema=False)
