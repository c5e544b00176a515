"""Before anything is served: does the packed run compute what the eager module computes, on this very model?"""

from __future__ import annotations

import torch

from softmux.engine.encoder_selftest import self_test_encoder
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.runner import ModelRunner
from softmux.engine.trial import run_trial, trial_scheduler
from softmux.errors import SelfTestFailed
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import ModelSpec, Output, SamplingParams, TokenLogprobs

_VIRTUAL = 3
_GENERATED = 3
_LENGTHS = (5, 9, 6, 4)
_TOLERANCE = {torch.float32: 2e-3}
_HALF_TOLERANCE = 0.3
"""Of log probabilities. Half precision rounds each of a model's many sums; a wrong position or mask is far beyond."""
_SHAKEN = 2.0
_MOST = 3.0
"""A deep model, or keys and values in fp8, may make more of a last bit: where the eager module's own log probabilities
move when the last bits of its input do, so many times that is rounding, too, but never beyond this."""


def self_test(runner: ModelRunner, spec: ModelSpec) -> None:
    """Runs four short rows, two of them behind random learned vectors, in chunks of a few tokens with decodes between,
    and compares the log probabilities of what they generate with the eager module's.

    Raises `SelfTestFailed` where they differ by more than rounding. An encoder has a self-test of its own.
    """
    if spec.family == "encoder":
        self_test_encoder(runner, spec)
        return
    generator = torch.Generator().manual_seed(0)
    weight: torch.Tensor = runner.model.embedding.weight
    spread = float(weight.float().std())
    vectors = (torch.randn((_VIRTUAL, spec.hidden_size), generator=generator) * spread).to(runner.model.dtype)
    bare = RootKey("self-test", None, spec.base_fingerprint, spec.kv_format)
    tuned = bare._replace(digest="self-test")
    runner.tiers.adopt(tuned, HostAdapter(vectors=vectors))
    runner.tiers.hold(tuned)  # it is in no store: were it let go between two rows, it could not be had again
    scheduler = trial_scheduler(runner, spec, rows=4, step_tokens=8)
    sampling = SamplingParams(max_tokens=_GENERATED, logprobs=min(20, spec.vocab_size))
    text = [torch.randint(0, spec.vocab_size, (length,), generator=generator) for length in _LENGTHS]
    sequences = []
    for i, (root, ids) in enumerate(zip((bare, tuned, bare, tuned), text, strict=True)):
        lead = [-1 - j for j in range(_VIRTUAL)] if root is tuned else []
        sequences.append(
            Sequence(id=str(i), client=b"", root=root, prompt=lead + ids.tolist(), sampling=sampling, arrival=0.0)
        )
        scheduler.add(sequences[-1])
    told: dict[str, list[TokenLogprobs]] = {sequence.id: [] for sequence in sequences}
    try:
        for sequence, out in run_trial(runner, scheduler):
            _heard(sequence, out, told)
        worst = max(_difference(runner, vectors, sequence, told[sequence.id]) for sequence in sequences)
        tolerance = _TOLERANCE.get(runner.model.dtype, _HALF_TOLERANCE)
        if worst > tolerance and runner.model.dtype not in _TOLERANCE:
            moved = max(_moved(runner, vectors, sequence, told[sequence.id]) for sequence in sequences)
            tolerance = min(_MOST, max(tolerance, _SHAKEN * moved))
        scheduler.check_integrity()
    finally:  # a fast path may fail here, and the server starts without it: nothing of this may stay
        scheduler.abort_client(b"")
        runner.forget_rows()
        runner.vocabulary.forget(tuned)
        runner.tiers.release(tuned)
        runner.tiers.forget(tuned)
    if not worst <= tolerance:
        raise SelfTestFailed(
            f"self-test: the packed run of {spec.architecture} differs from the eager module by {worst:.3g} in log "
            f"probability (at most {tolerance:g} is rounding); softmux cannot serve this model correctly"
        )


def _heard(sequence: Sequence, output: Output, told: dict[str, list[TokenLogprobs]]) -> None:
    if output.finish_reason == "abort":
        raise SelfTestFailed("self-test: the model gives logits that are not finite")
    told[sequence.id].extend(output.logprobs)


@torch.inference_mode()
def _embedded(runner: ModelRunner, vectors: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """A sequence as the eager module takes it: `[tokens, hidden]`."""
    ids = torch.tensor(sequence.tokens, device=runner.model.device)
    embeddings: torch.Tensor = runner.model.embedding(ids.clamp(min=0))
    embeddings[: sequence.lead] = vectors[: sequence.lead].to(embeddings)
    return embeddings


@torch.inference_mode()
def _difference(runner: ModelRunner, vectors: torch.Tensor, sequence: Sequence, told: list[TokenLogprobs]) -> float:
    """The largest difference, over the tokens a sequence generated, between its log probabilities and eager ones."""
    expected = runner.model.eager(_embedded(runner, vectors, sequence)).float().log_softmax(-1)
    worst = 0.0
    for i, row in enumerate(told):
        reference = expected[sequence.prompt_length - 1 + i, list(row.top_ids)].cpu()
        worst = max(worst, float((reference - torch.tensor(row.top_logprobs)).abs().max()))
    return worst


@torch.inference_mode()
def _moved(runner: ModelRunner, vectors: torch.Tensor, sequence: Sequence, told: list[TokenLogprobs]) -> float:
    """By how much the eager module's own log probabilities of these tokens move with its input's last bits."""
    embeddings = _embedded(runner, vectors, sequence)
    signs = torch.randint(0, 2, embeddings.shape, generator=torch.Generator().manual_seed(1)).to(embeddings) * 2 - 1
    shaken = embeddings * (1 + signs * torch.finfo(embeddings.dtype).eps)
    before, after = (runner.model.eager(x).float().log_softmax(-1) for x in (embeddings, shaken))
    most = 0.0
    for i, row in enumerate(told):
        at = sequence.prompt_length - 1 + i
        most = max(most, float((before[at] - after[at])[list(row.top_ids)].abs().max()))
    return most
