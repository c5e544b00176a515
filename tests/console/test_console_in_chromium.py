"""The console, used: in a real Chromium, on a real server. Nothing is timed."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from console.conftest import ADMIN_KEY
from support.browser import PHONE, SECONDS, Console
from support.served import Served, upload_parts

pytestmark = pytest.mark.tools("chromium")
expect.set_options(timeout=1000 * SECONDS)

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\'"`${1}{{x}}'
LABELS = ("<script>window.pwned=1</script>", '"><img src=x onerror=window.pwned=1>')
PAGES = ("tasks", "tasks/hostile", "upload", "play?task=hostile", "live", "usage")
ADMIN_PAGES = ("admin/tenants", "admin/keys", "admin/audit")
DROP = """(drop, files) => {
  const data = new DataTransfer();
  for (const [name, base64] of files) {
    data.items.add(new File([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], name));
  }
  for (const type of ["dragover", "drop"]) {
    drop.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


def _drop(page: Page, files: dict[str, bytes]) -> None:
    sent = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    page.locator(".drop").evaluate(DROP, sent)


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (_, data) in upload_parts(folder).items()}


def _answer(client: httpx.Client, task: str, prompt: str) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 6, "logprobs": 5}
    choice: dict[str, Any] = client.post("/v1/generate", params={"task": task}, json=body).json()["choices"][0]
    return choice


@pytest.fixture(scope="module")
def hostile(keyed: Served, publisher: httpx.Client, adapters: dict[str, Path]) -> None:
    """Tasks whose every word is an attempt, of the administrator's tenant and of another that shares it."""
    config = json.loads((adapters["prompt-tuning"] / "adapter_config.json").read_text())
    named = {**config, "base_model_name_or_path": HOSTILE, "revision": HOSTILE}
    template = f"{{p:{config['num_virtual_tokens'] - 1}}}Name of {{country}}<b onclick=x>{{p:1}}"
    told = {"template": template, "labels": dict.fromkeys(LABELS, " yes") | {LABELS[0]: " no"}, "notes": HOSTILE}
    more = {"adapter_config.json": json.dumps(named).encode(), "softmux.json": json.dumps(told).encode()}
    for client in (keyed.http, publisher):
        answer = client.put("/v1/adapters/hostile", files=upload_parts(adapters["prompt-tuning"], **more))
        assert answer.status_code == 201, answer.text
    publisher.put("/v1/adapters/hostile/shares", json={"everyone": True}).raise_for_status()


def _unharmed(page: Page) -> None:
    assert page.evaluate("window.pwned ?? null") is None
    assert page.evaluate("document.querySelectorAll('main img, main script, main b[onclick]').length") == 0


