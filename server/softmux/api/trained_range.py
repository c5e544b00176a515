"""Inputs that a version was not trained on the like of: counted, and said in the reply.

A soft prompt's work on longer inputs than it has seen is not known, and often worse: its vectors then are a smaller
part of what each token attends to. Who asks is told, so that a figure measured on short texts is not taken for one of
long ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from softmux.api.services import Resolved
from softmux.telemetry.exposition import Metrics


def beyond(resolved: Resolved, lengths: Iterable[int], metrics: Metrics, label: str) -> tuple[str, ...]:
    """Warnings for the reply, none where all is as it was trained, or where the version does not say how it was.

    `lengths` are the inputs' own tokens, as `usage` counts them, and are only taken where they are compared. The
    request is counted, once for each side on which it lies beyond; `label` is its task's.
    """
    trained = resolved.manifest.trained_lengths if resolved.manifest is not None else None
    if trained is None:
        return ()
    (least, most), lengths = trained, list(lengths)
    said = []
    for side, far, count in (
        ("longer", max(lengths), sum(length > most for length in lengths)),
        ("shorter", min(lengths), sum(length < least for length in lengths)),
    ):
        if count:
            metrics.beyond_trained(label, side)
            whose = "The input is" if len(lengths) == 1 else f"{count} of {len(lengths)} inputs are"
            reach = "" if count == 1 else "up to " if side == "longer" else "down to "
            said.append(
                f"{whose} {side} than what this version was trained on: {reach}{far} tokens, and it was trained on "
                f"{least} to {most}."
            )
    return tuple(said)
