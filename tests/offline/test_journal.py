"""The file that a run writes: torn, altered, taken by two, without room."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmux.errors import Conflict, InternalError
from softmux.offline.journal import Journal

RECORD = {"input": "sha256:1", "task": "t"}


def line(number: int, failed: bool = False) -> bytes:
    return json.dumps({"row": number, "error": {"code": "x"} if failed else None}).encode() + b"\n"


@settings(max_examples=25)
@given(cut=st.integers(0, 4 * len(line(0))))
def test_wherever_the_file_was_cut_whole_lines_stay_and_the_rest_is_to_do(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = tmp_path_factory.mktemp("cut") / "out"
    with Journal(output, RECORD, 4) as journal:
        for number in range(4):
            journal.append(number, line(number))
    os.truncate(output, cut)
    with Journal(output, RECORD, 4) as journal:
        assert journal.before == cut // len(line(0))
        assert output.stat().st_size == journal.before * len(line(0))
        for number in range(4):
            if not journal.has(number):
                journal.append(number, line(number))
    assert sorted(json.loads(some)["row"] for some in output.read_bytes().splitlines()) == [0, 1, 2, 3]


def test_two_at_a_time_and_altered_files_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Journal(output, RECORD, 4) as journal:
        journal.append(2, line(2))
        with pytest.raises(Conflict, match="Another softmux run"), Journal(output, RECORD, 4):
            pass
    for more, told in ((line(2), "twice"), (b"hello\n", f"byte {len(line(2))}"), (line(9), "did not write")):
        output.write_bytes(line(2) + more)
        with pytest.raises(Conflict, match=told), Journal(output, RECORD, 4):
            pass
    output.write_bytes(line(2))
    journal.beside.write_bytes(b'{"inp')
    with pytest.raises(Conflict, match="nothing says what it answers"), Journal(output, RECORD, 4):
        pass
    output.write_bytes(b"")
    with Journal(output, RECORD, 4) as journal:
        assert journal.before == 0
    with pytest.raises(Conflict, match="can't be written"), Journal(tmp_path / "none" / "out", RECORD, 4):
        pass


def test_failed_rows_are_taken_out_and_the_others_stay(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Journal(output, RECORD, 4) as journal:
        for number in range(4):
            journal.append(number, line(number, failed=number % 2 == 1))
    with Journal(output, RECORD, 4) as journal:
        assert (journal.before, journal.failed_before) == (4, 2)
        journal.drop_failed()
        assert [journal.has(number) for number in range(4)] == [True, False, True, False]
        journal.append(3, line(3))
    assert [json.loads(some)["row"] for some in output.read_bytes().splitlines()] == [0, 2, 3]


def test_no_room_is_said_and_what_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    with Journal(output, RECORD, 4) as journal:
        journal.append(0, line(0))
        full = "/dev/full"
        if not Path(full).exists():
            pytest.fail("this system has no /dev/full to write to")
        os.dup2(os.open(full, os.O_WRONLY), journal._file)
        with pytest.raises(InternalError, match="Make room"):
            journal.append(1, line(1))
        os.dup2(os.open(output, os.O_RDWR | os.O_APPEND), journal._file)
    with Journal(output, RECORD, 4) as journal:
        assert journal.before == 1
