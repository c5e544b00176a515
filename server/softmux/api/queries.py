"""Query parameters that a route does not have are refused: a misspelt one would count as not sent."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from softmux.errors import InvalidRequest


def known_query(request: Request) -> None:
    """A dependency of routes. Raises `InvalidRequest` for the first parameter that the route does not have."""
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = _names(route.dependant)
    for name in request.query_params:
        if name not in known:
            has = "; it has " + ", ".join(sorted(known)) if known else ""
            raise InvalidRequest(f"There is no query parameter “{name[:64]}” here{has}.", param=name[:64])


def _names(dependant: Dependant) -> set[str]:
    """What the route and its dependencies read of a query."""
    return {field.alias for field in dependant.query_params}.union(*map(_names, dependant.dependencies))
