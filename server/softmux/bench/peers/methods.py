"""`softmux bench methods FOLDER …`: new tokens a second of one base under each of these adapters and bare, on the same
held-out rows, with the same number of new tokens. They take turns in one engine, forwards, then backwards (ABBA)."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from softmux.bench.loads.options import parse_settings
from softmux.bench.loads.race import spread
from softmux.bench.loads.report import wide_console, write_json
from softmux.bench.loads.workload import Job
from softmux.bench.peers.inprocess import settings_of
from softmux.bench.peers.offline import OfflineEngine
from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder, read_adapter
from softmux.formats.layout import TransformersEncoder, lay_out
from softmux.types import ModelSpec

BARE = "bare"


@dataclass(frozen=True, slots=True)
class Measured:
    """`rates`: new tokens a second, a round; `ratios`: over the bare model's of the same round; `cpu`: the same of CPU
    seconds a token, the bare model's over its own. `about`: the method, its numbers and its files' bytes."""

    name: str
    about: tuple[str, int, int]
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ratios(self, bare: Measured) -> list[float]:
        return [own / other for own, other in zip(self.rates, bare.rates, strict=True)]

    def cpu(self, bare: Measured) -> list[float]:
        return [other / own for own, other in zip(self.seconds, bare.seconds, strict=True)]


def compare(engine: OfflineEngine, found: Sequence[Measured], rows: Sequence[tuple[int, ...]], new_tokens: int,
            rounds: int) -> None:  # fmt: skip
    """Fills `found`, the bare model first and then the engine's tasks in order: each answers all rows, handed over at
    once, in every round. What a row's text left in the cache is forgotten before; adapters stay in memory."""
    jobs = [[Job(None if number == 0 else number - 1, ids, new_tokens) for ids in rows] for number in range(len(found))]
    for own in jobs:  # loads the adapters, and makes what is made at the first batch of its size
        engine.run(own)
    for number in range(rounds):
        turns = list(zip(found, jobs, strict=True))
        for one, own in turns if number % 2 == 0 else reversed(turns):
            engine.forget_texts()
            before = time.process_time()
            run = engine.run(own)
            if run.tokens != len(rows) * new_tokens:
                raise InvalidRequest(
                    f"{one.name} made {run.tokens} tokens of {len(rows) * new_tokens}: the rows and --new-tokens do "
                    "not fit into the base's context. Lower --new-tokens.",
                    param="new-tokens",
                )
            one.rates.append(run.rate)
            one.seconds.append((time.process_time() - before) / run.tokens)


def held_out(folders: Sequence[Path]) -> list[str]:
    """The test rows of the folders' recipes. Raises `InvalidRequest` where a folder has none, or another's rows."""
    from softmux.tuning import sources  # needs softmux[tune]
    from softmux.tuning.data.split import is_test
    from softmux.tuning.plan import answers_of
    from softmux.tuning.recipes.recipe import read_recipe

    by_folder: dict[Path, list[str]] = {}
    for folder in folders:
        if not (path := folder / "recipe.toml").is_file():
            raise InvalidRequest(
                f"{folder} has no recipe.toml that says its rows: give them by --texts.", param="texts"
            )
        recipe = read_recipe(path)
        examples = sources.load(recipe.data, folder, None, answers_of(recipe))
        by_folder[folder] = [example.text for example in examples if is_test(example.text)]
    first, *others = by_folder
    for other in others:
        if by_folder[other] != by_folder[first]:
            raise InvalidRequest(
                f"{first} and {other} hold out other rows: give the rows for all by --texts.", param="texts"
            )
    return by_folder[first]


