"""The console's files as they are served, and who one is. What they do is tested in a browser: tests/console."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

import softmux
from softmux.api.assets import POLICY
from softmux.api.routers.console import assets
from support.tenants import Shared

FOLDER = Path(softmux.__file__).parent / "console"
SOURCES = sorted(path for path in FOLDER.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg"))


def test_every_file_is_open_typed_and_closed_to_all_else(shared: Shared) -> None:
    with httpx.Client(base_url=shared.server.url) as anyone:
        page = anyone.get("/")
        assert page.content == (FOLDER / "index.html").read_bytes()
        answers = {"": page} | {name: anyone.get(f"/console/{name}") for name in assets()}
    own = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert {name for name in answers if name} == own | {"swagger/swagger-ui-bundle.js", "swagger/swagger-ui.css"}
    for name, answer in answers.items():
        assert answer.status_code == 200, name
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
    assert answers["js/app.js"].headers["content-type"] == "text/javascript; charset=utf-8"
    assert answers["fonts/geist.woff2"].headers["content-type"] == "font/woff2"


def test_the_page_of_the_routes_is_of_the_same_files(shared: Shared) -> None:
    page = shared.admin.get("/docs")
    assert (page.status_code, page.headers["content-security-policy"]) == (200, POLICY)
    wanted = re.findall(r"(?:href|src)=\"([^\"]+)\"", page.text)
    assert len(wanted) == 6
    assert {path: shared.admin.get(f"/{path}").status_code for path in wanted} == dict.fromkeys(wanted, 200)
    page = httpx.get(f"{shared.server.url}/console/routes.html")
    wanted = re.findall(r"(?:href|src)=\"([^\"]+)\"", page.text)
    assert len(wanted) == 6
    assert {path: shared.admin.get(f"/console/{path}").status_code for path in wanted} == dict.fromkeys(wanted, 200)


def test_what_is_known_is_not_sent_again(shared: Shared) -> None:
    with httpx.Client(base_url=shared.server.url) as anyone:
        first = anyone.get("/console/js/app.js")
        again = anyone.get("/console/js/app.js", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == POLICY
        assert anyone.get("/console/css/base.css", headers={"if-none-match": first.headers["etag"]}).status_code == 200


def test_nothing_else_is_below_it(shared: Shared) -> None:
    with httpx.Client(base_url=shared.server.url) as anyone:
        for path in (
            "nothing",
            "js",
            "../py.typed",
            "..%2f..%2fpy.typed",
            "%2e%2e/py.typed",
            "//etc/passwd",
            "js/../../py.typed",
        ):
            told = anyone.get(f"/console/{path}")
            assert told.status_code in (401, 404), path
        assert anyone.get("/console/<b>").json()["error"]["code"] == "not_found"
        for path in ("/console", "/console/"):
            moved = anyone.get(path)
            assert moved.status_code == 307
            assert str(moved.next_request.url) == f"{shared.server.url}/"  # type: ignore[union-attr]


def test_the_sources_keep_to_the_policy() -> None:
    """No other address, no HTML made from text, no style or handler in an attribute; only the theme is kept."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        others = set(
            re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
        )
        assert all("www.w3.org/" in other for other in others), (path, others)
        for banned in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "sessionStorage",
            "indexedDB",
            "document.cookie",
            " style=",
            ".style.",
        ):
            assert banned not in text, (path, banned)
        assert "localStorage" not in text or path.name == "theme.js"
        assert not re.search(r"<[^>]+\son\w+=", text), path


def test_whose_key_it_is(shared: Shared) -> None:
    shared.admin.patch("/v1/tenants/beta", json={"limits": {"adapters": 77}}).raise_for_status()
    told = shared.client("beta", "user").get("/v1/whoami").json()
    limits = told.pop("limits")
    assert limits.pop("adapters") == 77
    assert set(limits) == {"requests_per_minute", "tokens_per_minute", "tokens_in_flight", "stored_bytes"}
    assert set(limits.values()) == {None}
    mine = {"tenant": "beta", "role": "user", "key_id": shared.keys["beta/user"]["id"]}
    assert told == {"object": "caller", **mine, "metrics": False, "weight": 1.0}
    told = shared.admin.get("/v1/whoami").json()
    assert (told["tenant"], told["role"], told["key_id"], told["metrics"]) == ("default", "admin", "outside", True)
    shared.admin.patch("/v1/tenants/beta", json={"limits": {"adapters": None}}).raise_for_status()


def test_whether_a_key_is_needed_is_no_secret(shared: Shared) -> None:
    assert httpx.get(f"{shared.server.url}/console/access").json() == {"keys": True}
