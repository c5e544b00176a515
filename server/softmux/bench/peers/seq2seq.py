"""`softmux bench seq2seq`: 64 requests over 16 tasks of four methods on an encoder-decoder, all at once, against PEFT's
loop: `set_adapter` and `generate`, one request after the other. They take turns."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from softmux.bench.loads.lengths import parse_lengths
from softmux.bench.loads.load import Load, Plan
from softmux.bench.loads.mixes import TaskMix
from softmux.bench.loads.options import watcher
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.race import Contender, Race, closing, run_race, spread
from softmux.bench.loads.report import print_race, race_json, wide_console, write_json
from softmux.bench.loads.target import Target
from softmux.bench.loads.workload import make_adapters
from softmux.bench.peers.offline import OfflineEngine, OfflineTarget
from softmux.bench.peers.peers import LOOPED, SetAdapter, load_base, quiet_transformers
from softmux.formats.folder import load_folder
from softmux.settings import Settings

REQUESTS = 64
TASKS = 16
PEFT = "PEFT"
SOFTMUX = "softmux, mixed"


class _Clocked:
    """A target, with the CPU seconds a new token that each of its runs took: other load changes these little."""

    def __init__(self, target: Target) -> None:
        self.name = target.name
        self.seconds: list[float] = []
        self._target = target

    def run(self, load: Load) -> tuple[list[Outcome], float | None]:
        before = time.process_time()
        outcomes, busy = self._target.run(load)
        worked = time.process_time() - before
        self.seconds.append(worked / sum(outcome.tokens for outcome in outcomes))
        return outcomes, busy

    def close(self) -> None:
        self._target.close()


def t5_small(folder: Path) -> str:
    """A T5 of the published small one's shape, with random weights, saved to `folder`."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def run_seq2seq(
    console: Console, model: str | None, *, threads: int, repeats: int, input_len: str, output_len: str
) -> tuple[Plan, Race, list[float]]:
    """The race, PEFT first, so that softmux's ratio is over it; and by repeat the ratio of CPU seconds. `model`: a
    folder; None: T5-small's shape at random."""
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = model or t5_small(Path(scratch) / "base")
        base = load_base(model)
        folders = make_adapters(base, Path(scratch) / "adapters", TASKS)
        settings = Settings(model=model, device="cpu", dtype="float32", threads=threads, kv_tokens=16384)
        engine = OfflineEngine(settings, [load_folder(path) for path in folders])
        peft, softmux = _Clocked(SetAdapter(base, folders)), _Clocked(OfflineTarget(SOFTMUX, engine))
        contenders = [Contender(PEFT, peft), Contender(SOFTMUX, softmux)]
        plan = Plan(
            tasks=tuple(path.name for path in folders),
            vocabulary=engine.engine.spec.vocab_size,
            requests=REQUESTS,
            mix=TaskMix(),
            input_len=parse_lengths(input_len),
            output_len=parse_lengths(output_len),
            request_rate=float("inf"),
            warmups=TASKS,
        )
        with closing(contenders):
            race = run_race(plan, contenders, repeats=repeats, watch=watcher(console))
        worked = zip(peft.seconds, softmux.seconds, strict=True)
        return plan, race, [theirs / ours for theirs, ours in worked][1:]  # the first was the warm-up


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="softmux bench seq2seq", description=__doc__)
    parser.add_argument("--model", help="base model; default: random weights in the shape of T5-small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--input-len", default="uniform:8:32", metavar="LEN")
    parser.add_argument("--output-len", default="32", metavar="LEN")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    quiet_transformers()
    load = os.getloadavg()[0]
    console = wide_console()
    plan, race, cpu = run_seq2seq(
        console, options.model, threads=options.threads, repeats=options.repeats, input_len=options.input_len,
        output_len=options.output_len,
    )  # fmt: skip
    console.print(f"{plan.words()}; {options.threads} threads, fp32, load average {load:.1f} before", style="dim")
    print_race(console, race)
    for what, ratios in (("on the clock", race.ratios()[SOFTMUX]), ("in CPU seconds", cpu)):
        median, low, high = spread(ratios)
        console.print(
            f"softmux is {median:.1f} × PEFT {what} ({low:.1f} – {high:.1f}); PEFT ran {LOOPED} of the requests"
        )
    if options.json is not None:
        write_json(options.json, race_json(race, {"load": plan.words(), "load_average": load, "cpu_ratios": cpu}))
