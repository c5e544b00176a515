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
_LABELS = 4
_TOLERANCE = {torch.float32: 2e-3}
_HALF_TOLERANCE = 0.1
"""Of the largest score. Half precision rounds each of a model's many sums; a wrong position or mask is far beyond."""


@torch.inference_mode()
def self_test_encoder(runner: ModelRunner, spec: ModelSpec) -> None:
    """Runs four short rows, two of them behind random learned vectors where the base takes any, packed in one step, and
    compares the scores that a random head gives each of their tokens with those it gives the eager module's states.

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
    scheduler = trial_scheduler(runner, spec, rows=4, step_tokens=64)
    sequences, found = [], dict[str, bytes]()
    for i, length in enumerate(_LENGTHS):
        lead = _VIRTUAL * (i % 2)
        text = torch.randint(0, spec.vocab_size, (length,), generator=generator).tolist()
        reading = Reading("head", lead, lead + length, 0, alone=True)
        prompt = [*(-1 - j for j in range(lead)), *text]
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        sequences.append(Sequence(str(i), b"", key, prompt, sampling, 0.0, reading=reading))
        scheduler.add(sequences[-1])
    for sequence, output in run_trial(runner, scheduler):
        found[sequence.id] = output.scores
    worst = max(_difference(runner, vectors, rows, shape, sequence, found[sequence.id]) for sequence in sequences)
    scheduler.check_integrity()
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


def _difference(
    runner: ModelRunner, vectors: torch.Tensor, rows: torch.Tensor, shape: HeadShape, sequence: Sequence, scores: bytes
) -> float:
    """The largest, as a share of the largest score."""
    model = runner.model
    ids = torch.tensor(sequence.prompt, device=model.device)
    embeddings = model.embedding(ids.clamp(min=0))
    embeddings[: sequence.lead] = vectors[: sequence.lead].to(embeddings)
    states = model.eager(embeddings)[sequence.lead :].float()
    expected = states @ rows[: shape.labels, : states.shape[1]].to(states).T
    if not scores:
        raise SelfTestFailed("self-test: the model gives hidden states that are not finite")
    given = torch.frombuffer(bytearray(scores), dtype=torch.float32).view(-1, shape.labels)
    return float((given - expected.cpu()).abs().max() / expected.abs().max().clamp(min=1e-6))