def named(folders: Sequence[Path], spec: ModelSpec) -> tuple[list[Measured], list[Mapping[str, bytes]]]:
    """What is to be measured, the bare model first, and the adapters' files. Raises `InvalidRequest` for one that
    answers in another way than by going on from the text."""
    found, files = [Measured(BARE, ("–", 0, 0))], list[Mapping[str, bytes]]()
    for folder in folders:
        files.append(load_folder(folder))
        adapter = read_adapter(files[-1], spec)
        manifest = adapter.manifest
        if manifest.head is not None or manifest.template is not None:
            what = "a head" if manifest.head is not None else "a template"
            raise InvalidRequest(f"{folder} has {what}: methods are compared on the same plain rows.", param="folders")
        size = sum(len(data) for name, data in files[-1].items() if name.endswith(".safetensors"))
        found.append(Measured(folder.name, (manifest.method, manifest.parameters, size)))
    if len({one.name for one in found}) < len(found):
        raise InvalidRequest(f"Two folders have one name, or one is called {BARE}.", param="folders")
    return found, files


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    console = wide_console()
    chosen = {"model": options.model or _demo_model(), "device": options.device, "dtype": options.dtype}
    settings = settings_of(
        chosen | {"threads": options.threads, "max_waiting": 1 << 20},
        parse_settings(options.set) if options.set else {},
    )
    if min(options.rounds, options.new_tokens, options.rows) < 1:
        raise InvalidRequest("--rounds, --new-tokens and --rows are at least 1.", param="rounds")
    texts = _texts(options)
    load = os.getloadavg()[0]
    engine = OfflineEngine(settings, [])
    try:
        spec = engine.engine.spec
        found, files = named(options.folders, spec)
        engine.register(files)
        compare(engine, found, _ids(settings.model, texts, spec), options.new_tokens, options.rounds)
    finally:
        engine.close()
    console.print(
        f"{spec.model_id} in {spec.dtype} on {spec.device}, {os.cpu_count()} CPUs, load average {load:.1f} before; "
        f"{len(texts)} rows at once, {options.new_tokens} new tokens each, {options.rounds} rounds, forwards, then "
        "backwards"
    )
    report(console, found, on_cpu=spec.device == "cpu")
    if options.json is not None:
        about = {"model": spec.model_id, "dtype": spec.dtype, "device": spec.device, "load_average": load}
        write_json(options.json, about | {"rows": len(texts), "new_tokens": options.new_tokens} | figures(found))


def report(console: Console, found: Sequence[Measured], *, on_cpu: bool) -> None:
    """What each made, and its share of the bare model's of the same round; on a CPU the share by CPU seconds, too,
    which what else the machine does changes less."""
    bare = found[0]
    table = Table("median (min – max)", "new tokens/s", "of bare", *(["of bare, by CPU seconds"] if on_cpu else []))
    for one in found:
        shares = [one.ratios(bare), *([one.cpu(bare)] if on_cpu else [])]
        table.add_row(one.name, _span(one.rates, ",.1f"), *(_span(share, ".1%") for share in shares))
    console.print(table)
    for one in found[1:]:
        method, numbers, size = one.about
        console.print(f"{one.name}: {method}, {numbers:,} numbers, {size:,} bytes")


def _span(values: Sequence[float], form: str) -> str:
    median, low, high = spread(values)
    return f"{median:{form}} ({low:{form}} – {high:{form}})"


def figures(found: Sequence[Measured]) -> dict[str, Any]:
    return {
        "methods": {
            one.name: {
                "method": one.about[0],
                "parameters": one.about[1],
                "bytes": one.about[2],
                "tokens_per_second": one.rates,
                "of_bare": one.ratios(found[0]),
                "of_bare_by_cpu_seconds": one.cpu(found[0]),
            }
            for one in found
        }
    }


def _texts(options: argparse.Namespace) -> list[str]:
    if options.texts is None:
        if not (texts := held_out(options.folders)):
            raise InvalidRequest("The recipes hold out no rows: give some by --texts.", param="texts")
        return texts[: options.rows]
    try:
        written = options.texts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"{options.texts} can not be read ({why}): give a file of text.", param="texts") from None
    if not (texts := [line for line in written.splitlines() if line.strip()]):
        raise InvalidRequest(f"{options.texts} has no line of text.", param="texts")
    return texts[: options.rows]


def _ids(model: str, texts: Sequence[str], spec: ModelSpec) -> list[tuple[int, ...]]:
    from transformers import AutoTokenizer

    encoder = TransformersEncoder(AutoTokenizer.from_pretrained(model))
    return [lay_out(None, encoder, vocab_size=spec.vocab_size, prompt=text) for text in texts]


def _demo_model() -> str:
    from softmux.demo import demo_model

    return str(demo_model())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="softmux bench methods", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="an adapter's")
    parser.add_argument("--model", help="the base, a folder or a hub id; default: the demo's")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a row a line; default: what the recipes hold out")
    parser.add_argument("--rows", type=int, default=32, help="at most so many (32)")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each row (64)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--set", default="", metavar="NAME=VALUE,…", help="other settings of softmux serve")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser
