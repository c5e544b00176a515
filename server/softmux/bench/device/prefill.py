"""Prompts taken in, and nothing else: the share of the device's own matmul rate that its products reach.

`softmux bench prefill --shape 8b --rows 32 --tokens 2048`: random weights, fresh prompts each time, from the hand-over
of all of them to their first tokens, host included. Only products with weights are counted as work: two operations a
weight and token, the output projection for a prompt's last token alone. Attention's, half of them masked, are told
apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence

from softmux.bench.bases.random_base import SHAPES
from softmux.bench.device.gpu import Bench, Workload
from softmux.bench.device.rates import kernel_seconds, name_of, product_rate, told_times


def product_operations(bench: Bench, rows: int, tokens: int) -> int:
    """Of the products with weights over `rows` prompts of `tokens`."""
    spec = bench.engine.spec
    widths = {linear.name: linear.inputs * linear.outputs for linear in spec.linears}
    head = widths.pop(spec.output_embedding, 0)
    return 2 * rows * (tokens * sum(widths.values()) + head)


def attention_operations(bench: Bench, rows: int, tokens: int) -> int:
    """Of scores and weighted values, for the keys that each token sees."""
    config = bench.engine.model.module.config
    each: int = sum(layer.head_dim for layer in bench.engine.spec.layers) * config.num_attention_heads
    return 4 * rows * (tokens * (tokens + 1) // 2) * each


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench prefill", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rows", type=int, default=32, help="prompts at once")
    parser.add_argument("--tokens", type=int, default=2048, help="of each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=8192, help="of the square product that gives the rate")
    parser.add_argument("--profile", action="store_true", help="tell where the device's time goes, in one more run")
    options = parser.parse_args(arguments)
    if min(options.rows, options.tokens, options.repeats, options.side) < 1:
        parser.error("rows, tokens, repeats and side are at least 1")
    bench = Bench(options.shape, options.rows, tasks=1, device=options.device)
    rate = product_rate(bench.device, bench.engine.model.dtype, options.side)
    work = Workload(options.rows, options.tokens, options.tokens, 1)
    lengths = [options.tokens] * options.rows
    seconds = [options.rows / bench.throughput(work, [bench.bare], lengths) for _ in range(options.repeats + 1)][1:]
    took = statistics.median(seconds)
    if options.profile:
        told_times(kernel_seconds(bench.device, lambda: bench.throughput(work, [bench.bare], lengths)))
    products = product_operations(bench, options.rows, options.tokens)
    attention = attention_operations(bench, options.rows, options.tokens)
    sys.stdout.write(
        f"{name_of(bench.device)}, {options.shape}: {options.rows} prompts of {options.tokens} in {took * 1e3:.1f} ms, "
        f"{options.rows * options.tokens / took:,.0f} tokens/s; products {products / took / 1e12:.2f} TFLOP/s, "
        f"{products / took / rate:.1%} of the {rate / 1e12:.2f} measured; with attention's "
        f"{(products + attention) / took / rate:.1%}\n"
    )
    told = {"shape": options.shape, "rows": options.rows, "tokens": options.tokens, "seconds": seconds}
    told |= {"product_rate": rate, "product_operations": products, "attention_operations": attention}
    sys.stdout.write(json.dumps(told) + "\n")
    bench.engine.close()
    return 0
