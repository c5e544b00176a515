"""The self-test of an encoder-decoder: what packed rows generate, against the eager module row by row."""

from __future__ import annotations

from collections.abc import Callable

import torch

from softmux.engine.encoder_decoder import PackedEncoderDecoder, encoder_input
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.rounding import Told, check_apart
from softmux.engine.runner import ModelRunner
from softmux.engine.trial import generated, trial_scheduler
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import ModelSpec, SamplingParams

_VIRTUAL = 3
_GENERATED = 4
_LENGTHS = (5, 9, 1, 6)


@torch.inference_mode()
def self_test_encoder_decoder(runner: ModelRunner, spec: ModelSpec) -> None:
    """Runs four short rows, one with random learned vectors in its source and one behind a random trained prefix of its
    decoder, two in the first step and the others beside their decodes, and compares log probabilities.

    Raises `SelfTestFailed` where they differ by more than rounding.
    """
    model = runner.model
    assert isinstance(model, PackedEncoderDecoder)
    generator = torch.Generator().manual_seed(0)
    spread = float(model.embedding.weight.float().std())
    vectors = (torch.randn((_VIRTUAL, spec.hidden_size), generator=generator) * spread).to(model.dtype)
    prefix = torch.randn(runner.pool.prefix_shape(_VIRTUAL), generator=generator).to(model.dtype)
    bare = RootKey("self-test", None, spec.base_fingerprint, spec.kv_format)
    tuned, trained = bare._replace(digest="self-test"), bare._replace(digest="self-test-prefix")
    for key, adapter in ((tuned, HostAdapter(vectors)), (trained, HostAdapter(None, prefix, trained=True))):
        runner.tiers.adopt(key, adapter)
        runner.tiers.hold(key)  # it is in no store: were it let go between two rows, it could not be had again
    scheduler = trial_scheduler(runner, spec, rows=4, step_tokens=18)
    sampling = SamplingParams(max_tokens=_GENERATED, logprobs=min(20, spec.vocab_size))
    sequences: list[Sequence] = []
    for root, length in zip((bare, tuned, trained, bare), _LENGTHS, strict=True):
        lead = tuple(-1 - i for i in range(0 if root is bare else _VIRTUAL))
        tokens = (*lead, *torch.randint(0, spec.vocab_size, (length,), generator=generator).tolist())
        source = encoder_input(tokens, _GENERATED, spec.context_length, trained_prefix=root is trained)
        prompt = [*tokens, model.start]
        sequences.append(Sequence(str(len(sequences)), b"", root, prompt, sampling, 0.0, source=source))
        scheduler.add(sequences[-1])
    try:
        told = generated(runner, scheduler)
        scheduler.check_integrity()
        rows = []
        for sequence in sequences:
            embeddings = model.embedding(torch.tensor(sequence.tokens, device=model.device).clamp(min=0))
            if sequence.root is tuned:
                embeddings[: sequence.lead] = vectors.to(embeddings)
            behind = prefix.to(model.device) if sequence.root is trained else None
            rows.append(Told(sequence, told[sequence.id], embeddings, reference_of(model, sequence, behind)))
        check_apart(rows, model.dtype, spec.architecture)
    finally:  # a fast path may fail here, and the server starts without it: nothing of this may stay
        scheduler.abort_client(b"")
        runner.forget_rows()
        runner.vocabulary.forget(tuned)
        for key in (tuned, trained):
            runner.tiers.release(key)
            runner.tiers.forget(key)


def reference_of(
    model: PackedEncoderDecoder, sequence: Sequence, prefix: torch.Tensor | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`Told.reference`: the eager module's logits, for what the row's decoder is given; zeros for the source."""
    assert sequence.source is not None
    first, end = sequence.source

    def reference(embeddings: torch.Tensor) -> torch.Tensor:
        logits = model.eager(embeddings[first:end], embeddings[end:], prefix)
        return torch.cat([logits.new_zeros((end, logits.shape[1])), logits])

    return reference
