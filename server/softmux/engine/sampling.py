"""From logits to the next token of every row, whatever each row asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from softmux.engine.device import to_device
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams, TokenLogprobs

_MASK64 = (1 << 64) - 1


def uniform(seed: int, sample: int, position: int) -> float:
    """The random number in [0, 1) that chooses token `position` of a sample: a function of nothing else, so the same
    seed gives the same tokens whatever shares the batch. SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), 53 bits."""
    state = (seed * 0x9E3779B97F4A7C15 + sample * 0xD1B54A32D192ED03 + position * 0x8CB92BA72F3D8DD7) & _MASK64
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) & _MASK64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        state = z ^ (z >> 31)
    return (state >> 11) * 2.0**-53


@dataclass(slots=True)
class Choice:
    """One row of logits and how its token is chosen. `position` counts the tokens generated before it; `forced` is the
    token that it must choose, −1 where it is free."""

    sequence: Sequence
    position: int
    forced: int = -1


@dataclass(slots=True)
class Sampled:
    """`tokens [rows]` int64, −1 where a row's logits are not finite; log probabilities of the rows that want them."""

    tokens: torch.Tensor
    chosen: torch.Tensor | None = None
    top: tuple[torch.Tensor, torch.Tensor] | None = None
    wanting: tuple[int, ...] = ()


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Each row's likeliest token, −1 where its logits are not finite. `logits [rows, vocab]` → `[rows]` int64."""
    return torch.where(logits.amax(-1).isfinite(), logits.argmax(-1), -1)


def sample(
    logits: torch.Tensor,
    choices: list[Choice],
    eos: tuple[int, ...],
    guided: tuple[Many[int], torch.Tensor] | None = None,
) -> Sampled:
    """Chooses each row's token. `logits [rows, vocab]`; changed in place where a row asks for it. `guided`: rows that
    have a grammar, and which tokens it allows each, `[guided rows, vocab]` bool; none at all gives −1.

    Order: logit bias, the ban on ending before `min_tokens`, penalties, the grammar; then for rows with a temperature:
    temperature, top-k, top-p, min-p, and inverse-CDF sampling by `uniform`; a forced token comes after all. Log
    probabilities are of the model's own distribution, before any of it.
    """
    logits = logits.float()
    wanting = tuple(i for i, choice in enumerate(choices) if choice.sequence.sampling.logprobs is not None)
    raw = logits[to_device(wanting, logits.device)].log_softmax(-1) if wanting else None
    highest, _ = logits.max(-1)
    finite = highest.isfinite()
    _adjust(logits, choices, eos)
    if guided is not None:
        index, allowed = to_device(guided[0], logits.device), guided[1]
        kept = logits[index].masked_fill_(~allowed, float("-inf"))
        logits[index] = kept
        finite[index] &= kept.amax(-1).isfinite()
    tokens = logits.argmax(-1)
    drawn = [i for i, choice in enumerate(choices) if choice.sequence.sampling.temperature > 0]
    if drawn:
        index = to_device(drawn, logits.device)
        tokens[index] = _draw(logits[index], [choices[i] for i in drawn])
    forced = [i for i, choice in enumerate(choices) if choice.forced >= 0]
    if forced:
        tokens[to_device(forced, logits.device)] = to_device([choices[i].forced for i in forced], logits.device)
    tokens = torch.where(finite, tokens, -1)
    if raw is None:
        return Sampled(tokens)
    most = min(max(choices[i].sequence.sampling.logprobs or 0 for i in wanting), raw.shape[1])
    chosen = raw.gather(1, tokens[to_device(wanting, logits.device)].clamp(min=0)[:, None])[:, 0]
    top = raw.topk(most, dim=-1) if most else None
    return Sampled(tokens, chosen, (top.indices, top.values) if top is not None else None, wanting)


def logprobs_of(sampled: Sampled, choices: list[Choice]) -> dict[int, TokenLogprobs]:
    """The log probabilities of the rows that want them, by row, as plain values; waits for the device."""
    if sampled.chosen is None:
        return {}
    found: dict[int, TokenLogprobs] = {}
    chosen = sampled.chosen.tolist()
    ids, values = (part.tolist() for part in sampled.top) if sampled.top is not None else ([], [])
    for at, row in enumerate(sampled.wanting):
        count = choices[row].sequence.sampling.logprobs or 0
        found[row] = TokenLogprobs(
            chosen[at], tuple(ids[at][:count]) if count else (), tuple(values[at][:count]) if count else ()
        )
    return found


