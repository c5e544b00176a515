"""Every route is closed by default: without a key, to a lesser role, and to other tenants."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from softmux.api.app import ROUTERS
from support.served import upload_parts
from support.tenants import Shared, generate

OPEN = {("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/"), ("GET", "/console/access")}
OF_THE_FRAMEWORK = {("GET", "/openapi.json"), ("GET", "/docs")}
PUBLISHERS = {
    ("PUT", "/v1/adapters/{task}"),
    ("DELETE", "/v1/adapters/{task}"),
    ("POST", "/v1/adapters/{task}/activate"),
    ("PUT", "/v1/adapters/{task}/shares"),
    ("DELETE", "/v1/adapters/{task}/shares"),
}
ADMINS = ("/v1/tenants", "/v1/keys", "/v1/audit", "/metrics")
VALUES = {"number": "1", "model": "mine", "name": "adapter_config.json", "key_id": "none", "owner": "acme"}


_TURN = {"role": "user", "content": "a"}


def _named(options: dict[str, Any], task: str) -> dict[str, Any]:
    """With the task's name in a body's `model`."""
    body = options.get("json", {})
    return {"json": {**body, "model": filled(body["model"], task=task)}} if "model" in body else options


def router_routes() -> set[tuple[str, str]]:
    """What the routers answer, whether the document tells of it or not."""
    return {
        (method, route.path_format)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }


def document_routes(shared: Shared) -> set[tuple[str, str]]:
    document = shared.admin.get("/openapi.json").json()
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


def filled(path: str, **values: str) -> str:
    return path.format_map({**VALUES, "task": "mine", **values})


def told(response: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that a client is told, but when, and under which number."""
    return (
        response.status_code,
        response.content,
        sorted((name, value) for name, value in response.headers.items() if name not in ("date", "x-request-id")),
    )


def test_the_document_says_which_routes_take_a_key_and_how(shared: Shared) -> None:
    document = shared.admin.get("/openapi.json").json()
    ((name, scheme),) = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["security"] == [{name: []}]
    routes = {
        (method.upper(), path): told.get("security")
        for path, methods in document["paths"].items()
        for method, told in methods.items()
    }
    assert {route for route, said in routes.items() if said == []} == OPEN
    assert {route for route, said in routes.items() if said is None} == routes.keys() - OPEN


