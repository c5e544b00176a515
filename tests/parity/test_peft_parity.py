"""Every architecture and method, mixed in one batch, against PEFT's own `generate` (fp32, greedy, one unpadded row)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.engines import TestEngine
from support.models import ARCHITECTURES, METHODS, VOCABULARY, greedy_reference, load_peft, make_adapter, make_base

NEW_TOKENS = 8
REQUESTS = 60


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sixty_mixed_requests_are_token_exact_cold_and_cached(architecture: str, device: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base")
    engine = TestEngine(tmp_path / "base", device=device)
    adapters = {}
    models = {None: base}
    for number, method in enumerate(METHODS):
        make_adapter(base, method, tmp_path / method, seed=number)
        adapters[method] = engine.adapter(tmp_path / method)
        models[method] = load_peft(base, tmp_path / method)
    draw = random.Random(architecture)
    requests = []
    for number in range(REQUESTS):
        method = [*METHODS, None][number % (len(METHODS) + 1)]
        ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 24))]
        requests.append((method, ids, *greedy_reference(models[method], ids, NEW_TOKENS)))

    ambiguous = 0
    for _ in range(2):
        names = []
        for method, ids, _, _ in requests:
            root, virtual = adapters[method] if method else (None, 0)
            names.append(engine.add(ids, root, virtual, max_tokens=NEW_TOKENS))
        engine.run()
        for name, (method, ids, expected, certain) in zip(names, requests, strict=True):
            finished = engine.done[name]
            assert finished.error is None
            ended = expected[-1] == base.generation_config.eos_token_id
            wanted = expected[:-1] if ended else expected
            if certain < len(expected):
                ambiguous += 1
                wanted = wanted[:certain]
            else:
                assert finished.reason == ("stop" if ended else "length")
            assert finished.tokens[: len(wanted)] == wanted, f"{architecture}, {method}, {ids}"
            if certain == len(expected):
                assert len(finished.tokens) == len(wanted)
    print(f"{architecture}: {2 * REQUESTS} rows, {ambiguous} with a near tie compared up to it")
    assert ambiguous <= REQUESTS // 5, "the reference decides too little for this to be a test"
    engine.close()
