"""What was fastest is measured once: the file of choices, with a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from softmux.engine.choices import Choices, Problem, cache_folder

WAYS = ("library", "stream 4", "stream 8")
PROBLEM = Problem(1, 4096, 2048, "torch.bfloat16", "e4m3")


class Clock:
    """Seconds by way; counts what was asked."""

    def __init__(self, **seconds: float) -> None:
        self._seconds = {name.replace("_", " "): value for name, value in seconds.items()}
        self.asked: list[str] = []

    def __call__(self, way: str) -> float:
        self.asked.append(way)
        if way not in self._seconds:
            raise RuntimeError(f"{way} does not run here")
        return self._seconds[way]


def a_clock() -> Clock:
    return Clock(library=3.0, stream_4=1.0, stream_8=2.0)


def test_the_second_start_measures_nothing(tmp_path: Path) -> None:
    first, clock = Choices("card", tmp_path), a_clock()
    assert first.choose(PROBLEM, WAYS, clock) == "stream 4"
    assert clock.asked == [*WAYS, *reversed(WAYS)]
    first.save()
    again = a_clock()
    assert Choices("card", tmp_path).choose(PROBLEM, WAYS, again) == "stream 4"
    assert again.asked == []


@pytest.mark.parametrize("field", ["rows", "outputs", "width"])
def test_another_product_is_measured(field: str, tmp_path: Path) -> None:
    choices = Choices("card", tmp_path)
    choices.choose(PROBLEM, WAYS, a_clock())
    other = a_clock()
    choices.choose(msgspec.structs.replace(PROBLEM, **{field: 7}), WAYS, other)
    assert set(other.asked) == set(WAYS)


def test_other_ways_are_measured_anew(tmp_path: Path) -> None:
    choices = Choices("card", tmp_path)
    choices.choose(PROBLEM, WAYS, a_clock())
    clock = a_clock()
    assert choices.choose(PROBLEM, ("library", "stream 8"), clock) == "stream 8"
    assert set(clock.asked) == {"library", "stream 8"}


def test_a_way_that_fails_is_left_out_and_all_of_them_are_an_error(tmp_path: Path) -> None:
    assert Choices("card", tmp_path).choose(PROBLEM, WAYS, Clock(stream_8=2.0)) == "stream 8"
    with pytest.raises(RuntimeError, match="stream 8 does not run here"):
        Choices("another card", tmp_path).choose(PROBLEM, WAYS, Clock())


def test_what_was_measured_first_has_no_advantage_of_a_cold_card(tmp_path: Path) -> None:
    calls = iter(range(6))

    def slower_and_slower(way: str) -> float:
        return {"library": 2.0, "stream 4": 1.9, "stream 8": 2.1}[way] + 0.3 * next(calls)

    assert Choices("card", tmp_path).choose(PROBLEM, WAYS, slower_and_slower) == "stream 4"


def test_where_any_lacked_memory_and_none_ran_that_is_what_is_said(tmp_path: Path) -> None:
    def full(way: str) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory") if way == "library" else RuntimeError("too many registers")

    with pytest.raises(torch.OutOfMemoryError):
        Choices("card", tmp_path).choose(PROBLEM, WAYS, full)


def test_a_way_that_wants_memory_is_measured_again_at_the_next_start(tmp_path: Path) -> None:
    def full(way: str) -> float:
        if way == "stream 4":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    choices = Choices("card", tmp_path)
    assert choices.choose(PROBLEM, WAYS, full) == "library"
    choices.save()
    assert Choices("card", tmp_path).choose(PROBLEM, WAYS, a_clock()) == "stream 4"


def test_machines_keep_files_of_their_own(tmp_path: Path) -> None:
    for machine, fast in (("one", Clock(library=1.0, stream_4=2.0, stream_8=2.0)), ("two", a_clock())):
        choices = Choices(machine, tmp_path)
        choices.choose(PROBLEM, WAYS, fast)
        choices.save()
    assert len(list(tmp_path.iterdir())) == 2
    assert Choices("one", tmp_path).choose(PROBLEM, WAYS, a_clock()) == "library"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"machine": "card", "choices": [{"best": 1}]}',
        b'{"machine": "x", "choices": []}',
    ],
)
def test_a_damaged_or_foreign_file_is_written_anew(content: bytes, tmp_path: Path) -> None:
    choices = Choices("card", tmp_path)
    choices.choose(PROBLEM, WAYS, a_clock())
    choices.save()
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    clock, choices = a_clock(), Choices("card", tmp_path)
    assert choices.choose(PROBLEM, WAYS, clock) == "stream 4"
    assert clock.asked
    choices.save()
    quiet = a_clock()
    Choices("card", tmp_path).choose(PROBLEM, WAYS, quiet)
    assert not quiet.asked


def test_a_choice_that_is_no_way_here_is_not_taken(tmp_path: Path) -> None:
    choices = Choices("card", tmp_path)
    choices.choose(PROBLEM, WAYS, a_clock())
    choices.save()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"best":"stream 4"', b'"best":"rm -rf"'))
    assert Choices("card", tmp_path).choose(PROBLEM, WAYS, a_clock()) == "stream 4"


def test_a_folder_that_cannot_be_written_costs_no_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    choices = Choices("card", tmp_path / "file" / "products")
    assert choices.choose(PROBLEM, WAYS, a_clock()) == "stream 4"
    choices.save()


def test_nothing_measured_writes_nothing(tmp_path: Path) -> None:
    Choices("card", tmp_path / "new").save()
    assert not (tmp_path / "new").exists()


def test_the_folder_is_the_users_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTMUX_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("SOFTMUX_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "softmux"
