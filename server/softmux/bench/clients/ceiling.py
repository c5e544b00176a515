"""`softmux bench client`: what the bench's own client can send and read, so that it is known not to be what limits."""

from __future__ import annotations

import argparse
import multiprocessing
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from softmux.bench.clients.canned import canned_app
from softmux.bench.clients.client import Endpoint
from softmux.bench.clients.clients import HttpTarget
from softmux.bench.loads.arrivals import at_once
from softmux.bench.loads.load import Load
from softmux.bench.loads.summary import summarize
from softmux.bench.loads.workload import Job

_TOKENS = 128


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench client", description=__doc__)
    parser.add_argument("--concurrency", type=int, default=256, help="streams at a time (256)")
    parser.add_argument(
        "--num-prompts", type=int, default=1024, help="requests of 256 ids, replies of 128 tokens (1,024)"
    )
    parser.add_argument("--gap", type=float, default=0.01, help="seconds between a stream's events (0.01)")
    parser.add_argument("--client-processes", type=int, default=1)
    options = parser.parse_args(arguments)
    jobs = tuple(Job(None, tuple(range(10_000, 10_256)), _TOKENS) for _ in range(options.num_prompts))
    load = Load(jobs, at_once(len(jobs), options.concurrency), ())
    console = Console()
    table = Table("", "a second", "client busy", "a core can")
    with canned_server(options.gap) as url:
        for stream, what in ((True, "events, each read by itself"), (False, "whole replies")):
            target = HttpTarget(url, Endpoint(url, stream=stream), options.client_processes)
            target.run(load)
            outcomes, busy = target.run(load)
            target.close()
            summary = summarize(outcomes)
            if summary.failed:
                raise RuntimeError(f"{summary.failed} requests failed: {summary.errors}")
            rate = summary.output_throughput if stream else summary.request_throughput
            table.add_row(what, f"{rate:,.0f}", f"{busy:.0%}", f"{rate / busy / options.client_processes:,.0f}")
    console.print(f"{options.concurrency} at a time, {options.client_processes} client process(es)")
    console.print(table)
    return 0


@contextmanager
def canned_server(gap: float = 0.0) -> Iterator[str]:
    """A canned server in a process of its own; its URL."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(listening, gap), daemon=True)
    process.start()
    try:  # connections wait in the socket's queue until it serves
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        process.terminate()
        process.join(10)


def _serve(listening: socket.socket, gap: float) -> None:
    import uvicorn

    config = uvicorn.Config(canned_app(gap), log_level="warning", access_log=False, lifespan="off", backlog=1024)
    uvicorn.Server(config).run(sockets=[listening])
