"""All that is looked at, in the order in which a server would need it."""

from __future__ import annotations

from collections.abc import Iterator

from softmux.doctor.check import Check, fail
from softmux.doctor.hardware import gpu
from softmux.doctor.host import adapters, data_folder, descriptors, packages, port, variables
from softmux.doctor.model import model
from softmux.doctor.store import redis
from softmux.settings import Settings


def examine(settings: Settings) -> Iterator[Check]:
    """Looks at one thing after the other. Nothing is started, and what is written is taken away again."""
    for part in (variables, packages, model, adapters, gpu, redis, port, data_folder, descriptors):
        try:
            yield from part(settings)
        except Exception as error:  # what a broken machine raises can't be listed; the others are still looked at
            yield fail(part.__name__, f"can't be looked at: {type(error).__name__}: {error}", "see the error's words")
