"""Every type PEFT has is read or refused by name, and what an engine can't run is refused in one place."""

from __future__ import annotations

from typing import Any

import peft
import pytest
from formats_fixtures import edited
from zoo_fixtures import ALL_KINDS, make_base, save, spec_of, tune

from softmux.engine.serves import SERVES
from softmux.errors import InvalidAdapter
from softmux.formats.folder import parse_adapter, read_adapter
from softmux.formats.methods import METHODS
from softmux.formats.parts import KINDS, PAIR, POOLER, kinds
from softmux.formats.peft_types import FAMILIES, INSTEAD, TASK_TYPES

LATER_RENAMED = {"BONE"}  # MISS was called so up to PEFT 0.17


def soft() -> dict[str, bytes]:
    return save(tune(make_base("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)))


def test_every_type_of_pefts_is_read_or_has_its_way_out() -> None:
    theirs = {kind.value for kind in peft.PeftType}
    assert theirs == (METHODS.keys() | INSTEAD.keys()) - LATER_RENAMED
    assert not METHODS.keys() & INSTEAD.keys()
    assert {kind.value for kind in peft.TaskType} == set(TASK_TYPES)


@pytest.mark.parametrize("peft_type", INSTEAD)
def test_types_not_served_are_refused_by_name(peft_type: str) -> None:
    with pytest.raises(InvalidAdapter, match=f"“{peft_type}” is not one of") as refused:
        read_adapter(edited(soft(), peft_type=peft_type), spec_of("llama"))
    assert refused.value.param == "adapter_config.json: peft_type"
    assert "train" in refused.value.message or "publish" in refused.value.message


def _lora() -> dict[str, bytes]:
    return save(tune(make_base("llama"), peft.LoraConfig(task_type="CAUSAL_LM", r=2)))


def _head(task: str) -> dict[str, bytes]:
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5)
    return save(tune(make_base("llama", task, 2), config)) | {"softmux.json": b'{"labels": ["a", "b"]}'}


def _pair() -> dict[str, bytes]:
    lora = _lora()
    return soft() | {
        "adapter_config.lora.json": lora["adapter_config.json"],
        "adapter_model.lora.safetensors": lora["adapter_model.safetensors"],
    }


def _rows() -> dict[str, bytes]:
    config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3])
    return save(tune(make_base("llama"), config))


def _prefix() -> dict[str, bytes]:
    return save(tune(make_base("llama"), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (soft, "prompt"),
        (_prefix, "prefix"),
        (_lora, "lora"),
        (_rows, "token_rows"),
        (lambda: _head("SEQ_CLS"), "sequence_head"),
        (lambda: _head("TOKEN_CLS"), "token_head"),
        (_pair, PAIR),
    ],
)
def test_an_adapter_waits_for_the_word_of_each_of_its_parts(make: Any, word: str) -> None:
    files = make()
    assert word in kinds(read_adapter(files, spec_of("llama")).parts)
    unable = spec_of("llama", serves=ALL_KINDS - {word})
    with pytest.raises(InvalidAdapter, match="not served yet by this version on this base") as refused:
        read_adapter(files, unable)
    assert (refused.value.status, refused.value.param) == (422, "adapter_config.json: peft_type")
    assert parse_adapter(files, unable).manifest.parameters > 0


def test_engines_say_words_that_there_are() -> None:
    assert set(SERVES) == set(FAMILIES)
    assert set().union(*SERVES.values()) <= {*KINDS, PAIR, POOLER}
    assert {kind for row in METHODS.values() for kind in row.kinds} <= set(KINDS)


@pytest.mark.parametrize(
    ("family", "task", "said"),
    [
        ("encoder", "CAUSAL_LM", "generates nothing"),
        ("encoder", None, "generates nothing"),
        ("decoder", "SEQ_2_SEQ_LM", "needs an encoder-decoder"),
        ("encoder-decoder", "CAUSAL_LM", "train it with SEQ_2_SEQ_LM"),
        ("encoder-decoder", "SEQ_CLS", "without a head"),
        ("decoder", "QUESTION_ANS", "TOKEN_CLS"),
        ("decoder", "FEATURE_EXTRACTION", "SEQ_CLS"),
        ("decoder", "RANKING", "none of"),
    ],
)
def test_tasks_that_a_family_can_not_do_are_refused_with_why(family: str, task: str | None, said: str) -> None:
    with pytest.raises(InvalidAdapter, match=said) as refused:
        read_adapter(edited(soft(), task_type=task), spec_of("llama", family=family))
    assert refused.value.param == "adapter_config.json: task_type"
