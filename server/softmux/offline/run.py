"""The work: rows that are not answered yet → a target → the journal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from softmux.offline.interrupt import Interrupt
from softmux.offline.journal import Journal
from softmux.offline.rows import Answer, Input, Row, parse
from softmux.offline.target import Target


@dataclass(slots=True)
class Summary:
    """What was done. Counts are of this run alone but `rows` and `before`."""

    rows: int
    before: int
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return self.before + self.answered + self.failed

    @property
    def rate(self) -> float:
        """New tokens a second."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def count(self, answer: Answer) -> None:
        if answer.error is not None:
            self.failed += 1
            self.errors[answer.error.code] += 1
            return
        self.answered += 1
        self.prompt_tokens += answer.usage("prompt_tokens")
        self.completion_tokens += answer.usage("completion_tokens")


def run(
    source: Input, target: Target, journal: Journal, defaults: dict[str, Any], told: Callable[[Summary], None]
) -> Summary:
    """Answers what is to do. `told` hears of each row. Whatever ends it early, what is written stays good: SIGINT and
    SIGTERM raise `KeyboardInterrupt` between two rows, which takes the main thread."""
    summary = Summary(source.rows, journal.before)
    began = time.monotonic()

    def write(answer: Answer) -> None:
        journal.append(answer.row.number, answer.line())
        summary.count(answer)
        summary.seconds = time.monotonic() - began
        told(summary)

    def rows() -> Iterator[Row]:
        for number, line in source:
            interrupt.check()
            if journal.has(number):
                continue
            row = parse(number, line, defaults)
            if isinstance(row, Answer):
                write(row)
            else:
                yield row

    told(summary)
    with Interrupt() as interrupt:
        for answer in target.answers(rows(), interrupt):
            write(answer)
    return summary
