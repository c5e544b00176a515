"""Sequences that are read, instead of going on: by a classification head, or for how likely their own tokens are."""

from __future__ import annotations

from typing import Literal

import msgspec


class Reading(msgspec.Struct, frozen=True):
    """What is read of a sequence's input in place of choosing a token after it. It ends with the step that reads it.

    `head`: its adapter's head reads the last hidden states of positions `first … end`, the latter not included.
    `likelihood`: of the tokens at those positions, each after all that come before it. From `whole_from` on the input
    is computed in one step, and never taken from the cache: hidden states are kept nowhere.
    `mean`: the head reads one state, the mean of all these.
    `alone`: every position attends to all of its row, so none of its keys and values is another row's, but those of a
    trained prefix.
    """

    what: Literal["head", "likelihood"]
    first: int
    end: int
    whole_from: int
    alone: bool = False
    mean: bool = False

    @property
    def count(self) -> int:
        return self.end - self.first

    @property
    def results(self) -> int:
        """How many tokens' scores it gives."""
        return 1 if self.mean else self.count
