from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from softmux.api.stops import StopFinder


def fed(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    finder = StopFinder(stops)
    shown = []
    for piece in pieces:
        text, found = finder.push(piece)
        shown.append(text)
        if found:
            return shown, True
    return [*shown, finder.flush()], False


def test_a_stop_across_borders_is_found_and_never_shown() -> None:
    assert fed(["END"], ["one E", "N", "D two"]) == (["one ", "", ""], True)


def test_what_only_looked_like_a_beginning_is_shown_after_all() -> None:
    assert fed(["END"], ["one E", "N", "O"]) == (["one ", "", "ENO", ""], False)


def test_what_is_held_at_the_end_is_shown() -> None:
    assert fed(["\n\n"], ["a\n"]) == (["a", "\n"], False)


def test_the_first_of_several_stops_in_a_piece_cuts() -> None:
    assert fed(["c", "b"], ["abc"]) == (["a"], True)


@given(text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_any_text_char_by_char_is_cut_where_a_stop_is_first_complete(text: str, stops: list[str]) -> None:
    ends = [(end, end - len(stop)) for stop in stops for end in range(1, len(text) + 1) if text[:end].endswith(stop)]
    shown, found = fed(stops, list(text))
    if ends:
        first = min(end for end, _ in ends)
        expected = text[: min(start for end, start in ends if end == first)]
    else:
        expected = text
    assert "".join(shown) == expected
    assert found == bool(ends)
