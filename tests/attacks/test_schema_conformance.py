"""Two thousand requests made from the server's own description: no answer is a 5xx, and each is one it describes."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from support.served import Served

CASES = int(os.environ.get("SCHEMA_CASES", "2000"))
"""In all, over every route and both kinds of data."""
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def _closed(schema: Any) -> Any:
    """The description with its objects closed: a field that it does not mention is a mistake here."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return found


def described(server: Served) -> Any:
    document = server.http.get("/openapi.json").json()
    for name, model in document["components"]["schemas"].items():
        document["components"]["schemas"][name] = _closed(model)
    del document["security"], document["components"]["securitySchemes"]  # else most cases are about keys it makes up
    return schemathesis.openapi.from_dict(document)


def _weight(operation: Any) -> int:
    """How much there is to vary about a route: nothing, parts of its line, or a body."""
    if operation.body:
        return 6
    return 1 if operation.query or operation.path_parameters else 0


def test_every_answer_is_as_described(keyed: Served, adapters: dict[str, Path]) -> None:
    operations = [found.ok() for found in described(keyed).get_all_operations()]
    weights = sum(_weight(operation) for operation in operations)
    assert len(operations) > 10
    dice = random.Random(0)
    sent = dict.fromkeys(GenerationMode, 0)
    with requests.Session() as session:
        session.headers["authorization"] = keyed.http.headers["authorization"]
        for operation, mode in itertools.product(operations, GenerationMode):

            def attempt(case: Any, mode: GenerationMode) -> None:
                sent[mode] += 1
                if case.method not in ("PUT", "DELETE") and dice.random() < 0.5:  # a task that there is
                    for place in (case.query, case.path_parameters):
                        if place and "task" in place:
                            place["task"] = dice.choice(list(adapters))
                case.call_and_validate(base_url=keyed.url, session=session, checks=CHECKS)

            asked = settings(
                max_examples=1 + round(CASES * 0.6 * _weight(operation) / weights),
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                verbosity=Verbosity.quiet,
            )
            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong about a request without input
                given(case=operation.as_strategy(generation_mode=mode), mode=st.just(mode))(asked(attempt))()
    assert sum(sent.values()) >= 0.9 * CASES, sent
    assert min(sent.values()) >= 0.25 * CASES, sent
    assert keyed.http.post("/v1/generate", json={"prompt": "still here", "max_tokens": 1}).status_code == 200