def _adjust(logits: torch.Tensor, choices: list[Choice], eos: tuple[int, ...]) -> None:
    for row, choice in enumerate(choices):
        sampling = choice.sequence.sampling
        if sampling.logit_bias:
            ids = to_device([token for token, _ in sampling.logit_bias], logits.device)
            logits[row, ids] += to_device([bias for _, bias in sampling.logit_bias], logits.device, logits.dtype)
        if choice.position < sampling.min_tokens and not sampling.ignore_eos and eos:
            logits[row, to_device(eos, logits.device)] = float("-inf")
        if sampling.needs_history:
            _penalise(logits[row], choice.sequence)


def _penalise(logits: torch.Tensor, sequence: Sequence) -> None:
    """Repetition (CTRL, arXiv 1909.05858: prompt and output, of an encoder-decoder its decoder's), frequency and
    presence (OpenAI's: output only)."""
    sampling = sequence.sampling
    tokens = sequence.tokens
    if sampling.repetition_penalty != 1.0:
        given = tokens if sequence.source is None else tokens[sequence.source[1] :]
        seen = to_device(sorted({token for token in given if token >= 0}), logits.device)
        if len(seen):
            values = logits[seen]
            logits[seen] = torch.where(
                values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty
            )
    counts = Counter(tokens[sequence.prompt_length :])
    if counts and (sampling.frequency_penalty or sampling.presence_penalty):
        ids = to_device(list(counts), logits.device)
        times = to_device(list(counts.values()), logits.device, logits.dtype)
        logits[ids] -= times * sampling.frequency_penalty + sampling.presence_penalty


_COLDEST = 1e-4
"""Temperatures below are taken as this one: it is greedy already, and divides without overflow."""


def _draw(logits: torch.Tensor, choices: list[Choice]) -> torch.Tensor:
    """Inverse-CDF sampling over the tokens each row leaves in play. `logits [rows, vocab]` → `[rows]`.

    Every row's distribution is summed in the vocabulary's order, whatever its neighbours ask for. A row that is not
    finite gives some token below the vocabulary's size.
    """
    samplings = [choice.sequence.sampling for choice in choices]
    device = logits.device
    temperature = to_device([max(s.temperature, _COLDEST) for s in samplings], device, torch.float32)
    highest = logits.max(-1, keepdim=True).values
    probabilities = ((logits - highest) / temperature[:, None]).softmax(-1)
    filtered = [i for i, s in enumerate(samplings) if s.top_k > 0 or s.top_p < 1 or s.min_p > 0]
    if filtered:
        rows = to_device(filtered, device)
        probabilities[rows] = _filtered(probabilities[rows], [samplings[i] for i in filtered])
    at = to_device(
        [uniform(s.seed or 0, c.sequence.sample, c.position) for s, c in zip(samplings, choices, strict=True)],
        device,
        torch.float64,
    )
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    last = torch.searchsorted(cumulative, total)  # the last token with any probability
    index = torch.minimum(torch.searchsorted(cumulative, at[:, None] * total, right=True), last)
    return index[:, 0].clamp(max=logits.shape[1] - 1)


def _filtered(probabilities: torch.Tensor, samplings: list[SamplingParams]) -> torch.Tensor:
    """`[rows, vocab]` with the tokens that top-k, then top-p, then min-p leave out at 0; not normalised again."""
    size, device = probabilities.shape[1], probabilities.device
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    top_k = to_device([s.top_k if s.top_k > 0 else size for s in samplings], device)
    ranked = ranked.masked_fill(torch.arange(size, device=device) >= top_k[:, None], 0)
    top_p = to_device([s.top_p for s in samplings], device, torch.float64)
    exact = ranked.double()
    before = exact.cumsum(-1) - exact
    beyond = (before >= top_p[:, None] * exact.sum(-1, keepdim=True)) & (top_p < 1)[:, None]
    beyond[:, 0] = False
    ranked = ranked.masked_fill(beyond, 0)
    min_p = to_device([s.min_p for s in samplings], device, torch.float32)
    ranked = ranked.masked_fill(ranked < min_p[:, None] * ranked[:, :1], 0)
    return torch.zeros_like(probabilities).scatter_(1, order, ranked)
