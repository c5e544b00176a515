"""A soft prompt and a LoRA that were trained together, as one adapter of four files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import peft
import pytest
from formats_fixtures import edited
from zoo_fixtures import make_base, save, spec_of, tune

from softmux.errors import InvalidAdapter
from softmux.formats.digest import adapter_digest
from softmux.formats.folder import load_folder, read_adapter
from softmux.formats.parts import LoraPart, PrefixPart, PromptPart, kinds
from softmux.types import KV_METHODS

CONFIG, WEIGHTS = "adapter_config.lora.json", "adapter_model.lora.safetensors"

SOFT: dict[str, Any] = {
    "prompt_tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p_tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "cartridge": lambda: peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "cpt": lambda: peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2, 3, 4, 5]),
}


def soft(method: str) -> dict[str, bytes]:
    return save(tune(make_base("llama"), SOFT[method]()))


def lora(**change: Any) -> dict[str, bytes]:
    files = save(tune(make_base("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6)))
    return edited(files, **change)


def paired(one: dict[str, bytes], other: dict[str, bytes]) -> dict[str, bytes]:
    return one | {CONFIG: other["adapter_config.json"], WEIGHTS: other["adapter_model.safetensors"]}


@pytest.mark.parametrize("method", SOFT)
def test_both_parts_are_those_of_the_halves(method: str) -> None:
    spec = spec_of("llama")
    files = paired(soft(method), lora())
    adapter = read_adapter(files, spec)
    leading, low_rank = adapter.parts
    alone = [read_adapter(half, spec) for half in (soft(method), lora())]
    assert isinstance(leading, PrefixPart if method in ("prefix_tuning", "cartridge") else PromptPart)
    assert isinstance(low_rank, LoraPart)
    halves = [part for half in alone for part in half.parts]
    for part, half in zip(adapter.parts, halves, strict=True):
        for (name, ours), (_, theirs) in zip(part.arrays(), half.arrays(), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    manifest = adapter.manifest
    assert manifest.method == f"lora+{method}"
    assert (manifest.method in KV_METHODS) == (method in KV_METHODS)
    assert manifest.virtual_tokens == 5
    assert manifest.parameters == sum(half.manifest.parameters for half in alone)
    assert {file.name for file in manifest.files} == set(files)
    assert manifest.digest == adapter_digest(manifest.files, spec.base_fingerprint)
    assert "lora_pair" in kinds(adapter.parts)


def test_a_prefix_with_a_head_is_paired_too() -> None:
    base = make_base("llama", "SEQ_CLS", 2)
    prefix = save(tune(base, peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)))
    files = paired(prefix, lora(task_type=None)) | {"softmux.json": b'{"labels": ["a", "b"]}'}
    adapter = read_adapter(files, spec_of("llama"))
    assert (adapter.manifest.method, adapter.manifest.head) == ("lora+p_tuning_v2", "sequence")


def test_a_folder_of_a_pair_is_read_whole(tmp_path: Any) -> None:
    files = paired(soft("prompt_tuning"), lora())
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert load_folder(tmp_path) == files


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_half_a_pair_is_refused(missing: str, tmp_path: Any) -> None:
    files = paired(soft("prompt_tuning"), lora())
    del files[missing]
    with pytest.raises(InvalidAdapter, match="send both, or neither") as refused:
        read_adapter(files, spec_of("llama"))
    assert refused.value.param == missing


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"r": 0}, f"{CONFIG}: r"),
        ({"use_dora": True}, f"{CONFIG}: use_dora"),
        ({"target_modules": ["query"]}, f"{WEIGHTS}: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        ({"peft_type": "VERA"}, f"{CONFIG}: peft_type"),
        ({"base_model_name_or_path": "another/base"}, f"{CONFIG}: base_model_name_or_path"),
        ({"revision": "other"}, f"{CONFIG}: revision"),
    ],
)
def test_the_file_that_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    one = edited(soft("prompt_tuning"), base_model_name_or_path="some/base", revision="main")
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(paired(one, lora(**change)), spec_of("llama"))
    assert refused.value.param == param
    assert "adapter_config.json:" not in refused.value.message


@pytest.mark.parametrize(
    "halves", [("lora", "lora"), ("prompt_tuning", "prefix_tuning"), ("lora", "prompt_tuning")], ids="+".join
)
def test_only_a_soft_prompt_and_a_lora_are_a_pair(halves: tuple[str, str]) -> None:
    one, other = (lora() if half == "lora" else soft(half) for half in halves)
    with pytest.raises(InvalidAdapter, match="A pair is a soft prompt") as refused:
        read_adapter(paired(one, other), spec_of("llama"))
    assert refused.value.param == f"{CONFIG}: peft_type"


def test_one_head_is_enough() -> None:
    labels = {"softmux.json": json.dumps({"labels": ["a", "b"]}).encode()}
    halves = [
        save(tune(make_base("llama", "SEQ_CLS", 2), config))
        for config in (
            peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
            peft.LoraConfig(task_type="SEQ_CLS", r=2),
        )
    ]
    with pytest.raises(InvalidAdapter, match="hold a head"):
        read_adapter(paired(*halves) | labels, spec_of("llama"))
