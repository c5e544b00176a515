"""Takes the picture of docs/console.md and the README: `make console-image`, with the demo model and its tasks."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from support.browser import SECONDS, Console, chromium
from support.served import Served

ROOT = Path(__file__).parents[2]
KEY = "an-admin-key-from-outside"
PROMPT = "a gripping, beautiful film"
TOKENS = 24


def shoot(browser: Browser, url: str, to: Path) -> None:
    """The playground: the task `sentiment` beside the bare model, on the same prompt."""
    with Console(browser, url, viewport={"width": 1320, "height": 780}) as console:
        page = console.sign_in(KEY).page
        page.set_default_timeout(10 * 1000 * SECONDS)
        console.open("play?task=sentiment&with=")
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_text("Sampling").click()
        page.get_by_label("Tokens at most").fill(str(TOKENS))
        page.get_by_text("Sampling").click()
        page.get_by_role("button", name="Run").click()
        for lane in page.locator(".lane").all():
            lane.locator(".stats b").first.wait_for()
            lane.locator("button.token").first.focus()
        page.get_by_role("heading", level=1).focus()
        picture = Image.open(io.BytesIO(page.screenshot()))
    to.parent.mkdir(exist_ok=True)
    few = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(to, optimize=True)


def take(model: str, to: Path) -> None:
    tasks, env = str(ROOT / "adapters"), {"SOFTMUX_ADMIN_KEY": KEY}
    with tempfile.TemporaryDirectory() as folder:
        server = Served(model, Path(folder) / "data", "--adapters", tasks, env=env, key=KEY)
        with server, chromium(Path(folder)) as browser:
            shoot(browser, server.url, to)


if __name__ == "__main__":
    take(sys.argv[1], ROOT / "docs" / "images" / "console.png")
