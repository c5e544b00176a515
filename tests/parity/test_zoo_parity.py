"""The rarer prompt methods, mixed in one batch, against PEFT's own `generate` (fp32, greedy, one unpadded row)."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from softmux.support_table import EXACT
from support.engines import TestEngine
from support.models import METHODS, VOCABULARY, greedy_reference, make_base

NEW_TOKENS = 8

ZOO: dict[str, Callable[[], Any]] = {
    "MULTITASK_PROMPT_TUNING": lambda: peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, num_ranks=3
    ),
    "CPT": lambda: peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[4, 9, 17, 5], cpt_tokens_type_mask=[1, 2, 3, 4]
    ),
    "CARTRIDGE": lambda: peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=57, num_frozen_tokens=2),
}


def tuned(base: Any, method: str, folder: Path) -> Any:
    torch.manual_seed(3)
    model = peft.get_peft_model(copy.deepcopy(base), ZOO[method]())
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    model.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "qwen3"])
def test_mixed_requests_are_token_exact_cold_and_cached(architecture: str, device: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base")
    engine = TestEngine(tmp_path / "base", device=device)
    models = {method: tuned(base, method, tmp_path / method) for method in ZOO}
    adapters = {method: engine.adapter(tmp_path / method) for method in ZOO}
    draw = random.Random(architecture)
    requests = []
    for number in range(24):
        method = list(ZOO)[number % len(ZOO)]
        ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 16))]
        more = {"task_ids": torch.tensor([0])} if method == "MULTITASK_PROMPT_TUNING" else {}
        requests.append((method, ids, *greedy_reference(models[method], ids, NEW_TOKENS, **more)))
    compared = 0
    for _ in range(2):
        names = [
            engine.add(ids, *adapters[method], max_tokens=NEW_TOKENS, ignore_eos=True) for method, ids, _, _ in requests
        ]
        engine.run()
        for name, (method, ids, expected, certain) in zip(names, requests, strict=True):
            assert engine.done[name].error is None
            assert engine.done[name].tokens[:certain] == expected[:certain], f"{architecture}, {method}, {ids}"
            compared += certain
    assert compared > 24 * NEW_TOKENS, "the reference decides too little for this to be a test"
    engine.close()


def test_what_the_table_calls_exact_is_compared() -> None:
    compared = {METHODS[method]().peft_type.value for method in METHODS} | ZOO.keys()
    compared |= {"LORA", "TRAINABLE_TOKENS"}  # by test_lora_parity.py
    assert compared == EXACT
