"""A step's news as messages: one for each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from softmux.scheduler.news import PlainTokens
from softmux.types import Output
from softmux.worker.messages import Outputs


def messages(outputs: Mapping[bytes, Sequence[Output]], plain: PlainTokens | None) -> list[tuple[bytes, Outputs]]:
    """What each client is told of a step: `outputs` are its own by client, `plain` the other rows' tokens."""
    told = {client: Outputs(outputs=tuple(own)) for client, own in outputs.items()}
    for client, numbers, tokens in plain.by_client() if plain is not None else ():
        told[client] = Outputs(
            outputs=told[client].outputs if client in told else (),
            numbers=numbers.astype(np.int64).tobytes(),
            tokens=tokens.astype(np.int32).tobytes(),
        )
    return list(told.items())
