"""`softmux migrate`: an old base with its old prompts teaches a new base new ones, all tasks at once.

let the old base answer each task's inputs → begin on the new base from the old numbers → train all tasks together →
measure beside the old, and beside the old prompt itself on the new base → make the files
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from huggingface_hub import snapshot_download
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from softmux.archives import cache_dir
from softmux.demo import demo_model
from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.folder import read_adapter
from softmux.formats.parts import Parts
from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson, read_softmux_json
from softmux.inspection.base import UNKNOWN, describe
from softmux.tuning.bases.base import Base, open_source
from softmux.tuning.bases.device_words import device_words
from softmux.tuning.migration.carrying import Carrier, parts_of, start_of
from softmux.tuning.migration.files import files_of
from softmux.tuning.migration.inputs import described, plain_notes
from softmux.tuning.migration.kinship import Remembered, nearness, same_words
from softmux.tuning.migration.lessons import Kept
from softmux.tuning.migration.likeness import Likeness, likeness
from softmux.tuning.migration.migrated import Left, Migration, Moved
from softmux.tuning.migration.plan import How, OldTask
from softmux.tuning.migration.teaching import Pupil, School, taught
from softmux.tuning.recipes.recipe import demo_of
from softmux.tuning.training.board import shown
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.training.together import Together, precision, train_together
from softmux.tuning.voices.voice import Voice
from softmux.types import ModelSpec


@dataclass(frozen=True, slots=True)
class Bases:
    """The two, as they are named: folders or hub ids, with what is known of them without their weights."""

    old: str
    new: str
    old_spec: ModelSpec
    new_spec: ModelSpec

    @classmethod
    def of(cls, old: str, new: str, cache: Path | None = None) -> Bases:
        """Raises `InvalidRequest` where one is no decoder, or both are the same."""
        names, specs = [], []
        for name, param in ((old, "--from"), (new, "--to")):
            source = _folder(name, param, cache)
            spec = describe(source, fingerprints=True)
            if spec.base_fingerprint == UNKNOWN:
                raise InvalidRequest(
                    f"{name} holds no .safetensors weights: convert it with save_pretrained first.", param=param
                )
            if not Path(name).is_dir() and demo_of(name) is None:  # a hub id, not where the hub's files lie
                spec = msgspec.structs.replace(spec, model_id=name)
            if spec.family != "decoder":
                raise InvalidRequest(
                    f"{name} is an {spec.family}, and prompts are migrated between decoders: tune its tasks on the new "
                    "base (softmux tune).",
                    param=param,
                )
            names.append(source)
            specs.append(spec)
        found = cls(names[0], names[1], specs[0], specs[1])
        if found.old_spec.base_fingerprint == found.new_spec.base_fingerprint:
            raise InvalidRequest(f"{new} is the old base: its tasks need no migration.", param="--to")
        return found


def _folder(name: str, param: str, cache: Path | None) -> str:
    """Where the base's files lie: a folder, a demo's, or what the hub has of an id."""
    demo = demo_of(name)
    if demo:
        return str(demo_model(cache, demo))
    if Path(name).is_dir():
        return name
    try:
        return str(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
    except Exception as error:
        raise InvalidRequest(f"{name}: no such folder, and not to be had from the hub: {error}", param=param) from error


@dataclass(frozen=True, slots=True)
class _Begun:
    """A task over the new base, before it is trained: `parts` are where it begins, `words` say what that is."""

    pupil: Pupil
    job: Job
    parts: Parts
    words: str


@dataclass(slots=True)
class _Leaving:
    """Tasks that fall out on the way."""

    console: Console
    left: list[Left] = field(default_factory=list)

    def __call__(self, task: OldTask, error: SoftmuxError) -> None:
        why = error.message.strip().rstrip(".")
        self.left.append(Left(task.name, task.version, why))
        self.console.print(f"{task.name} is left: {why}", highlight=False, markup=False)

    def all(self) -> InvalidRequest:
        return InvalidRequest(
            "No task can be migrated. " + " ".join(f"{one.task}: {one.why}." for one in self.left), param="task"
        )


def migrate(
    tasks: Sequence[OldTask],
    bases: Bases,
    how: How,
    device: str = "auto",
    *,
    cache: Path | None = None,
    console: Console | None = None,
    together: Together | None = None,
) -> tuple[Migration, Callable[[], None]]:
    """The tasks of the old base, taught to the new one; and what to call once all of it is written, which removes what
    is kept to go on from after a kill. A task that can't be taught is left, by name and with why.

    `device` is `auto`, `cpu` or `cuda`. Raises `InvalidRequest` where nothing can be taught.
    """
    console, together = console or Console(stderr=True), together or Together()
    started = time.monotonic()
    leave = _Leaving(console)
    lessons = Kept((together.kept or (cache or cache_dir()) / "tuning") / "lessons")
    pupils, remembered, same = _school(tasks, bases, how, device, lessons, console, leave, cache)
    if not pupils:
        raise leave.all()
    base = open_source(bases.new, bases.new_spec.model_id, device)
    carrier = Carrier(remembered, base, _normed(bases.new_spec, base), nearness(remembered, base), how.seed)
    begun = []
    for pupil in pupils:
        try:
            begun.append(_begin(pupil, carrier, how))
        except SoftmuxError as error:
            leave(pupil.task, error)
    if not begun:
        raise leave.all()
    console.print(
        f"{len(begun)} tasks learn from {'distributions over tokens' if same else 'answers as text'}; the embeddings "
        f"of both bases have a mean cosine of {carrier.near:.3f}"
    )
    jobs = [one.job for one in begun]
    with shown(console, {job.name: job.how.steps for job in jobs}, together.tensorboard) as board:
        head = remembered.head if same else None
        finished, checkpoint = train_together(
            base, jobs, precision(base, jobs[0].how), together, board.see, console, head
        )
    console.print("measuring on the held-out inputs")
    moved = []
    for one, ended in zip(begun, finished, strict=True):
        try:
            moved.append(_moved(one, ended, carrier, bases))
        except SoftmuxError as error:
            leave(one.pupil.task, error)
    found = Migration(
        old=bases.old_spec.model_id,
        new=bases.new_spec.model_id,
        old_fingerprint=bases.old_spec.base_fingerprint,
        new_fingerprint=bases.new_spec.base_fingerprint,
        same_words=same,
        near=carrier.near,
        moved=tuple(moved),
        left=tuple(leave.left),
        seconds=time.monotonic() - started,
        device=device_words(base.device),
    )

    def finish() -> None:
        checkpoint.remove()
        lessons.remove()

    return found, finish


def _school(
    tasks: Sequence[OldTask],
    bases: Bases,
    how: How,
    device: str,
    lessons: Kept,
    console: Console,
    leave: _Leaving,
    cache: Path | None,
) -> tuple[list[Pupil], Remembered, bool]:
    """What the old base taught, what is kept of it, and whether its tokens are the new base's. The base itself is
    let go of."""
    base = open_source(bases.old, bases.old_spec.model_id, device)
    tokenizer = AutoTokenizer.from_pretrained(bases.new)
    same = same_words(base, tokenizer, bases.new_spec.vocab_size, _ends(bases.new, tokenizer.eos_token_id))

    def say(words: str) -> None:
        console.print(words, highlight=False, markup=False)

    school = School(base, bases.old_spec, same, bases.new_spec.tokenizer_fingerprint, how, lessons, say, cache)
    return taught(school, tasks, leave), Remembered.of(base), same


def _ends(source: str, of_tokenizer: int | None) -> tuple[int, ...]:
    """The tokens that end the base's generations, as `tuning.base.as_base` finds them."""
    try:
        said = GenerationConfig.from_pretrained(source)
    except OSError:
        said = GenerationConfig.from_model_config(AutoConfig.from_pretrained(source))
    stops = said.eos_token_id if said.eos_token_id is not None else of_tokenizer
    return tuple(stops) if isinstance(stops, list | tuple) else (int(stops),) if stops is not None else ()


