"""The running sequences' columns, and the small nouns beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.errors import InternalError
from softmux.scheduler.news import PlainTokens
from softmux.scheduler.numbering import Numbering
from softmux.scheduler.radix import RootKey
from softmux.scheduler.roster import Roster
from softmux.scheduler.rows import RowTable
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams

EOS = (2, 9)


def sequence(name: str = "s", prompt: list[int] | None = None, client: bytes = b"c", **wishes: object) -> Sequence:
    sampling = SamplingParams(**({"max_tokens": 4} | wishes))  # type: ignore[arg-type]
    return Sequence(name, client, RootKey("a", None, "f", "d"), prompt or [5, 6, 7], sampling, 0.0)


def decoding(table: RowTable, one: Sequence) -> None:
    """Seats a sequence and schedules its whole input."""
    table.seat(one)
    table.extend(one.row, np.arange(one.prompt_length, dtype=np.int32), 0)
    assert table.chunk(one.row)


def land(table: RowTable, *tokens: int) -> tuple[list[bool], list[bool]]:
    """The step in flight over the first rows ends with these tokens."""
    rows = np.arange(len(tokens))
    table.land(rows, rows)
    said = table.say(rows, np.array(tokens), EOS)
    return said.stops.tolist(), said.special.tolist()


def test_a_row_decodes_its_own_tokens_into_the_slots_it_is_given() -> None:
    table = RowTable(3, 16)
    for number in range(3):
        decoding(table, sequence(str(number), [5] * (3 + number)))
    assert land(table, 11, 12, 13)[1] == [True] * 3, "the first token of each comes with more to tell"
    step = table.decode(table.ready(), np.array([40, 41, 42], np.int32))
    assert step.tolist() == [[11, 12, 13], [0, 1, 2], [3, 4, 5], [40, 41, 42]]
    ahead = table.decode(table.ready(), np.array([50, 51, 52], np.int32))
    assert ahead[0].tolist() == [-1, -1, -1], "the tokens at these positions are still being chosen"
    assert table.sequences[1].slots == [0, 1, 2, 3, 41, 51]
    assert land(table, 21, 22, 23) == ([False] * 3, [False] * 3)
    table.check_integrity()


def test_a_row_is_never_scheduled_beyond_its_last_token() -> None:
    table = RowTable(1, 16)
    decoding(table, sequence(max_tokens=2))
    table.decode(table.ready(), np.array([7], np.int32))
    assert not len(table.ready())
    land(table, 11)
    assert not len(table.ready())
    assert land(table, 12) == ([False], [True])
    assert table.known[0] == table.ends[0] == 5


def test_penalties_wait_for_the_token_that_is_being_chosen() -> None:
    table = RowTable(2, 16)
    decoding(table, sequence("free"))
    decoding(table, sequence("bound", presence_penalty=0.5))
    assert table.ready().tolist() == [0]
    land(table, 11, 11)
    assert table.ready().tolist() == [0, 1]


@pytest.mark.parametrize("token", EOS)
def test_an_end_token_ends_from_min_tokens_on_unless_it_is_ignored(token: int) -> None:
    table = RowTable(3, 16)
    for name, wishes in {"now": {}, "later": {"min_tokens": 1}, "never": {"ignore_eos": True}}.items():
        decoding(table, sequence(name, **wishes))
    assert land(table, *[token] * 3)[0] == [True, False, False]
    assert [s.said for s in table.running()] == [[]] * 3, "what is said is the table's while it runs"
    assert [s.generated for s in table.running()] == [0, 1, 1]
    table.decode(np.arange(3), np.array([7, 8, 9], np.int32))
    assert land(table, *[token] * 3)[0] == [True, True, False]


def test_what_was_generated_goes_with_the_sequence_and_a_new_seat_has_a_new_number() -> None:
    table = RowTable(2, 16)
    one = sequence()
    decoding(table, one)
    before = int(table.seats[one.row])
    land(table, 11)
    assert (one.tokens, one.computed, one.decoding) == ([5, 6, 7, 11], 3, True)
    table.unseat(one)
    table.check_integrity()
    assert (one.tokens, one.said, one.slots, one.decoding) == ([5, 6, 7, 11], [11], [], False)
    table.seat(one)
    assert (one.length, one.generated, one.computed) == (4, 1, 0)
    assert table.seats[one.row] != before
    table.flights[one.row] = 1
    with pytest.raises(AssertionError, match="while a step writes to it"):
        table.unseat(one)


def test_plain_rows_are_those_whose_likeliest_token_is_all_that_is_asked_for() -> None:
    table = RowTable(6, 16)
    wishes = [{}, {"temperature": 0.5}, {"logprobs": 0}, {"logit_bias": ((3, 1.0),)}, {"min_tokens": 2},
              {"min_tokens": 2, "ignore_eos": True}]  # fmt: skip
    for number, wish in enumerate(wishes):
        table.seat(sequence(str(number), **wish))
    for length, expected in {
        3: [True, False, False, False, False, True],
        5: [True, False, False, False, True, True],
    }.items():
        assert (table.plain_from <= length).tolist() == expected


@pytest.mark.parametrize("clients", [[b"x"] * 4, [b"x", b"y", b"x", b"y"]])
def test_plain_tokens_go_to_the_clients_whose_they_are(clients: list[bytes]) -> None:
    table = RowTable(4, 16)
    for order, client in enumerate(clients):
        one = sequence(str(order), client=client)
        one.order = 100 + order
        table.seat(one)
    plain = PlainTokens.of(table, np.arange(4), np.array([10, 11, 12, 13]))
    told = {client: list(zip(n.tolist(), t.tolist(), strict=True)) for client, n, t in plain.by_client()}
    assert told == {
        client: [(100 + i, 10 + i) for i, owner in enumerate(clients) if owner == client] for client in set(clients)
    }
    for one in table.running():
        table.unseat(one)  # what was taken down of them stays
    assert [(s.id, output.number, output.tokens) for s, output in plain.each()] == [
        (str(i), 100 + i, (10 + i,)) for i in range(4)
    ]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcde")), max_size=60))
def test_numbers_are_small_and_one_key_s_while_it_is_held(moves: list[tuple[bool, str]]) -> None:
    numbering: Numbering[str] = Numbering()
    held: dict[str, list[int]] = {}
    most = 0
    for holds, key in moves:
        if holds:
            held.setdefault(key, []).append(numbering.hold(key))
        elif held.get(key):
            held[key].pop()
            numbering.drop(key)
        now = {key: numbers for key, numbers in held.items() if numbers}
        most = max(most, len(now))
        assert len(numbering) == len(now)
        assert all(len(set(numbers)) == 1 for numbers in now.values())
        assert len({numbers[0] for numbers in now.values()}) == len(now)
        assert all(numbers[0] < most for numbers in now.values())


def test_the_late_are_named_once_in_the_order_of_their_coming() -> None:
    roster = Roster()
    for name, deadline in {"a": 5.0, "b": None, "c": 3.0, "d": 5.0, "e": 9.0}.items():
        one = sequence(name)
        one.deadline = deadline
        roster.add(one)
    with pytest.raises(InternalError, match="already running"):
        roster.add(sequence("a"))
    gone = roster.find(b"c", "d")
    assert gone is not None
    roster.drop(gone)
    told = [[s.id for s in roster.late(now)] for now in (2.9, 3.0, 4.0, 5.0, 5.0, 8.0, 10.0, 11.0)]
    assert told == [[], ["c"], [], ["a"], [], [], ["e"], []]
    late = sequence("f")
    late.deadline = 1.0
    roster.add(late)
    assert roster.late(11.0) == [late]
    assert [s.order for s in roster.all()] == [0, 1, 2, 4, 5]
