"""A query holds what its route has, each once: a misspelt parameter would count as not sent, of two one would win."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from softmux.errors import InvalidRequest

LONGEST_TASK = 1280
"""Tenants, tasks and versions: `acme/manual@3,appendix`."""

TaskQuery = Annotated[str | None, Query(max_length=LONGEST_TASK)]
"""Of a route that answers for a task; None is the bare model."""


def known_query(request: Request) -> None:
    """A dependency of routes. Raises `InvalidRequest` for the first parameter that the route does not have, or that
    comes again."""
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = _names(route.dependant)
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            has = "; it has " + ", ".join(sorted(known)) if known else ""
            raise InvalidRequest(f"There is no query parameter “{name[:64]}” here{has}.", param=name[:64])
        if name in seen:
            raise InvalidRequest(f"The query names “{name}” more than once; send one value.", param=name)
        seen.add(name)


def _names(dependant: Dependant) -> set[str]:
    """What the route and its dependencies read of a query."""
    return {field.alias for field in dependant.query_params}.union(*map(_names, dependant.dependencies))
