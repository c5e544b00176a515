"""A trace is read in order of time, and what does not fit is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from softmux.bench.loads.trace import read_trace
from softmux.errors import InvalidRequest


def test_lines_come_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"seconds": 2, "task": "topic", "prompt": "Hello", "max_tokens": 3}\n\n'
        '{"seconds": 0.5, "input_length": 7}\n{"seconds": 1, "prompt": [4, 5]}\n'
    )
    lines = read_trace(path)
    assert [line.seconds for line in lines] == [0.5, 1.0, 2.0]
    assert [line.prompt for line in lines] == [None, (4, 5), "Hello"]
    assert [line.input_length for line in lines] == [7, None, None]
    assert (lines[2].task, lines[2].max_tokens, lines[0].task, lines[0].max_tokens) == ("topic", 3, None, 64)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 2"),
        ('{"seconds": -1, "input_length": 3}', "line 2: seconds"),
        ('{"seconds": 1}', "either prompt or input_length"),
        ('{"seconds": 1, "input_length": 3, "prompt": "x"}', "either prompt or input_length"),
        ('{"seconds": 1, "input_length": 3, "tokens": 4}', "line 2: tokens"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f'{{"seconds": 0, "input_length": 3}}\n{line}\n')
    with pytest.raises(InvalidRequest, match=what):
        read_trace(path)


def test_no_request_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n")
    with pytest.raises(InvalidRequest, match="holds no request"):
        read_trace(path)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_trace(tmp_path / "none")