def test_upload_generate_compare_roll_back_delete(
    keyed: Served, publisher: httpx.Client, adapters: dict[str, Path], browser: Browser
) -> None:
    key = publisher.headers["authorization"].removeprefix("Bearer ")
    with Console(browser, keyed.url) as console:
        page = console.page
        console.expected = {401, 422}
        page.goto(keyed.url)
        page.get_by_label("Key").fill("sk-softmux-wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").filter(has_text="unknown or was revoked")).to_be_visible()
        console.sign_in(key)
        expect(page.locator(".side .who")).to_contain_text("acme")

        console.open("upload")
        good = _contents(adapters["prompt-tuning"])
        page.get_by_label("Task").fill("Not A Name")
        expect(page.get_by_text("Small letters, digits")).to_be_visible()
        page.get_by_label("Task").fill("mine")
        _drop(page, {"adapter_config.json": good["adapter_config.json"], "README.md": b"x"})
        expect(page.get_by_label("Files", exact=True)).to_contain_text("left out: no part of an adapter")
        expect(page.get_by_role("button", name="Upload", exact=True)).to_be_disabled()
        _drop(page, {**good, "adapter_model.safetensors": good["adapter_model.safetensors"][:-8]})
        page.get_by_role("button", name="Upload", exact=True).click()
        refused = page.get_by_role("alert").filter(has_text="Refused: these files can't be served")
        expect(refused).to_contain_text("adapter_model.safetensors")
        expect(page.get_by_text("Nothing has changed")).to_be_visible()
        _drop(page, good)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("Admitted as version 1")).to_be_visible()
        checks = publisher.put("/v1/adapters/mine", files=upload_parts(adapters["prompt-tuning"])).json()["checks"]
        for check in checks:
            expect(page.get_by_label("Admission report")).to_contain_text(check)

        page.locator("input[webkitdirectory]").set_input_files(adapters["p-tuning-lstm"])
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("Admitted as version 2")).to_be_visible()

        console.open("tasks/mine")
        page.get_by_role("link", name="Compare").click()
        page.get_by_label("Prompt").fill("a film")
        page.get_by_text("Sampling").click()
        page.get_by_label("Tokens at most").fill("6")
        page.get_by_role("button", name="Run").click()
        lanes = page.locator(".lane")
        for lane, named in ((lanes.nth(0), "mine@2"), (lanes.nth(1), "mine@1")):
            expect(lane.locator(".stats")).to_contain_text("first token")
            choice = _answer(publisher, named, "a film")
            assert lane.locator(".out").text_content() == choice["text"]
            tokens = lane.locator(".tokens .token")
            assert tokens.all_text_contents() == [text.replace("\n", "↵") for text in choice["logprobs"]["tokens"]]
            tokens.first.hover()
            expect(lane.locator(".inspect")).to_contain_text("log probability")
            assert lane.locator(".inspect .bar").count() >= 5
        for language, shown in (("curl", "Bearer $KEY"), ("Python", 'os.environ["KEY"]')):
            page.get_by_role("button", name=language, exact=True).click()
            expect(page.get_by_label("The same call", exact=True)).to_contain_text(shown)
            assert key not in page.content()
        _the_python_sample_runs(page, keyed, key)

        told = {"softmux.json": b'{"trained_lengths": [1, 2]}'}
        publisher.put("/v1/adapters/short", files=upload_parts(adapters["prompt-tuning"], **told)).raise_for_status()
        console.open("play?task=short")
        page.get_by_label("Prompt").fill("more than two tokens")
        page.get_by_role("button", name="Run").click()
        expect(page.locator(".lane .callout")).to_contain_text("longer than what this version was trained on")

        console.open("tasks/mine")
        page.get_by_role("button", name="Roll back to v1").click()
        page.get_by_role("button", name="Roll back", exact=True).click()
        expect(page.get_by_role("button", name="Activate v2")).to_be_visible()
        assert publisher.get("/v1/adapters/mine").json()["version"] == 1
        with page.expect_download() as download:
            page.get_by_role("button", name="Download adapter_model.safetensors").click()
        assert download.value.path().read_bytes() == good["adapter_model.safetensors"]
        page.get_by_role("button", name="Delete this task").click()
        last = page.get_by_role("dialog").get_by_role("button", name="Delete")
        expect(last).to_be_disabled()
        page.get_by_label("Type mine to confirm").fill("mine")
        last.click()
        page.wait_for_url("**/#/tasks")
        assert publisher.get("/v1/adapters/mine").status_code == 404


def _the_python_sample_runs(page: Page, keyed: Served, key: str) -> None:
    source = page.get_by_label("The same call", exact=True).text_content() or ""
    said: list[str] = []
    source = source.replace('os.environ["KEY"]', repr(key))
    exec(compile(source, "sample", "exec"), {"print": said.append})
    assert len(said) == 1
    assert keyed.url in source


