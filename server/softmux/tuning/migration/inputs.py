"""What an old and a new base are both asked: a task's kept inputs, or such as the old base makes up."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from softmux.errors import InvalidRequest
from softmux.formats.layout import special_tokens, virtual_ids
from softmux.formats.template import Learned, Slot, Template, Text
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import Example, checked
from softmux.tuning.data.split import is_test
from softmux.tuning.sources import table
from softmux.tuning.voices.sampler import Sampler
from softmux.tuning.voices.voice import Voice
from softmux.types import KV_METHODS, Manifest

SUFFIXES = (".jsonl", ".csv", ".parquet")
PROMPT, ANSWER = "prompt", "answer"
T = TypeVar("T")
_LONGEST = 64
_TEMPERATURE = 0.8
_DRAWN = 64
_ANSWER_WORDS = 4
"""So many words at most are cut off the end of an input."""
_FIGURES = re.compile(r"\s*(Held-out .*? over \d+ (rows|inputs)\.|Migrated from .*? held-out inputs\.)")


@dataclass(frozen=True, slots=True)
class Inputs:
    """`texts` are asked; `labelled` are held-out rows with the answer that is right. `source` says where from."""

    texts: tuple[str, ...]
    labelled: tuple[Example, ...]
    source: str


def kept_file(folder: Path, task: str) -> Path | None:
    """The file of a task's kept inputs, if the folder has one."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{task}{suffix}").is_file()), None)


def kept(path: Path, most: int, held_out: int, seed: int) -> Inputs:
    """At most `most` of the file's inputs, drawn by the seed; of those that are held out by their hash and have an
    answer, at most `held_out`, as labelled rows. Raises `BadData`."""
    first = next(iter(table.cells_of(path)), (0, {}))[1]
    has_answers = ANSWER in first
    examples = checked(table.read(path, PROMPT, ANSWER if has_answers else PROMPT), classes=False)
    texts = some([example.text for example in examples], most, seed)
    labelled = some([x for x in examples if has_answers and is_test(x.text)], held_out, seed)
    return Inputs(tuple(texts), tuple(labelled), f"{len(texts)} kept")


def some(items: Sequence[T], most: int, seed: int) -> Sequence[T]:
    """At most `most` of them, drawn by the seed, in their order."""
    if len(items) <= most:
        return items
    chosen = random.Random(seed).sample(range(len(items)), most)  # noqa: S311 - which rows is no secret
    return [items[i] for i in sorted(chosen)]


class _Opening(NamedTuple):
    """Where the old base begins to write an input, and the text at which it has ended."""

    voice: Voice
    ids: tuple[int, ...]
    stop: str


def invented(voice: Voice, manifest: Manifest, wanted: int, seed: int) -> Inputs:
    """`wanted` different inputs that the old base makes, in turn: with the task's own prompt before them (in its
    template), asked for one by the task's notes and labels, and out of nothing; such as the task has an answer to.
    Fewer where it makes no more in eight times as many draws.

    Raises `InvalidRequest` for a template of several slots.
    """
    base = voice.base
    longest = min(_LONGEST, max(8, manifest.trained_lengths[1])) if manifest.trained_lengths else _LONGEST
    bare = Voice(base)
    openings = [*_own(voice, manifest), *_asked(bare, manifest), _Opening(bare, _nothing(base), "")]
    sampler = Sampler(_TEMPERATURE, seed, base.device)
    words = frozenset(words_of(manifest))
    found: dict[str, None] = {}
    drawn = 0
    while len(found) < wanted and drawn < 8 * wanted:
        for opening in openings:
            drawn += _DRAWN
            said = opening.voice.answers([opening.ids] * _DRAWN, longest, sampler)
            clean = (_clean(base.text(ids), opening.stop) for ids in said)
            texts = [text for text in dict.fromkeys(clean) if text and text not in found]
            found.update(dict.fromkeys(_asked_of(voice, texts, words)))
    made = tuple(found)[:wanted]
    return Inputs(made, (), f"{len(made)} made up")