@torch.no_grad()
def _normed(spec: ModelSpec, base: Base) -> ModelSpec:
    """With the norm of the base's embeddings, by which odd vectors are told."""
    norm = float(base.model.get_input_embeddings().weight.float().norm(dim=1).mean())
    return msgspec.structs.replace(spec, embedding_norm=norm)


def _begin(pupil: Pupil, carrier: Carrier, how: How) -> _Begun:
    text = described(pupil.adapter.manifest) or pupil.task.name
    parts, words = carrier.carry(pupil.adapter.parts, text)
    start = start_of(parts)
    rows, validation = (
        [one.row(pupil.layout, carrier.new) for one in some] for some in (pupil.lesson.train, pupil.lesson.validation)
    )
    longest = max(row.length for row in (*rows, *validation))
    if longest > carrier.spec.context_length:
        raise InvalidRequest(
            f"its longest input and answer are {longest} tokens, and the new base's context is "
            f"{carrier.spec.context_length}: keep shorter inputs"
        )
    prefix = start.outputs if start.is_prefix else 0
    job = Job(pupil.task.name, start, rows, validation, how.train(parts, pupil.lesson.answers), prefix)
    return _Begun(pupil, job, parts, words)


def _moved(begun: _Begun, ended: Finished, carrier: Carrier, bases: Bases) -> Moved:
    """Its files, and what it is worth."""
    if ended.error is not None:
        raise SoftmuxError(f"{ended.error} Give a lower --learning-rate")
    pupil, lesson = begun.pupil, begun.pupil.lesson
    parts = parts_of(ended.values, begun.parts)
    voice = Voice.of(carrier.new, pupil.layout, parts)
    old = Voice.of(carrier.new, pupil.layout, pupil.adapter.parts) if carrier.fits(pupil.adapter.parts) else None

    def like(one: Voice) -> Likeness:
        return likeness(one, lesson.test, carrier.old.head, pupil.max_tokens)

    found, figures = like(voice), pupil.figures(voice)
    notes = [plain_notes(pupil.adapter.manifest.notes)]
    if figures is not None:
        metric, value = next(iter(figures.values.items()))
        notes.append(f"Held-out {metric} {value:.3f} over {figures.rows} rows.")
    notes.append(
        f"Migrated from {bases.old_spec.model_id}: the same answer to {found.same_answer:.3f} of {found.rows} held-out "
        "inputs."
    )
    own = read_softmux_json(pupil.task.files.get(SOFTMUX_FILE), bases.old_spec)
    lengths = [row.prompt_tokens for row in begun.job.rows]
    said = SoftmuxJson(
        template=own.template,
        labels=own.labels,
        base_fingerprint=bases.new_spec.base_fingerprint,
        tokenizer_fingerprint=bases.new_spec.tokenizer_fingerprint if own.tokenizer_fingerprint else None,
        trained_lengths=[min(lengths), max(lengths)],
        combines=own.combines,
        notes=" ".join(note for note in notes if note),
    )
    files = files_of(pupil.task.files, parts, carrier.spec, bases.new_spec.model_id, said)
    return Moved(
        task=pupil.task.name,
        was=pupil.task.version,
        adapter=read_adapter(files, carrier.spec),
        files=files,
        source=lesson.source,
        rows=(len(lesson.train), len(lesson.validation), len(lesson.test)),
        answers=lesson.answers,
        begun=begun.words,
        trained=ended.trained,
        likeness=found,
        unmigrated=like(old) if old is not None else None,
        old_figures=lesson.figures,
        figures=figures,
        unmigrated_figures=pupil.figures(old) if old is not None else None,
    )
