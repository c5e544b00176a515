from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from softmux.api.detokenize import ByteTable
from softmux.api.tokenizer import Tokenizer
from softmux.api.tokenizer_export import ExportedTokenizer
from support.tokenizers_made import SPECIAL, byte_level, sentencepiece_like

KINDS: dict[str, FastTokenizer] = {"byte_level": byte_level(), "sentencepiece_like": sentencepiece_like()}
SERVED = {name: Tokenizer(ExportedTokenizer(tokenizer=kind.to_str())) for name, kind in KINDS.items()}


def streamed(kind: str, ids: list[int], cuts: list[int] | None = None) -> list[str]:
    detokenizer = SERVED[kind].detokenizer()
    borders = sorted({cut % (len(ids) + 1) for cut in cuts}) if cuts is not None else list(range(1, len(ids)))
    pieces, start = [], 0
    for border in [*borders, len(ids)]:
        pieces.append(detokenizer.push(ids[start:border]))
        start = border
    return [*pieces, detokenizer.flush()]


def test_the_two_kinds_take_the_two_ways() -> None:
    assert ByteTable.fits(KINDS["byte_level"].to_str())
    assert not ByteTable.fits(KINDS["sentencepiece_like"].to_str())


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=60), cuts=st.none() | st.lists(st.integers(0, 200)))
def test_pieces_joined_are_the_whole(kind: str, text: str, cuts: list[int] | None) -> None:
    ids = KINDS[kind].encode(text).ids
    assert "".join(streamed(kind, ids, cuts)) == KINDS[kind].decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.integers(0, 420), max_size=40), cuts=st.none() | st.lists(st.integers(0, 200)))
def test_any_ids_at_all_of_a_byte_level_vocabulary(ids: list[int], cuts: list[int] | None) -> None:
    whole = KINDS["byte_level"].decode(ids, skip_special_tokens=True)
    assert "".join(streamed("byte_level", ids, cuts)) == whole


@given(ids=st.lists(st.integers(0, 2) | st.integers(259, 330), max_size=40))
def test_any_ids_but_stray_bytes_of_the_other(ids: list[int]) -> None:
    whole = KINDS["sentencepiece_like"].decode(ids, skip_special_tokens=True)
    assert "".join(streamed("sentencepiece_like", ids)) == whole


@given(ids=st.lists(st.integers(3, 258), max_size=60))
def test_stray_bytes_neither_stop_the_stream_nor_gather(ids: list[int]) -> None:
    text = "".join(streamed("sentencepiece_like", ids))
    tokenizer = KINDS["sentencepiece_like"]
    blank = not tokenizer.decode(ids).strip()  # a word's beginning alone shows as nothing
    assert bool(text) == bool(ids) or blank


@pytest.mark.parametrize("kind", KINDS)
def test_a_piece_never_ends_within_a_character(kind: str) -> None:
    ids = KINDS[kind].encode("日本 🎉!").ids
    pieces = streamed(kind, ids)
    assert all("\ufffd" not in piece for piece in pieces)
    assert "" in pieces  # some token did not complete its character


@pytest.mark.parametrize("kind", KINDS)
def test_an_unfinished_character_shows_at_the_end(kind: str) -> None:
    ids = KINDS[kind].encode("ok 🎉").ids[:-1]
    pieces = streamed(kind, ids)
    assert pieces[-1].startswith("\ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_show_as_nothing(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = [*tokenizer.encode("a b").ids, tokenizer.token_to_id(SPECIAL[2])]
    assert "".join(streamed(kind, ids)) == "a b"
    assert SERVED[kind].token_text(tokenizer.token_to_id("</s>")) == "</s>"


def test_a_token_that_is_a_part_of_a_character_is_named_by_its_bytes() -> None:
    party = KINDS["byte_level"].encode("😀", add_special_tokens=False).ids
    texts = [SERVED["byte_level"].token_text(token) for token in party]
    assert texts[0].startswith("bytes:\\xf0")
