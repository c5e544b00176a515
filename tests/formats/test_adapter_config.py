"""What adapter_config.json may say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from formats_fixtures import edited, make_spec

from softmux.errors import InvalidAdapter
from softmux.formats.folder import read_adapter
from softmux.types import LayerKV

Saved = Callable[[str, str], dict[str, bytes]]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("auto_mapping", {"base_model_class": "X", "parent_library": "os"}, "CAUSAL_LM"),
        ("auto_map", {"AutoModel": "x.Y"}, "run code"),
        ("trust_remote_code", True, "run code"),
        ("trust_remote_code", False, "run code"),
        ("surprise", None, "doesn't know"),
        ("inference_mode", "yes", "does not fit"),
        ("num_virtual_tokens", ..., "lacks"),
        ("num_virtual_tokens", 0, "at least 1"),
        ("num_virtual_tokens", -3, "at least 1"),
        ("num_virtual_tokens", 5.0, "does not fit"),
        ("num_virtual_tokens", True, "does not fit"),
        ("num_virtual_tokens", 128, "no room"),
        ("num_virtual_tokens", 10**400, "does not fit"),
        ("token_dim", 64, "hidden size"),
        ("num_layers", 4, "4 layers"),
        ("num_transformer_submodules", 2, "encoder-decoder"),
        ("modules_to_save", ["lm_head"], "replaces modules"),
        ("task_type", "SEQ_2_SEQ_LM", "CAUSAL_LM"),
        ("task_type", 7, "does not fit"),
        ("peft_type", "VERA", "merge it into the base"),
        ("peft_type", "XLORA", "publish the LoRA it chooses"),
        ("peft_type", "../../x\n", "not one of"),
        ("peft_type", ..., "name the method"),
        ("peft_type", 3, "name the method"),
        ("encoder_hidden_size", 32, "doesn't know"),
    ],
)
def test_refused_with_the_field_named(saved: Saved, field: str, value: Any, said: str) -> None:
    files = edited(saved("gqa", "prompt"), **{field: value})
    with pytest.raises(InvalidAdapter, match=said) as refused:
        read_adapter(files, make_spec())
    assert refused.value.param == f"adapter_config.json: {field}"


def test_code_is_found_at_any_depth(saved: Saved) -> None:
    files = edited(saved("gqa", "prompt"), tokenizer_kwargs={"deeper": [{"trust_remote_code": True}]})
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(files, make_spec())
    assert refused.value.param == "adapter_config.json: trust_remote_code"


@pytest.mark.parametrize("config", ["prompt", "mlp", "lstm", "prefix", "projection"])
def test_null_numbers_are_the_models(saved: Saved, config: str) -> None:
    empty = dict.fromkeys(("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "task_type"))
    assert read_adapter(edited(saved("gqa", config), **empty), make_spec()).manifest.virtual_tokens == 5


def test_names_are_kept_as_labels_and_never_opened(saved: Saved) -> None:
    files = edited(
        saved("gqa", "prompt"),
        base_model_name_or_path="file:///etc/passwd",
        tokenizer_name_or_path="//evil.example/share",
        revision="main",
    )
    manifest = read_adapter(files, make_spec()).manifest
    assert manifest.base_label == "file:///etc/passwd"
    assert manifest.tokenizer_label == "//evil.example/share"
    assert manifest.revision_label == "main"


@pytest.mark.parametrize(("field", "value"), [("token_dim", 32), ("num_attention_heads", 4)])
def test_prefix_of_the_query_heads_is_refused(saved: Saved, field: str, value: int) -> None:
    with pytest.raises(InvalidAdapter, match="train it on this base") as refused:
        read_adapter(edited(saved("gqa", "prefix"), **{field: value}), make_spec())
    assert refused.value.param == f"adapter_config.json: {field}"


def test_prefix_needs_layers_of_one_shape(saved: Saved) -> None:
    with pytest.raises(InvalidAdapter, match="different key and value shapes"):
        read_adapter(saved("gqa", "prefix"), make_spec(layers=(LayerKV(2, 8), LayerKV(2, 8), LayerKV(1, 16))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "object is expected"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"peft_type": "LORA", "peft_type": "PROMPT_TUNING"}', "twice"),
        (b'{"a": NaN}', "no JSON number"),
        (b'{"a": -Infinity}', "no JSON number"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b'{"a": ' * 100000 + b"1" + b"}" * 100000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_json_is_read_strictly(saved: Saved, text: bytes, said: str) -> None:
    with pytest.raises(InvalidAdapter, match=said) as refused:
        read_adapter(saved("gqa", "prompt") | {"adapter_config.json": text}, make_spec())
    assert refused.value.param is not None
    assert refused.value.param.startswith("adapter_config.json")
