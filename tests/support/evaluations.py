"""A report with something in every part of it, and in its texts what a page must not take for its own."""

from __future__ import annotations

from softmux.evaluation.figures import Drop, Figure
from softmux.evaluation.report import Distance, Evaluation, Mistake, Nearest, Way
from softmux.evaluation.verdict import falls, holds, judge, not_tried

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>{{ 7 * 7 }}'


def figure(value: float, rows: int = 100) -> Figure:
    return Figure(value, max(0.0, value - 0.07), min(1.0, value + 0.07), rows, "wilson")


def a_report() -> Evaluation:
    fall, rise = Drop(0.16, 0.05, 0.27), Drop(-0.02, -0.05, 0.01)
    long = "a text of many words that goes on " * 6
    findings = [
        holds("rows", "100 held-out rows are measured", well=True),
        holds("commonest answer", f"91 % against 47 % for {HOSTILE!r}", well=True),
        not_tried("few-shot text", "there are none"),
        falls("typos", "typos", fall, figure(0.7)),
        falls("domain", "another domain", Drop(0.2, -0.1, 0.4), figure(0.7, 20)),
        falls("vanishing", "behind 128 tokens of irrelevant text", fall, figure(0.2)),
    ]
    return Evaluation(
        task="toy",
        title=f"A task. {HOSTILE}",
        base="a-base",
        method="prompt_tuning",
        digest="sha256:" + "0" * 64,
        parameters=1234,
        virtual_tokens=2,
        data="`rows.csv`, columns `prompt` and `answer`.",
        metric="exact",
        metric_words="the text is the answer",
        rows=(800, 90, 110),
        measured=100,
        trained_lengths=(3, 40),
        shots=4,
        overall=figure(0.9),
        compared=(Way("this task", figure(0.9)), Way("the bare model", figure(0.0), fall)),
        compared_labels=(Way("this task", figure(0.9)), Way("the bare model", figure(0.6), fall)),
        lengths=(Way("3 to 9 tokens", figure(0.8), fall), Way("10 to 40 tokens", figure(1.0), rise)),
        beyond=(Way("more than 60 tokens", figure(0.5, 50), fall, "rows of one answer, end to end", long),),
        changes=(Way("typos", figure(0.7), fall, "slips", HOSTILE), Way("truncated", figure(0.4), fall, "cut", long)),
        domain=(Way("least like the training", figure(0.7, 20), fall, "the fifth of the rows"),),
        distances=(Distance(0, figure(0.9), rise, 12.5), Distance(128, figure(0.2), fall, 3.25)),
        around=None,
        nearest=(Nearest(0, ((" the", 0.9), ("\x0c", 0.4), ("", 0.3))), Nearest(1, ((HOSTILE, 0.2),))),
        mistakes=(Mistake(f"{HOSTILE} {long}", " yes", "no\nmore " + "unbroken" * 40),),
        notes=(f"A note. {HOSTILE}",),
        verdict=judge(findings),
        seed=0,
        asked=1000,
        seconds=12.5,
        device="CPU",
        version="0",
    )
