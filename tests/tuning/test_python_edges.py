"""What `softmux.tuning` is given in Python and can't use: said in words, before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from softmux.errors import InvalidRequest
from softmux.tuning import Lora, PTuningV2, Task, Train, open_base, tune
from softmux.tuning.bases.base import Base
from softmux.tuning.bases.head_base import HeadBase, as_head_base
from softmux.tuning.data.examples import BadData
from support.headed import make_base

HOW = Train(steps=1, learning_rate=1e-2, batch_rows=8, warmup_steps=0)
SEQUENCES = [(f"film {i} was {('dull', 'gripping')[i % 2]}", ("no", "yes")[i % 2]) for i in range(60)]
SEQ = LoraConfig(task_type="SEQ_CLS", r=2)
TOKEN = LoraConfig(task_type="TOKEN_CLS", r=2)
WORDS = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])


def task(method: Any, rows: Any = SEQUENCES, **more: Any) -> Task:
    return Task("a", rows, method, HOW, **more)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("x", "no", 3), r"row 2: \('x', 'no', 3\) is no pair \(text, {second}\): give each row as one"),
        ("no", r"row 2: 'no' is no pair"),
        ({"text": "x", "label": "no"}, r"row 2: \{{'text': 'x', 'label': 'no'\}} is no pair"),
        (7, "row 2: 7 is no pair"),
        ("long" * 99, "row 2: 'long[long]*… is no pair"),
        ((None, "no"), "row 2, column text: the text is None, and a text is a string: give one, or leave the row out"),
        ((math.nan, "no"), "row 2, column text: the text is nan"),
    ],
)
def test_a_row_that_is_no_pair_of_a_text_and_what_should_come_back_is_named(
    row: Any, words: str, base: Base, head_base: HeadBase
) -> None:
    spans = [("a b", [(0, 1, "A")]), row]
    for method, rows, over, second in (
        (WORDS, [("a", "b"), row], base, "answer"),
        (SEQ, [("a", "b"), row], head_base, "label"),
        (TOKEN, spans, head_base, "labelled words"),
    ):
        with pytest.raises(BadData, match=f"a, {words.format(second=second)}"):
            tune([task(method, rows)], over)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [("a b", [(0, 1, "A")]), ("c", [(0, 1, "B")]), ("a b", [(2, 3, "B")])],
            "a, row 3, column label: row 1 of a has the same text with other labelled words; give all words of a text",
        ),
        (
            [("a b", [(2, 3, "C"), (0, 1, "A")]), ("x food", [(2, 6, "A"), (2, 6, "B")])],
            r"row 2, column label: \(2, 6, 'A'\) and \(2, 6, 'B'\) share characters, and a word has one label",
        ),
        ([("a food", [(3, 6, "B"), (2, 4, "A")])], r"\(2, 4, 'A'\) and \(3, 6, 'B'\) share characters"),
        (
            [(f"film {i} was dull", [(6, 6 + 1, "A"), (i, i + 1, "B")]) for i in (0, 4)],
            "no token lies within the labelled .*; give the characters of whole words, or leave the label out",
        ),
    ],
)
def test_labelled_words_that_can_not_all_be_learned_are_named(rows: Any, words: str, head_base: HeadBase) -> None:
    with pytest.raises(BadData, match=words):
        tune([task(TOKEN, rows, validation=rows)], head_base)


def test_the_same_text_labelled_alike_counts_once_in_any_order(head_base: HeadBase) -> None:
    words = [(0, 4, "A"), (5, 6, " B ")]
    rows = [("film 1", words), ("film 1", [(5, 6, "B"), (0, 4, "A")]), ("film 2", words)]
    [one] = tune([task(TOKEN, rows, validation=rows)], head_base)
    assert one.labels == ("A", "B")
    assert one.evaluate(rows).rows == 2


# --- labels ----------------------------------------------------------------------------------------------------------


def test_spaces_around_labels_are_left_out(head_base: HeadBase) -> None:
    [one] = tune([task(SEQ, labels=[" yes", "no "])], head_base)
    assert one.labels == ("yes", "no")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["no", "yes", " no"], "labels names 'no' twice, spaces around it left out: name each label once"),
        (["no"], "labels names 'no' alone, and a head tells two labels apart at least: name the others"),
        ("no", r"labels is a list of strings, as \[\"no\", \"yes\"\], and not 'no'"),
        (["no", 1], r"labels is a list of strings"),
        (["no", " "], r"labels is a list of strings"),
        (["no", "yes", "l" * 257], "The 3 labels have up to 257 characters, and a head has at most 1024 labels"),
    ],
)
def test_labels_that_make_no_head_are_refused(labels: Any, words: str, head_base: HeadBase) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        tune([task(SEQ, labels=labels)], head_base)
    assert caught.value.param == "labels"


def test_more_labels_than_a_head_has_are_refused_where_the_rows_name_them(head_base: HeadBase) -> None:
    with pytest.raises(InvalidRequest, match="The 1025 labels have up to 4 characters"):
        tune([task(SEQ, [(f"film {i}", str(i)) for i in range(1025)])], head_base)


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", {"peft_type": "LORA"}, None, Lora, LoraConfig])
def test_what_is_no_method_is_refused(method: Any, base: Base) -> None:
    with pytest.raises(InvalidRequest, match=r"is no method: give one of softmux.tuning's, .* or a config") as caught:
        tune([task(method)], base)
    assert caught.value.param == "method"


def test_a_pooler_is_refused_where_nothing_stands_before_the_head(
    base: Base, head_base: HeadBase, tmp_path: Path
) -> None:
    pooled = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2, modules_to_save=["pooler"])
    recipe = PTuningV2(kind="p_tuning_v2", virtual_tokens=2, pooler=True)
    tokens = PTuningV2(kind="p_tuning_v2", virtual_tokens=2, head="token", pooler=True)
    roberta = as_head_base(make_base("roberta", tmp_path), head_base.tokenizer, "roberta")
    for method, over, rows in (
        (pooled, base, SEQUENCES),
        (recipe, base, SEQUENCES),
        (recipe, roberta, SEQUENCES),
        (tokens, head_base, [(text, [(0, 4, label)]) for text, label in SEQUENCES]),
    ):
        with pytest.raises(InvalidRequest, match="there is no pooler to be trained: leave pooler out") as caught:
            tune([task(method, rows)], over)
        assert caught.value.param == "method.pooler"


# --- bases -----------------------------------------------------------------------------------------------------------


def test_an_encoder_that_was_loaded_without_its_pooler_has_no_sequence_head(encoder_folder: Path) -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(encoder_folder)
    base = open_base(tf.AutoModelForMaskedLM.from_pretrained(encoder_folder), tokenizer, label="masked")
    for saved in (None, ["pooler"]):
        vectors = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2, modules_to_save=saved)
        with pytest.raises(InvalidRequest, match=r"masked was loaded without the pooler .*: load it with AutoModel"):
            tune([task(vectors)], base)
    rows = [(text, [(0, 4, label)]) for text, label in SEQUENCES]
    assert tune([task(TOKEN, rows)], base)[0].error is None, "a token head stands on none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_is_taken_in_float32_and_a_decoder_in_its_own_precision(
    dtype: torch.dtype, encoder_folder: Path, base_folder: Path
) -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(encoder_folder)
    with pytest.raises(InvalidRequest, match=r"encoder is in b?float16, .* load it with dtype=torch.float32") as caught:
        open_base(tf.AutoModel.from_pretrained(encoder_folder, dtype=dtype), tokenizer)
    assert caught.value.param == "model"
    decoder = tf.AutoModelForCausalLM.from_pretrained(base_folder, dtype=dtype)
    tuned = tune([task(WORDS)], open_base(decoder, tf.AutoTokenizer.from_pretrained(base_folder)))
    assert [one.error for one in tuned] == [None]
    assert decoder.dtype == dtype


def test_a_loaded_model_that_is_no_base_is_refused(base_folder: Path) -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(base_folder)
    config = tf.T5Config(vocab_size=90, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    for model, words in (
        (tf.AutoModel.from_pretrained(base_folder), "LlamaModel says no words: load it with AutoModelForCausalLM"),
        (tf.AutoModel.from_config(config), "T5Model says no words: load it with AutoModelForSeq2SeqLM"),
        (torch.nn.Linear(2, 2), "A Linear is no base: give a folder, a hub id, or a model"),
        (None, "A NoneType is no base"),
    ):
        with pytest.raises(InvalidRequest, match=words) as caught:
            open_base(model, tokenizer)
        assert caught.value.param == "model"


@pytest.mark.parametrize("config", [WORDS, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)])
def test_a_model_that_has_an_adapter_of_pefts_is_refused_until_it_is_bare(config: Any, base_folder: Path) -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(base_folder)
    bare = tf.AutoModelForCausalLM.from_pretrained(base_folder)
    wrapped = get_peft_model(bare, config)
    lora = config is WORDS
    for model in (wrapped, bare) if lora else (wrapped,):
        with pytest.raises(InvalidRequest, match="has an adapter of PEFT's around it or within it: give the bare one"):
            open_base(model, tokenizer)
    assert tune([task(WORDS)], open_base(wrapped.unload() if lora else bare, tokenizer))[0].error is None


@pytest.mark.parametrize("missing", ["no-such-base", "empty"])
def test_a_folder_that_holds_no_base_is_named(missing: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = tmp_path / missing
    for given in (folder, str(folder)):
        with pytest.raises(InvalidRequest, match=f"No base can be read from {folder} .*: give a folder as") as caught:
            open_base(given)
        assert caught.value.param == "base"
