"""Structured logs, on standard error: lines for a person on a terminal, JSON elsewhere. Prompts and keys stay out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

Form = Literal["auto", "json", "text"]
SECRET_FIELDS = frozenset({"key", "api_key", "admin_key", "authorization", "token", "password"})
PROMPT_FIELDS = frozenset({"prompt", "messages", "variables", "text", "input"})


class Redactor:
    """Drops what must not be written: keys always, prompts and answers unless `prompts` allows them."""

    def __init__(self, *, prompts: bool) -> None:
        self._dropped = SECRET_FIELDS if prompts else SECRET_FIELDS | PROMPT_FIELDS

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for field in self._dropped & event.keys():
            event[field] = "[redacted]"
        return event


def configure(level: str, *, log_prompts: bool = False, form: Form = "auto") -> None:
    """Sends structlog's and the standard library's logs the same way. Called once, by a process's main function.
    `form` auto: text for a person on a terminal, else JSON."""
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    before: Sequence[structlog.typing.Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        Redactor(prompts=log_prompts),
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # softmux writes its own line for each request
