"""Before any LoRA is served: does a mixed step add to each row its own adapter's update, on this very model?"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import torch

from softmux.engine.delta import Delta
from softmux.engine.deltas import Deltas
from softmux.engine.encoder_decoder import PackedEncoderDecoder
from softmux.engine.encoder_decoder_selftest import reference_of
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.rounding import Told, apart
from softmux.engine.runner import ModelRunner
from softmux.engine.trial import run_trial, trial_scheduler
from softmux.errors import SelfTestFailed
from softmux.formats.parts import PAIR, LoraLayer, LoraPart
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import LinearShape, ModelSpec, SamplingParams, TokenLogprobs

log = logging.getLogger(__name__)

_RANKS = (3, 18)
_LENGTHS = (6, 9, 4)
_GENERATED = 3
_STEP = 11
"""Tokens of a step: the longest row begins beside decodes. An encoder-decoder's begins whole, with a start."""
_MODULES = 14
"""So many of the first linear modules are updated, and of the last: a layer or two."""


def prove_deltas(runner: ModelRunner, spec: ModelSpec) -> ModelSpec:
    """Tests steps with LoRAs as they run fastest here, and where that fails, by torch on the untouched module. Gives
    the spec: without their words where that fails, too. An encoder generates nothing, and is not tested."""
    deltas = runner.deltas
    if deltas is None or "lora" not in spec.serves or spec.family == "encoder":
        return spec
    for last in (False, True):
        failed: Exception | None = None
        try:
            with runner.ways.proof():
                _test(runner, deltas, spec)
        except Exception as error:
            failed = error
        if runner.model.ranks is not None:
            failed = runner.model.ranks.judge(failed)
        if failed is None:
            return spec
        log.warning("steps with LoRAs are wrong %s: %s", "by torch, too" if last else "as they run fastest", failed)
        runner.ways.left("loras")
        deltas.leave_fast_paths()
    log.warning("%s serves no LoRA: admission refuses them", spec.architecture)
    return msgspec.structs.replace(spec, serves=spec.serves - {"lora", PAIR})


def _test(runner: ModelRunner, deltas: Deltas, spec: ModelSpec) -> None:
    """Three rows, two with LoRAs of different ranks, against the eager module with plain products beside its own."""
    base = RootKey("self-test", None, spec.base_fingerprint, spec.kv_format)
    parts: dict[RootKey, Delta] = {}
    for rank in _RANKS[: len(deltas.slots.deltas)]:
        root = base._replace(digest=f"self-test-{rank}")
        part = _random(spec, min(rank, deltas.slots.largest_rank))
        host = runner.model.own(HostAdapter.from_parts((part,), runner.model.dtype))
        assert host.delta is not None
        parts[root] = host.delta
        runner.tiers.adopt(root, host)
        runner.tiers.hold(root)
    scheduler = trial_scheduler(runner, spec, rows=3, step_tokens=_STEP)
    draw = np.random.default_rng(0)
    sampling = SamplingParams(max_tokens=_GENERATED, logprobs=min(20, spec.vocab_size))
    told: dict[str, tuple[Sequence, list[TokenLogprobs]]] = {}
    for root, length in zip([*parts, base], _LENGTHS, strict=False):
        ids = draw.integers(0, spec.vocab_size, length).tolist()
        source = None
        if isinstance(runner.model, PackedEncoderDecoder):
            source = 0, length
            ids.append(runner.model.start)
        sequence = Sequence(str(len(told)), b"", root, ids, sampling, 0.0, source=source)
        told[sequence.id] = sequence, []
        scheduler.add(sequence)
    try:
        for sequence, out in run_trial(runner, scheduler):
            told[sequence.id][1].extend(out.logprobs)
        rows = [_told(runner, sequence, heard, parts.get(sequence.root)) for sequence, heard in told.values()]
        worst, tolerance = apart(rows, runner.model.dtype)
    finally:
        scheduler.abort_client(b"")
        runner.forget_rows()
        for root in parts:
            runner.tiers.release(root)
            runner.tiers.forget(root)
    if not worst <= tolerance:
        raise SelfTestFailed(
            f"they differ from plain products by {worst:.3g} in log probability (at most {tolerance:g} is rounding)"
        )


def _random(spec: ModelSpec, rank: int) -> LoraPart:
    draw = np.random.default_rng(rank)
    linears = [linear for linear in spec.linears if linear.name != spec.output_embedding]

    def layer(linear: LinearShape) -> LoraLayer:
        a = draw.standard_normal((rank, linear.inputs), np.float32) / np.float32(linear.inputs**0.5)
        b = draw.standard_normal((linear.outputs, rank), np.float32) * np.float32(0.01 * (linear.inputs / rank) ** 0.5)
        return LoraLayer(a, b, 1.0)

    return LoraPart({linear.name: layer(linear) for linear in {*linears[:_MODULES], *linears[-_MODULES:]}})


def _told(runner: ModelRunner, sequence: Sequence, heard: list[TokenLogprobs], delta: Delta | None) -> Told:
    model = runner.model
    if len(heard) != _GENERATED:
        raise SelfTestFailed("a row ended early: its logits were not finite")

    eager = reference_of(model, sequence) if isinstance(model, PackedEncoderDecoder) else model.eager

    def reference(embeddings: torch.Tensor) -> torch.Tensor:
        with _plainly(model.module, delta):
            return eager(embeddings)

    with torch.inference_mode():
        embeddings = model.embedding(torch.tensor(sequence.tokens, device=model.device))
    return Told(sequence, heard, embeddings, reference)


@contextlib.contextmanager
def _plainly(module: Any, delta: Delta | None) -> Iterator[None]:
    """Every token that the module is given gains the update, by two products for each of its layers."""
    handles = []
    for update in delta.updates if delta is not None else ():
        assert delta is not None
        a, b = delta.a(update), delta.b(update)

        def gain(_: Any, given: Any, output: torch.Tensor, a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            gained: torch.Tensor = output + given[0] @ a.to(given[0]).t() @ b.to(given[0])
            return gained

        handles.append(module.get_submodule(update.name).register_forward_hook(gain))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
