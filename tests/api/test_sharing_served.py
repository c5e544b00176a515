"""A task that one tenant shares with another: used, read, never changed, and sharing no cache."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
from test_zoo_served import tuned

from support.served import upload_parts
from support.tenants import Shared, generate

CONFIG = "adapter_config.json"
_numbers = itertools.count(1)  # a deleted task's versions go on counting: each test has a name of its own


@pytest.fixture
def mood(shared: Shared, adapters: dict[str, Path]) -> Iterator[str]:
    """A task of acme's, shared with nobody: version 1 a prompt, version 2, the active one, a prefix."""
    acme, name = shared.client("acme"), f"mood{next(_numbers):03}"
    for folder in ("prompt-tuning", "prefix-tuning"):
        response = acme.put(f"/v1/adapters/{name}", files=upload_parts(adapters[folder]))
        assert response.status_code == 201, response.text
    yield name
    acme.delete(f"/v1/adapters/{name}")


def share(shared: Shared, task: str, **body: Any) -> None:
    response = shared.client("acme").put(f"/v1/adapters/{task}/shares", json=body)
    assert response.status_code == 200, response.text


def told(response: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that a client is told, but when."""
    return (
        response.status_code,
        response.content,
        sorted((name, value) for name, value in response.headers.items() if name not in ("date", "x-request-id")),
    )


def uses(client: httpx.Client, name: str) -> list[httpx.Response]:
    """Every way to use or read the task that another tenant calls `name`."""
    place = f"/v1/shared/{name}"
    return [
        generate(client, name),
        generate(client, f"{name}@1"),
        generate(client, name, stream=True),
        client.post("/v1/classify", params={"task": name}, json={"input": "a"}),
        client.get(place),
        client.get(f"{place}/versions"),
        client.get(f"{place}/versions/1/files/{CONFIG}"),
        client.get(f"{place}/versions/9/files/{CONFIG}"),
    ]


def test_it_is_used_and_read_by_those_named_alone(shared: Shared, mood: str) -> None:
    share(shared, mood, tenants=["beta"])
    own = generate(shared.client("acme", "user"), mood).json()
    for role in ("user", "publisher"):
        theirs = generate(shared.client("beta", role), f"acme/{mood}").json()
        assert theirs["choices"] == own["choices"]
        assert theirs["adapter"] == {**own["adapter"], "task": f"acme/{mood}"}
        body = {"model": f"acme/{mood}", "prompt": "a film", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        completion = shared.client("beta", role).post("/v1/completions", json=body).json()
        assert completion["choices"][0]["text"] == own["choices"][0]["text"]
        assert completion["adapter"] == theirs["adapter"]
    old = generate(shared.client("beta"), f"acme/{mood}@1").json()
    assert (old["adapter"]["version"], old["adapter"]["method"]) == (1, "prompt_tuning")
    listed = shared.client("beta").get("/v1/shared").json()
    assert listed["next_cursor"] is None
    [version] = listed["data"]
    assert (version["task"], version["owner"], version["shared"], version["version"]) == (
        f"acme/{mood}",
        "acme",
        True,
        2,
    )
    assert shared.client("beta").get(f"/v1/shared/acme/{mood}").json() == version
    versions = shared.client("beta").get(f"/v1/shared/acme/{mood}/versions").json()["data"]
    assert [each["version"] for each in versions] == [2, 1]
    assert shared.client("gamma").get("/v1/shared").json()["data"] == []
    assert shared.client("beta").get("/v1/adapters").json()["data"] == [], "it is not among their own"
    assert shared.client("acme").get("/v1/shared").json()["data"] == [], "nor is it shared with its owner"
    assert generate(shared.client("acme"), f"acme/{mood}").json()["adapter"]["task"] == mood


def test_files_only_where_they_are_shared(shared: Shared, mood: str) -> None:
    beta, path = shared.client("beta"), f"/v1/shared/acme/{mood}/versions/1/files/{CONFIG}"
    share(shared, mood, tenants=["beta"])
    refused = beta.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert beta.get(path.replace("/1/", "/9/")).json()["error"]["code"] == "version_not_found"
    share(shared, mood, tenants=["beta"], files=True)
    own = shared.client("acme").get(f"/v1/adapters/{mood}/versions/1/files/{CONFIG}")
    assert told(beta.get(path)) == told(own)
    assert beta.get(path + ".bak").status_code == 404


def test_to_everyone_else_it_does_not_exist(shared: Shared, mood: str) -> None:
    share(shared, mood, tenants=["beta"], files=True)
    gamma = shared.client("gamma")
    theirs, nothing = uses(gamma, f"acme/{mood}"), uses(gamma, "acme/nothing")
    for mine, none in zip(theirs, nothing, strict=True):
        status, content, headers = told(mine)
        assert status == 404
        assert (status, content.replace(mood.encode(), b"nothing"), headers) == told(none)
    for none in (*uses(gamma, f"nobody/{mood}"), *uses(gamma, f"acme/{mood}/more")):
        assert none.status_code == 404


def test_readers_change_nothing(shared: Shared, mood: str, adapters: dict[str, Path]) -> None:
    share(shared, mood, everyone=True, files=True)
    before = shared.client("acme").get(f"/v1/adapters/{mood}/versions").json()
    beta = shared.client("beta")
    for name in (mood, f"acme/{mood}", f"acme%2F{mood}"):
        assert beta.delete(f"/v1/adapters/{name}").status_code == 404
        assert beta.post(f"/v1/adapters/{name}/activate", json={"version": 1}).status_code == 404
        assert beta.put(f"/v1/adapters/{name}/shares", json={"tenants": ["beta"]}).status_code == 404
        assert beta.delete(f"/v1/adapters/{name}/shares").status_code == 404
        assert beta.get(f"/v1/adapters/{name}/shares").status_code == 404
    for name in (f"acme/{mood}", f"acme%2F{mood}"):
        uploaded = beta.put(f"/v1/adapters/{name}", files=upload_parts(adapters["prompt-tuning"]))
        assert uploaded.status_code in (404, 422)
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        assert beta.request(method, f"/v1/shared/acme/{mood}").status_code == 405
    assert shared.client("acme").get(f"/v1/adapters/{mood}/versions").json() == before
    user = shared.client("acme", "user")
    assert user.get(f"/v1/adapters/{mood}/shares").json()["everyone"] is True
    assert user.put(f"/v1/adapters/{mood}/shares", json={"tenants": ["beta"]}).status_code == 403
    assert user.delete(f"/v1/adapters/{mood}/shares").status_code == 403


def test_sharing_no_more_counts_at_once_and_what_runs_ends(shared: Shared, mood: str) -> None:
    beta = shared.client("beta")
    share(shared, mood, everyone=True)
    with beta.stream(
        "POST",
        "/v1/generate",
        params={"task": f"acme/{mood}"},
        json={"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True},
    ) as running:
        events = running.iter_lines()
        assert next(events).startswith("data: ")
        assert shared.client("acme").delete(f"/v1/adapters/{mood}/shares").status_code == 204
        assert generate(beta, f"acme/{mood}").status_code == 404
        assert beta.get("/v1/shared").json()["data"] == []
        *_, last, done = (line for line in events if line)
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"] == 200
    assert shared.client("acme").delete(f"/v1/adapters/{mood}/shares").status_code == 204, "done already"


def test_a_task_deleted_and_made_anew_is_not_shared(shared: Shared, mood: str, adapters: dict[str, Path]) -> None:
    share(shared, mood, everyone=True)
    acme = shared.client("acme")
    assert acme.delete(f"/v1/adapters/{mood}").status_code == 204
    assert acme.put(f"/v1/adapters/{mood}", files=upload_parts(adapters["prompt-tuning"])).status_code == 201
    assert acme.get(f"/v1/adapters/{mood}/shares").json() == {"tenants": [], "everyone": False, "files": False}
    assert generate(shared.client("beta"), f"acme/{mood}").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tenants"),
        ({"files": True}, "tenants"),
        ({"tenants": ["No Name"]}, "tenant"),
        ({"tenants": "beta"}, "tenants"),
        ({"everyone": 1}, "everyone"),
        ({"whom": ["beta"]}, "whom"),
    ],
)
def test_a_share_with_nobody_is_refused(shared: Shared, mood: str, body: dict[str, Any], param: str) -> None:
    refused = shared.client("acme").put(f"/v1/adapters/{mood}/shares", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param), refused.text


def test_sharing_tells_nobody_what_tenants_there_are(shared: Shared, mood: str) -> None:
    answers = [
        shared.client("acme").put(f"/v1/adapters/{mood}/shares", json={"tenants": [name]}) for name in ("beta", "hide")
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content.replace(b"beta", b"hide") == answers[1].content


def test_a_shared_task_classifies(shared: Shared, mood: str, adapters: dict[str, Path]) -> None:
    softmux = {"softmux.json": b'{"labels": ["good", "bad"]}'}
    acme = shared.client("acme")
    uploaded = acme.put(f"/v1/adapters/{mood}", files=upload_parts(adapters["p-tuning-lstm"], **softmux))
    assert uploaded.status_code == 201, uploaded.text
    share(shared, mood, tenants=["beta"])
    body = {"input": ["a film", "another"]}
    own = acme.post("/v1/classify", params={"task": mood}, json=body)
    theirs = shared.client("beta").post("/v1/classify", params={"task": f"acme/{mood}"}, json=body)
    assert (own.status_code, theirs.status_code) == (200, 200), theirs.text
    assert theirs.json()["adapter"] == {**own.json()["adapter"], "task": f"acme/{mood}"}
    for mine, other in zip(own.json()["results"], theirs.json()["results"], strict=True):
        assert other["scores"] == pytest.approx(mine["scores"], abs=1e-5)


def test_what_is_shared_is_listed_page_by_page(shared: Shared, adapters: dict[str, Path]) -> None:
    acme, beta = shared.client("acme"), shared.client("beta")
    names = [f"page{number}" for number in range(5)]
    for name in names:
        assert acme.put(f"/v1/adapters/{name}", files=upload_parts(adapters["prompt-tuning"])).status_code == 201
        shares = {"everyone": True} if name != "page3" else {"tenants": ["gamma"]}
        assert acme.put(f"/v1/adapters/{name}/shares", json=shares).status_code == 200
    found: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "2", "prefix": "acme/page", **({"cursor": cursor} if cursor else {})}
        page = beta.get("/v1/shared", params=params).json()
        assert len(page["data"]) <= 2
        found += [version["task"] for version in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == ["acme/page0", "acme/page1", "acme/page2", "acme/page4"]
    models = {model["id"]: model for model in beta.get("/v1/models").json()["data"]}
    assert [name for name in models if name.startswith("acme/page")] == found
    assert models["acme/page0"]["owned_by"] == "acme"
    assert (
        beta.get("/v1/models/acme/page0").json() == beta.get("/v1/models/acme%2Fpage0").json() == models["acme/page0"]
    )
    assert set(names) <= {model["id"] for model in acme.get("/v1/models").json()["data"]}
    assert beta.get("/v1/shared", params={"prefix": "beta"}).json()["data"] == []
    for name in names:
        acme.delete(f"/v1/adapters/{name}")


@pytest.mark.parametrize("version", [1, 2])
def test_who_shares_an_adapter_shares_no_cache(shared: Shared, mood: str, version: int) -> None:
    """Prompt tuning (1), whose keys and values are computed, and prefix tuning (2), where they were trained."""
    share(shared, mood, everyone=True)
    newcomer = shared.newcomer()
    prompt = "a long and winding story that nobody else has ever sent to this server"
    first = generate(shared.client("acme"), f"{mood}@{version}", prompt).json()["usage"]
    again = generate(shared.client("acme"), f"{mood}@{version}", prompt).json()["usage"]
    assert again["cached_tokens"] > again["virtual_tokens"], "the owner finds its own text"
    others = generate(newcomer, f"acme/{mood}@{version}", prompt).json()["usage"]
    assert others["prompt_tokens"] == first["prompt_tokens"]
    trained = others["virtual_tokens"] if version == 2 else 0  # what was trained comes with the adapter
    assert others["cached_tokens"] == trained, "neither the text nor the prompt of the owner's requests"
    mine = generate(newcomer, f"acme/{mood}@{version}", prompt).json()["usage"]
    assert mine["cached_tokens"] == again["cached_tokens"], "they find their own"


def test_the_commands(shared: Shared, mood: str) -> None:
    def on(client: str, *arguments: str) -> str:
        ran = shared.softmux(*arguments, "--url", shared.server.url, "--key", shared.keys[client]["key"])
        return ran.stdout + ran.stderr

    assert on("acme/publisher", "share", mood) == f"{mood} is shared with nobody\n"
    assert on("acme/publisher", "share", mood, "--with", "beta", "--files") == (
        f"{mood} is shared with beta, its files too\n"
    )
    listed = json.loads(on("beta/user", "list", "--shared", "--json"))
    assert [version["task"] for version in listed] == [f"acme/{mood}"]
    assert "prefix_tuning" in on("beta/user", "show", f"acme/{mood}")
    assert on("beta/user", "generate", "a film", "--task", f"acme/{mood}", "--max-tokens", "2").strip()
    assert on("acme/publisher", "share", mood, "--everyone") == f"{mood} is shared with everyone\n"
    assert on("acme/publisher", "unshare", mood) == f"{mood} is shared with nobody\n"
    assert f"there is no task 'acme/{mood}'" in on("beta/user", "show", f"acme/{mood}")


def test_shared_cartridges_are_combined_with_each_other_but_not_with_ones_own(
    shared: Shared, base: tuple[Any, Path], tmp_path: Path
) -> None:
    names = [f"book{next(_numbers):03}" for _ in range(2)]
    for seed, name in enumerate(names):
        config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        tuned(base[0], config, tmp_path / name, seed)
        parts = upload_parts(tmp_path / name, **{"softmux.json": b'{"combines": true}'})
        for tenant in ("acme", "beta"):
            assert shared.client(tenant).put(f"/v1/adapters/{name}", files=parts).status_code == 201
        share(shared, name, tenants=["beta"])
    beta = shared.client("beta")
    theirs = generate(beta, ",".join(f"acme/{name}" for name in names)).json()
    own = generate(beta, ",".join(names)).json()
    assert theirs["choices"] == own["choices"]
    assert theirs["adapter"]["task"] == f"acme/{names[0]},acme/{names[1]}"
    mixed = generate(beta, f"acme/{names[0]},{names[1]}")
    assert (mixed.status_code, mixed.json()["error"]["param"]) == (422, "task")
    assert "combine those of one" in mixed.json()["error"]["message"]
    for tenant in ("acme", "beta"):
        for name in names:
            shared.client(tenant).delete(f"/v1/adapters/{name}")
