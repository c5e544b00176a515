"""The dashboards' queries, asked of a real Prometheus that scrapes a real server under load: all return data."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from softmux.dashboards.boards import BOARDS
from softmux.dashboards.panels import Panel
from support.loras import make_lora
from support.promql import filled
from support.served import Served, make_adapters, upload_parts

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
KEY = "a-key-for-the-dashboards"
SECONDS = 7.0
"""How long the load goes on while Prometheus looks: more than twice `INTERVAL`."""
INTERVAL = "3s"
PANELS = [(f"{board.uid}: {panel.title}", panel) for board in BOARDS for row in board.rows for panel in row.panels]


class Prometheus:
    """A real one, with the configuration that is deployed but for where things lie and how often it looks."""

    def __init__(self, target: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
        (folder / "key").write_text(KEY, encoding="utf-8")
        config["global"] |= {"scrape_interval": "500ms", "evaluation_interval": "1s"}
        config["rule_files"] = [str(DEPLOY / "alerts.yml")]
        (job,) = config["scrape_configs"]
        job["authorization"]["credentials_file"] = str(folder / "key")
        job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=self._log,
            env={"PATH": os.environ["PATH"]},
        )

    def wait_up(self) -> None:
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            assert self._process.poll() is None, "it has ended"
            try:
                if self.ask("up == 1"):
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"nothing was scraped: {self.http.get('/api/v1/targets').text}")

    def ask(self, query: str) -> list[float]:
        """The values that there are: of every series, but what is no number."""
        answer = self.http.post("/api/v1/query", data={"query": query})
        assert answer.status_code in (200, 503), f"{query}: {answer.text}"
        if answer.status_code == 503:
            raise httpx.ConnectError("it is starting")
        values = [float(series["value"][1]) for series in answer.json()["data"]["result"]]
        return [value for value in values if not math.isnan(value)]

    def end(self) -> None:
        self.http.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


class Load:
    """Clients that ask for every task, and for the bare model, until told to stop; and uploads, good and bad."""

    def __init__(self, server: Served, adapters: dict[str, Path]) -> None:
        self._server, self._adapters = server, adapters
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(3)]
        self._threads.append(threading.Thread(target=self._upload))
        self.asked = 0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)

    def _ask(self, number: int) -> None:
        tasks = [None, *self._adapters]
        with self._client() as client:
            while not self._over.is_set():
                task = tasks[self.asked % len(tasks)]
                body = {"prompt": f"a text of its own, {self.asked}, {number}", "max_tokens": 6, "ignore_eos": True}
                answer = client.post("/v1/generate", params={"task": task} if task else {}, json=body)
                assert answer.status_code == 200, answer.text
                self.asked += 1

    def _upload(self) -> None:
        tasks = list(self._adapters)
        with self._client() as client:
            for number in range(10_000):
                if self._over.wait(0.3):
                    return
                task = tasks[number % len(tasks)]
                assert client.put(f"/v1/adapters/{task}", files=upload_parts(self._adapters[task])).status_code < 300


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, base: tuple[Any, Path]) -> Iterator[tuple[Served, Prometheus]]:
    """Under load for a while: the server holds few adapters in memory, so that they go and come."""
    folder = tmp_path_factory.mktemp("prometheus")
    adapters = make_adapters(base[0], folder)
    make_lora(base[0], folder / "lora", target_modules=["q_proj"])
    adapters["lora"] = folder / "lora"
    environment = {"SOFTMUX_ADMIN_KEY": KEY, "SOFTMUX_USAGE_FLUSH_SECONDS": "1"}
    options = ("--host-cache-bytes", "1000")
    with Served(base[1], folder / "softmux", *options, key=KEY, env=environment) as server:
        limited = {"name": "limited", "weight": 2, "limits": {"adapters": 3, "requests_per_minute": 1000}}
        assert server.http.post("/v1/tenants", json=limited).status_code == 201
        for task, path in adapters.items():
            assert server.http.put(f"/v1/adapters/{task}", files=upload_parts(path)).status_code == 201
        prometheus = Prometheus(server.url.removeprefix("http://"), folder)
        try:
            with Load(server, adapters) as load:
                prometheus.wait_up()
                time.sleep(SECONDS)
                assert load.asked
                yield server, prometheus
        finally:
            prometheus.end()


@pytest.mark.tools("prometheus")
def test_every_panels_query_returns_data(served: tuple[Served, Prometheus]) -> None:
    _, prometheus = served
    empty = [
        f"{name}: {query.expr}"
        for name, panel in PANELS
        for query in panel.queries
        if not prometheus.ask(filled(query.expr, interval=INTERVAL))
    ]
    assert not empty, "\n".join(empty)


@pytest.mark.tools("prometheus")
def test_what_is_under_load_is_above_nothing(served: tuple[Served, Prometheus]) -> None:
    _, prometheus = served
    by_name = dict(PANELS)

    def values(name: str, place: int = 0) -> list[float]:
        panel: Panel = by_name[name]
        return prometheus.ask(filled(panel.queries[place].expr, interval=INTERVAL))

    for name in (
        "softmux-service: Engines up",
        "softmux-service: Requests",
        "softmux-service: First token, p95",
        "softmux-service: Between tokens",
        "softmux-service: Rows by method",
        "softmux-tenants: The engine's time",
        "softmux-tenants: Limits",
        "softmux-adapters: Adapters made ready, by tier",
        "softmux-adapters: Until a change serves",
        "softmux-engine: Busy",
        "softmux-engine: Device memory",
    ):
        assert max(values(name)) > 0, name
    assert max(values("softmux-service: Failed")) == 0


@pytest.mark.tools("prometheus")
def test_the_rules_run_and_nothing_is_wrong_with_a_server_that_works(served: tuple[Served, Prometheus]) -> None:
    _, prometheus = served
    groups = prometheus.http.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    assert not prometheus.ask('ALERTS{alertstate="firing"}')
    assert not prometheus.ask("softmux_lora_requests_info"), "its labels change: Prometheus is told to leave it"


@pytest.mark.tools("prometheus")
def test_a_gateway_reads_which_tasks_are_at_hand(served: tuple[Served, Prometheus]) -> None:
    server, _ = served
    asked = server.http.post("/v1/generate", params={"task": "prompt-tuning"}, json={"prompt": "a", "max_tokens": 1})
    assert asked.status_code == 200
    limit = time.monotonic() + 60
    named: list[str] = []
    while "prompt-tuning" not in named:  # a busy worker tells its numbers a little later
        assert time.monotonic() < limit, named
        lines = server.http.get("/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith("softmux_lora_requests_info{")]
        named = line.partition('running_lora_adapters="')[2].partition('"')[0].split(",")
    assert 'max_lora="64"' in line
    assert abs(float(line.rpartition(" ")[2]) - time.time()) < 60
