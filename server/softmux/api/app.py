"""The HTTP application: a function of its services. A new group of routes is a new line in `ROUTERS`."""

from __future__ import annotations

from fastapi import Depends, FastAPI

from softmux import __version__
from softmux.api import errors
from softmux.api.auth import Gate
from softmux.api.direct import Direct
from softmux.api.document import Described
from softmux.api.head import Head
from softmux.api.observe import InFlight, Observe
from softmux.api.queries import known_query
from softmux.api.replies import ERRORS
from softmux.api.routers import (
    adapters,
    admin,
    caller,
    classify,
    console,
    generate,
    health,
    metrics,
    model,
    openai,
    shared,
    usage,
)
from softmux.api.services import Services
from softmux.telemetry.tracing import Tracer

_LENIENT = (openai.router, health.router, metrics.router, console.router)
"""Whose clients add parameters of their own to a query. Others' are held to what they have."""
ROUTERS = (
    generate.router, openai.router, classify.router, adapters.router, shared.router, model.router, admin.router,
    usage.router, caller.router, health.router, metrics.router, console.router,
)  # fmt: skip


def create_app(services: Services, in_flight: InFlight | None = None, tracer: Tracer | None = None) -> FastAPI:
    """The application over `services`. `in_flight` counts its running requests, for whoever must wait for them;
    `tracer` is told of each that is over."""
    app = Described(
        title="softmux",
        version=__version__,
        summary="One frozen language model serving thousands of soft prompts in one forward pass",
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router, responses=ERRORS, dependencies=[] if router in _LENIENT else [Depends(known_query)])
    errors.install(app, [*app.routes, *(route for router in ROUTERS for route in router.routes)])
    app.add_middleware(Head)
    app.add_middleware(Direct)
    app.add_middleware(Gate, keys=services.registry.keys, metrics_networks=services.settings.metrics_networks)
    app.add_middleware(Observe, metrics=services.metrics, in_flight=in_flight or InFlight(), tracer=tracer)
    return app
