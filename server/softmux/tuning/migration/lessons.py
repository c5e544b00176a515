"""What an old base teaches of a task: its answers to the inputs, what its logits were made of, and its own figure. Kept
on disk, each whole or not at all, so that a run that was killed asks the old base nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from softmux.formats.layout import Layout, lay_out
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import Row
from softmux.tuning.data.split import split
from softmux.tuning.evaluate import Figures
from softmux.tuning.migration.inputs import Inputs
from softmux.tuning.voices.voice import Voice

FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Taught:
    """An input, and the old base's answer: the tokens (the end among them where it came in time), the same as text,
    whether it ended in time, and the states its logits were made of, None where tokens are not the new base's."""

    text: str
    answer: tuple[int, ...]
    said: str
    ended: bool
    states: np.ndarray[Any, np.dtype[np.float32]] | None = None

    def row(self, layout: Layout, base: Base) -> Row:
        """As a row of the new base's: by the old tokens where they are its own, else by the text."""
        ids = lay_out(layout, base.encoder, vocab_size=base.vocab_size, prompt=self.text)
        if self.states is not None:
            return Row(ids, self.answer, self.states)
        words = tuple(base.encoder.encode(self.said, add_special_tokens=False))
        return Row(ids, (*words, base.end_id) if self.ended or not words else words)


@dataclass(frozen=True, slots=True)
class Lesson:
    """All of a task. `source` says where the inputs are from; `figures` are the old prompt's on the labelled rows."""

    train: tuple[Taught, ...]
    validation: tuple[Taught, ...]
    test: tuple[Taught, ...]
    source: str
    figures: Figures | None

    @property
    def answers(self) -> int:
        """How many different ones there are to learn."""
        return len({one.said for one in self.train})


def teach(voice: Voice, inputs: Inputs, max_tokens: int, validation_rows: int, *, states: bool) -> Lesson:
    """The old base answers, greedily. `states`: its tokens are the new base's, which learns its distributions. Raises
    `InvalidRequest` where there are too few inputs."""
    base = voice.base
    parts = split([Example(text, text) for text in inputs.texts], validation_rows)

    def taught(some: Sequence[Example]) -> tuple[Taught, ...]:
        laid = [voice.ids(example.text) for example in some]
        said = voice.taught(laid, max_tokens) if states else map(Row, laid, voice.answers(laid, max_tokens))
        return tuple(
            Taught(
                text=x.text,
                answer=row.answer,
                said=base.text(row.answer),
                ended=row.answer[-1] in base.eos_ids,
                states=row.taught,
            )
            for x, row in zip(some, said, strict=True)
        )

    return Lesson(taught(parts.train), taught(parts.validation), taught(parts.test), inputs.source, None)


class Kept:
    """Lessons in a folder, by all that decides them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: list[Path] = []

    def path(self, *decides: object) -> Path:
        said = repr((FORMAT, torch.__version__, *decides)).encode()
        path = self._folder / f"lesson-{hashlib.sha256(said).hexdigest()[:32]}.safetensors"
        self._used.append(path)
        return path

    def remove(self) -> None:
        """All that this run has asked for."""
        for path in self._used:
            path.unlink(missing_ok=True)

    def save(self, path: Path, lesson: Lesson) -> None:
        parts = {"train": lesson.train, "validation": lesson.validation, "test": lesson.test}
        tensors = {
            f"{name}.{i}": one.states
            for name, part in parts.items()
            for i, one in enumerate(part)
            if one.states is not None
        }
        told = {
            "source": lesson.source,
            "figures": None if lesson.figures is None else asdict(lesson.figures),
            **{name: [[x.text, x.answer, x.said, x.ended] for x in part] for name, part in parts.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".writing")
        save_file(tensors, scratch, {"softmux": json.dumps(told)})
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)

    def load(self, path: Path) -> Lesson | None:
        """None where there is none that can be read."""
        try:
            with safe_open(path, "np") as file:
                told = json.loads(file.metadata()["softmux"])
                states = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (FileNotFoundError, SafetensorError, OSError, KeyError, TypeError, ValueError):
            return None
        parts = {
            name: tuple(
                Taught(text, tuple(answer), said, ended, states.get(f"{name}.{i}"))
                for i, (text, answer, said, ended) in enumerate(told[name])
            )
            for name in ("train", "validation", "test")
        }
        figures = None if told["figures"] is None else Figures(**told["figures"])
        return Lesson(parts["train"], parts["validation"], parts["test"], told["source"], figures)
