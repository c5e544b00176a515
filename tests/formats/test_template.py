"""Templates: parsing is exact and total, and values are only ever text."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.errors import InvalidAdapter
from softmux.formats.template import Learned, Piece, Slot, Template, Text

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
PIECES = st.lists(
    st.one_of(
        st.builds(Learned, st.integers(1, 40)),
        st.builds(Text, st.text(min_size=1, max_size=8) | st.sampled_from(["{", "}", "{{", "{p:3}", "{x}"])),
        st.builds(Slot, NAMES),
    ),
    max_size=8,
)


def written(pieces: list[Piece]) -> str:
    """The template that says `pieces`."""
    return "".join(
        f"{{p:{piece.count}}}"
        if isinstance(piece, Learned)
        else f"{{{piece.name}}}"
        if isinstance(piece, Slot)
        else piece.text.replace("{", "{{").replace("}", "}}")
        for piece in pieces
    )


def merged(pieces: list[Piece]) -> tuple[Piece, ...]:
    """`pieces` with neighbours of one kind made one, slots excepted."""
    whole: list[Piece] = []
    for kind, group in groupby(pieces, type):
        run = list(group)
        if kind is Learned:
            whole.append(Learned(sum(piece.count for piece in run if isinstance(piece, Learned))))
        elif kind is Text:
            whole.append(Text("".join(piece.text for piece in run if isinstance(piece, Text))))
        else:
            whole += run
    return tuple(whole)


@given(PIECES)
def test_what_is_written_is_read(pieces: list[Piece]) -> None:
    if not any(isinstance(piece, Text | Slot) for piece in pieces):
        with pytest.raises(InvalidAdapter):
            Template.parse(written(pieces))
        return
    template = Template.parse(written(pieces))
    assert template.pieces == merged(pieces)
    assert template.virtual_tokens == sum(piece.count for piece in pieces if isinstance(piece, Learned))
    assert template.slots == tuple(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Slot)))


@given(PIECES, st.text(max_size=12) | st.sampled_from(["{p:3}", "{{p:3}}", "{x}", "<s>"]))
def test_a_value_is_text_whatever_it_looks_like(pieces: list[Piece], value: str) -> None:
    pieces = [*pieces, Slot("last")]
    runs = Template.parse(written(pieces)).runs({piece.name: value for piece in pieces if isinstance(piece, Slot)})
    said = [Text(value) if isinstance(piece, Slot) else piece for piece in pieces]
    assert runs == merged(said)


@given(st.text(alphabet="{}p:0123ab _\n", max_size=24))
def test_parsing_never_fails_otherwise(text: str) -> None:
    outcome: Template | InvalidAdapter
    try:
        outcome = Template.parse(text)
    except InvalidAdapter as refused:
        outcome = refused
    if isinstance(outcome, InvalidAdapter):
        assert outcome.param == "softmux.json: template"
        assert len(outcome.message) > 20
    else:
        assert Template.parse(written(list(outcome.pieces))) == outcome


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("{p:20}{prompt}", (Learned(20), Slot("prompt"))),
        (
            "{p:2} The capital of {country} {p:2} is",
            (Learned(2), Text(" The capital of "), Slot("country"), Text(" "), Learned(2), Text(" is")),
        ),
        ("{{{p:2}}}", (Text("{"), Learned(2), Text("}"))),
        ("{{p:2}}", (Text("{p:2}"),)),
        ("{p:1}{p:2}a{p}", (Learned(3), Text("a"), Slot("p"))),
        ("{a}{b}{a}", (Slot("a"), Slot("b"), Slot("a"))),
    ],
)
def test_read_as(text: str, pieces: tuple[Piece, ...]) -> None:
    assert Template.parse(text).pieces == pieces


@pytest.mark.parametrize(
    "text", ["", "{", "}", "{}", "{p:}x", "{p:0}x", "{p:-1}x", "{p:9999999}x", "{a b}", "{1a}", "{ä}"]
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidAdapter, match="template can't be used"):
        Template.parse(text)
