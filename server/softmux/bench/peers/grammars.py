"""`softmux bench grammars --model DIR`: llguidance against xgrammar on many tenants' different schemas.

Every schema is compiled once, and a document of it is walked token by token: each token is drawn from those allowed,
the same way for both. Each library runs in a process of its own. What is told: seconds to compile, seconds for a
token's mask, memory of the compiled schemas that are kept, and whether the documents validate.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np

from softmux.bench.peers.schemas import Schema, random_schema

_LONGEST = 400


class _Walker(Protocol):
    def mask(self, into: np.ndarray[Any, Any]) -> None: ...
    def take(self, token: int) -> None: ...


@dataclass(slots=True)
class Measured:
    """Of one library: seconds by schema and by token, bytes, and how documents came out."""

    library: str
    compile: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    masks: list[float] = field(default_factory=list)
    kept: int = 0
    valid: int = 0
    cut: int = 0
    wrong: int = 0
    refused: int = 0


def _llguidance(model: Path, vocabulary: int, eos: int) -> Callable[[Schema], _Walker]:
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer(str(model / "tokenizer.json"), n_vocab=vocabulary, eos_token=eos)

    class Walker:
        def __init__(self, schema: Schema) -> None:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
            self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
            if self._matcher.is_error():
                raise ValueError(self._matcher.get_error())

        def mask(self, into: np.ndarray[Any, Any]) -> None:
            self._matcher.unsafe_compute_mask_ptr(into.ctypes.data, into.nbytes)

        def take(self, token: int) -> None:
            self._matcher.consume_token(token)

    return Walker


def _xgrammar(model: Path, vocabulary: int, eos: int) -> Callable[[Schema], _Walker]:
    import torch
    import xgrammar
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=[eos])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)

    class Walker:
        def __init__(self, schema: Schema) -> None:
            compiled = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
            self._matcher = xgrammar.GrammarMatcher(compiled)

        def mask(self, into: np.ndarray[Any, Any]) -> None:
            self._matcher.fill_next_token_bitmask(torch.from_numpy(into[None]))

        def take(self, token: int) -> None:
            self._matcher.accept_token(token)

    return Walker


_LIBRARIES: dict[str, Callable[[Path, int, int], Callable[[Schema], _Walker]]] = {
    "llguidance": _llguidance,
    "xgrammar": _xgrammar,
}


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _measure(library: str, model: Path, count: int, seed: int) -> Measured:
    from jsonschema import Draft202012Validator
    from tokenizers import Tokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    config = json.loads((model / "config.json").read_text())
    vocabulary = int(config["vocab_size"])
    eos = config["eos_token_id"]
    eos = int(eos[0] if isinstance(eos, list) else eos)
    text = Tokenizer.from_file(str(model / "tokenizer.json"))
    make = _LIBRARIES[library](model, vocabulary, eos)
    measured = Measured(library)
    mask = np.zeros((vocabulary + 31) // 32, np.int32)
    make(random_schema(0, seed=seed - 1)).mask(mask)  # what is built but once
    before, kept = _resident(), []
    for number in range(count):
        schema = random_schema(number, seed=seed)
        began = time.perf_counter()
        try:
            walker = make(schema)
        except (ValueError, RuntimeError) as error:
            print(f"{library} refuses schema {number}: {str(error)[:200]}", file=sys.stderr)  # noqa: T201
            measured.refused += 1
            continue
        measured.compile.append(time.perf_counter() - began)
        kept.append(walker)
        chance = Random(number)  # noqa: S311
        said: list[int] = []
        while len(said) < _LONGEST:
            began = time.perf_counter()
            walker.mask(mask)
            (measured.masks if said else measured.first).append(time.perf_counter() - began)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocabulary])
            token = int(chance.choice(allowed)) if len(allowed) else eos
            if token == eos:
                break
            walker.take(token)
            said.append(token)
        if len(said) >= _LONGEST:
            measured.cut += 1
            continue
        try:
            good = Draft202012Validator(schema).is_valid(json.loads(text.decode(said, skip_special_tokens=False)))
        except ValueError:
            good = False
        measured.valid, measured.wrong = measured.valid + good, measured.wrong + (not good)
    measured.kept = _resident() - before
    return measured


def _spread(seconds: Sequence[float]) -> str:
    values = np.array(seconds) * 1e3
    p50, p99 = np.percentile(values, [50, 99])
    return f"{values.mean():8.3f} {p50:8.3f} {p99:8.3f} {values.max():8.3f}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench grammars", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder with config.json and tokenizer.json")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(f"{options.schemas} schemas on {options.model.name}; {platform.machine()}, load {os.getloadavg()[0]:.1f}")  # noqa: T201
    for library in _LIBRARIES:
        if find_spec(library) is None:
            print(f"left out: {library} is not installed (pip install {library})")  # noqa: T201
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            got: Measured = pool.apply(_measure, (library, options.model, options.schemas, options.seed))
        lines = [
            f"{library}: valid {got.valid}, invalid {got.wrong}, cut at {_LONGEST} tokens {got.cut}, "
            f"refused {got.refused}",
            "  milliseconds           mean      p50      p99      max",
            f"  to compile a schema {_spread(got.compile)}",
            f"  a first mask        {_spread(got.first)}",
            f"  a later mask        {_spread(got.masks)}   ({len(got.masks)} tokens)",
            f"  kept for a schema   {got.kept / max(1, len(got.compile)) / 1024:8.1f} KiB",
        ]
        print("\n".join(lines))  # noqa: T201
    return 0
