"""LoRAs of every shape, pairs and trained rows of tokens beside soft prompts and the bare model, mixed in one batch,
against PEFT's own `generate` (fp32, greedy, one unpadded row)."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from support.engines import TestEngine
from support.loras import linear_names, make_lora, make_pair
from support.models import ARCHITECTURES, VOCABULARY, greedy_reference, load_peft, make_adapter, make_base

NEW_TOKENS = 8
REQUESTS = 48


def trained_tokens(base: Any, folder: Path) -> Any:
    """`TRAINABLE_TOKENS` over a few ids, the end token and the first among them."""
    torch.manual_seed(5)
    config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[0, 2, 7, 8, 30, 31, 60])
    model = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.copy_(torch.randn_like(parameter) * base.get_input_embeddings().weight.std())
    model.save_pretrained(folder)
    return model.eval()


def adapters_of(base: Any, folder: Path) -> dict[str, Any]:
    """Folders of adapters by name, each with the model that is its reference."""
    names = linear_names(base)
    few, first = names[:2], names[0]
    tuned = {
        "rank-1": make_lora(base, folder / "rank-1", 1, r=1, lora_alpha=3, target_modules=few),
        "rank-4": make_lora(base, folder / "rank-4", 2, target_modules=names),
        "rank-3-rs": make_lora(base, folder / "rank-3-rs", 3, r=3, use_rslora=True, target_modules=names[1:]),
        "rank-16": make_lora(base, folder / "rank-16", 4, r=16, lora_alpha=4, target_modules="all-linear"),
        "patterns": make_lora(
            base, folder / "patterns", 5, r=5, target_modules=names, rank_pattern={first: 2}, alpha_pattern={first: 9}
        ),
        "lora-and-tokens": make_lora(
            base, folder / "lora-and-tokens", 6, r=2, target_modules=few, trainable_token_indices=[3, 9, 40, 41]
        ),
        "tokens": trained_tokens(base, folder / "tokens"),
        "lora+prompt": make_pair(base, "prompt_tuning", folder / "lora+prompt", 7, r=6, target_modules=names),
        "lora+prefix": make_pair(base, "prefix_tuning", folder / "lora+prefix", 8, r=2, target_modules=few),
    }
    make_adapter(base, "prompt_tuning", folder / "prompt", seed=9)
    make_adapter(base, "prefix_tuning", folder / "prefix", seed=10)
    return tuned | {name: load_peft(base, folder / name) for name in ("prompt", "prefix")}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loras_mixed_with_everything_are_token_exact_cold_and_cached(
    architecture: str, device: str, tmp_path: Path
) -> None:
    base = make_base(architecture, tmp_path / "base")
    base.set_attn_implementation("eager")  # torch's own attention would leave out the cap on Gemma 2's scores
    models = {**adapters_of(base, tmp_path), None: base}
    engine = TestEngine(tmp_path / "base", device=device)
    assert engine.engine.runner.ways.fallbacks["loras"] == 0
    adapters = {name: engine.adapter(tmp_path / name) for name in models if name is not None}
    draw = random.Random(architecture)
    requests = []
    for number in range(REQUESTS):
        name = list(models)[number % len(models)]
        ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 20))]
        requests.append((name, ids, *greedy_reference(models[name], ids, NEW_TOKENS)))

    compared = 0
    for _ in range(2):
        names = []
        for name, ids, _, _ in requests:
            root, virtual = adapters[name] if name else (None, 0)
            names.append(engine.add(ids, root, virtual, max_tokens=NEW_TOKENS, ignore_eos=True))
        engine.run()
        for done, (name, ids, expected, certain) in zip(names, requests, strict=True):
            assert engine.done[done].error is None
            assert engine.done[done].tokens[:certain] == expected[:certain], f"{architecture}, {name}, {ids}"
            compared += certain
    assert compared > REQUESTS * NEW_TOKENS, "the reference decides too little for this to be a test"
    engine.close()
