"""Encoder-decoders and their methods, mixed in one batch, against PEFT's own `generate` (fp32, greedy, one row)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from softmux.support_table import EXACT_TRANSFORMS
from support.encoder_decoders import ARCHITECTURES, KV_METHODS, METHODS, make_adapter, make_base, make_pair
from support.engines import TestEngine
from support.models import VOCABULARY, greedy_reference

NEW_TOKENS = 8
PAIRS = {"lora+prompt_tuning": "prompt_tuning", "lora+prefix_tuning": "prefix_tuning"}
ASKED = [*METHODS, None] * 3 + [*PAIRS] * 3
REQUESTS = len(ASKED)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_requests_are_token_exact(architecture: str, device: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base")
    engine = TestEngine(tmp_path / "base", device=device)
    adapters: dict[str | None, Any] = {None: (None, 0)}
    models: dict[str | None, Any] = {None: base}
    for number, method in enumerate(METHODS):
        models[method] = make_adapter(base, method, tmp_path / method, seed=number)
        adapters[method] = engine.adapter(tmp_path / method)
    for pair, method in PAIRS.items():
        models[pair] = make_pair(base, method, tmp_path / pair, seed=7)
        adapters[pair] = engine.adapter(tmp_path / pair)
    draw = random.Random(architecture)
    requests, telling = [], set()
    for method in ASKED:
        ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 24))]
        more = {"task_ids": torch.tensor([0])} if method == "multitask" else {}
        requests.append((method, ids, *greedy_reference(models[method], ids, NEW_TOKENS, **more)))
        if method not in (None, *telling) and greedy_reference(base, ids, NEW_TOKENS)[0] != requests[-1][2]:
            telling.add(method)
    assert telling == METHODS.keys() | PAIRS.keys(), "an adapter that changes nothing"

    eos, compared = base.generation_config.eos_token_id, 0
    closes = base.generation_config.forced_eos_token_id is not None  # with a text that only its length has ended
    for _ in range(2):  # the second time a trained prefix is in the cache
        names = []
        for method, ids, _, _ in requests:
            trained = PAIRS.get(method, method) in KV_METHODS
            names.append(engine.add(ids, *adapters[method], max_tokens=NEW_TOKENS, trained_prefix=trained))
        engine.run()
        for name, (method, ids, expected, certain) in zip(names, requests, strict=True):
            finished = engine.done[name]
            assert finished.error is None
            ended = expected[-1] == eos
            wanted = (expected[:-1] if ended else expected)[:certain]
            assert finished.tokens[: len(wanted)] == wanted, f"{architecture}, {method}, {ids}"
            if certain == len(expected):
                assert len(finished.tokens) == len(wanted)
                stops = ended and (len(expected) < NEW_TOKENS or not closes)
                assert finished.reason == ("stop" if stops else "length")
            compared += len(wanted)
    print(f"{architecture}: {compared} tokens of {2 * REQUESTS} rows compared")
    assert compared > REQUESTS * NEW_TOKENS, "the reference decides too little for this to be a test"
    engine.close()


def test_what_the_table_calls_exact_is_compared() -> None:
    assert {METHODS[method](48).peft_type.value for method in METHODS} == EXACT_TRANSFORMS