def test_what_others_wrote_is_text_and_no_more(keyed: Served, hostile: None, browser: Browser) -> None:
    """First as the server has it; then every string of every answer is an attempt, whatever the server would allow."""

    def poison(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: poison(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item, name) for item in value]
        kept = ("role", "date", "digest", "head", "template", "next_cursor", "next_after", "finish_reason", "family")
        return value + HOSTILE if isinstance(value, str) and name not in kept else value

    numbers = itertools.count(5)

    def poisoned(route: Route) -> None:
        answer = route.fetch()
        if "text/plain" in answer.headers.get("content-type", ""):
            hostile = f'softmux_engine_rows_total{{method="<img src=x onerror=window.pwned=1>"}} {next(numbers)}\n'
            route.fulfill(response=answer, body=answer.text() + hostile)
        elif answer.headers.get("content-type", "").startswith("application/json"):
            route.fulfill(response=answer, json=poison(answer.json()))
        else:
            route.fulfill(response=answer)

    def event(route: Route) -> None:
        logprobs = {
            "tokens": [HOSTILE],
            "token_logprobs": [-1.0],
            "top_logprobs": [{HOSTILE: -1.0}],
            "text_offset": [0],
        }
        choice = {"index": 0, "text": HOSTILE, "finish_reason": "stop", "logprobs": logprobs}
        adapter = {"task": HOSTILE, "version": 1, "digest": HOSTILE, "method": HOSTILE}
        usage = {"prompt_tokens": 1, "virtual_tokens": 1, "cached_tokens": 0, "completion_tokens": 1}
        chunk = {"adapter": adapter, "choices": [choice], "usage": usage}
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")

    with Console(browser, keyed.url) as console:
        page = console.page
        console.sign_in(ADMIN_KEY)
        for where in (
            "tasks",
            "tasks/hostile",
            "tasks?whose=shared",
            "shared/acme/hostile",
            "play?task=hostile",
            "admin/audit",
        ):
            console.open(where)
            _unharmed(page)
        console.open("tasks/hostile")
        for words in (HOSTILE, *LABELS):
            expect(page.get_by_text(words, exact=True).first).to_be_visible()
        console.open("upload")
        _drop(page, {HOSTILE.replace("/", ":"): b"x", "adapter_config.json": b"{}"})
        expect(page.get_by_label("Files", exact=True)).to_contain_text("onerror")
        _unharmed(page)
        page.route("**/v1/generate*", event)
        console.open("play?task=hostile")
        page.get_by_label("country").fill("x")
        page.get_by_role("button", name="Run").click()
        page.locator("button.token").first.hover()
        expect(page.locator(".inspect")).to_contain_text("onerror")
        _unharmed(page)
        page.get_by_role("button", name="Labels").click()
        page.get_by_role("button", name="Run").click()
        expect(page.locator(".bars")).to_contain_text("window.pwned")
        page.route("**/v1/**", poisoned)
        page.route("**/metrics", poisoned)
        for where in (*PAGES, *ADMIN_PAGES):
            console.open(where)
            expect(page.locator("main")).to_contain_text(("Upload", "onerror")[where != "upload"])
            _unharmed(page)
        console.expected = {500}
        error = {"error": {"message": HOSTILE, "code": HOSTILE, "param": HOSTILE, "type": HOSTILE}}
        page.route("**/v1/**", lambda route: route.fulfill(status=500, json=error))
        console.open("tasks")
        expect(page.get_by_role("alert")).to_contain_text(HOSTILE)
        _unharmed(page)


