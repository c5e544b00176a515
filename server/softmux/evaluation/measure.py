"""From the scores of a task's trials to its report: figures, changes, and what the verdict's rules make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from softmux.evaluation.changes import CHANGES
from softmux.evaluation.examiner import Said
from softmux.evaluation.figures import Figure, drop, figure
from softmux.evaluation.report import Distance, Mistake, Way
from softmux.evaluation.scores import Score
from softmux.evaluation.task import Task
from softmux.evaluation.trials import AROUND, BUCKET_ROWS, Plan, buckets, least_alike
from softmux.evaluation.verdict import RULES, Finding, falls, holds, not_tried, percent, points
from softmux.tuning.data.examples import Example

_SHOWN = 240
_MISTAKES = 8
_COPIED = 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """A task's plan with the scores of its trials by name."""

    task: Task
    plan: Plan
    scores: Mapping[str, Sequence[Score]]
    plain: Mapping[str, Score]
    """By a held-out row's text: asked as it is."""

    @classmethod
    def of(cls, task: Task, plan: Plan, said: Mapping[str, Sequence[Said]]) -> Measured:
        scores = {name: task.scores(trial, said[name]) for name, trial in plan.trials.items()}
        texts = (x.text for x in plan.trials["plain"].examples)
        return cls(task, plan, scores, dict(zip(texts, scores["plain"], strict=True)))

    def as_they_are(self, rows: Sequence[Example]) -> list[Score]:
        return [self.plain[x.text] for x in rows]

    # --- the figures -------------------------------------------------------------------------------------------------

    @property
    def overall(self) -> Figure:
        return figure(self.scores["plain"])

    def compared(self, *, labels: bool) -> list[Way]:
        """The sample by the task and by other means, as the metric counts or by the likeliest label."""
        own = self.scores.get("tuned, labels") if labels else self.as_they_are(self.plan.sample)
        if own is None:
            return []
        shown = [Way("this task", figure(own))]
        names = {"bare": "the bare model", "few-shot": f"{len(self.plan.shots)} examples in the prompt"}
        for name, words in names.items():
            other = self.scores.get(f"{name}, labels" if labels else name)
            if other is not None:
                shown.append(Way(words, figure(other), drop(own, other)))
        return shown

    def lengths(self) -> list[Way]:
        """Parts of the held-out rows by length; those longer than the training's are `beyond`."""
        rows, most = self.task.parts.test, self.task.trained[1]
        return [self._bucket(*bucket) for bucket in buckets(self.task, rows) if bucket[0] <= most]

    def _bucket(self, least: int, most: int, numbers: Sequence[int]) -> Way:
        scores = [self.scores["plain"][i] for i in numbers]
        name = f"{least} tokens" if least == most else f"{least} to {most} tokens"
        return Way(name, figure(scores), drop(self.scores["plain"], scores, paired=False))

    def beyond(self) -> list[Way]:
        joined = "several rows" if self.task.manifest.head == "token" else "several rows of one answer"
        made = "irrelevant text before the input" if self.plan.filled else f"{joined}, end to end"
        rows, most = self.task.parts.test, self.task.trained[1]
        found = []
        for least, longest, numbers in buckets(self.task, rows):
            if least > most:
                way = self._bucket(least, longest, numbers)
                found.append(Way(way.name, way.figure, way.change, "held-out rows as they are"))
        short = self.as_they_are(self.plan.few)
        for least, name in self.plan.beyond:
            scores = self.scores[name]
            change = drop(short, scores, paired=False)
            sample = _cut(self.plan.trials[name].examples[0].text)
            found.append(Way(f"more than {least} tokens", figure(scores), change, made, sample))
        return found

    def changes(self) -> list[Way]:
        found = []
        for change in CHANGES:
            if rows := self.plan.changed.get(change.name):
                scores = self.scores[change.name]
                fall = drop(self.as_they_are(rows), scores)
                sample = _cut(self.plan.trials[change.name].examples[0].text)
                found.append(Way(change.name, figure(scores), fall, change.words, sample))
        return found

    def domain(self) -> list[Way]:
        found = []
        if (parted := least_alike(self.task)) is not None:
            strangers, others, (strange, usual) = parted
            some, rest = ([self.scores["plain"][i] for i in part] for part in (strangers, others))
            note = (
                "the fifth of the held-out rows with the most words that no training row has: "
                f"{100 * strange:.0f} % of a row's words in the mean, {100 * usual:.0f} % of the other rows'"
            )
            found.append(Way("least like the training", figure(some), drop(rest, some, paired=False), note))
        if (elsewhere := self.scores.get("elsewhere")) is not None:
            change = drop(self.as_they_are(self.plan.sample), elsewhere, paired=False)
            sample = _cut(self.plan.trials["elsewhere"].examples[0].text)
            note = "rows of the same task from the recipe's `evaluate.elsewhere`"
            found.append(Way("another domain", figure(elsewhere), change, note, sample))
        return found

    def distances(self) -> list[Distance]:
        near = self.scores["far 0"]
        found: list[Distance] = []
        for tokens, name in self.plan.distances:
            scores = self.scores[name]
            gain = None
            if f"{name}, bare" in self.scores:
                gain = _mean(self.scores[f"{name}, tuned"]) - _mean(self.scores[f"{name}, bare"])
            found.append(Distance(tokens, figure(scores), drop(near, scores), gain))
        return found

    def around(self) -> Way | None:
        if self.plan.around is None:
            return None
        scores = self.scores["around"]
        rows = self.plan.few[: len(scores)]
        note = f"about {AROUND} tokens of irrelevant text, half before and half after the input"
        return Way("text around the input", figure(scores), drop(self.as_they_are(rows), scores), note)

    def mistakes(self, said: Sequence[Said]) -> list[Mistake]:
        """Some of the held-out rows that are not fully right."""
        found: list[Mistake] = []
        for x, one, score in zip(self.task.parts.test, said, self.scores["plain"], strict=True):
            if score.of < score.out_of and len(found) < _MISTAKES:
                found.append(Mistake(_cut(x.text), _cut(self.task.expected(x)), _cut(self.task.told(x, one))))
        return found

    @property
    def copies(self) -> bool:
        """Whether answers mostly repeat words of the input: what is changed there can't get its old answer."""
        if self.task.classes or self.task.manifest.head is not None:
            return False
        shares = []
        for x in self.task.parts.test:
            words, text = set(_words(x.answer)), set(_words(x.text))
            shares.append(len(words & text) / len(words) if words else 0.0)
        return sum(shares) / len(shares) > _COPIED

    # --- what the rules make of them ---------------------------------------------------------------------------------

    def findings(self) -> list[Finding]:
        return [*self._musts(), *self._length(), *self._changed(), *self._elsewhere(), *self._far()]

    def _musts(self) -> Iterator[Finding]:
        count = len(self.scores["plain"])
        enough = count >= RULES["rows"].threshold
        said = f"{count} held-out rows are measured" + ("" if enough else f", fewer than {RULES['rows'].threshold:g}")
        yield holds("rows", said, enough)
        if self.task.classes:
            answer, share = self.task.commonest()
            said = f"{percent(self.overall)} against {100 * share:.1f} % for {answer.strip()!r} whatever is asked"
            yield holds("commonest answer", said, self.overall.low > share)
        else:
            yield not_tried("commonest answer", "its answers are not a few fixed ones")
        by_label = bool(self.task.labels) and "bare, labels" in self.scores
        own = self.scores["tuned, labels"] if by_label else self.as_they_are(self.plan.sample)
        what = "by the likeliest answer, " if by_label else ""
        for name, words in (("bare", "the bare model"), ("few-shot", "examples in the prompt")):
            rule = "bare model" if name == "bare" else "few-shot text"
            other = self.scores.get(f"{name}, labels" if by_label else name)
            if other is None:
                why = "a head has no model without it to compare with" if self.task.manifest.head else "there are none"
                yield not_tried(rule, why)
                continue
            less = drop(own, other)
            said = f"{what}{words}: {percent(figure(other))}, {points(less)} than this task"
            over = -less.value > RULES[rule].threshold and -less.high > 0
            yield holds(rule, said, less.low > 0 if name == "bare" else not over)

    def _length(self) -> Iterator[Finding]:
        parts = [way for way in self.lengths() if way.figure.rows >= BUCKET_ROWS]
        if len(parts) > 1:
            worst = max(parts, key=lambda way: way.change.value if way.change else 0.0)
            assert worst.change is not None
            yield falls("length", f"the weakest part of the rows by length, {worst.name}", worst.change, worst.figure)
        else:
            yield not_tried("length", f"too few rows to part them by length: {BUCKET_ROWS} a part are needed")
        beyond = self.beyond()
        if not beyond:
            yield not_tried("beyond", "the context has no room for longer inputs than the training's")
        for way in beyond:
            assert way.change is not None
            if way.figure.rows < BUCKET_ROWS:
                yield not_tried("beyond", f"{way.name} ({way.note}): only {way.figure.rows} rows")
            else:
                yield falls("beyond", f"{way.name} ({way.note})", way.change, way.figure)

    def _changed(self) -> Iterator[Finding]:
        ways = {way.name: way for way in self.changes()}
        for change in CHANGES:
            way = ways.get(change.name)
            if way is None:
                yield not_tried(change.name, "no row has anything to change")
            elif self.copies:
                yield not_tried(
                    change.name, "its answers repeat the input's words, so a changed input has no known answer"
                )
            else:
                assert way.change is not None
                yield falls(change.name, change.name, way.change, way.figure)

    def _elsewhere(self) -> Iterator[Finding]:
        ways = self.domain()
        if not ways:
            yield not_tried("domain", "too few rows with unknown words, and the recipe names no evaluate.elsewhere")
        for way in ways:
            assert way.change is not None
            yield falls("domain", way.name, way.change, way.figure)

    def _far(self) -> Iterator[Finding]:
        far = self.distances()
        around = self.around()
        if len(far) < 2 and around is None:
            yield not_tried("vanishing", "the context has no room for text around the input")
        for distance in far[1:]:
            what = f"behind {distance.tokens} tokens of irrelevant text"
            yield falls("vanishing", what, distance.change, distance.figure)
        if around is not None and around.change is not None:
            yield falls("vanishing", around.note, around.change, around.figure)
        near, last = far[0].gain, far[-1].gain
        if len(far) < 2 or near is None or last is None or near <= 0:
            why = "a head has no model without it to compare with" if near is None else "there is no effect to keep"
            yield not_tried("vectors' effect", why)
        else:
            said = (
                f"the learned numbers raise the right answer's log probability by {near:.2f} nats a token, and by "
                f"{last:.2f} behind {far[-1].tokens} tokens ({100 * last / near:.0f} %)"
            )
            yield holds("vectors' effect", said, last / near >= RULES["vectors' effect"].threshold)


def _mean(scores: Sequence[Score]) -> float:
    return sum(score.of for score in scores) / sum(score.out_of for score in scores)


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"
