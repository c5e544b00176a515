"""Whose time the engine's steps were."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from softmux.engine.engine import StepNews
from softmux.scheduler.sequence import Sequence
from softmux.worker.canary import CLIENT
from softmux.worker.messages import Spent


class Spending:
    """Shares each step's duration out among its rows by the tokens that each had computed, and adds that up for each
    client, tenant and task. An estimate: a token costs alike whatever comes before it, a step that overlaps another is
    booked by its own call's duration, and time without a step is nobody's."""

    def __init__(self, max_rows: int) -> None:
        self._owners: list[Sequence | None] = [None] * max_rows
        self._spent = np.zeros(max_rows)
        """Seconds of the row's owner that are not added up yet."""
        self._booked: defaultdict[tuple[bytes, str, str], float] = defaultdict(float)

    def observe(self, news: StepNews) -> None:
        batch = news.batch
        if batch is None or not news.ran:
            return
        for chunk in batch.chunks:  # whoever has a row came to it by a chunk of its input
            if self._owners[chunk.row] is not chunk.sequence:
                self._add_up(chunk.row)
                self._owners[chunk.row] = chunk.sequence
        self._spent[batch.rows] += batch.counts * (news.seconds / batch.tokens)

    def told(self) -> dict[bytes, Spent]:
        """What was spent since it was last asked, for each client; the canary's is nobody's."""
        for row in np.flatnonzero(self._spent).tolist():
            self._add_up(row)
        by_client: defaultdict[bytes, list[tuple[str, str, float]]] = defaultdict(list)
        for (client, tenant, task), seconds in self._booked.items():
            if client != CLIENT:
                by_client[client].append((tenant, task, seconds))
        self._booked.clear()
        return {client: Spent(booked=tuple(booked)) for client, booked in by_client.items()}

    def _add_up(self, row: int) -> None:
        owner = self._owners[row]
        if owner is not None:
            self._booked[owner.client, owner.root.tenant, owner.task] += float(self._spent[row])
            if owner.finished:
                self._owners[row] = None
        self._spent[row] = 0.0
