"""The self-test of an encoder: what a head reads of packed rows, against the eager module row by row."""

from __future__ import annotations

import torch

from softmux.engine.heads import HeadShape, head_rows
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.runner import ModelRunner
from softmux.engine.trial import run_trial, trial_scheduler
from softmux.errors import SelfTestFailed
from softmux.formats.parts import HeadPart
from softmux.scheduler.radix import RootKey
from softmux.scheduler.reading import Reading
from softmux.scheduler.sequence import Sequence
from softmux.types import ModelSpec, SamplingParams

_VIRTUAL = 3
_LENGTHS = (5, 9, 1, 6)
_BEYOND = 8
"""Tokens by which a row is longer than each window that the layers have."""
_STEP = 64
_LABELS = 4
_TOLERANCE = {torch.float32: 2e-3}
_HALF_TOLERANCE = 0.1
"""Of the largest score. Half precision rounds each of a model's many sums; a wrong position or mask is far beyond."""


@torch.inference_mode()
def self_test_encoder(runner: ModelRunner, spec: ModelSpec) -> None:
    """Runs four short rows, two of them behind random learned vectors where the base takes any, packed in one step, and
    compares the scores that a random head gives each of their tokens with those it gives the eager module's states;
    then the same of each row's first token alone, as a sequence's head reads it. Where layers see a window of their row
    alone, a longer row is among them.

    Raises `SelfTestFailed` where they differ by more than rounding.
    """
    model, generator = runner.model, torch.Generator().manual_seed(0)
    spread = float(model.embedding.weight.float().std())
    vectors = torch.randn((_VIRTUAL, model.embedding.weight.shape[1]), generator=generator) * spread
    head = torch.randn((_LABELS, spec.hidden_size), generator=generator) / spec.hidden_size**0.5
    part = HeadPart("token", head.numpy(), None, None, False, ("",) * _LABELS, "single_label_classification")
    shape, rows = head_rows(part)
    key = RootKey("self-test", "self-test", spec.base_fingerprint, spec.kv_format)
    runner.tiers.adopt(key, HostAdapter(vectors.to(model.dtype), head=rows, head_shape=shape))
    runner.tiers.hold(key)
    try:
        worst = 0.0
        lengths = [*_LENGTHS, *_beyond_windows(runner, spec)]
        for most in (max(lengths), 1):
            step_tokens = _STEP + sum(lengths)
            scheduler = trial_scheduler(runner, spec, rows=len(lengths), step_tokens=step_tokens)
            sequences = [_row(i, length, min(most, length), key, spec, generator) for i, length in enumerate(lengths)]
            for sequence in sequences:
                scheduler.add(sequence)
            found = {sequence.id: output.scores for sequence, output in run_trial(runner, scheduler)}
            differences = [_difference(runner, vectors, rows, shape, each, found[each.id]) for each in sequences]
            worst = max(worst, *differences)
            scheduler.check_integrity()
            runner.forget_rows()
    finally:  # a fast path may fail here, and the server starts without it: nothing of this may stay
        runner.forget_rows()
        runner.vocabulary.forget(key)
        runner.heads.forget(key)
        runner.tiers.release(key)
        runner.tiers.forget(key)
    tolerance = _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
    if not worst <= tolerance:
        raise SelfTestFailed(
            f"self-test: the packed run of {spec.architecture} differs from the eager module by {worst:.3g} of a "
            f"head's score (at most {tolerance:g} is rounding); softmux cannot serve this model correctly"
        )


def _beyond_windows(runner: ModelRunner, spec: ModelSpec) -> list[int]:
    """Lengths of rows that are longer than the windows of the model's layers, as far as this server runs such rows."""
    most = min(spec.context_length, runner.pool.slots - _STEP) - _VIRTUAL
    return [window + _BEYOND for window in sorted(runner.model.windows) if window + _BEYOND <= most]


def _row(number: int, length: int, read: int, key: RootKey, spec: ModelSpec, generator: torch.Generator) -> Sequence:
    """A row of its length, of which a head reads so many tokens."""
    lead = _VIRTUAL * (number % 2)
    text = torch.randint(0, spec.vocab_size, (length,), generator=generator).tolist()
    reading = Reading("head", lead, lead + read, 0, alone=True)
    prompt = [*(-1 - j for j in range(lead)), *text]
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    return Sequence(str(number), b"", key, prompt, sampling, 0.0, reading=reading)


def _difference(
    runner: ModelRunner, vectors: torch.Tensor, rows: torch.Tensor, shape: HeadShape, sequence: Sequence, scores: bytes
) -> float:
    """The largest, as a share of the largest score."""
    model = runner.model
    ids = torch.tensor(sequence.prompt, device=model.device)
    embeddings = model.embedding(ids.clamp(min=0))
    embeddings[: sequence.lead] = vectors[: sequence.lead].to(embeddings)
    reading = sequence.reading
    assert reading is not None
    states = model.eager(embeddings)[reading.first : reading.end].float()
    expected = states @ rows[: shape.labels, : states.shape[1]].to(states).T
    if not scores:
        raise SelfTestFailed("self-test: the model gives hidden states that are not finite")
    given = torch.frombuffer(bytearray(scores), dtype=torch.float32).view(-1, shape.labels)
    return float((given - expected.cpu()).abs().max() / expected.abs().max().clamp(min=1e-6))