def test_by_keyboard_alone(keyed: Served, hostile: None, browser: Browser) -> None:
    with Console(browser, keyed.url) as console:
        page, press = console.page, console.page.keyboard.press

        def tab_to(found: Callable[[], bool], key: str = "Tab") -> None:
            for _ in range(80):
                press(key)
                if found():
                    return
            raise AssertionError("not reached by Tab")

        def at(what: str) -> bool:
            name = "e => e && (e.getAttribute('aria-label') ?? e.labels?.[0]?.textContent ?? e.textContent).trim()"
            return bool(page.evaluate(f"({name})(document.activeElement)") == what)

        page.goto(keyed.url)
        expect(page.get_by_label("Key")).to_be_focused()
        page.keyboard.type(ADMIN_KEY)
        press("Enter")
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        tab_to(lambda: at("Skip to content"), "Shift+Tab")
        press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        tab_to(lambda: at("hostile"))
        press("Enter")
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        tab_to(lambda: at("Delete this task"))
        ring = page.evaluate("getComputedStyle(document.activeElement).boxShadow")
        assert ring != "none", "what has the focus shows it"
        press("Enter")
        expect(page.get_by_label("Type hostile to confirm")).to_be_focused()
        press("Escape")
        expect(page.get_by_role("button", name="Delete this task")).to_be_focused()
        console.open("play?task=hostile")
        tab_to(lambda: at("Task"))
        expect(page.get_by_role("listbox").get_by_role("option").first).to_be_visible()
        page.keyboard.type("base")
        expect(page.get_by_role("option", name="Base model")).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("listbox").get_by_role("option")).to_have_count(1)
        press("Enter")
        expect(page.get_by_role("combobox", name="Task")).to_have_value("Base model")
        page.get_by_label("Prompt").focus()
        page.keyboard.type("once")
        press("Control+Enter")
        expect(page.locator(".lane .stats")).to_contain_text("first token")
        page.locator("button.token").first.focus()
        press("ArrowRight")
        expect(page.locator("button.token").nth(1)).to_be_focused()
        expect(page.locator("button.token").nth(1)).to_have_attribute("aria-pressed", "true")


def test_nothing_serious_is_found_by_axe_in_either_theme(keyed: Served, hostile: None, browser: Browser) -> None:
    axe = Axe()
    wrong: list[str] = []

    def look(where: str) -> None:
        for theme in ("light", "dark"):
            console.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            wrong.extend(
                f"{theme} {where}: {one['id']} {node['target']} {node['failureSummary']}"
                for one in axe.run(console.page).response["violations"]
                if one["impact"] in ("serious", "critical")
                for node in one["nodes"]
            )

    with Console(browser, keyed.url) as console:
        page = console.page
        page.goto(keyed.url)
        page.get_by_label("Key").wait_for()
        look("sign in")
        console.sign_in(ADMIN_KEY)
        for where in (*PAGES, *ADMIN_PAGES):
            console.open(where)
            if where == "play?task=hostile":
                page.get_by_role("button", name="Run").click()
                expect(page.locator(".lane .stats")).to_contain_text("first token")
                page.locator("button.token").first.hover()
                expect(page.get_by_role("button", name="Run")).to_be_visible()
            look(where)
        page.get_by_role("link", name="Keys").click()
        page.get_by_role("button", name="New key").click()
        look("new key")
        assert not wrong, "\n".join(wrong)


def test_on_a_phone_nothing_is_cut_off(keyed: Served, hostile: None, browser: Browser) -> None:
    with Console(browser, keyed.url, viewport=PHONE) as console:
        console.sign_in(ADMIN_KEY)
        for where in (*PAGES, *ADMIN_PAGES):
            page = console.open(where)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], where
            nav = page.get_by_role("navigation", name="Console").bounding_box()
            assert nav is not None
            assert nav["y"] + nav["height"] <= PHONE["height"] + 1, "navigation is at hand"


def test_a_user_sees_its_own_and_is_told_kindly_of_the_rest(
    keyed: Served, user: str, hostile: None, browser: Browser
) -> None:
    with Console(browser, keyed.url) as console:
        page = console.sign_in(user).page
        expect(page.get_by_role("link", name="hostile")).to_be_visible()
        assert page.get_by_role("link", name="Upload").count() == 0
        assert page.get_by_role("link", name="Admin").count() == 0
        console.open("live")
        expect(page.get_by_text("so your key does not read them")).to_be_visible()
        expect(page.get_by_role("heading", name="Generated")).to_be_visible()
        console.open("upload")
        expect(page.get_by_text("This takes a key of the role publisher")).to_be_visible()
        console.open("tasks/hostile")
        assert page.get_by_role("button", name="Delete this task").count() == 0


