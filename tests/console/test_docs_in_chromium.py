"""The page of the routes in Chromium: Swagger UI of the package, under the console's policy. Nothing is timed."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from console.conftest import ADMIN_KEY
from support.browser import SECONDS, Console
from support.served import Served

pytestmark = pytest.mark.tools("chromium")


def test_the_routes_are_shown_and_tried_and_nobody_else_is_asked(keyed: Served, browser: Browser) -> None:
    expect.set_options(timeout=1000 * SECONDS)
    paths = keyed.http.get("/openapi.json").json()["paths"]
    asked: list[str] = []
    with Console(browser, keyed.url) as docs:
        docs.context.on("request", lambda request: asked.append(request.url))
        docs.context.set_extra_http_headers({"authorization": f"Bearer {ADMIN_KEY}"})
        docs.page.goto(f"{keyed.url}/docs")
        expect(docs.page.locator(".opblock")).to_have_count(sum(map(len, paths.values())))
        route = docs.page.locator(".opblock", has=docs.page.locator('[data-path="/v1/generate"]'))
        route.locator(".opblock-summary-control").click()
        route.get_by_role("button", name="Try it out").click()
        route.get_by_role("button", name="Execute").click()
        answer = route.locator(".live-responses-table")
        expect(answer.locator("tbody .response-col_status")).to_contain_text("200")
        expect(answer).to_contain_text("finish_reason")
    assert f"{keyed.url}/v1/generate" in asked
    assert [url for url in asked if not url.startswith((f"{keyed.url}/", "data:"))] == []


def test_a_key_is_asked_for_and_sent_with_what_is_tried(keyed: Served, browser: Browser) -> None:
    expect.set_options(timeout=1000 * SECONDS)
    with Console(browser, keyed.url) as docs:
        docs.expected = {401}
        docs.page.goto(f"{keyed.url}/console/routes.html")
        for wrong in ("no-key-of-anybody", "two words"):
            docs.page.get_by_label("Key").fill(wrong)
            docs.page.keyboard.press("Enter")
            expect(docs.page.get_by_role("alert")).to_contain_text("unknown or was revoked")
        docs.page.get_by_label("Key").fill(ADMIN_KEY)
        docs.page.keyboard.press("Enter")
        route = docs.page.locator(".opblock", has=docs.page.locator('[data-path="/v1/whoami"]'))
        route.locator(".opblock-summary-control").click()
        route.get_by_role("button", name="Try it out").click()
        route.get_by_role("button", name="Execute").click()
        answer = route.locator(".live-responses-table")
        expect(answer.locator("tbody .response-col_status")).to_contain_text("200")
        expect(answer).to_contain_text("key_id")
