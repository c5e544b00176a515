"""Before anything is served: does the packed run compute what the eager module computes, on this very model?"""

from __future__ import annotations

import torch

from softmux.engine.encoder_decoder_selftest import self_test_encoder_decoder
from softmux.engine.encoder_selftest import self_test_encoder
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.rounding import Told, check_apart
from softmux.engine.runner import ModelRunner
from softmux.engine.trial import generated, trial_scheduler
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import ModelSpec, SamplingParams

_VIRTUAL = 3
_GENERATED = 3
_LENGTHS = (5, 9, 6, 4)


def self_test(runner: ModelRunner, spec: ModelSpec) -> None:
    """Runs four short rows, two of them behind random learned vectors, in chunks of a few tokens with decodes between,
    and compares the log probabilities of what they generate with the eager module's.

    Raises `SelfTestFailed` where they differ by more than rounding. Encoders and encoder-decoders have self-tests of
    their own.
    """
    if spec.family == "encoder":
        self_test_encoder(runner, spec)
        return
    if spec.family == "encoder-decoder":
        self_test_encoder_decoder(runner, spec)
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
    try:
        told, model = generated(runner, scheduler), runner.model
        scheduler.check_integrity()
        rows = [Told(one, told[one.id], _embedded(runner, vectors, one), model.eager) for one in sequences]
        check_apart(rows, model.dtype, spec.architecture)
    finally:  # a fast path may fail here, and the server starts without it: nothing of this may stay
        scheduler.abort_client(b"")
        runner.forget_rows()
        runner.vocabulary.forget(tuned)
        runner.tiers.release(tuned)
        runner.tiers.forget(tuned)


@torch.inference_mode()
def _embedded(runner: ModelRunner, vectors: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """A sequence as the eager module takes it: `[tokens, hidden]`."""
    ids = torch.tensor(sequence.tokens, device=runner.model.device)
    embeddings: torch.Tensor = runner.model.embedding(ids.clamp(min=0))
    embeddings[: sequence.lead] = vectors[: sequence.lead].to(embeddings)
    return embeddings
