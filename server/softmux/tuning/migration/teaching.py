"""The old base's side of a migration: each task's inputs, the old prompt's answers to them, and its own figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.folder import Adapter, parse_adapter
from softmux.formats.layout import Layout
from softmux.tuning import sources
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import is_test
from softmux.tuning.evaluate import Figures, evaluate
from softmux.tuning.migration.carrying import why_not
from softmux.tuning.migration.inputs import Inputs, invented, kept, kept_file, some
from softmux.tuning.migration.lessons import Kept, Lesson, teach
from softmux.tuning.migration.plan import MAX_TOKENS, How, OldTask
from softmux.tuning.recipes.recipe import Evaluate, Recipe, read_recipe
from softmux.tuning.voices.voice import SPOKEN, Voice
from softmux.types import ModelSpec

VALIDATION_ROWS = 128


@dataclass(frozen=True, slots=True)
class Pupil:
    """A task while it is migrated: its old adapter, what it is measured by, and what the old base taught of it."""

    task: OldTask
    adapter: Adapter
    measured: Evaluate
    labelled: tuple[Example, ...]
    max_tokens: int
    lesson: Lesson

    @property
    def layout(self) -> Layout:
        return Layout.of(self.adapter.manifest)

    def figures(self, voice: Voice) -> Figures | None:
        """Of a voice on the labelled rows; None where there are none."""
        if not self.labelled:
            return None
        labels = sorted({x.answer for x in self.labelled}) if self.measured.metric == "exact" else []
        with voice.speaking():
            return evaluate(voice.base, voice, self.labelled, self.measured, self.layout, labels)


@dataclass(frozen=True, slots=True)
class School:
    """The old base `base`, described by `spec`, while it teaches. `same_words`: its tokens are the new base's. `say` is
    told how far it is; `tokenizer` names the new base's."""

    base: Base
    spec: ModelSpec
    same_words: bool
    tokenizer: str
    how: How
    lessons: Kept
    say: Callable[[str], None]
    cache: Path | None = None

    def teach(self, task: OldTask) -> Pupil:
        """From disk where an earlier run has got so far. Raises `SoftmuxError` saying why it can't be taught."""
        adapter = parse_adapter(task.files, self.spec)
        for part in adapter.parts:
            if not isinstance(part, SPOKEN):
                raise InvalidRequest(why_not(part))
        voice = Voice.of(self.base, Layout.of(adapter.manifest), adapter.parts)
        given = self._given(task.name)
        recipe = _recipe(self.how.recipes, task.name)
        labelled = self._labelled(*recipe) if recipe else given.labelled if given else ()
        of_recipe = recipe[0].evaluate if recipe else None
        max_tokens = self.how.max_tokens or (of_recipe.max_tokens if of_recipe else MAX_TOKENS)
        measured = of_recipe or Evaluate(max_tokens=max_tokens)
        place = self.lessons.path(
            adapter.manifest.digest, self.base.device, self.same_words, self.tokenizer, self.how.rows, self.how.seed,
            max_tokens, given and given.texts, labelled, measured.model_dump_json(),
        )  # fmt: skip
        lesson = self.lessons.load(place)
        if lesson is None:
            inputs = self._fitting(
                given or invented(voice, adapter.manifest, self.how.rows, self.how.seed), voice, max_tokens
            )
            self.say(f"{task.name}: the old base answers {len(inputs.texts)} inputs, {inputs.source}")
            lesson = teach(voice, inputs, max_tokens, VALIDATION_ROWS, states=self.same_words)
            figures = Pupil(task, adapter, measured, labelled, max_tokens, lesson).figures(voice)
            lesson = replace(lesson, figures=figures)
            self.lessons.save(place, lesson)
        return Pupil(task, adapter, measured, labelled, max_tokens, lesson)

    def _given(self, task: str) -> Inputs | None:
        folder = self.how.inputs
        if folder is None:
            return None
        path = kept_file(folder, task)
        if path is None:
            self.say(f"{task}: {folder} has no file of its inputs, so they are made up")
            return None
        return kept(path, self.how.rows, self.how.held_out, self.how.seed)

    def _labelled(self, recipe: Recipe, folder: Path) -> tuple[Example, ...]:
        answers = list(recipe.labels.values()) if isinstance(recipe.labels, dict) else recipe.labels
        rows = sources.load(recipe.data, folder, self.cache, answers)
        return tuple(some([x for x in rows if is_test(x.text)], self.how.held_out, self.how.seed))

    def _fitting(self, inputs: Inputs, voice: Voice, max_tokens: int) -> Inputs:
        """Those that leave room for an answer."""
        context = self.spec.context_length
        fits = tuple(text for text in inputs.texts if len(voice.ids(text)) + max_tokens <= context)
        if inputs.texts and not fits:
            raise InvalidRequest(
                f"no input leaves room for an answer of {max_tokens} tokens in the old base's context of {context}: "
                "lower --max-tokens"
            )
        return replace(inputs, texts=fits)


def _recipe(folder: Path | None, task: str) -> tuple[Recipe, Path] | None:
    """The task's recipe, and the folder that its paths are relative to."""
    for path in (folder / task / "recipe.toml", folder / f"{task}.toml") if folder is not None else ():
        if path.is_file():
            return read_recipe(path), path.parent
    return None


def taught(school: School, tasks: Sequence[OldTask], leave: Callable[[OldTask, SoftmuxError], None]) -> list[Pupil]:
    """All that can be taught; `leave` is told of the others."""
    pupils = []
    for task in tasks:
        try:
            pupils.append(school.teach(task))
        except SoftmuxError as error:
            leave(task, error)
    return pupils
