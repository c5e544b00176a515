"""`softmux bench serve`: a load over HTTP, on softmux's own route or OpenAI's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from softmux.bench.clients.client import Endpoint
from softmux.bench.clients.clients import HttpTarget
from softmux.bench.loads.load import Load
from softmux.bench.loads.options import add_load_options, check_options, plan_of, publish, watcher
from softmux.bench.loads.race import Contender, closing, run_race
from softmux.bench.loads.report import wide_console
from softmux.bench.loads.slo import parse_slo
from softmux.errors import InvalidRequest

_VOCABULARY = 30_000
_PATHS = {"softmux": "/v1/generate", "openai": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Found:
    """What a server says of itself."""

    model: str
    vocabulary: int | None
    tasks: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    check_options(options)
    if not options.stream and any(word.startswith(("ttft", "tpot")) for word in options.goodput):
        raise InvalidRequest("A reply that comes whole has no first token: --goodput e2el:MS, or stream.")
    console = wide_console()
    endpoint = _endpoint(options, options.url)
    found = discover(endpoint, tasks=options.tasks != "none")
    endpoint = replace(endpoint, model=options.model or found.model)
    tasks = _chosen(options, found.tasks)
    plan = plan_of(options, tasks, options.vocab_size or found.vocabulary or _VOCABULARY)
    contenders = _contenders(options, endpoint)
    how = "streaming" if options.stream else "whole replies"
    console.print(f"{endpoint.model} at {options.url}{endpoint.path}, {how}, {options.client_processes} client(s)")
    console.print(plan.words())
    with closing(contenders):
        race = run_race(
            plan, contenders, repeats=options.repeats, slo=parse_slo(options.goodput), watch=watcher(console)
        )
    about = {"model": endpoint.model, "url": options.url, "path": endpoint.path, "stream": options.stream}
    publish(console, race, plan, options, ["serve", *_without_key(arguments)], about)
    return 0 if all(summary.completed for runs in race.summaries.values() for summary in runs) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="softmux bench serve", description=__doc__)
    parser.add_argument(
        "--url", "--base-url", default=os.environ.get("SOFTMUX_URL", "http://127.0.0.1:8000"), help="the server"
    )
    parser.add_argument("--api-key", default=os.environ.get("SOFTMUX_KEY"), help="default: SOFTMUX_KEY")
    parser.add_argument(
        "--backend", choices=_PATHS, default="softmux", help="softmux: /v1/generate; openai: /v1/completions"
    )
    parser.add_argument("--endpoint", metavar="PATH", help="another route that speaks the same")
    parser.add_argument("--model", help="openai: the base model's name; default: the server's first")
    parser.add_argument(
        "--tasks",
        default=None,
        metavar="all|none|N|A,B,…",
        help="default: softmux all the server has, openai none; or the first N, or those named",
    )
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="events, or whole replies"
    )
    parser.add_argument("--ignore-eos", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a request may take")
    parser.add_argument("--label", default="server", help="what its figures are called")
    parser.add_argument("--vocab-size", type=int, help="random ids lie below; default: the server's, or 30,000")
    parser.add_argument("--client-processes", type=int, choices=range(1, 65), default=1, metavar="N")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="bare|URL",
        help="another target that takes turns: the same prompts on the bare model, or another server",
    )
    add_load_options(parser)
    return parser


def _endpoint(options: argparse.Namespace, url: str) -> Endpoint:
    return Endpoint(
        url=url.rstrip("/"),
        path=options.endpoint or _PATHS[options.backend],
        openai=options.backend == "openai",
        api_key=options.api_key,
        stream=options.stream,
        ignore_eos=options.ignore_eos,
        temperature=options.temperature,
        timeout=options.timeout,
    )


def _contenders(options: argparse.Namespace, endpoint: Endpoint) -> list[Contender]:
    first = HttpTarget(endpoint.url, endpoint, options.client_processes)
    contenders = [Contender(options.label, first)]
    for other in options.compare:
        if other == "bare":
            contenders.append(Contender("bare model", first, Load.bare))
        elif other.startswith(("http://", "https://")):
            target = HttpTarget(other, replace(endpoint, url=other.rstrip("/")), options.client_processes)
            contenders.append(Contender(other, target))
        else:
            raise InvalidRequest(f"Compare with bare, or with a server's URL; not {other!r}.", param="compare")
    return contenders


def _chosen(options: argparse.Namespace, there: tuple[str, ...]) -> tuple[str, ...]:
    asked: str = options.tasks or ("none" if options.backend == "openai" else "all")
    if asked == "none":
        return ()
    if asked == "all":
        return there
    if asked.isdecimal():
        if int(asked) > len(there):
            raise InvalidRequest(f"The server has {len(there)} tasks, not {asked}.", param="tasks")
        return there[: int(asked)]
    return tuple(asked.split(","))


def discover(endpoint: Endpoint, *, tasks: bool) -> Found:
    """Asks the server for its model, its vocabulary's size and its tasks. Raises `InvalidRequest` in words where it
    does not answer."""
    headers = {"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=30) as http:
        model = _get(http, "/v1/model", must=not endpoint.openai)
        if endpoint.openai:
            listed = _get(http, "/v1/models", must=True)["data"]
            name = str(listed[0]["id"]) if listed else ""
            found = [str(each["id"]) for each in listed[1:] if each.get("parent") and each.get("generates", True)]
            return Found(name, model.get("vocab_size"), tuple(found))
        name = str(model["id"])
        found = []
        cursor: str | None = ""
        while tasks and cursor is not None:
            page = _get(http, "/v1/adapters", must=True, limit="100", **({"cursor": cursor} if cursor else {}))
            found += [str(version["task"]) for version in page["data"]]
            cursor = page["next_cursor"]
    return Found(name, model.get("vocab_size"), tuple(found))


def _get(http: httpx.Client, path: str, *, must: bool, **params: str) -> dict[str, Any]:
    try:
        reply = http.get(path, params=params)
    except httpx.TransportError as error:
        raise InvalidRequest(
            f"{http.base_url} does not answer ({error}): is a server there? --url says where."
        ) from error
    if reply.status_code == 200:
        found: dict[str, Any] = reply.json()
        return found
    if not must:
        return {}
    raise InvalidRequest(f"{http.base_url}{path} answered {reply.status_code}: {reply.text[:300]}")


def _without_key(arguments: Sequence[str]) -> list[str]:
    """The command line as it may be written down."""
    shown, hide = [], False
    for word in arguments:
        shown.append("…" if hide else word.split("=")[0] + "=…" if word.startswith("--api-key=") else word)
        hide = word == "--api-key"
    return shown
