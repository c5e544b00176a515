"""The layout of a request: what is served, and what is trained."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from softmux.errors import InvalidRequest
from softmux.formats.layout import Encoder, Layout, TransformersEncoder, lay_out
from softmux.formats.template import Template
from softmux.types import Manifest, Method

BYTES = pre_tokenizers.ByteLevel.alphabet()
SPECIAL = ("<s>", "</s>")
VOCAB = len(BYTES) + len(SPECIAL)
BOS, EOS = VOCAB - 2, VOCAB - 1


def make_encoder(pattern: str) -> TransformersEncoder:
    """A byte-level tokenizer with the special tokens of `pattern` (a post-processor's template) by default."""
    vocab = {char: index for index, char in enumerate(sorted(BYTES))} | {"<s>": BOS, "</s>": EOS}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return TransformersEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))


PLAIN = make_encoder("$A")
WITH_BOS = make_encoder("<s> $A")
WITH_BOTH = make_encoder("<s> $A </s>")
ENCODERS = pytest.mark.parametrize("encoder", [PLAIN, WITH_BOS, WITH_BOTH], ids=["plain", "bos", "bos-eos"])


def words(text: str) -> tuple[int, ...]:
    return tuple(PLAIN.encode(text, add_special_tokens=False))


def adapter(template: str | None, tokens: int, method: Method = "prompt_tuning") -> Layout:
    return Layout(tokens, Template.parse(template) if template is not None else None, method)


@ENCODERS
@given(text=st.text(min_size=1, max_size=20))
@settings(max_examples=40)
def test_a_leading_template_is_prompt_tuning(encoder: Encoder, text: str) -> None:
    plain = lay_out(adapter(None, 4), encoder, vocab_size=VOCAB, prompt=text)
    assert plain == (-1, -2, -3, -4, *encoder.encode(text, add_special_tokens=True))
    template = adapter("{p:4}{prompt}", 4)
    assert lay_out(template, encoder, vocab_size=VOCAB, prompt=text) == plain
    assert lay_out(template, encoder, vocab_size=VOCAB, variables={"prompt": text}) == plain


def test_learned_tokens_at_any_place() -> None:
    layout = adapter("{p:2} The capital of {country} {p:2} is", 4)
    assert lay_out(layout, WITH_BOTH, vocab_size=VOCAB, prompt="France") == (
        *(-1, -2, BOS),
        *words(" The capital of France "),
        *(-3, -4),
        *words(" is"),
        EOS,
    )
    layout = adapter("In {country} {p:1} and {country}", 1)
    assert lay_out(layout, WITH_BOS, vocab_size=VOCAB, prompt="Peru") == (
        BOS,
        *words("In Peru "),
        -1,
        *words(" and Peru"),
    )


def test_an_empty_run_keeps_the_special_tokens_in_place() -> None:
    layout = adapter("{a}{p:1}{b}", 1)
    assert lay_out(layout, WITH_BOTH, vocab_size=VOCAB, variables={"a": "", "b": ""}) == (BOS, -1, EOS)


def test_values_never_become_learned_tokens() -> None:
    ids = lay_out(adapter("{p:1}{x}{p:1}!", 2), WITH_BOS, vocab_size=VOCAB, prompt="{p:3}{x}</s>")
    assert ids == (-1, BOS, *words("{p:3}{x}"), EOS, -2, *words("!"))


def test_a_prefix_leads() -> None:
    assert lay_out(adapter(None, 2, "prefix_tuning"), WITH_BOS, vocab_size=VOCAB, prompt="a") == (
        -1,
        -2,
        BOS,
        *words("a"),
    )
    layout = adapter("Say {x}", 2, "prefix_tuning")
    assert lay_out(layout, WITH_BOS, vocab_size=VOCAB, prompt="a") == (-1, -2, BOS, *words("Say a"))


def test_token_ids_and_the_bare_model() -> None:
    assert lay_out(None, WITH_BOS, vocab_size=VOCAB, prompt=[5, VOCAB - 1]) == (5, VOCAB - 1)
    assert lay_out(adapter(None, 1), WITH_BOS, vocab_size=VOCAB, prompt=[5]) == (-1, 5)
    assert lay_out(None, WITH_BOS, vocab_size=VOCAB, prompt="") == (BOS,)


def test_manifest_is_a_layout() -> None:
    manifest = Manifest(
        digest="sha256:0",
        method="p_tuning",
        base_fingerprint="sha256:1",
        files=(),
        virtual_tokens=1,
        parameters=4,
        template="{x}{p:1}",
    )
    assert lay_out(manifest, PLAIN, vocab_size=VOCAB, prompt="a") == (*words("a"), -1)


LAYOUTS = {
    "bare": Layout(),
    "prompt": adapter(None, 2),
    "prefix": adapter(None, 2, "prefix_tuning"),
    "one": adapter("{p:2}{x}", 2),
    "two": adapter("{p:2}{x}{y}", 2),
    "none": adapter("{p:2}!", 2),
}


@pytest.mark.parametrize(
    ("layout", "request_fields", "param"),
    [
        ("bare", {}, "prompt"),
        ("bare", {"prompt": ""}, "prompt"),
        ("bare", {"prompt": []}, "prompt"),
        ("bare", {"prompt": [VOCAB]}, "prompt"),
        ("bare", {"prompt": [-1]}, "prompt"),
        ("bare", {"prompt": [10**30]}, "prompt"),
        ("bare", {"prompt": [True]}, "prompt"),
        ("bare", {"prompt": "\ud800"}, "prompt"),
        ("bare", {"prompt": "a", "variables": {"x": "a"}}, "variables"),
        ("prompt", {"variables": {"x": "a"}}, "variables"),
        ("prefix", {"prompt": ""}, "prompt"),
        ("prefix", {"prompt": []}, "prompt"),
        ("one", {}, "variables"),
        ("one", {"prompt": [3]}, "prompt"),
        ("one", {"prompt": "\udfff"}, "prompt"),
        ("one", {"prompt": "a", "variables": {"x": "a"}}, "variables"),
        ("one", {"variables": {}}, "variables"),
        ("one", {"variables": {"x": "\ud800"}}, "variables"),
        ("one", {"variables": {"x": "a", "z": "a"}}, "variables"),
        ("one", {"variables": {"x": 3}}, "variables"),
        ("two", {"prompt": "a"}, "prompt"),
        ("two", {"variables": {"x": "a"}}, "variables"),
        ("none", {"prompt": "a"}, "prompt"),
        ("none", {"variables": {"x": "a"}}, "variables"),
    ],
)
def test_refused(layout: str, request_fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        lay_out(LAYOUTS[layout], PLAIN, vocab_size=VOCAB, **request_fields)  # type: ignore[arg-type]
    assert type(refused.value) is InvalidRequest
    assert refused.value.param == param
    assert len(refused.value.message) > 20


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="vocabulary"):
        lay_out(None, WITH_BOS, vocab_size=VOCAB - 2, prompt="a")


def test_a_tokenizer_that_rewrites_text_around_special_tokens() -> None:
    class Rewriting:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [1, 2] if add_special_tokens else [3]

    assert lay_out(adapter("{p:1}{x}", 1), Rewriting(), vocab_size=9, prompt="a") == (-1, 1, 2)
    with pytest.raises(InvalidRequest, match="one run of text"):
        lay_out(adapter("{x}{p:1}!", 1), Rewriting(), vocab_size=9, prompt="a")
