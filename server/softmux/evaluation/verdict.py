"""Whether to ship: rules over the figures, each declared here with its threshold, and what they come to.

`python -m softmux.evaluation.verdict docs/tuning.md` writes their table into the page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from softmux import page_table
from softmux.evaluation.figures import Drop, Figure

Outcome = Literal["holds", "fails", "unsure", "not tried"]
Ship = Literal["ship", "ship within limits", "do not ship", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Rule:
    """`must`: a task that fails it is not shipped; else it is a limit to ship within. `words` say the rule, with
    `{0}` for its `threshold`."""

    name: str
    must: bool
    threshold: float
    words: str

    @property
    def said(self) -> str:
        share = f"{self.threshold:g}" if self.threshold > 1 else f"{100 * self.threshold:g}"
        return self.words.format(share)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a rule, in a sentence with its figures."""

    rule: str
    must: bool
    outcome: Outcome
    said: str


@dataclass(frozen=True, slots=True)
class Verdict:
    ship: Ship
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("rows", True, 100, "at least {0} held-out rows are measured; with fewer nothing is said"),
        Rule(
            "commonest answer", True, 0.0,
            "it beats giving the training rows' commonest answer to every row: its interval lies above that share",
        ),
        Rule("bare model", True, 0.0, "it beats the bare model on the same rows: the difference's interval is above 0"),
        Rule(
            "few-shot text", True, 0.02,
            "examples in the prompt do not beat it by more than {0} points, with the interval above 0",
        ),
        Rule("length", False, 0.10, "no part of the held-out rows by length lies more than {0} points below all"),
        Rule("beyond", False, 0.10, "inputs longer than any of the training's cost no more than {0} points"),
        Rule("typos", False, 0.10, "typos cost no more than {0} points"),
        Rule("truncated", False, 0.20, "half of the words missing costs no more than {0} points"),
        Rule("code-mixed", False, 0.20, "words of another language in between cost no more than {0} points"),
        Rule("domain", False, 0.10, "rows unlike the training's, or of another domain, lose no more than {0} points"),
        Rule("vanishing", False, 0.10, "irrelevant text around the input costs no more than {0} points"),
        Rule(
            "vectors' effect", False, 0.5,
            "behind the most irrelevant text that was tried, the learned numbers keep {0} % of their effect on the "
            "right answer's likelihood",
        ),
    )
}  # fmt: skip


def holds(rule: str, said: str, well: bool) -> Finding:
    return Finding(rule, RULES[rule].must, "holds" if well else "fails", said)


def not_tried(rule: str, why: str) -> Finding:
    return Finding(rule, RULES[rule].must, "not tried", why)


def falls(rule: str, what: str, change: Drop, after: Figure) -> Finding:
    """Whether a figure falls by no more than the rule's threshold; `unsure` where the interval of a fall holds 0."""
    most = RULES[rule].threshold
    outcome: Outcome = "holds" if change.value <= most else "fails" if change.low > 0 else "unsure"
    return Finding(rule, RULES[rule].must, outcome, f"{what}: {percent(after)}, {points(change)}")


def judge(findings: Sequence[Finding]) -> Verdict:
    """Of each rule's findings. Of several, in order of how much they ask, the first that fails says why."""
    few = [one for one in findings if one.rule == "rows" and one.outcome == "fails"]
    failed = [one for one in findings if one.must and one.outcome == "fails"]
    limits = [one for one in findings if not one.must and one.outcome in ("fails", "unsure")]
    ship: Ship
    if few:
        ship, because = "cannot tell", few
    elif failed:
        ship, because = "do not ship", failed
    elif limits:
        ship, because = "ship within limits", limits
    else:
        ship, because = "ship", [one for one in findings if one.must and one.outcome == "holds"]
    unsure = " (too few rows to be sure)"
    first = {one.rule: one for one in reversed(because)}
    chosen = [one for one in because if first[one.rule] is one]
    reasons = tuple(one.said + (unsure if one.outcome == "unsure" else "") for one in chosen)
    return Verdict(ship, reasons, tuple(findings))


def percent(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f})"


def points(change: Drop) -> str:
    """A change in words, with its interval."""
    low, high = sorted((change.low, change.high) if change.value >= 0 else (-change.high, -change.low))
    side = "lower" if change.value >= 0 else "higher"
    return f"{_points(abs(change.value))} points {side} ({_points(low)} to {_points(high)})"


def _points(share: float) -> str:
    said = f"{100 * share:.1f}"
    return "0.0" if said == "-0.0" else said


BEGIN, END = "<!-- rules of the verdict: begin -->", "<!-- rules of the verdict: end -->"


def table() -> str:
    lines = ["| rule | | holds where |", "| --- | --- | --- |"]
    for rule in RULES.values():
        lines.append(f"| {rule.name} | {'must' if rule.must else 'limit'} | {rule.said} |")
    return "\n".join(lines)


def written(page: str) -> str:
    """`page` with the table between its marks."""
    return page_table.written(page, table(), BEGIN, END)


if __name__ == "__main__":
    page_table.write(sys.argv[1:], written, table)
