"""`softmux bench structured`: random JSON schemas on a model, in one batch with free rows and soft prompts.

Two things are told: of the documents how many parse and validate, and what the free rows' throughput loses against the
same batch without grammars (rows of the same prompts and lengths, free). Runs with and without take turns, ABBA, and
processor seconds are told beside the clock's: other load on the machine changes those little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from softmux.bench.loads.report import wide_console, write_json
from softmux.bench.loads.workload import random_prompt_adapter
from softmux.bench.peers.peers import quiet_transformers
from softmux.bench.peers.schemas import Schema, random_schema
from softmux.engine.local import LocalEngine
from softmux.settings import Settings
from softmux.types import DEFAULT_TENANT, Grammar, SamplingParams

_TASKS = 8
_FREE_TOKENS = 200
_MOST_TOKENS = 640
_CLIENT = b"bench"


@dataclass(frozen=True, slots=True)
class Document:
    """What a row with a grammar came to."""

    schema: int
    tokens: tuple[int, ...]
    reason: str


@dataclass(slots=True)
class Block:
    """Some schemas' rows beside free ones that never end before them."""

    seconds: float = 0.0
    worked: float = 0.0
    """Processor seconds, of all threads."""
    steps: int = 0
    free_tokens: int = 0
    documents: list[Document] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Mixed:
    """The engine, and both kinds of blocks on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import AutoTokenizer

        settings = Settings(
            model=options.model, device=options.device, dtype=options.dtype, threads=options.threads, grammar_cache=1024
        )
        self._local = LocalEngine(settings)
        self._engine = self._local.engine
        hidden = self._engine.spec.hidden_size
        self._local.register(random_prompt_adapter(number, hidden) for number in range(_TASKS))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
        self._most = min(_MOST_TOKENS, self._engine.spec.context_length // 2)
        self._free, self._bound, self._seed = options.free, options.bound, options.seed
        self._runs = 0

    @property
    def about(self) -> str:
        spec = self._engine.spec
        return f"{spec.model_id} in {spec.dtype} on {spec.device}, {os.cpu_count()} CPUs"

    def schema(self, number: int) -> Schema:
        return random_schema(number, seed=self._seed)

    def text(self, document: Document) -> str:
        return str(self._tokenizer.decode(document.tokens, skip_special_tokens=False))

    def run(self, numbers: Sequence[int], lengths: dict[int, int] | None = None) -> Block:
        """One block: with grammars, or, where `lengths` are given, without, each row so long."""
        engine, block = self._engine, Block()
        self._local.forget_texts()
        self._runs += 1
        tenant = f"{DEFAULT_TENANT}-{self._runs}"  # whose grammars nobody has compiled yet
        waiting = deque(numbers)
        running: dict[str, tuple[int, list[int]]] = {}
        free, asked = set[str](), 0
        began, worked = time.perf_counter(), time.process_time()
        while waiting or running:
            while len(free) < self._free:
                asked += 1
                free.add(self._add_free(f"free-{asked}", asked))
            for _ in range(min(len(waiting), self._bound - len(running))):
                number = waiting.popleft()
                sampling = self._sampling(number, lengths)
                if sampling.grammar is not None and not engine.grammars.expect(tenant, sampling.grammar):
                    waiting.append(number)  # it is being compiled, beside the steps
                    continue
                name = f"bound-{number}"
                running[name] = number, []
                ids = self._tokenizer(self._prompt(number))["input_ids"]
                root = engine.key(tenant, None)
                engine.add(name, tuple(ids), sampling, root=root, now=time.monotonic(), client=_CLIENT)
            news = engine.step()
            block.steps += 1
            for sequence, output in news.each():
                if sequence.id in free:
                    block.free_tokens += len(output.tokens)
                    if output.finish_reason:
                        free.discard(sequence.id)
                elif sequence.id in running:
                    number, tokens = running[sequence.id]
                    tokens.extend(output.tokens)
                    if output.finish_reason:
                        del running[sequence.id]
                        block.documents.append(Document(number, tuple(tokens), output.finish_reason))
            for sequence, error in news.failed:
                free.discard(sequence.id)
                if running.pop(sequence.id, None) is not None:
                    block.failed.append(error.message)
        block.seconds, block.worked = time.perf_counter() - began, time.process_time() - worked
        engine.scheduler.abort_client(_CLIENT)
        while not engine.idle:
            engine.step()
        engine.check_integrity()
        return block

    def _prompt(self, number: int) -> str:
        return f"As JSON, with {', '.join(self.schema(number)['properties'])}:\n"

    def _sampling(self, number: int, lengths: dict[int, int] | None) -> SamplingParams:
        chance: dict[str, Any] = {"temperature": 1.0, "seed": number} if number % 2 else {}
        if lengths is not None:
            return SamplingParams(max_tokens=lengths[number], ignore_eos=True, **chance)
        grammar = Grammar("json_schema", json.dumps(self.schema(number)))
        return SamplingParams(max_tokens=self._most, grammar=grammar, **chance)

    def _add_free(self, name: str, number: int) -> str:
        engine = self._engine
        place = self._local.place(number % _TASKS if number % 2 else None)
        ids = self._tokenizer(f"Number {number} of the stories that were told here begins so:")["input_ids"]
        sampling = SamplingParams(max_tokens=_FREE_TOKENS, ignore_eos=True)
        engine.add(name, (*place.virtual, *ids), sampling, root=place.root, now=time.monotonic(), client=_CLIENT)
        return name

    def close(self) -> None:
        self._local.close()


@dataclass(slots=True)
class Verdict:
    valid: int = 0
    wrong: list[str] = field(default_factory=list)
    cut: int = 0
    failed: list[str] = field(default_factory=list)
    tokens: int = 0

    def hear(self, mixed: Mixed, block: Block) -> None:
        from jsonschema import Draft202012Validator

        self.failed += block.failed
        for document in block.documents:
            self.tokens += len(document.tokens)
            if document.reason != "stop":
                self.cut += 1
                continue
            text = mixed.text(document)
            try:
                good = Draft202012Validator(mixed.schema(document.schema)).is_valid(json.loads(text))
            except ValueError:
                good = False
            if good:
                self.valid += 1
            else:
                self.wrong.append(f"schema {document.schema}: {text[:200]}")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    quiet_transformers()
    console = wide_console()
    load = [os.getloadavg()[0]]
    mixed = Mixed(options)
    try:
        console.print(f"{mixed.about}; {options.bound} rows with grammars, {options.free} without, in each step")
        blocks = [
            range(at, min(at + options.block, options.schemas)) for at in range(0, options.schemas, options.block)
        ]
        mixed.run(blocks[0][:2])  # what is made but once
        verdict, pairs = Verdict(), list[tuple[list[Block], list[Block]]]()
        for at, numbers in enumerate(blocks):
            first = mixed.run(numbers)
            verdict.hear(mixed, first)
            if at < options.pairs and not first.failed:
                lengths = {one.schema: len(one.tokens) + (one.reason == "stop") for one in first.documents}
                without = [mixed.run(numbers, lengths), mixed.run(numbers, lengths)]
                pairs.append(([first, mixed.run(numbers)], without))
            load.append(os.getloadavg()[0])
            found = _figures(verdict, pairs[-1:] if at < len(pairs) else [], load)
            lost = "".join(
                f", {words} {found[name][0]:+.1%}"
                for name, words in (("throughput_loss", "throughput lost"), ("processor_cost", "processor cost"))
                if found[name]
            )
            console.print(f"{numbers.stop} schemas: {verdict.valid} valid{lost}, load {load[-1]:.1f}", style="dim")
    finally:
        mixed.close()
    figures = _figures(verdict, pairs, load)
    _print(console, figures, options.schemas)
    if options.json is not None:
        write_json(options.json, figures)
    return 1 if verdict.wrong or verdict.failed else 0


def _figures(
    verdict: Verdict, pairs: Sequence[tuple[list[Block], list[Block]]], load: Sequence[float]
) -> dict[str, Any]:
    rates = [[sum(b.free_tokens for b in side) / sum(b.seconds for b in side) for side in pair] for pair in pairs]
    works = [[sum(b.worked for b in side) / sum(b.free_tokens for b in side) for side in pair] for pair in pairs]
    return {
        "documents": {
            "valid": verdict.valid,
            "invalid": verdict.wrong,
            "cut_by_max_tokens": verdict.cut,
            "failed": verdict.failed,
            "tokens": verdict.tokens,
        },
        "free_tokens_per_second": [{"with_grammars": a, "without": b} for a, b in rates],
        "processor_seconds_per_free_token": [{"with_grammars": a, "without": b} for a, b in works],
        "throughput_loss": [1 - a / b for a, b in rates],
        "processor_cost": [a / b - 1 for a, b in works],
        "load_average": list(load),
    }


def _print(console: Console, figures: dict[str, Any], schemas: int) -> None:
    told = figures["documents"]
    console.print(
        f"{told['valid']} of {schemas} documents valid, {len(told['invalid'])} invalid, "
        f"{told['cut_by_max_tokens']} cut by max_tokens, {len(told['failed'])} failed; {told['tokens']:,} tokens"
    )
    for line in (*told["invalid"], *told["failed"]):
        console.print(line, style="red", markup=False)
    for name, words in (
        ("throughput_loss", "free rows' throughput lost beside grammars"),
        ("processor_cost", "more processor seconds for a free token"),
    ):
        if values := figures[name]:
            low, high = min(values), max(values)
            middle = statistics.median(values)
            console.print(f"{words}: {middle:+.1%} (median of {len(values)} pairs, {low:+.1%} to {high:+.1%})")
    loads = figures["load_average"]
    console.print(f"load on the machine meanwhile: {min(loads):.1f} to {max(loads):.1f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="softmux bench structured", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face's layout, or a hub id")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--block", type=int, default=25, help="schemas of a run (25)")
    parser.add_argument("--pairs", type=int, default=8, help="blocks that are run ABBA, with and without grammars (8)")
    parser.add_argument("--bound", type=int, default=16, help="rows with a grammar at a time (16)")
    parser.add_argument("--free", type=int, default=16, help="free rows at a time (16)")
    parser.add_argument("--seed", type=int, default=0, help="of the schemas")
    parser.add_argument("--json", type=Path, help="writes the figures there")
    return parser