def _asked_of(voice: Voice, texts: Sequence[str], words: Collection[str]) -> list[str]:
    """The texts that the old prompt answers: with one of its labels' `words`, where it has labels.

    What it writes by itself is an input with the answer behind it, and to that it has nothing more to say: such a text
    loses words at its end until it has.
    """
    found: list[str] = []
    longest = max((len(voice.base.encoder.encode(word, add_special_tokens=False)) for word in words), default=0)
    for _ in range(_ANSWER_WORDS):
        answers = voice.answers([voice.ids(text) for text in texts], longest + 1) if texts else []
        said = [voice.base.text(answer) for answer in answers]
        found += [text for text, one in zip(texts, said, strict=True) if (one in words if words else one)]
        texts = [
            cut for text, one in zip(texts, said, strict=True) if not one and (cut := text.rpartition(" ")[0].strip())
        ]
    return found


def _clean(text: str, stop: str) -> str:
    """The first line that says something, without what lists and quotations put around it."""
    if stop:
        text = text.partition(stop)[0]
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = line.removeprefix("- ").strip('"“”').strip()
    return "" if "\ufffd" in line else line


def _nothing(base: Base) -> tuple[int, ...]:
    """What a text begins after."""
    leading, _ = special_tokens(base.encoder)
    if leading:
        return tuple(leading)
    first = base.tokenizer.bos_token_id
    return (base.end_id if first is None else int(first),)


def _own(voice: Voice, manifest: Manifest) -> Iterator[_Opening]:
    """After the learned tokens, where an input stands."""
    base = voice.base
    if manifest.template is None:
        lead = virtual_ids(manifest.virtual_tokens)
        after = _nothing(base) if manifest.method in KV_METHODS or not lead else tuple(special_tokens(base.encoder)[0])
        yield _Opening(voice, lead + after, "")
        return
    template = Template.parse(manifest.template)
    if len(template.slots) != 1:
        raise InvalidRequest(
            f"its template has {len(template.slots)} slots, and inputs are made, or kept, for one: tune it on the new "
            "base"
        )
    at = next(i for i, piece in enumerate(template.pieces) if isinstance(piece, Slot))
    ids = list(virtual_ids(manifest.virtual_tokens)) if manifest.method in KV_METHODS else []
    ids += special_tokens(base.encoder)[0]
    learned = 0
    for piece in template.pieces[:at]:
        if isinstance(piece, Learned):
            ids += virtual_ids(piece.count, learned)
            learned += piece.count
        elif isinstance(piece, Text):
            ids += base.encoder.encode(piece.text, add_special_tokens=False)
    stop = next((piece.text for piece in template.pieces[at + 1 :] if isinstance(piece, Text)), "")
    if not any(token >= 0 for token in ids) and manifest.method in KV_METHODS:
        ids += _nothing(base)
    if ids:
        yield _Opening(voice, tuple(ids), stop)


def _asked(bare: Voice, manifest: Manifest) -> Iterator[_Opening]:
    """Told what the task is, as far as its `softmux.json` says it."""
    base = bare.base
    about = described(manifest)
    if not about:
        return
    listed = f"{about}\nTexts to try it on, one a line:\n-"
    yield _Opening(bare, tuple(base.encoder.encode(listed, add_special_tokens=True)), "")
    if base.tokenizer.chat_template:
        wish = f"{about}\nWrite one text that somebody would send to it. Write nothing else."
        said = base.tokenizer.apply_chat_template(
            [{"role": "user", "content": wish}], tokenize=False, add_generation_prompt=True
        )
        yield _Opening(bare, tuple(base.encoder.encode(str(said), add_special_tokens=False)), "")


def described(manifest: Manifest) -> str:
    """What a task is, of its notes and labels."""
    notes = plain_notes(manifest.notes)
    labels = ", ".join(word.strip() for word in words_of(manifest))
    return " ".join(part for part in (notes, f"It answers with one of: {labels}." if labels else "") if part)


def words_of(manifest: Manifest) -> tuple[str, ...]:
    """What says its labels, where it has any."""
    return tuple(manifest.labels.values() if isinstance(manifest.labels, dict) else manifest.labels or ())


def plain_notes(notes: str | None) -> str:
    """An adapter's notes without the figures that `softmux tune` and `softmux migrate` add."""
    return _FIGURES.sub("", notes or "").strip()
