"""Thousands of nearly right adapters: read as what they are or refused in words, within bounds of memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import peft
import pytest
from formats_fixtures import make_spec
from zoo_fixtures import make_base, save, spec_of, tune

from softmux.errors import SoftmuxError
from softmux.formats.folder import read_adapter
from softmux.types import ModelSpec
from support.mutants import Files, mutant

_MOST_BYTES = 32 << 20


@pytest.fixture(scope="module")
def originals(saved: Callable[[str, str], Files]) -> list[tuple[Files, ModelSpec]]:
    """Good adapters of every build: vectors, prefixes, an encoder's weights, LoRA, rows of tokens, a head."""
    told = {"softmux.json": b'{"labels": ["a", "b"], "notes": "x", "trained_lengths": [1, 9]}'}
    prompts = [saved("gqa", method) | told for method in ("prompt", "mlp", "lstm", "prefix", "projection")]
    others = [
        ("llama", "CAUSAL_LM", peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])),
        ("llama-tied", "CAUSAL_LM", peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3, 5])),
        ("bert", "SEQ_CLS", peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)),
    ]
    three = {"softmux.json": b'{"labels": ["a", "b", "c"]}'}
    zoo = [
        (save(tune(make_base(base, task), config)) | (three if task == "SEQ_CLS" else {}), spec_of(base))
        for base, task, config in others
    ]
    for files, spec in zoo:
        read_adapter(files, spec)
    return [*((files, make_spec()) for files in prompts), *zoo]


def _judge(files: Files, spec: ModelSpec) -> str | None:
    """What is wrong with how `files` are taken; None where they are read, or refused in words."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        read_adapter(files, spec)
    except SoftmuxError as error:
        if not 400 <= error.status < 500:
            return f"status {error.status}"
        if not 20 < len(error.message) <= 2000 or not error.message.isprintable():
            return f"unreadable: {error.message[:200]!r}"
    except Exception as error:
        return f"raised {error!r}"[:300]
    used = tracemalloc.get_traced_memory()[1] - before
    return f"used {used:,} bytes" if used > _MOST_BYTES else None


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_mutants_are_read_or_refused(originals: list[tuple[Files, ModelSpec]], count: int) -> None:
    wrong: list[str] = []
    tracemalloc.start()
    try:
        for seed in range(count):
            files, spec = originals[seed % len(originals)]
            what, changed = mutant(files, seed)
            verdict = _judge(changed, spec)
            if verdict is not None:
                wrong.append(f"original {seed % len(originals)}, {what}: {verdict}")
    finally:
        tracemalloc.stop()
    assert not wrong, "\n".join(wrong)


def test_mutants_are_neither_all_wrong_nor_all_right(originals: list[tuple[Files, ModelSpec]]) -> None:
    """The mutations reach behind the first check: a good part of them is read as an adapter."""
    read = 0
    for seed in range(400):
        files, spec = originals[seed % len(originals)]
        try:
            read_adapter(mutant(files, seed)[1], spec)
        except SoftmuxError:
            continue
        read += 1
    assert 20 <= read <= 200
