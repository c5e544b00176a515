"""The console in a real Chromium: signed in, and watched for whatever the browser complains of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1360, "height": 860}
SECONDS = 90
"""How long a thing may take to come: a busy machine is slow, and nothing here is timed."""
_NOTE_REFUSALS = """document.addEventListener("securitypolicyviolation", (event) => {
    (window.refused ??= []).push(`${event.violatedDirective} ${event.blockedURI}`);
});"""


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Debian's Chromium without a window, with an empty profile below `profile`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS), env={"HOME": str(profile), "LANG": "C.UTF-8"}
        )
        try:
            yield browser
        finally:
            browser.close()


class Console:
    """A page of the console at `url`, in a context of its own. `close` checks that the browser had nothing to say but
    of answers with the statuses in `expected`."""

    def __init__(self, browser: Browser, url: str, *, viewport: dict[str, int] = DESK) -> None:
        self.url = url
        self.expected: set[int] = set()
        self.said: list[str] = []
        self.context: BrowserContext = browser.new_context(viewport=viewport)  # type: ignore[arg-type]
        self.context.set_default_timeout(1000 * SECONDS)
        self.context.add_init_script(_NOTE_REFUSALS)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        status = re.search(r"Failed to load resource: .* status of (\d+)", message.text)
        if not (status and int(status[1]) in self.expected):
            self.said.append(f"{message.type}: {message.text}")

    def sign_in(self, key: str) -> Console:
        self.page.goto(self.url)
        self.page.get_by_label("Key").fill(key)
        self.page.keyboard.press("Enter")
        self.page.locator("nav").first.wait_for()
        return self

    def open(self, where: str) -> Page:
        """Goes to `where` (`tasks/mine`), and waits until it is drawn."""
        self.page.evaluate("where => { location.hash = '#/' + where; }", where)
        self.page.wait_for_function(
            "where => location.hash === '#/' + where && document.querySelector('main h1')"
            " && !document.querySelector('main [aria-busy]')",
            arg=where,
        )
        return self.page

    def refused(self) -> list[str]:
        """What the page's policy did not let pass."""
        return list(self.page.evaluate("window.refused ?? []"))

    def close(self) -> None:
        refused = self.refused()
        self.context.close()
        assert not refused
        assert not self.said

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.context.close()
