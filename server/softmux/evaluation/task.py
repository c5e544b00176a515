"""The task under examination: its rows, laid out as the server lays them out, and what its answers are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from softmux.errors import InvalidRequest
from softmux.evaluation.examiner import Ask, Said
from softmux.evaluation.scores import Score, score_labels, score_text
from softmux.formats.layout import Layout, TransformersEncoder, lay_out
from softmux.formats.template import Text
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import Split
from softmux.tuning.recipes.recipe import Recipe
from softmux.types import Manifest, ModelSpec

Who = Literal["tuned", "bare"]
How = Literal["metric", "labels", "answer"]


@dataclass(frozen=True, slots=True)
class Trial:
    """Rows that are asked in one way. `metric`: what the recipe counts; `labels`: whether the likeliest answer is the
    right one; `answer`: how likely the right one is. `before` stands before each text: examples, for the bare model."""

    name: str
    who: Who
    how: How
    examples: Sequence[Example]
    before: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """`number` is its adapter's in the examiner; `labels` are the answers of a task that has a few fixed ones, in
    order, or a head's."""

    number: int
    recipe: Recipe
    manifest: Manifest
    spec: ModelSpec
    tokenizer: Any
    parts: Split
    labels: tuple[str, ...]
    tail: int = 0
    """Tokens that may come after an input: generated, or an answer whose likelihood is read."""
    left_out: int = 0
    """Held-out rows that are longer than the base's context."""
    _laid: dict[tuple[Who, str], tuple[int, ...]] = field(default_factory=dict)
    """A text is asked in several ways: laid out once for each that it is asked of."""

    @classmethod
    def of(cls, number: int, recipe: Recipe, manifest: Manifest, spec: ModelSpec, tokenizer: Any, parts: Split) -> Task:
        """Raises `InvalidRequest` where recipe and adapter are of different kinds, or know different labels."""
        head = {"accuracy": "sequence", "token_f1": "token"}.get(recipe.evaluate.metric)
        if manifest.head != head:
            what = f"a {manifest.head} head" if manifest.head else "no head"
            raise InvalidRequest(
                f"The adapter has {what}, and the recipe measures {recipe.evaluate.metric}: give the recipe that it "
                "was made by.",
                param="recipe",
            )
        everything = (*parts.train, *parts.validation, *parts.test)
        found = sorted({x.answer for x in everything}) if head != "token" else []
        if head is not None:
            labels = tuple(manifest.labels or ())
            said = {span.label for x in everything for span in x.spans} or {answer.strip() for answer in found}
            if unknown := sorted(said - set(labels)):
                raise InvalidRequest(
                    f"The data has the label {unknown[0]!r}, and the adapter's labels are {', '.join(labels)}.",
                    param="recipe",
                )
        else:
            labels = tuple(found) if recipe.evaluate.metric == "exact" and len(found) <= _MOST_LABELS else ()
        task = cls(number, recipe, manifest, spec, tokenizer, parts, labels)
        if head is None:
            longest = max(len(task._answer(answer)) for answer in labels or {x.answer for x in parts.test})
            task = replace(task, tail=max(recipe.evaluate.max_tokens, longest))
        fits = tuple(x for x in parts.test if task.fits(x))
        if not fits:
            raise InvalidRequest(f"Every held-out row is longer than {spec.model_id}'s context.", param="data")
        return replace(task, parts=replace(parts, test=fits), left_out=len(parts.test) - len(fits))

    @property
    def encoder(self) -> TransformersEncoder:
        return TransformersEncoder(self.tokenizer)

    @property
    def layout(self) -> Layout:
        return Layout.of(self.manifest)

    @property
    def classes(self) -> bool:
        """Whether a row has one of a few answers."""
        return bool(self.labels) and self.manifest.head != "token"

    @property
    def trained(self) -> tuple[int, int]:
        """Fewest and most tokens of an input it was trained on: as it says, or as the recipe's rows have them."""
        if self.manifest.trained_lengths is not None:
            return self.manifest.trained_lengths
        lengths = [self.length(example) for example in self.parts.train]
        return min(lengths), max(lengths)

    def ids(self, text: str) -> tuple[int, ...]:
        return self._once("tuned", self.layout, text)

    def _once(self, who: Who, layout: Layout, prompt: str) -> tuple[int, ...]:
        if (who, prompt) not in self._laid:
            ids = lay_out(layout, self.encoder, vocab_size=self.spec.vocab_size, prompt=prompt)
            self._laid[who, prompt] = ids
        return self._laid[who, prompt]

    def length(self, example: Example) -> int:
        """Of the input without learned tokens, as `usage` counts it."""
        return sum(token >= 0 for token in self.ids(example.text))

    def room(self, before: int = 0) -> int:
        """Tokens that an input may have beside the learned ones and what comes after it."""
        return self.spec.context_length - self.manifest.virtual_tokens - self.tail - before

    def fits(self, example: Example) -> bool:
        return self.length(example) <= self.room()

    def bare(self, text: str, before: str = "") -> tuple[int, ...]:
        """What the bare model is asked."""
        return self._once("bare", Layout(), before + self.words(text))

    def words(self, text: str) -> str:
        """The words that stand beside the learned tokens."""
        template = self.layout.template
        if template is None:
            return text
        runs = template.runs(dict.fromkeys(template.slots, text))
        return "".join(run.text for run in runs if isinstance(run, Text))

    def asks(self, trial: Trial) -> list[Ask]:
        """One for each row; for `labels` one for each row and label."""
        found: list[Ask] = []
        tokens = self.recipe.evaluate.max_tokens
        for example in trial.examples:
            tuned = trial.who == "tuned"
            ids = self.ids(example.text) if tuned else self.bare(example.text, trial.before)
            who = self.number if tuned else None
            if self.manifest.head is not None:
                found.append(Ask(who, ids, head=True))
            elif trial.how == "metric":
                found.append(Ask(who, ids, tokens, line=bool(trial.before)))
            else:
                words = self.labels if trial.how == "labels" else (example.answer,)
                for word in map(self._answer, words):
                    found.append(Ask(who, (*ids, *word), scored=len(word)))
        return found

    def scores(self, trial: Trial, said: Sequence[Said]) -> list[Score]:
        """Of the trial's rows, in order. Of `answer` the log probability of the answer's tokens, and how many."""
        if trial.how == "labels":
            each = len(self.labels)
            groups = [said[at : at + each] for at in range(0, len(said), each)]
            best = [max(range(each), key=lambda i, group=group: sum(group[i].scores)) for group in groups]  # type: ignore[misc]
            answers = [example.answer for example in trial.examples]
            return [Score(float(self.labels[i] == answer)) for i, answer in zip(best, answers, strict=True)]
        if trial.how == "answer":
            return [Score(sum(one.scores), len(one.scores)) for one in said]
        if self.manifest.head is not None:
            pairs = zip(trial.examples, said, strict=True)
            return [score_labels(self._labelled(x, one), self._meant(x)) for x, one in pairs]
        texts = [self.text(one.tokens, line=bool(trial.before)) for one in said]
        metric = self.recipe.evaluate.metric
        return [score_text(metric, text, x.answer) for text, x in zip(texts, trial.examples, strict=True)]

    def text(self, tokens: Sequence[int], *, line: bool = False) -> str:
        """What was generated, without the end token; after examples no more than its first line."""
        said = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        if not line:
            return said
        kept = said.lstrip("\n ")
        return said[: len(said) - len(kept)].replace("\n", "") + kept.partition("\n")[0]

    def told(self, example: Example, one: Said) -> str:
        """An answer as a reader sees it."""
        if self.manifest.head is None:
            return self.text(one.tokens)
        return " ".join(self.labels[i] for i in self._labelled(example, one))

    def expected(self, example: Example) -> str:
        if self.manifest.head != "token":
            return example.answer
        return " ".join(span.label for span in example.spans)

    def _answer(self, text: str) -> tuple[int, ...]:
        return tuple(self.encoder.encode(text, add_special_tokens=False))

    def _meant(self, example: Example) -> list[int]:
        if self.manifest.head == "sequence":
            return [self.labels.index(example.answer.strip())]
        return [self.labels.index(span.label) for span in example.spans]

    def _labelled(self, example: Example, one: Said) -> list[int]:
        """The likeliest label of the text, or of each labelled word by its first token."""
        count = len(self.labels)
        rows = [one.scores[at : at + count] for at in range(0, len(one.scores), count)]
        best = [max(range(count), key=row.__getitem__) for row in rows]
        if self.manifest.head == "sequence":
            return best[:1]
        offsets = self.tokenizer(example.text, return_offsets_mapping=True)["offset_mapping"]
        found = []
        for span in example.spans:
            first = next((i for i, (a, b) in enumerate(offsets) if span.start <= a < b <= span.end), None)
            found.append(-1 if first is None else best[first])  # no token is the word's alone: it can't be right
        return found

    def commonest(self) -> tuple[str, float]:
        """The training rows' commonest answer, and the share of the test rows that it is right of."""
        answer = Counter(example.answer for example in self.parts.train).most_common(1)[0][0]
        right = sum(example.answer == answer for example in self.parts.test)
        return answer, right / len(self.parts.test)


_MOST_LABELS = 20
"""With more different answers a task is not one of a few fixed ones."""
