"""The serving engine, asked many questions at once: every row of an evaluation, whatever its task or way of asking."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from softmux.engine.local import LocalEngine
from softmux.settings import Settings
from softmux.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Ask:
    """One input. `who` is an adapter's number, None the bare model. Either at most `max_tokens` are generated after
    `ids`, greedily (`line`: no more than a line), or the last `scored` of them are read for their likelihood, or the
    adapter's head reads them (`head`)."""

    who: int | None
    ids: tuple[int, ...]
    max_tokens: int = 0
    line: bool = False
    scored: int = 0
    head: bool = False


@dataclass(slots=True)
class Said:
    """What came of an input: tokens, or what was read of it. `scores` are a head's outputs row after row, or the log
    probability of each token that was scored."""

    tokens: list[int] = field(default_factory=list)
    scores: array[float] = field(default_factory=lambda: array("f"))


class Examiner:
    """An engine over one base with the adapters in `folders` (their files by name). Close it."""

    def __init__(self, settings: Settings, folders: Sequence[Mapping[str, bytes]]) -> None:
        self._most = 4 * settings.max_rows
        self._local = LocalEngine(settings.model_copy(update={"max_waiting": 1 << 20}))
        self.engine = self._local.engine
        try:
            self.adapters = [self._local.adopt(files) for files in folders]
        except BaseException:
            self.close()
            raise

    def answers(
        self, asks: Sequence[Ask], text: Callable[[list[int]], str], told: Callable[[int], None] = lambda done: None
    ) -> list[Said]:
        """What comes of each, in order; all of them share the engine's steps. `text` says what tokens mean, `told`
        hears how many are done. Raises what the first one fails with."""
        said = [Said() for _ in asks]
        engine, coming = self.engine, iter(range(len(asks)))
        running: set[int] = set()
        done = 0
        while True:
            while len(running) < self._most and (number := next(coming, None)) is not None:
                self._add(number, asks[number])
                running.add(number)
            if not running:
                return said
            news = self._local.step()
            for _, failure in news.failed:
                raise failure
            for sequence, output in news.each():
                number = int(sequence.id)
                if number not in running:
                    continue  # its line has ended already
                found = said[number]
                found.tokens += output.tokens
                found.scores.frombytes(output.scores)
                ended = output.finish_reason is not None
                if not ended and asks[number].line and "\n" in text(found.tokens).lstrip():
                    engine.scheduler.abort(b"", sequence.id)
                    ended = True
                if ended:
                    running.discard(number)
                    done += 1
            told(done)

    def _add(self, number: int, ask: Ask) -> None:
        place = self._local.place(ask.who)
        name, now = str(number), time.monotonic()
        if ask.head or ask.scored:
            head = None if ask.who is None or not ask.head else self.adapters[ask.who].manifest.head
            self.engine.read(
                name,
                ask.ids,
                root=place.root,
                now=now,
                head=head,
                trained_prefix=place.trained_prefix,
                scored=ask.scored,
            )
        else:
            sampling = SamplingParams(max_tokens=ask.max_tokens)
            self.engine.add(name, ask.ids, sampling, root=place.root, now=now, trained_prefix=place.trained_prefix)

    def close(self) -> None:
        self._local.close()

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
