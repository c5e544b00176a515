"""A newcomer's way, walked: a clean clone, then the commands of docs/tutorials/peft-folder.md as they are written,
until the new task is seen in the console's charts and by the dashboards' queries."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from softmux.dashboards.boards import BOARDS
from support.examples import examples
from support.promql import filled

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "peft-folder.md"
COMMANDS = [example.text for example in examples(PAGE) if example.language == "bash"]
FILES = {example.save: example.text for example in examples(PAGE) if example.save}


def test_it_is_eight_commands_at_most() -> None:
    assert COMMANDS[0] == "make serve\n"
    assert len(COMMANDS) <= 8
    assert all(len(command.strip().splitlines()) == 1 for command in COMMANDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _going_on(command: str, folder: Path, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of a terminal of its own, ended with all that it started."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=env, stdout=written, stderr=written, start_new_session=True
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 2400) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer:\n{log.read_text()}")


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.tools("prometheus", "chromium")
def test_a_newcomer_comes_all_the_way(tmp_path: Path) -> None:
    from support.browser import Console, chromium

    clone, opened, log = tmp_path / "softmux", tmp_path / "opened", tmp_path / "serve.log"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    ports = {"127.0.0.1:8000": f"127.0.0.1:{_free_port()}", "127.0.0.1:9090": f"127.0.0.1:{_free_port()}"}
    server, prometheus = ports.values()

    def here(text: str) -> str:
        for said, ours in ports.items():
            text = text.replace(said, ours)
        return text

    for name, text in FILES.items():
        (clone / str(name)).write_text(here(text), encoding="utf-8")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n', encoding="utf-8")
    browser.chmod(0o755)
    own = {k: v for k, v in os.environ.items() if k == "SOFTMUX_CACHE" or not k.startswith(("SOFTMUX_", "PYTHON"))}
    own |= {"BROWSER": str(browser), "SOFTMUX_URL": f"http://{server}"}
    own |= {"SERVE_FLAGS": f"--port {server.partition(':')[2]}"}

    began = time.monotonic()
    with _going_on(COMMANDS[0], clone, own, log) as serving:
        _wait(f"http://{server}/health/ready", serving, log)
        ready = time.monotonic() - began
        *ours, last = map(here, COMMANDS[1:])
        until = f"until {last.strip()} | tee -a seen | grep -q mood; do sleep 1; done\n"  # it looks every second
        script = "set -euo pipefail\n" + "".join(ours) + until + "touch done\nwait\n"
        second = tmp_path / "second.log"
        with _going_on(script, clone, own, second) as terminal:
            limit = time.monotonic() + 1200
            while not (clone / "done").exists():
                assert terminal.poll() is None, second.read_text()
                assert time.monotonic() < limit, second.read_text()
                time.sleep(0.2)
            with chromium(tmp_path / "profile") as engine, httpx.Client(base_url=f"http://{prometheus}") as asked:
                console = Console(engine, opened.read_text().strip())
                console.page.goto(console.url)
                console.page.get_by_role("heading", name="Live").wait_for()
                body = {"prompt": "They sang", "max_tokens": 24, "ignore_eos": True}
                for _ in range(3):
                    httpx.post(f"http://{server}/v1/generate?task=mood", json=body, timeout=60).raise_for_status()
                console.page.locator(".charts path").first.wait_for(state="attached")
                console.close()
                with_data = 0
                queries = [query for b in BOARDS for row in b.rows for panel in row.panels for query in panel.queries]
                for query in queries:
                    answer = asked.get("/api/v1/query", params={"query": filled(query.expr)}).json()
                    with_data += bool(answer["data"]["result"])
                answered = {"query": 'softmux_requests_total{task="mood"}'}
                (seen,) = asked.get("/api/v1/query", params=answered).json()["data"]["result"]
                assert float(seen["value"][1]) >= 1
        print(f"served after {ready:.0f} s, all done after {time.monotonic() - began:.0f} s,", end=" ")
        print(f"{len(COMMANDS)} commands; {with_data} of {len(queries)} of the dashboards' queries have data")
        assert with_data > len(queries) / 2
    shutil.rmtree(clone)
