"""How each task of a run starts: as its recipe says, or from what another has learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from softmux.errors import InvalidRequest
from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.frozen.encoder_decoder import frozen_over
from softmux.tuning.learned.methods import Learned, lent, start_of
from softmux.tuning.recipes.method import AUTO, MethodRecipe
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, PrefixTuning, PromptTuning, Train
from softmux.tuning.starts.bank import Candidate, Score, ranked, tell
from softmux.tuning.starts.library import Library
from softmux.tuning.starts.origin import Begun, Origin, Origins
from softmux.tuning.starts.transfer import Transferred, start_method, transferred
from softmux.tuning.training.cohort import Start
from softmux.tuning.training.job import Job


@dataclass(frozen=True, slots=True)
class Beginning:
    """A task's start. `origin` is what it is from, None for its recipe's own, and `words` what was taken of it;
    `scores` are those of all starts that were tried, the best first."""

    start: Start
    origin: Origin | None = None
    words: str = ""
    scores: tuple[Score, ...] = ()

    def job(self, name: str, rows: Sequence[Row], validation: Sequence[Row], how: Train, prefix: int) -> Job:
        """The task's, as it begins so: what is from another is validated as it is, too."""
        return Job(name, self.start, rows, validation, how, prefix, measures_start=self.origin is not None)


@dataclass(frozen=True, slots=True)
class Beginner:
    """A task that is to begin. `fresh` makes its method's own numbers, by its seed; `folder` is its recipe's."""

    name: str
    method: MethodRecipe
    how: Train
    folder: Path
    fresh: Callable[[MethodRecipe], Learned]
    validation: Sequence[Row]
    prefix: int


class Beginnings:
    """Begins the tasks of one run over `base`."""

    def __init__(self, base: Base, library: Library | None, console: Console) -> None:
        self._base = base
        self._origins = Origins(base, library)
        self._console = console

    def of(self, task: Beginner, own: Start) -> Beginning:
        """`own` is the method's own start. Raises `InvalidRequest` naming what can't be begun from."""
        method = task.method
        if not isinstance(method, PromptTuning | PrefixTuning | Lora | LoraPrefixTuning) or method.init_from is None:
            return Beginning(own)
        if method.init_from == AUTO:
            return self._best(task, method, own)
        origin = self._origins.named(method.init_from, method, task.folder)
        return self._begun(origin, self._from(task, method, own, origin))

    def _from(self, task: Beginner, method: Begun, own: Start, origin: Origin) -> Transferred:
        shaped = start_method(method, origin)
        if shaped != method:
            with lent(task.fresh(shaped)) as learned:
                own = start_of(learned)
        torch.manual_seed(task.how.seed)
        return transferred(own, method, origin)

    def _begun(self, origin: Origin, found: Transferred, scores: Sequence[Score] = ()) -> Beginning:
        if found.warning is not None:
            self._console.print(f"! {found.warning}", style="yellow", highlight=False)
        return Beginning(found.start, origin, found.words, tuple(scores))

    def _best(self, task: Beginner, method: Begun, own: Start) -> Beginning:
        found: list[tuple[Origin, Transferred]] = []
        for origin in self._origins.all(method):
            try:
                found.append((origin, self._from(task, method, own, origin)))
            except InvalidRequest:  # a LoRA of other modules
                continue
        words = f"its own start ({method.begins})" if isinstance(method, PromptTuning) else "its own start"
        if not found:
            self._console.print(
                f"{task.name}: the registry has no adapter over {self._base.label} that {method.kind} could begin "
                f"from; it begins from {words}",
                highlight=False,
            )
            return Beginning(own)
        tried = [Candidate(made.start, origin, origin.name) for origin, made in found]
        ordered = ranked(
            frozen_over(self._base), [*tried, Candidate(own, None, words)], task.validation, task.how, task.prefix
        )
        scores = tuple(score for _, score in ordered)
        tell(self._console, task.name, scores, len(task.validation))
        best = ordered[0][0]
        if best.origin is None:
            return Beginning(own, scores=scores)
        return self._begun(best.origin, next(made for origin, made in found if origin is best.origin), scores)