def test_an_administrator_makes_limits_and_revokes(keyed: Served, browser: Browser) -> None:
    with Console(browser, keyed.url) as console:
        page = console.sign_in(ADMIN_KEY).page
        console.open("admin/tenants")
        page.get_by_role("button", name="New tenant").click()
        page.get_by_label("Name").fill("globex")
        page.get_by_label("Tokens a minute").fill("5000")
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_role("row").filter(has_text="globex")).to_contain_text("5,000")
        assert keyed.http.get("/v1/tenants/globex").json()["limits"]["tokens_per_minute"] == 5000
        console.open("admin/keys")
        page.get_by_role("button", name="New key").click()
        page.get_by_label("Tenant").select_option("globex")
        page.get_by_role("button", name="Create").click()
        secret = page.locator(".secret code").text_content() or ""
        theirs = httpx.Client(base_url=keyed.url, headers={"authorization": f"Bearer {secret}"})
        told = theirs.get("/v1/whoami").json()
        assert (told["tenant"], told["role"], told["metrics"]) == ("globex", "user", False)
        page.get_by_role("button", name="I have it").click()
        page.get_by_role("button", name=f"Revoke {told['key_id']}").click()
        assert secret not in page.content()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("row").filter(has_text=told["key_id"])).to_contain_text("Revoked")
        assert theirs.get("/v1/whoami").status_code == 401
        theirs.close()
        console.open("admin/audit")
        expect(page.get_by_role("row").nth(1)).to_contain_text("key.revoke")


def test_the_charts_show_what_was_asked(
    keyed: Served, publisher: httpx.Client, hostile: None, browser: Browser
) -> None:
    with Console(browser, keyed.url) as console:
        page = console.sign_in(ADMIN_KEY).page
        console.open("live")
        page.get_by_role("img", name="Throughput: Generated 0").wait_for()
        for _ in range(20):
            publisher.post("/v1/generate?task=hostile", json={"variables": {"country": "a"}, "max_tokens": 8})
            publisher.post("/v1/generate", json={"prompt": "once", "max_tokens": 8})
        for name, words in (
            ("Time to first token", r"Median .*, [1-9][\d.]* [mµ]?s at most"),
            ("Between tokens", r"Median .*, [1-9][\d.]* [mµ]?s at most"),
            ("Batch mix", "Prompt tuning .*, [\\d.]*[1-9] at most"),
        ):
            page.wait_for_function(
                "([name, words]) => [...document.querySelectorAll('svg.plot')].some(plot =>"
                " plot.ariaLabel.startsWith(name) && new RegExp(words).test(plot.ariaLabel))",
                arg=[name, words],
            )
        lines = page.locator("svg.plot").evaluate_all(
            "plots => plots.map(plot => [...plot.querySelectorAll('text[text-anchor=end]')].map(it => it.textContent))"
        )
        assert len(lines) == 6
        assert all(len(set(words)) == len(words) > 2 for words in lines), lines  # no two lines say the same


def test_the_lines_of_a_chart_are_round_and_tell_apart(keyed: Served, browser: Browser) -> None:
    with Console(browser, keyed.url) as console:
        console.page.goto(keyed.url)
        given = [[0, 1], [1, 1], [4, 1], [5, 1], [45, 1], [0.05, 0.1], [0.5, 0.1], [0.75, 0.1], [0, 0], [0.00043, 0]]
        found = console.page.evaluate(
            "async given => { const { scale } = await import('/console/js/charts.js');"
            " return given.map(one => scale(...one)).map(({ top, step }) => [top, step]); }",
            given,
        )
    for (value, least), (top, step) in zip(given, found, strict=True):
        assert top >= value
        assert step >= least
        assert 2 <= round(top / step, 9) <= 5
        assert round(top / step, 9) % 1 == 0
    assert [tuple(one) for one in found[:5]] == [(4, 1), (4, 1), (4, 1), (5, 1), (50, 10)]
