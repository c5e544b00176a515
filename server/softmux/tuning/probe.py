"""A linear probe: logistic regression on a frozen encoder's hidden states, what a learned prefix has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.bases.head_rows import padded
from softmux.tuning.data.rows import IGNORE, HeadRow

_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)
_ITERATIONS = 200


def probe(
    base: HeadBase,
    head: str,
    labels: int,
    train: Sequence[HeadRow],
    validation: Sequence[HeadRow],
    test: Sequence[HeadRow],
) -> list[list[int]]:
    """The probe's labels of the rows of `test`, as `HeadLearned.predict` gives them. It sees the mean of a sequence's
    last hidden states, or a token's own; of the weight decays tried, the validation rows pick one."""
    encoder = base.model
    x, y = _features(encoder, base, head, train)
    held_x, held_y = _features(encoder, base, head, validation)
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    x, held_x = (x - mean) / spread, (held_x - mean) / spread
    fits = [_fit(x, y, labels, decay) for decay in _DECAYS]
    best = min(fits, key=lambda fit: float(cross_entropy(held_x @ fit[0] + fit[1], held_y)))
    found = []
    for row in test:
        states = (_states(encoder, base, head, [row])[0] - mean) / spread
        likeliest = (states @ best[0] + best[1]).argmax(-1).tolist()
        found.append(likeliest if head == "sequence" else [likeliest[word] for word in row.words])
    return found


def probe_parameters(base: HeadBase, labels: int) -> int:
    return (int(base.model.config.hidden_size) + 1) * labels


def _features(
    encoder: torch.nn.Module, base: HeadBase, head: str, rows: Sequence[HeadRow]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(`[answers, width]`, their labels) of everything that is labelled in `rows`."""
    order = sorted(rows, key=lambda row: row.length)
    states, targets = [], []
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        for row, found in zip(chosen, _states(encoder, base, head, chosen), strict=True):
            target = torch.tensor(row.targets, device=base.device)
            states.append(found[target != IGNORE])
            targets.append(target[target != IGNORE])
    return torch.cat(states), torch.cat(targets)


@torch.no_grad()
def _states(encoder: torch.nn.Module, base: HeadBase, head: str, rows: Sequence[HeadRow]) -> list[torch.Tensor]:
    """Of each row `[1, width]`, the mean over its tokens, or `[tokens, width]`."""
    ids, mask = padded(rows, base.device)
    hidden = encoder(input_ids=ids, attention_mask=mask)[0]
    own = [hidden[i, : row.length] for i, row in enumerate(rows)]
    return own if head == "token" else [states.mean(0, keepdim=True) for states in own]


def _fit(x: torch.Tensor, y: torch.Tensor, labels: int, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.zeros(x.shape[1], labels, device=x.device, requires_grad=True)
    bias = torch.zeros(labels, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = cross_entropy(x @ weight + bias, y) + decay * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weight.detach(), bias.detach()