def test_the_document_hides_no_route(shared: Shared) -> None:
    assert document_routes(shared) <= router_routes()
    hidden = router_routes() - document_routes(shared)
    assert not any(path.startswith("/v1") for _, path in hidden), hidden


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer sk-softmux-wrong", "Basic YTpi", "Bearer \xfc", "sk-softmux-wrong"]
)
def test_without_a_key_everything_but_health_answers_401(shared: Shared, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    with httpx.Client(base_url=shared.server.url, timeout=60) as anyone:
        for method, path in sorted(router_routes() | document_routes(shared) | OF_THE_FRAMEWORK):
            answer = anyone.request(method, filled(path), headers=headers)
            if (method, path) in OPEN:
                assert answer.status_code == 200
                continue
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/no/such/route", "/v1/generate/", "/V1/model", "//v1/model", "/v1/adapters/mine/../mine"):
            assert anyone.get(path, headers=headers).status_code == 401, path


def test_each_role_may_do_its_own(shared: Shared) -> None:
    """A route that no test knows is in neither list, and must then be a user's."""
    user, publisher = shared.client("gamma", "user"), shared.client("gamma")
    for method, path in sorted(document_routes(shared) - OPEN):
        managed = path.startswith(ADMINS)
        for client, may in (
            (user, not managed and (method, path) not in PUBLISHERS),
            (publisher, not managed),
        ):
            answer = client.request(method, filled(path, task="nothing"))
            assert (answer.status_code == 403) is not may, (method, path, answer.status_code)
            if not may:
                assert answer.json()["error"]["code"] == "forbidden"


def test_another_tenants_things_answer_as_those_that_do_not_exist(shared: Shared, adapters: dict[str, Path]) -> None:
    acme = shared.client("acme")
    for folder in ("prompt-tuning", "prefix-tuning"):
        assert acme.put("/v1/adapters/secret", files=upload_parts(adapters[folder])).status_code == 201
    assert generate(acme, "secret@1").status_code == 200
    bodies: dict[str, Any] = {
        "/v1/adapters/{task}/activate": {"version": 1},
        "/v1/adapters/{task}/shares": {"everyone": True},
    }
    outsiders = (shared.client("beta"), shared.admin)
    for client in outsiders:
        asked: list[tuple[str, str, dict[str, Any]]] = []
        for method, path in sorted(document_routes(shared)):
            if "{task}" in path and (method, path) != ("PUT", "/v1/adapters/{task}"):
                asked.append((method, path, {"json": bodies[path]} if path in bodies and method != "DELETE" else {}))
        for task in ("{task}", "{task}@1", "acme/{task}"):
            asked += [
                ("POST", f"/v1/generate?task={task}", {"json": {"prompt": "a", "max_tokens": 1}}),
                ("POST", f"/v1/generate?task={task}", {"json": {"prompt": "a", "stream": True}}),
                ("POST", f"/v1/classify?task={task}", {"json": {"input": "a"}}),
            ]
            asked += [
                ("GET", f"/v1/models/{task}", {}),
                ("POST", "/v1/completions", {"json": {"model": task, "prompt": "a", "max_tokens": 1}}),
                ("POST", "/v1/completions", {"json": {"model": task, "prompt": "a", "stream": True}}),
                ("POST", "/v1/chat/completions", {"json": {"model": task, "messages": [_TURN], "max_tokens": 1}}),
            ]
        assert len(asked) > 27
        for method, path, options in asked:
            theirs, nothing = (
                told(client.request(method, filled(path, task=task), **_named(options, task)))
                for task in ("secret", "absent")
            )
            assert theirs[0] == 404, (method, path, theirs)
            assert (theirs[0], theirs[1].replace(b"secret", b"absent"), theirs[2]) == nothing, (method, path)
    for client in outsiders:
        assert not [model for model in client.get("/v1/models").json()["data"] if "secret" in model["id"]]
    assert "secret" in [model["id"] for model in acme.get("/v1/models").json()["data"]]
    assert shared.client("beta").get("/v1/adapters?prefix=secret").json() == {"data": [], "next_cursor": None}
    own = shared.client("beta").put("/v1/adapters/secret", files=upload_parts(adapters["prompt-tuning"])).json()
    assert own["version"] == 1, "task names, and their numbers, are each tenant's own"
    assert [version["version"] for version in acme.get("/v1/adapters/secret/versions").json()["data"]] == [2, 1]
    for client in (acme, shared.client("beta")):
        assert client.delete("/v1/adapters/secret").status_code == 204


def test_a_prompt_another_tenant_sent_is_not_in_the_bare_models_cache(shared: Shared) -> None:
    prompt = "what one team asks of the base model is nobody else's to find out by how soon an answer comes"
    first = generate(shared.newcomer(), None, prompt).json()["usage"]
    assert first["cached_tokens"] == 0
    asker = shared.newcomer()
    assert generate(asker, None, prompt).json()["usage"]["cached_tokens"] == 0, "another tenant has sent it"
    again = generate(asker, None, prompt).json()["usage"]
    assert again["cached_tokens"] == again["prompt_tokens"] - 1, "it has sent it itself"


def test_nor_does_the_time_of_an_answer_tell_of_it(shared: Shared) -> None:
    """Measured and shown, not asserted: a busy machine's times prove nothing. The counts do."""
    sender, asker = shared.newcomer(), shared.newcomer()
    seconds: dict[str, list[float]] = {"sent by another": [], "sent by nobody": [], "sent by itself": []}
    for number in range(12):
        words = " ".join(f"{number} tells of {word}" for word in range(20))
        assert generate(sender, None, f"known {words}").status_code == 200
        first = [("sent by another", f"known {words}", False), ("sent by nobody", f"fresh {words}", False)]
        for case, prompt, cached in (*first[:: 1 if number % 2 else -1], ("sent by itself", f"fresh {words}", True)):
            began = time.perf_counter()
            usage = generate(asker, None, prompt, max_tokens=1).json()["usage"]
            seconds[case].append(time.perf_counter() - began)
            assert (usage["cached_tokens"] > usage["prompt_tokens"] // 2) is cached, (case, usage)
    for case, times in seconds.items():
        print(f"{case}: median {1e3 * statistics.median(times):.2f} ms of {len(times)}")
