"""Tenants, limits, keys and the audit log over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.served import upload_parts
from support.tenants import ADMIN_KEY, Shared, generate
from support.waiting import wait_for

NO_LIMITS = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "tokens_in_flight", "stored_bytes", "adapters"))


def new_clients(shared: Shared, key: str) -> list[httpx.Client]:
    """Connections enough to reach both processes."""
    headers = {"authorization": f"Bearer {key}"}
    return [httpx.Client(base_url=shared.server.url, headers=headers, timeout=60) for _ in range(8)]


def test_a_tenant_is_made_changed_and_deleted(shared: Shared, adapters: dict[str, Path]) -> None:
    admin = shared.admin
    limits = {"adapters": 2}
    made = admin.post("/v1/tenants", json={"name": "delta", "weight": 2, "limits": limits})
    assert made.status_code == 201
    record = made.json()
    assert (record["name"], record["weight"], record["limits"]) == ("delta", 2.0, {**NO_LIMITS, "adapters": 2})
    again = admin.post("/v1/tenants", json={"name": "delta", "weight": 5})
    assert (again.status_code, again.json()) == (200, record)
    change = {"weight": 0.5, "limits": {"requests_per_minute": 600, "adapters": None}}
    changed = admin.patch("/v1/tenants/delta", json=change).json()
    assert changed == {**record, "weight": 0.5, "limits": {**NO_LIMITS, "requests_per_minute": 600}}
    assert admin.get("/v1/tenants/delta").json() == changed
    assert changed in admin.get("/v1/tenants").json()["data"]

    key = admin.post("/v1/keys", json={"tenant": "delta", "role": "publisher"}).json()
    clients = new_clients(shared, key["key"])
    assert clients[0].put("/v1/adapters/mine", files=upload_parts(adapters["prompt-tuning"])).status_code == 201
    refused = admin.delete("/v1/tenants/delta")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert all(generate(client, "mine").status_code == 200 for client in clients)
    assert admin.delete("/v1/tenants/delta?force=true").status_code == 204
    assert {generate(client, "mine").status_code for client in clients} == {401}
    for gone in (
        admin.get("/v1/tenants/delta"),
        admin.delete("/v1/tenants/delta"),
        admin.patch("/v1/tenants/delta", json={}),
    ):
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    assert admin.post("/v1/tenants", json={"name": "delta"}).status_code == 409


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"weight": 0}, "weight"),
        ({"weight": "much"}, "weight"),
        ({"limits": {"adapters": -1}}, "limits"),
        ({"limits": {"adapters": 1.5}}, "limits"),
        ({"limits": {"cats": 1}}, "limits"),
        ({"name": "other"}, "name"),
    ],
)
def test_what_can_not_be_set_is_refused_by_its_field(shared: Shared, body: dict[str, Any], param: str) -> None:
    refused = shared.admin.patch("/v1/tenants/acme", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"tenant": "acme", "role": "user", "role": "admin"}', "role"),
        ('{"role": "publisher"}', "tenant"),
        ("{}", "tenant"),
        ('{"tenant": null}', "tenant"),
    ],
)
def test_what_does_not_say_whose_key_it_is_or_says_a_thing_twice_makes_none(
    shared: Shared, body: str, param: str
) -> None:
    before = shared.admin.get("/v1/keys").json()
    refused = shared.admin.post("/v1/keys", content=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, "invalid_request", param)
    assert shared.admin.get("/v1/keys").json() == before


def test_a_key_is_shown_once_and_revoked_in_every_process(shared: Shared) -> None:
    admin = shared.admin
    made = admin.post("/v1/keys", json={"tenant": "acme", "role": "user"}).json()
    clients = new_clients(shared, made["key"])
    assert {client.get("/v1/model").status_code for client in clients} == {200}
    listed = admin.get("/v1/keys?tenant=acme")
    assert made["key"] not in listed.text
    [shown] = [key for key in listed.json()["data"] if key["id"] == made["id"]]
    assert made["key"].startswith(shown["prefix"])
    assert {key["tenant"] for key in listed.json()["data"]} == {"acme"}
    assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert {client.get("/v1/model").status_code for client in clients} == {401}, "both processes were told"

    made = admin.post("/v1/keys", json={"tenant": "acme", "role": "user"}).json()
    clients = new_clients(shared, made["key"])
    assert {client.get("/v1/model").status_code for client in clients} == {200}
    ran = shared.softmux("key", "revoke", made["id"], "--data", str(shared.data))
    assert ran.returncode == 0, ran.stderr
    wait_for(lambda: {client.get("/v1/model").status_code for client in clients} == {401}, 30)


def test_each_change_over_http_is_one_entry_and_nothing_else_is(shared: Shared, adapters: dict[str, Path]) -> None:
    admin, acme = shared.admin, shared.client("acme")
    parts, others = upload_parts(adapters["prompt-tuning"]), upload_parts(adapters["prefix-tuning"])
    publisher = f"acme/{shared.keys['acme/publisher']['id']}"
    key = admin.post("/v1/keys", json={"tenant": "acme", "role": "user"}).json()["id"]
    changes: list[tuple[Callable[[], httpx.Response], int, str, str]] = [
        (lambda: acme.put("/v1/adapters/logged", files=parts), 201, publisher, "task.publish"),
        (lambda: acme.put("/v1/adapters/logged", files=parts), 200, "", ""),
        (lambda: acme.put("/v1/adapters/logged", files={}), 415, "", ""),
        (lambda: shared.client("acme", "user").put("/v1/adapters/logged", files=parts), 403, "", ""),
        (lambda: acme.put("/v1/adapters/logged", files=others), 201, publisher, "task.publish"),
        (lambda: acme.post("/v1/adapters/logged/activate", json={"version": 1}), 200, publisher, "task.activate"),
        (lambda: acme.post("/v1/adapters/logged/activate", json={"version": 1}), 200, "", ""),
        (lambda: acme.post("/v1/adapters/logged/activate", json={"version": 9}), 404, "", ""),
        (lambda: acme.put("/v1/adapters/logged/shares", json={"everyone": True}), 200, publisher, "task.share"),
        (lambda: acme.put("/v1/adapters/logged/shares", json={"everyone": True}), 200, "", ""),
        (lambda: acme.delete("/v1/adapters/logged/shares"), 204, publisher, "task.unshare"),
        (lambda: shared.client("beta").delete("/v1/adapters/logged"), 404, "", ""),
        (lambda: acme.delete("/v1/adapters/logged"), 204, publisher, "task.delete"),
        (lambda: acme.delete("/v1/adapters/logged"), 404, "", ""),
        (lambda: acme.post("/v1/keys", json={"tenant": "acme"}), 403, "", ""),
        (lambda: acme.post("/v1/tenants", json={"name": "mine"}), 403, "", ""),
        (lambda: admin.delete(f"/v1/keys/{key}"), 204, "default/outside", "key.revoke"),
        (lambda: admin.delete(f"/v1/keys/{key}"), 204, "", ""),
        (lambda: admin.post("/v1/tenants", json={"name": "logged"}), 201, "default/outside", "tenant.create"),
        (lambda: admin.post("/v1/tenants", json={"name": "logged"}), 200, "", ""),
        (lambda: admin.patch("/v1/tenants/logged", json={"weight": 3}), 200, "default/outside", "tenant.set"),
        (lambda: admin.delete("/v1/tenants/logged"), 204, "default/outside", "tenant.delete"),
    ]  # fmt: skip
    before = shared.audit()
    for change, status, actor, action in changes:
        answer = change()
        assert answer.status_code == status, answer.text
        after = shared.audit()
        expected = [(actor, action)] if action else []
        assert [(entry["actor"], entry["action"]) for entry in after[len(before) :]] == expected
        assert after[: len(before)] == before, "what was written stays"
        before = after
    published = next(entry for entry in before if entry["task"] == "logged")
    assert published["tenant"] == "acme"
    assert published["version"] == 1
    assert published["digest"].startswith("sha256:")


def test_the_log_is_read_by_admins_alone_and_written_by_nobody(shared: Shared) -> None:
    entries = shared.audit()
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = shared.admin.get("/v1/audit", params={"limit": 3, **({"after": after} if after else {})}).json()
        found += page["data"]
        after = page["next_after"]
        if after is None:
            break
    assert found == entries
    mine = shared.admin.get("/v1/audit?tenant=acme&limit=10000").json()["data"]
    assert mine == [entry for entry in entries if entry["tenant"] == "acme"]
    for wrong in ("after=yesterday", "limit=0", "format=csv"):
        assert shared.admin.get(f"/v1/audit?{wrong}").status_code == 422
    for client in (shared.client("acme"), shared.client("acme", "user")):
        assert client.get("/v1/audit").status_code == 403
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert shared.admin.request(method, "/v1/audit").status_code == 405
        assert shared.admin.request(method, f"/v1/audit/{entries[0]['id']}").status_code == 404
    assert shared.audit() == entries
    secrets = [ADMIN_KEY, *(key["key"] for key in shared.keys.values())]
    assert not any(secret in json.dumps(entries) for secret in secrets)
