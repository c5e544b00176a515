"""LoRA folders as PEFT writes them: each layer's update is PEFT's own, and variants are refused by name."""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec
import numpy as np
import peft
import pytest
import torch
from formats_fixtures import edited
from zoo_fixtures import make_base, retensored, save, spec_of, tune

from softmux.engine.anatomy import weighed
from softmux.errors import InvalidAdapter
from softmux.formats.folder import read_adapter
from softmux.formats.parts import LoraPart
from softmux.types import LinearShape

Q0 = "base_model__model__model__layers__0__self_attn__q_proj"

GOOD: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "plain": ("llama", "CAUSAL_LM", {"r": 3, "lora_alpha": 5}),
    "tied": ("llama-tied", "CAUSAL_LM", {"r": 3}),
    "rslora": ("llama", "CAUSAL_LM", {"r": 3, "lora_alpha": 5, "use_rslora": True}),
    "all-linear": ("llama", "CAUSAL_LM", {"r": 2, "target_modules": "all-linear"}),
    "regex": ("llama", "CAUSAL_LM", {"r": 2, "target_modules": r".*\.1\.(self_attn\.[qk]_proj|mlp\.up_proj)"}),
    "output": ("llama", "CAUSAL_LM", {"r": 2, "target_modules": ["lm_head", "o_proj"]}),
    "patterns": (
        "llama",
        "CAUSAL_LM",
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 5, r".*\.0\..*": 1},
            "alpha_pattern": {"v_proj": 7.5, "^model.layers.1.self_attn.q_proj": 11},
            "use_rslora": True,
        },
    ),
    "some layers": ("llama", "CAUSAL_LM", {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "one layer by its pattern": (
        "llama",
        "CAUSAL_LM",
        {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    "without some": (
        "llama",
        "CAUSAL_LM",
        {"r": 2, "target_modules": "all-linear", "exclude_modules": r".*mlp.*"},
    ),
    "gpt2": ("gpt2", "CAUSAL_LM", {"r": 2, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    "eva": ("llama", "CAUSAL_LM", {"r": 2, "init_lora_weights": "gaussian", "lora_dropout": 0.1}),
}


def lora(name: str) -> tuple[Any, str]:
    model, task, options = GOOD[name]
    return tune(make_base(model, task), peft.LoraConfig(task_type=task, **options)), model


def updates(tuned: Any) -> dict[str, np.ndarray]:
    """PEFT's change of each module's weight, `[outputs, inputs]`."""
    found = {}
    for path, module in tuned.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            delta = module.get_delta_weight("default").detach()
            found[path] = (delta.T if getattr(module, "fan_in_fan_out", False) else delta).numpy()
    return found


@pytest.mark.parametrize("name", GOOD)
def test_every_layers_update_is_pefts(name: str) -> None:
    tuned, model = lora(name)
    adapter = read_adapter(save(tuned, save_embedding_layers=False), spec_of(model))
    (part,) = adapter.parts
    assert isinstance(part, LoraPart)
    theirs = updates(tuned)
    assert part.layers.keys() == theirs.keys()
    for path, layer in part.layers.items():
        np.testing.assert_allclose(layer.scaling * (layer.b @ layer.a), theirs[path], rtol=0, atol=1e-6)
    manifest = adapter.manifest
    assert (manifest.method, manifest.virtual_tokens) == ("lora", 0)
    assert manifest.parameters == sum(layer.a.size + layer.b.size for layer in part.layers.values())
    assert adapter.warnings == ()


def test_ranks_and_scalings_differ_between_layers() -> None:
    tuned, _ = lora("patterns")
    (part,) = read_adapter(save(tuned), spec_of("llama")).parts
    assert isinstance(part, LoraPart)
    found = {path: (layer.rank, round(layer.scaling, 6)) for path, layer in part.layers.items()}
    assert found == {
        "model.layers.0.self_attn.q_proj": (1, 3.0),
        "model.layers.0.self_attn.v_proj": (1, 7.5),
        "model.layers.1.self_attn.q_proj": (5, round(11 / 5**0.5, 6)),
        "model.layers.1.self_attn.v_proj": (2, round(7.5 / 2**0.5, 6)),
    }
    assert part.max_rank == 5


def test_an_untrained_lora_is_told() -> None:
    tuned = peft.get_peft_model(make_base("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    (warning,) = read_adapter(save(tuned), spec_of("llama")).warnings
    assert "untrained" in warning


def test_an_update_far_larger_than_its_weight_is_told() -> None:
    tuned, model = lora("patterns")
    spec = spec_of(model)
    spec = msgspec.structs.replace(spec, linears=weighed(spec.linears, make_base(model, "CAUSAL_LM")))

    def told(factor: float) -> tuple[str, ...]:
        with torch.no_grad():
            for module in tuned.modules():
                if isinstance(module, peft.tuners.lora.LoraLayer):
                    module.lora_B["default"].weight.mul_(factor)
        return read_adapter(save(tuned), spec).warnings

    assert told(1e-3) == ()
    (warning,) = told(1e18)
    ratios = {
        path: float(np.linalg.norm(update) / tuned.base_model.model.get_submodule(path).weight.detach().norm())
        for path, update in updates(tuned).items()
    }
    assert f"{len(ratios)} of {len(ratios)} updates of the LoRA have unusual norms" in warning
    (most, path) = re.search(r"up to (\S+) times .* \((\S+)\)", warning).groups()  # type: ignore[union-attr]
    assert float(most) == pytest.approx(ratios[path], rel=0.3)


VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "trained biases": ({"bias": "lora_only"}, "bias"),
    "a bias at B": ({"lora_bias": True}, "lora_bias"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights"),
    "aLoRA": ({"alora_invocation_tokens": [3, 4]}, "alora_invocation_tokens"),
    "layers repeated": ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_that_peft_writes_are_refused_by_name(name: str) -> None:
    options, field = VARIANTS[name]
    tuned = peft.get_peft_model(make_base("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2, **options))
    with pytest.raises(InvalidAdapter, match=r"not served|changes the base") as refused:
        read_adapter(save(tuned), spec_of("llama"))
    assert refused.value.param == f"adapter_config.json: {field}"


def test_lora_on_an_embedding_is_refused_by_name() -> None:
    tuned = peft.get_peft_model(
        make_base("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens", "q_proj"])
    )
    with pytest.raises(InvalidAdapter, match=r"embedding|base itself") as refused:
        read_adapter(save(tuned), spec_of("llama"))
    assert str(refused.value.param).startswith("adapter_model.safetensors: base_model.model.model.embed_tokens")


A0 = {f"{Q0}__lora_A__weight": torch.zeros(3, 31)}
MALFORMED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rank 0": ({"r": 0}, {}, "adapter_config.json: r"),
    "rank below 0": ({"r": -4}, {}, "adapter_config.json: r"),
    "a rank that is no number": ({"r": "8"}, {}, "adapter_config.json: r"),
    "another rank": ({"r": 4}, {}, "adapter_model.safetensors: base_model.model.model.layers.0.self_attn.q_proj"),
    "rank 0 in a pattern": ({"rank_pattern": {"q_proj": 0}}, {}, "adapter_config.json: rank_pattern"),
    "alpha that is not finite": ({"lora_alpha": -1}, {}, "adapter_config.json: lora_alpha"),
    "no targets": ({"target_modules": None}, {}, "adapter_config.json: target_modules"),
    "an unknown target": ({"target_modules": ["q_proj", "v_proj", "query"]}, {}, "adapter_config.json: target_modules"),
    "a target not trained": (
        {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        {},
        "adapter_model.safetensors: base_model.model.model.layers.0.self_attn.o_proj",
    ),
    "trained, no target": (
        {"target_modules": ["q_proj"]},
        {},
        "adapter_model.safetensors: base_model.model.model.layers.0.self_attn.v_proj",
    ),
    "a pattern that never ends": (
        {"target_modules": r"(.|..|...)+(?<=k)"},
        {},
        "adapter_config.json: target_modules",
    ),
    "a pattern nested beyond reading": ({"target_modules": "(a|" * 900 + ")" * 900}, {}, "adapter_config.json: target"),
    "no pattern": ({"target_modules": "(q_proj"}, {}, "adapter_config.json: target_modules"),
    "no rank pattern": ({"rank_pattern": {"*": 3}}, {}, "adapter_config.json: rank_pattern"),
    "wrong width": ({}, A0, "adapter_model.safetensors: base_model.model.model.layers.0.self_attn.q_proj.lora_A"),
    "no B": ({}, {f"{Q0}__lora_B__weight": None}, "adapter_model.safetensors: base_model.model.model.layers.0.self"),
    "NaN": (
        {},
        {f"{Q0}__lora_B__weight": torch.full((32, 3), float("nan"))},
        "adapter_model.safetensors: base_model.model.model.layers.0.self_attn.q_proj.lora_B",
    ),
    "another model's module": (
        {"target_modules": ["q_proj", "v_proj", "query"]},
        {
            "base_model__model__bert__layer__0__query__lora_A__weight": torch.zeros(3, 32),
            "base_model__model__bert__layer__0__query__lora_B__weight": torch.zeros(32, 3),
        },
        "adapter_model.safetensors: base_model.model.bert.layer.0.query",
    ),
    "a tensor beside": ({}, {"surprise": torch.zeros(2)}, "adapter_model.safetensors: surprise"),
    "a head": ({}, {"base_model__model__score__weight": torch.zeros(2, 32)}, "adapter_model.safetensors: base_model"),
    "a task without a head in the file": ({"task_type": "SEQ_CLS"}, {}, "adapter_model.safetensors: base_model.cla"),
    "an unknown field": ({"surprise": None}, {}, "adapter_config.json: surprise"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_ones_are_refused_by_name(name: str) -> None:
    change, tensors, param = MALFORMED[name]
    tuned, _ = lora("plain")
    files = retensored(edited(save(tuned), **change), **tensors)
    began = time.monotonic()
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(files, spec_of("llama"))
    assert time.monotonic() - began < 30  # it would be years
    assert str(refused.value.param).startswith(param)
    assert len(refused.value.message) < 2000


def test_a_lora_trained_under_a_wrapper_finds_the_bare_base() -> None:
    """BERT's classifier calls the encoder `bert`; a server may hold it bare, or wrapped."""
    tuned = tune(make_base("bert", "SEQ_CLS", 2), peft.LoraConfig(task_type="SEQ_CLS", r=2))
    files = save(tuned) | {"softmux.json": b'{"labels": ["a", "b"]}'}
    theirs = updates(tuned)
    bare = spec_of("bert")
    wrapped = spec_of("bert", linears=tuple(LinearShape(f"bert.{x.name}", x.inputs, x.outputs) for x in bare.linears))
    for spec, lead in ((bare, "bert."), (wrapped, "")):
        part = read_adapter(files, spec).parts[0]
        assert isinstance(part, LoraPart)
        for path, layer in part.layers.items():
            np.testing.assert_allclose(layer.scaling * (layer.b @ layer.a), theirs[lead + path], rtol=0, atol=1e-6)


def test_a_lora_trained_on_the_bare_base_finds_the_wrapped_one() -> None:
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["q_proj"])
    tuned = tune(make_base("llama", None), config)
    (part,) = read_adapter(edited(save(tuned), task_type=None), spec_of("llama")).parts
    assert isinstance(part, LoraPart)
    assert part.layers.keys() == {f"model.{path}" for path in updates(tuned)}
