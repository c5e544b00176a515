from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from softmux.telemetry import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.getLogger("uvicorn.access").disabled = False
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_structlog_and_the_standard_library_write_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form="json")
    structlog.stdlib.get_logger("one").info("answered", status=200)
    logging.getLogger("two").warning("it is %s", "so")
    logging.getLogger("two").debug("not shown")
    first, second = lines(capsys)
    assert (first["event"], first["status"], first["level"], first["logger"]) == ("answered", 200, "info", "one")
    assert (second["event"], second["level"], second["logger"]) == ("it is so", "warning", "two")


@pytest.mark.parametrize("prompts", [False, True])
def test_keys_are_never_written_and_prompts_only_where_asked(capsys: pytest.CaptureFixture[str], prompts: bool) -> None:
    logs.configure("info", form="json", log_prompts=prompts)
    structlog.stdlib.get_logger("one").info("x", prompt="a secret wish", key="sk-1", authorization="Bearer sk-1")
    [line] = lines(capsys)
    assert "sk-1" not in json.dumps(line)
    assert line["prompt"] == ("a secret wish" if prompts else "[redacted]")


def test_a_traceback_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form="json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("two").exception("failed")
    [line] = lines(capsys)
    assert "ValueError: broken" in str(line["exception"])


def test_lines_for_a_person_are_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", form="text")
    structlog.stdlib.get_logger("one").info("answered", status=200)
    text = capsys.readouterr().err
    assert "answered" in text
    assert not text.startswith("{")
