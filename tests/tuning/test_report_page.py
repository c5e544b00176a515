"""The page of a report: one file, in light, dark and print, whatever the rows' texts are."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from softmux.evaluation.page import page
from softmux.evaluation.verdict import Ship
from support.evaluations import HOSTILE, a_report


class Elements(HTMLParser):
    """The elements of a page by count, and whatever names a place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_one_file_without_scripts() -> None:
    text = page(a_report())
    found = Elements(text)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(found.names)
    named = {name for name, _ in found.attributes}
    assert not [name for name in named if name.startswith("on") or name in ("src", "href", "action", "xlink:href")]
    assert "url(" not in text
    assert "@import" not in text
    assert "49" not in found.words, "nothing of the rows is a template"
    assert found.words.count(HOSTILE) >= 5
    for words in ("prefers-color-scheme: dark", "@media print"):
        assert words in text


def test_every_part_is_shown() -> None:
    found = Elements(page(a_report()))
    for words in (
        "Ship within limits", "behind 128 tokens", "n = 100", "Three ways in which soft prompts fail", "+3.25 nats",
        "more than 60 tokens", "100 of them are measured", "there are none", "·yes", "no↵ more", "\\x0c", "(nothing)",
        "90.0 % (83.0 to 97.0)", "16.0 points lower (5.0 to 27.0)",
    ):  # fmt: skip
        assert words in found.words, words
    assert found.names.count("svg") == 5


@pytest.mark.parametrize("ship", get_args(Ship))
def test_every_verdict_has_its_colour_and_its_words(ship: Ship) -> None:
    one = a_report()
    text = page(replace(one, verdict=replace(one.verdict, ship=ship)))
    assert f"<h2>{ship.capitalize()}</h2>" in text
    assert 'class="verdict "' not in text


def test_parts_without_anything_are_left_out() -> None:
    bare = replace(
        a_report(), compared=(), compared_labels=(), nearest=(), mistakes=(), changes=(), beyond=(), domain=(), notes=()
    )
    words = Elements(page(bare)).words
    for heading in ("Against text alone", "What the learned vectors lie next to", "Some rows that are not right"):
        assert heading not in words


@pytest.mark.nightly
@pytest.mark.tools("chromium")
def test_a_browser_shows_it_readably_in_every_way(tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    from support.browser import DESK, PHONE, chromium

    (tmp_path / "evaluation.html").write_text(page(a_report()), encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        seen = browser.new_page(viewport=DESK)
        said: list[str] = []
        asked: list[str] = []
        seen.on("console", lambda message: said.append(message.text))
        seen.on("request", lambda request: asked.append(request.url))
        seen.goto((tmp_path / "evaluation.html").as_uri())
        for how in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print", "color_scheme": "dark"}):
            seen.emulate_media(**how)  # type: ignore[arg-type]
            wrong = [
                f"{how} {one['id']} {node['target']} {node['failureSummary']}"
                for one in Axe().run(seen).response["violations"]
                if one["impact"] in ("serious", "critical")
                for node in one["nodes"]
            ]
            assert not wrong, "\n".join(wrong)
        assert seen.evaluate("window.pwned ?? null") is None
        assert asked == [(tmp_path / "evaluation.html").as_uri()]
        assert not said
        seen.set_viewport_size(PHONE)  # type: ignore[arg-type]
        seen.emulate_media(media="screen")
        assert seen.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
