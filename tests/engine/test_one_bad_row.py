"""One bad row among 64: an adapter of NaN, a client that leaves, absurd wishes. The others' tokens are exact."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from softmux.engine.host_adapter import HostAdapter
from softmux.errors import NotFinite
from support.engines import TestEngine
from support.learned import vectors_for

Make = Callable[..., TestEngine]
ROWS, NEW = 64, 6
LEAD = [-1, -2, -3, -4, -5]
ABSURD: tuple[dict[str, Any], ...] = (
    {"temperature": 100.0, "top_p": 1e-9, "top_k": 1, "min_p": 1.0, "seed": 1},
    {"temperature": 1e-30, "repetition_penalty": 100.0, "frequency_penalty": 2.0, "presence_penalty": 2.0},
    {"repetition_penalty": 0.01, "logit_bias": tuple((token, 100.0) for token in range(0, 96, 2)), "logprobs": 20},
    {"logit_bias": tuple((token, -100.0) for token in range(96)), "min_tokens": 20},
)


class Row:
    """What 63 good rows ask for, the same in each trial; `run` puts a bad one among them."""

    def __init__(self, engine: TestEngine, base: Any) -> None:
        self.engine = engine
        every = [vectors_for(base, 5, seed=seed) for seed in range(3)]
        self.roots = [engine.learned(f"task-{number}", vectors) for number, vectors in enumerate(every)]
        bad = every[0].clone()
        bad[3, 2] = float("nan")
        self.broken = engine.engine.key("default", "broken")
        engine.engine.tiers.adopt(self.broken, HostAdapter(bad))
        draw = random.Random(0)
        self.prompts = [[draw.randrange(3, 96) for _ in range(draw.randint(2, 20))] for _ in range(ROWS)]

    def run(self, number: int | None, draw: random.Random) -> list[list[int]]:
        """The good rows' tokens, by prompt; the bad one's kind goes by `number`. None: without any."""
        engine = self.engine
        engine.forget_kv()
        place, leaves = (draw.randrange(ROWS), draw.randint(1, 5)) if number is not None else (ROWS, 0)
        names: list[str] = []
        for at, prompt in enumerate(self.prompts):
            if at == place and number is not None:
                culprit = self._bad(number, draw)
            which = at % 4 - 1
            root, lead = (self.roots[which], LEAD) if which >= 0 else (engine.engine.key("default", None), [])
            drawn = {"temperature": 1.0, "seed": at, "top_k": 8} if at % 5 == 4 else {}
            names.append(engine.text([*lead, *prompt], root, max_tokens=NEW, ignore_eos=True, **drawn))
        for _ in range(leaves):
            engine.step()
        if number is not None and number % 3 == 1:
            engine.engine.scheduler.abort(b"", culprit)
        engine.run()
        if number is not None:
            error = engine.done[culprit].error
            assert isinstance(error, NotFinite) if number % 3 == 0 else error is None
        assert all(engine.done[name].error is None for name in names)
        return [engine.done[name].tokens for name in names]

    def _bad(self, number: int, draw: random.Random) -> str:
        prompt = [draw.randrange(3, 96) for _ in range(draw.randint(1, 20))]
        if number % 3 == 0:
            wishes = {"temperature": 1.0, "seed": number} if draw.random() < 0.5 else {}
            return self.engine.text([*LEAD, *prompt], self.broken, max_tokens=NEW, **wishes)
        if number % 3 == 1:
            return self.engine.text(prompt, self.engine.engine.key("default", None), max_tokens=40, ignore_eos=True)
        root = self.roots[number % len(self.roots)]
        return self.engine.text([*LEAD, *prompt], root, max_tokens=30, **ABSURD[number // 3 % len(ABSURD)])


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "trials", [range(6), pytest.param(range(6, 106), marks=pytest.mark.nightly)], ids=["some", "a hundred"]
)
def test_only_the_bad_row_is_affected(make_engine: Make, base: Any, overlap: bool, trials: range) -> None:
    rows = Row(make_engine(max_rows=ROWS + 1, max_step_tokens=256, kv_tokens=2048), base)
    rows.engine.engine._overlap = overlap
    expected = rows.run(None, random.Random(0))
    for trial in trials:
        assert rows.run(trial, random.Random(trial)) == expected, f"trial {trial}"
    rows.engine.engine.check_integrity()
