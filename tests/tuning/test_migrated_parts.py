"""What is carried from one base to another, part by part, and how an old base is heard."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder, read_adapter
from softmux.formats.layout import Layout
from softmux.formats.parts import HeadPart, LoraLayer, LoraPart, PrefixPart, PromptPart, TokenRowsPart
from softmux.formats.softmux_json import SoftmuxJson
from softmux.inspection.base import describe
from softmux.tuning.bases.base import Base
from softmux.tuning.frozen.decoder import FrozenBase
from softmux.tuning.frozen.output_head import head_of
from softmux.tuning.frozen.packing import Place, pack, prepare
from softmux.tuning.frozen.tables import Tables
from softmux.tuning.migration.carrying import Carrier, parts_of, start_of, why_not
from softmux.tuning.migration.files import files_of
from softmux.tuning.migration.kinship import Remembered, nearness, same_words
from softmux.tuning.voices.voice import Voice
from support.models import greedy_reference, load_peft, make_adapter, make_base
from support.toy_language import new_base

METHODS = ["prompt_tuning", "prefix_projection", "p_tuning_lstm"]


def base_of(model: Any, tokenizer: Any = None) -> Base:
    return Base(model, tokenizer, "tiny", torch.device("cpu"), (2,))


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("llama", "prompt_tuning"), ("llama", "prefix_tuning"), ("gpt2", "prefix_tuning"), ("gemma2", "prefix_tuning")],
)
def test_a_voice_says_what_peft_says(architecture: str, method: str, tmp_path: Path) -> None:
    model = make_base(architecture, tmp_path / "base")
    make_adapter(model, method, tmp_path / "adapter")
    adapter = read_adapter(load_folder(tmp_path / "adapter"), describe(str(tmp_path / "base"), fingerprints=True))
    ids = [5, 9, 33, 7]
    wanted, sure = greedy_reference(load_peft(model, tmp_path / "adapter"), ids, 6)
    voice = Voice.of(base_of(model), Layout.of(adapter.manifest), adapter.parts)
    virtual = tuple(range(-1, -1 - adapter.manifest.virtual_tokens, -1))
    short = (*virtual, 5, 9)  # beside another, so that padding is there
    said, _ = voice.answers([(*virtual, *ids), short], 6)
    assert list(said)[:sure] == wanted[:sure]
    assert sure > 2


def test_a_loras_voice_and_its_states_are_those_of_peft(tmp_path: Path) -> None:
    """And the base is given back as it was."""
    model = make_base("llama", tmp_path / "base")
    torch.manual_seed(3)
    tuned = get_peft_model(
        make_base("llama", tmp_path / "other"), LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=12)
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    tuned.save_pretrained(tmp_path / "adapter")
    spec = describe(str(tmp_path / "base"), fingerprints=True)
    adapter = read_adapter(load_folder(tmp_path / "adapter"), spec)
    voice = Voice.of(base_of(model), Layout.of(adapter.manifest), adapter.parts)
    ids = (5, 9, 33, 7)
    with torch.no_grad():
        bare = model(input_ids=torch.tensor([ids])).logits
    (row, _) = voice.taught([ids, (3, 4)], 3)
    with torch.no_grad():
        wanted = tuned(input_ids=torch.tensor([[*ids, *row.answer]])).logits[0, 3:-1]
    assert row.answer == tuple(wanted.argmax(-1).tolist())
    assert row.taught is not None
    assert torch.allclose(head_of(model)(torch.from_numpy(row.taught)), wanted, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor([ids])).logits, bare)
    start = start_of(adapter.parts)
    (again,) = parts_of(start.values(), adapter.parts)
    (part,) = adapter.parts
    assert isinstance(again, LoraPart)
    assert isinstance(part, LoraPart)
    for name, layer in part.layers.items():
        assert np.allclose(again.layers[name].b, layer.b)
        assert np.array_equal(again.layers[name].a, layer.a)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
def test_a_teacher_on_another_base_is_heard_through_its_own_head(name: str, tmp_path: Path) -> None:
    """Whatever that base does behind its output projection (gemma2 squashes, granite scales), without the base itself
    where it does nothing."""
    old, new = make_base(name, tmp_path / "old", seed=1), make_base("llama", tmp_path / "new", seed=2)
    long = Voice(base_of(old)).taught([(3, 4, 5), (8, 4)], 2)
    frozen = FrozenBase(new, teacher=head_of(old))
    with torch.no_grad(), frozen.running():
        found = frozen.losses(pack([(prepare(row, 0, 0.0), Place(0)) for row in long], frozen.device), Tables())
    expected = []
    for row in long:
        ids = torch.tensor([[*row.ids, *row.answer]])
        with torch.no_grad():
            theirs, own = (
                model(input_ids=ids).logits[0, len(row.ids) - 1 : -1].log_softmax(-1) for model in (old, new)
            )
        expected.append((theirs.exp() * (theirs - own)).sum(-1))
    assert torch.allclose(found, torch.cat(expected), rtol=1e-3, atol=1e-4)
    assert found.min() > 1e-3


def carrier(old: Base, new: Base, folder: Path) -> Carrier:
    remembered = Remembered.of(old)
    new.model.save_pretrained(folder)
    spec = describe(str(folder), fingerprints=True)
    return Carrier(remembered, new, spec, nearness(remembered, new))


def a_prefix(layers: int, heads: int, width: int) -> PrefixPart:
    rng = np.random.default_rng(0)
    keys, values = (rng.normal(size=(layers, 3, heads, width)).astype(np.float32) for _ in range(2))
    return PrefixPart(keys, values)


def test_a_base_that_is_near_begins_with_the_old_numbers(tmp_path: Path) -> None:
    old, new = new_base(tmp_path / "old"), new_base(tmp_path / "new")
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    moving = carrier(old, new, tmp_path / "saved")
    assert 0.9 < moving.near < 1
    parts = (PromptPart(np.ones((2, 32), np.float32)), a_prefix(2, 2, 8))
    for part in parts:
        carried, words = moving.carry((part,), "long film")
        assert carried == (part,)
        assert words == "what it was"


def test_a_base_of_another_width_begins_with_the_nearest_words(tmp_path: Path) -> None:
    """Whose numbers there are other ones, as its vocabulary is another."""
    old, new = new_base(tmp_path / "old"), new_base(tmp_path / "new", "unheard", "of", hidden=48)
    moving = carrier(old, new, tmp_path / "saved")
    assert moving.near == 0
    table = old.model.get_input_embeddings().weight
    words = ["film", "dull"]
    at = [old.encoder.encode(word, add_special_tokens=False)[0] for word in words]
    part = PromptPart(np.ascontiguousarray(1.5 * table[at].numpy() + 0.01))
    assert not moving.fits((part,))
    (carried,), said = moving.carry((part,), "")
    theirs = [new.encoder.encode(word, add_special_tokens=False)[0] for word in words]
    assert theirs != at
    assert isinstance(carried, PromptPart)
    assert np.allclose(carried.vectors, new.model.get_input_embeddings().weight[theirs].numpy())
    assert said == "the nearest words"
    (prefix,), said = moving.carry((a_prefix(2, 2, 8),), "long film 3 was dull")
    assert isinstance(prefix, PrefixPart)
    assert prefix.keys.shape == (2, 3, 2, 12)
    assert said == "the words of its description"
    ids = new.encoder.encode("long film 3", add_special_tokens=False)
    cache = new.model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    assert np.allclose(prefix.values[1], cache.layers[1].values[0].transpose(0, 1).numpy(), atol=1e-6)


def test_a_lora_begins_anew_where_modules_are_of_other_shapes(tmp_path: Path) -> None:
    old, new = new_base(tmp_path / "old"), new_base(tmp_path / "new", hidden=48)
    moving = carrier(old, new, tmp_path / "saved")

    def lora(name: str, layers: int, rank: int = 2) -> LoraPart:
        made = LoraLayer(np.ones((rank, 32), np.float32), np.ones((32, rank), np.float32), 4.0)
        return LoraPart({f"model.layers.{i}.self_attn.{name}": made for i in range(layers)})

    (carried,), said = moving.carry((lora("q_proj", 2),), "")
    assert isinstance(carried, LoraPart)
    assert {layer.a.shape + layer.b.shape for layer in carried.layers.values()} == {(2, 48, 48, 2)}
    assert not any(layer.b.any() for layer in carried.layers.values())
    assert (said, carried.layers["model.layers.0.self_attn.q_proj"].scaling) == ("a fresh LoRA", 4.0)
    assert len(moving.carry((lora("q_proj", 1),), "")[0][0].layers) == 2, "the new base has a layer more"  # type: ignore[union-attr]
    with pytest.raises(InvalidRequest, match="its LoRA is on out_proj, which the new base does not have"):
        moving.carry((lora("out_proj", 2),), "")
    uneven = LoraPart(
        {
            **lora("q_proj", 1).layers,
            "model.layers.5.self_attn.q_proj": lora("q_proj", 6, 3).layers["model.layers.5.self_attn.q_proj"],
        }
    )
    with pytest.raises(InvalidRequest, match="ranks or scalings by layer"):
        moving.carry((uneven,), "")


def test_a_prefix_has_no_place_where_layers_differ(tmp_path: Path) -> None:
    old, new = new_base(tmp_path / "old"), new_base(tmp_path / "new", hidden=48)
    moving = carrier(old, new, tmp_path / "saved")
    first, second = moving.spec.layers
    spec = msgspec.structs.replace(moving.spec, layers=(first, msgspec.structs.replace(second, head_dim=24)))
    with pytest.raises(InvalidRequest, match="keys and values of different shapes"):
        dataclasses.replace(moving, spec=spec).carry((a_prefix(2, 2, 8),), "film")


def test_what_belongs_to_one_base_alone_is_left_with_why() -> None:
    rows = TokenRowsPart((3,), np.ones((1, 8), np.float32), "both")
    head = HeadPart(
        "sequence", np.ones((2, 8), np.float32), None, None, False, ("a", "b"), "single_label_classification"
    )
    assert "rows of the token tables" in why_not(rows)
    assert "it has a head" in why_not(head)
    with pytest.raises(InvalidRequest, match="rows of the token tables"):
        start_of((rows,))


@pytest.mark.parametrize("method", [*METHODS, "lora"])
def test_the_files_are_read_back_as_the_parts_they_were_made_of(method: str, tmp_path: Path) -> None:
    """By the base that they are for, and by PEFT."""
    model = make_base("llama", tmp_path / "old")
    if method == "lora":
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6))
        tuned.save_pretrained(tmp_path / "adapter")
    else:
        make_adapter(model, method, tmp_path / "adapter")
    files = load_folder(tmp_path / "adapter")
    adapter = read_adapter(files, describe(str(tmp_path / "old"), fingerprints=True))
    (part,) = adapter.parts
    rng = np.random.default_rng(1)
    if isinstance(part, PromptPart):
        part = PromptPart(rng.normal(size=part.vectors.shape).astype(np.float32))
    elif isinstance(part, PrefixPart):
        part = PrefixPart(*(rng.normal(size=part.keys.shape).astype(np.float32) for _ in range(2)))
    new = make_base("llama", tmp_path / "new", seed=5)
    spec = describe(str(tmp_path / "new"), fingerprints=True)
    made = files_of(files, (part,), spec, "the-new-base", SoftmuxJson(base_fingerprint=spec.base_fingerprint))
    again = read_adapter(made, spec)
    assert again.manifest.method == adapter.manifest.method
    assert again.manifest.base_label == "the-new-base"
    for (_, one), (_, other) in zip(again.parts[0].arrays(), part.arrays(), strict=True):
        assert np.array_equal(one, other)
    folder = tmp_path / "made"
    folder.mkdir()
    for name, data in made.items():
        (folder / name).write_bytes(data)
    wanted, sure = greedy_reference(load_peft(new, folder), [5, 9, 33, 7], 5)
    voice = Voice.of(base_of(new), Layout.of(again.manifest), again.parts)
    virtual = tuple(range(-1, -1 - again.manifest.virtual_tokens, -1))
    (said,) = voice.answers([(*virtual, 5, 9, 33, 7)], 5)
    assert list(said)[:sure] == wanted[:sure]


def test_a_folded_prompt_is_prompt_tuning_from_then_on(tmp_path: Path) -> None:
    make_base("llama", tmp_path / "base")
    spec = describe(str(tmp_path / "base"), fingerprints=True)
    config = {
        "peft_type": "CPT", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2, "cpt_token_ids": [4, 5],
        "opt_projection_epsilon": 0.2, "token_dim": 12,
    }  # fmt: skip
    part = PromptPart(np.ones((2, spec.hidden_size), np.float32))
    made = files_of({"adapter_config.json": json.dumps(config).encode()}, (part,), spec, "base", SoftmuxJson())
    assert read_adapter(made, spec).manifest.method == "prompt_tuning"
    assert not [name for name in json.loads(made["adapter_config.json"]) if name.startswith(("cpt_", "opt_"))]


def test_tokens_are_the_same_only_where_words_and_ends_are(tmp_path: Path) -> None:
    old = new_base(tmp_path / "old")
    other = new_base(tmp_path / "other", "more")
    size = old.vocab_size
    assert same_words(old, AutoTokenizer.from_pretrained(tmp_path / "old"), size, (2,))
    assert not same_words(old, AutoTokenizer.from_pretrained(tmp_path / "old"), size + 1, (2,))
    assert not same_words(old, AutoTokenizer.from_pretrained(tmp_path / "old"), size, (2, 5))
    assert not same_words(old, other.tokenizer, size, (2,))
