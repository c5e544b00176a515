"""The site that `make docs` builds: every page is in it, links hold, and nothing comes from elsewhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
