"""The site that `make docs` builds: every page is in it, links hold, and nothing comes from elsewhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("site_of_docs", ROOT / ".ci" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = _module()


def _named(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for what in entry.values():
            if isinstance(what, str):
                yield what
            else:
                yield from _named(what)


def test_every_page_has_its_place_in_the_navigation() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    named = list(_named(nav))
    assert sorted(named) == sorted(place for place in site.gathered().values() if place.endswith(".md"))


def test_it_builds_without_a_fault() -> None:
    built = subprocess.run([sys.executable, ".ci/site.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    home = (ROOT / "build" / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="quick-start.html"' in home.replace("./", "")
    assert "<table>" in home


@pytest.mark.nightly
@pytest.mark.tools("chromium")
def test_a_browser_asks_nobody_else_and_has_nothing_to_say(tmp_path: Path) -> None:
    from support.browser import chromium

    assert site.main() == 0
    handler = partial(SimpleHTTPRequestHandler, directory=str(site.SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium(tmp_path) as browser:
        Thread(target=server.serve_forever, daemon=True).start()
        url, asked, said = f"http://127.0.0.1:{server.server_port}/", [], []
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        for built in sorted(site.SITE.rglob("*.html")):
            page.goto(url + str(built.relative_to(site.SITE)), wait_until="networkidle")
            broken = "images => images.filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
            assert page.locator("img").evaluate_all(broken) == []
        server.shutdown()
    assert [address for address in asked if not address.startswith((url, "data:"))] == []
    assert said == []


def test_links_are_set_anew_and_what_the_site_lacks_becomes_words() -> None:
    places = {"README.md": "index.md", "docs/a.md": "a.md", "docs/b/c.md": "b/c.md", "deploy/README.md": "deploy.md"}
    text = "[a](docs/a.md#x) [l](LICENSE) [o](https://example.org) [h](#here) ![p](docs/b/c.md)"
    there = "[a](a.md#x) l [o](https://example.org) [h](#here) ![p](b/c.md)"
    assert site.relinked("README.md", text, places) == there
    assert site.relinked("docs/b/c.md", "[d](../../deploy/README.md#y)", places) == "[d](../deploy.md#y)"


def test_faults_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<a id="here" href="gone.html"></a><a href="#here"></a><a href="#nowhere"></a><a href="https://a.example/"></a>'
        '<script src="https://b.example/x.js"></script><link rel="canonical" href="https://c.example/">'
        '<link rel="stylesheet" href="own.css"><img src="gone.png">'
    )
    (tmp_path / "own.css").write_text("@import url('//d.example/font.css'); a { background: url(data:image/png,x) }")
    assert site.findings(tmp_path) == [
        "index.html fetches https://b.example/x.js",
        "index.html leads to #nowhere, and nothing there is called so",
        "index.html leads to gone.html, which is not there",
        "index.html leads to gone.png, which is not there",
        "own.css fetches //d.example/font.css",
    ]
