"""What a line of an input file is, or why it is none."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.offline.rows import GENERATE, Answer, Input, Row, parse


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "half a pair \\ud800 of it"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "torn',
    ],
    ids=["surrogate", "NaN", "too large", "no UTF-8", "deep", "torn"],
)
def test_what_could_not_be_sent_is_refused_and_ends_no_run(line: bytes) -> None:
    answer = parse(7, line, {})
    assert isinstance(answer, Answer)
    assert isinstance(answer.error, SoftmuxError)
    assert (answer.row.number, answer.error.code, answer.status) == (7, "bad_request", 400)


def test_what_is_read_can_be_sent() -> None:
    row = parse(0, b'\xef\xbb\xbf{"prompt": "\\ud83d\\ude00", "seed": 123, "id": [1e308]}', {"max_tokens": 5})
    assert row == Row(0, [1e308], GENERATE, {"max_tokens": 5, "prompt": "😀", "seed": 123}, batch=False)
    assert isinstance(row, Row)
    httpx.Request("POST", "http://127.0.0.1", json=row.body)


def test_an_input_that_can_be_read_only_once_is_refused_unread() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b'{"prompt": "a"}\n')
        os.close(writing)
        for path in (f"/dev/fd/{reading}", "-", "/dev/null"):
            with pytest.raises(InvalidRequest, match=r"no plain file.*save its lines to a file first"):
                Input.of(Path(path))
        assert os.read(reading, 100) == b'{"prompt": "a"}\n'
    finally:
        os.close(reading)
