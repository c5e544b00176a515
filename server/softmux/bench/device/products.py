"""A step's matrix products, each way they can be computed, beside the card's own copy rate.

`softmux bench products --shape 1b --rows 1,2,64`: random weights of every layer, read one after the other as a step
reads them. For each product the way that is fastest, its time and the share of the copy rate at which it brings its
weights; with `--every` all ways. The last line of a row count is a whole step's products.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from softmux.bench.bases.random_base import SHAPES, config_of
from softmux.bench.device.attention import seconds_of
from softmux.bench.device.rates import copy_rate, name_of
from softmux.engine.engine import pick_device

_CALLS = 24


def products_of(shape: str) -> dict[str, tuple[int, int, int]]:
    """By name: how often a step has it, its outputs and its inputs."""
    config = config_of(shape)
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    both = 2 * config.num_key_value_heads * config.head_dim
    return {
        "qkv": (layers, queries + both, hidden),
        "output": (layers, hidden, queries),
        "gate-up": (layers, 2 * inner, hidden),
        "down": (layers, hidden, inner),
        "head": (1, config.vocab_size, hidden),
    }


def times_of(name: str, rows: int, chain: Sequence[torch.Tensor], device: torch.device) -> dict[str, float]:
    """Seconds of a call, by way; gate-up with SiLU·up behind it. A way that does not run is left out."""
    ways: dict[str, Callable[..., torch.Tensor]] = {"library": torch.nn.functional.linear}
    if device.type == "cuda":
        from softmux.engine.products import Product, Products

        ways = dict(Products().ways(rows, Product(chain[0], gated=name == "gate-up")))
    x = torch.randn((rows, chain[0].shape[1]), dtype=chain[0].dtype, device=device)

    def seconds(run: Callable[..., torch.Tensor]) -> float:
        def all_of_it() -> None:
            for weight in chain:
                run(x, weight, None)

        return seconds_of(all_of_it, device) / len(chain)

    found = {}
    for way, run in ways.items():
        try:
            found[way] = seconds(run)
        except Exception as error:
            sys.stderr.write(f"{name}, {rows} rows: {way} is left out: {error}\n")
    return found


@torch.inference_mode()
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench products", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rows", default="1,2,16,64,256", help="row counts, with commas between")
    parser.add_argument("--every", action="store_true", help="tell every way's time, not the fastest's alone")
    options = parser.parse_args(arguments)
    try:
        counts = [int(count) for count in options.rows.split(",")]
    except ValueError:
        parser.error("rows: numbers with commas between, such as 1,2,64")
    if min(counts) < 1:
        parser.error("rows: at least 1")
    device = pick_device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rate = copy_rate(device, 1 << 30 if device.type == "cuda" else 1 << 26)
    say: Any = sys.stdout.write
    say(f"{name_of(device)}, {options.shape}, {dtype}: copies at {rate / 1e12:.2f} TB/s\n")
    totals = dict.fromkeys(counts, 0.0)
    moved = 0
    for name, (often, outputs, inputs) in products_of(options.shape).items():
        chain = [torch.randn((outputs, inputs), dtype=dtype, device=device) for _ in range(min(often, _CALLS))]
        size = chain[0].nbytes
        moved += often * size
        while len(chain) < _CALLS:
            chain += chain[: _CALLS - len(chain)]
        for rows in counts:
            times = times_of(name, rows, chain, device)
            best = min(times, key=lambda way: times[way])
            totals[rows] += often * times[best]
            for way in times if options.every else (best,):
                product = f"{rows:5} rows {name:8} {outputs:6} x {inputs:5} {'*' if way == best else ' '} {way:28}"
                say(f"{product} {times[way] * 1e6:8.1f} us {size / times[way] / rate:6.1%}\n")
        del chain
    for rows, seconds in totals.items():
        share = moved / seconds / rate
        say(f"{rows:5} rows: a step's products {seconds * 1e3:.3f} ms, {share:.1%} of the copy rate\n")
    return 0
