"""What softmux.json may say, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from formats_fixtures import make_spec

from softmux.errors import BaseMismatch, InvalidAdapter
from softmux.formats.folder import read_adapter

Saved = Callable[[str, str], dict[str, bytes]]


def beside(files: dict[str, bytes], **said: Any) -> dict[str, bytes]:
    return files | {"softmux.json": json.dumps(said).encode()}


def test_all_of_it_reaches_the_manifest(saved: Saved) -> None:
    spec = make_spec()
    said = {
        "template": "{p:2} The capital of {country} {p:3} is",
        "labels": {"good": " positive", "bad": " negative"},
        "base_fingerprint": spec.base_fingerprint,
        "tokenizer_fingerprint": spec.tokenizer_fingerprint,
        "trained_lengths": [3, 90],
        "combines": False,
        "notes": "größer",
    }
    adapter = read_adapter(beside(saved("gqa", "prompt"), **said), spec)
    manifest = adapter.manifest
    assert manifest.template == said["template"]
    assert manifest.labels == said["labels"]
    assert manifest.trained_lengths == (3, 90)
    assert manifest.tokenizer_fingerprint == spec.tokenizer_fingerprint
    assert manifest.combines is False
    assert manifest.notes == "größer"
    assert any("fingerprints" in check for check in adapter.checks)
    assert read_adapter(beside(saved("gqa", "prompt"), labels=["a", "b"]), spec).manifest.labels == ("a", "b")
    assert read_adapter(beside(saved("gqa", "prompt")), spec).manifest.notes is None


def test_labels_said_by_the_same_words_are_warned_of(saved: Saved) -> None:
    labels = {"good": " yes", "bad": " no", "fine": " yes"}
    adapter = read_adapter(beside(saved("gqa", "prompt"), labels=labels), make_spec())
    assert [told for told in adapter.warnings if "“good” and “fine”" in told]
    adapter = read_adapter(beside(saved("gqa", "prompt"), labels={"good": " yes", "bad": " no"}), make_spec())
    assert not any("same words" in told for told in adapter.warnings)


@pytest.mark.parametrize("field", ["base_fingerprint", "tokenizer_fingerprint"])
def test_another_base_is_a_mismatch_even_where_shapes_differ(saved: Saved, field: str) -> None:
    spec = make_spec(hidden_size=64)
    with pytest.raises(BaseMismatch, match="another") as refused:
        read_adapter(beside(saved("gqa", "prompt"), **{field: "sha256:" + "0" * 64}), spec)
    assert refused.value.param == f"softmux.json: {field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("surprise", 1),
        ("template", ""),
        ("template", 4),
        ("template", "{p:4}{prompt}"),
        ("template", "{p:5}"),
        ("template", "{p:5}{prompt"),
        ("template", "{p:0}{p:5}{x}"),
        ("template", "{p:5}{a b}"),
        ("labels", "yes"),
        ("labels", []),
        ("labels", ["a", "a"]),
        ("labels", ["a", 1]),
        ("labels", {"a": 1}),
        ("labels", {"a": ["b"]}),
        ("base_fingerprint", 5),
        ("tokenizer_fingerprint", ""),
        ("trained_lengths", [9, 3]),
        ("trained_lengths", [1]),
        ("trained_lengths", [1, 2, 3]),
        ("trained_lengths", [-1, 3]),
        ("trained_lengths", [1.5, 3]),
        ("combines", "no"),
        ("notes", ["x"]),
    ],
)
def test_refused_with_the_field_named(saved: Saved, field: str, value: Any) -> None:
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(beside(saved("gqa", "prompt"), **{field: value}), make_spec())
    assert refused.value.param == f"softmux.json: {field}"
    assert len(refused.value.message) > 20


def test_prefix_template_has_slots_but_no_learned_tokens(saved: Saved) -> None:
    files = saved("gqa", "prefix")
    assert read_adapter(beside(files, template="Parse {address}:"), make_spec()).manifest.virtual_tokens == 5
    with pytest.raises(InvalidAdapter, match="always leads"):
        read_adapter(beside(files, template="{p:5} {address}"), make_spec())
