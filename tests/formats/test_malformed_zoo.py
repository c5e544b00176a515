"""Every field of every kind of folder set to odd values, every tensor bent: a readable 4xx or a whole adapter."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from zoo_fixtures import make_base, save, spec_of, tune

from softmux.errors import SoftmuxError
from softmux.formats.folder import read_adapter
from support.malformed import CONFIG, ODD_VALUES, SOFTMUX, WEIGHTS, Case, Files, truncations

LABELS: Files = {SOFTMUX: b'{"labels": ["a", "b"]}'}


def _files(base: str, config: Any, more: Files | None = None) -> Files:
    return save(tune(make_base(base, config.task_type, 2), config)) | (more or {})


def _pair() -> Files:
    soft = _files("llama", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    lora = _files("llama", peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    return soft | {"adapter_config.lora.json": lora[CONFIG], "adapter_model.lora.safetensors": lora[WEIGHTS]}


KINDS: dict[str, tuple[str, Callable[[], Files]]] = {
    "multitask": (
        "llama",
        lambda: _files(
            "llama", peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_ranks=2)
        ),
    ),
    "cpt": ("llama", lambda: _files("llama", peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2, 3]))),
    "cartridge": (
        "llama",
        lambda: _files("llama", peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    ),
    "lora": (
        "llama",
        lambda: _files(
            "llama",
            peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=2,
                rank_pattern={"q_proj": 3},
                alpha_pattern={"v_proj": 4},
                trainable_token_indices=[3, 5],
            ),
        ),
    ),
    "rows": ("llama", lambda: _files("llama", peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3]))),
    "encoder head": (
        "bert",
        lambda: _files(
            "bert",
            peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4, modules_to_save=["pooler"]),
            LABELS,
        ),
    ),
    "token head": ("gpt2", lambda: _files("gpt2", peft.LoraConfig(task_type="TOKEN_CLS", r=2), LABELS)),
    "pair": ("llama", _pair),
}


def bent(good: Files) -> Iterator[Case]:
    """Not all of it is wrong: what is not must be read whole."""
    for file in [name for name in good if name.endswith(".json")]:
        fields = json.loads(good[file])
        for field in (*fields, "id2label", "num_labels", "problem_type", "rank_pattern", "labels"):
            for value in (*ODD_VALUES, [1], ["x"], {"x": 1}, {"x": [1]}, {"0": "a", "1": "b"}, "(", [[0, 1]], 1 << 20):
                yield f"{file}: {field} {value!r}", good | {file: json.dumps(fields | {field: value}).encode()}
    for file in [name for name in good if name.endswith(".safetensors")]:
        tensors = safetensors.torch.load(good[file])
        for name, tensor in tensors.items():
            rest = {other: value for other, value in tensors.items() if other != name}
            for what, changed in {
                "gone": rest,
                "renamed": rest | {name + ".x": tensor},
                "under another module": rest | {f"base_model.model.x.{name.rpartition('.')[2]}": tensor},
                "flat": rest | {name: tensor.flatten()},
                "deeper": rest | {name: tensor[None]},
                "empty": rest | {name: tensor[:0]},
                "scalar": rest | {name: tensor.flatten()[0].clone()},
                "longer": rest | {name: torch.cat([tensor, tensor])},
                "infinite": rest | {name: torch.full_like(tensor, torch.inf)},
                "integers": rest | {name: tensor.to(torch.int32)},
                "twice": tensors | {name.replace(".weight", ".default.weight") + "": tensor.clone()},
            }.items():
                yield f"{file}: {name} {what}", good | {file: safetensors.torch.save(changed)}
    yield from truncations(good)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_readable_refusals(kind: str) -> None:
    base, make = KINDS[kind]
    spec, good = spec_of(base), make()
    whole = read_adapter(good, spec).manifest
    wrong: list[str] = []
    refused = 0
    tracemalloc.start()
    try:
        for what, files in bent(good):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                manifest = read_adapter(files, spec).manifest
            except SoftmuxError as error:
                refused += 1
                readable = 20 < len(error.message) <= 2000 and error.message.isprintable()
                if not (400 <= error.status < 500 and readable and error.param and len(error.param) <= 300):
                    wrong.append(f"{what}: {error.status} {error.message[:200]!r} [{error.param}]")
            except Exception as error:
                wrong.append(f"{what}: raised {error!r}"[:300])
            else:
                if manifest.parameters != whole.parameters:
                    wrong.append(f"{what}: accepted with {manifest.parameters} parameters")
            if tracemalloc.get_traced_memory()[1] - before > 32 << 20:
                wrong.append(f"{what}: used much memory")
    finally:
        tracemalloc.stop()
    assert not wrong, "\n".join(wrong)
    assert refused > 200
