"""What a report is made of: figures with their intervals, changed rows, which rows are tried, the verdict's rules."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from softmux.errors import InvalidRequest
from softmux.evaluation.changes import CHANGES, behind, in_front, joined
from softmux.evaluation.figures import Drop, Figure, drop, figure, wilson
from softmux.evaluation.filler import SENTENCES, filler
from softmux.evaluation.scores import Score, fields, rouge_l, score_labels, score_text
from softmux.evaluation.spanish import SPANISH
from softmux.evaluation.task import Task
from softmux.evaluation.trials import BUCKET_ROWS, buckets, least_alike, plan
from softmux.evaluation.verdict import RULES, Finding, falls, holds, judge, not_tried, points
from softmux.formats.layout import TransformersEncoder
from softmux.tuning.data.examples import Example, Span
from softmux.tuning.data.split import Split
from softmux.tuning.recipes.recipe import Recipe
from softmux.types import LayerKV, Manifest, ModelSpec

# --- scores and figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilsons_interval_is_the_published_one(hits: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3; the last two are what its formula gives at the ends."""
    assert wilson(hits, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_share_of_rows_has_wilsons_interval_and_anything_else_the_bootstraps() -> None:
    share = figure([Score(1.0)] * 8 + [Score(0.0)] * 2)
    assert (share.value, share.interval) == (0.8, "wilson")
    assert (share.low, share.high) == wilson(8, 10)
    rng = np.random.default_rng(1)
    scores = [Score(float(rng.integers(0, 5)), 4.0) for _ in range(400)]
    ratio = figure(scores)
    values = np.array([score.of / score.out_of for score in scores])
    error = values.std() / math.sqrt(len(values))
    assert ratio.interval == "bootstrap"
    assert ratio.value == pytest.approx(values.mean())
    assert (ratio.high - ratio.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert figure(scores) == ratio, "it is drawn by a seed"
    assert figure([Score(0.0, 0.0), Score(0.0, 2.0)]).value == 0.0


def test_differences_on_the_same_rows_are_paired() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(300) < 0.5
    before = [Score(float(one)) for one in hard]
    after = [Score(0.0)] * 15 + before[15:]
    paired, apart = drop(before, after), drop(before, after, paired=False)
    assert paired.value == apart.value > 0
    assert paired.low > 0, "only rows that changed differ"
    assert apart.low < 0


def test_a_texts_score_is_the_metrics() -> None:
    assert score_text("exact", " Rome", " Rome") == Score(1.0)
    assert score_text("starts_with", " Rome, of course", " Rome") == Score(1.0)
    assert score_text("json_fields", '{"A":"1","B":"x"}', ' {"A":"1","B":"2"}') == Score(2.0, 4.0)
    assert score_text("json_fields", "no", ' {"A":"1"}') == Score(0.0, 1.0)
    assert fields("[1]") is None
    assert score_labels([0, 1, 1], [0, 1, 0]) == Score(2.0, 3.0)
    with pytest.raises(ValueError, match="of labels"):
        score_text("accuracy", "a", "a")


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("the cat sat on the mat", "The cat is on the mat.", 2 * 5 / 12),
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("", "a", 0.0),
        ("...", "!", 1.0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(text: str, answer: str, score: float) -> None:
    """The second and third pair are Lin's own (2004)."""
    assert rouge_l(text, answer) == pytest.approx(score)


@given(
    st.lists(st.sampled_from(["the", "a", "cat", "Cat", "sat", "on,", "mat.", "3.5", "x-y"]), max_size=12).map(
        " ".join
    ),
    st.data(),
)
def test_rouge_l_is_what_rouge_score_gives(text: str, data: st.DataObject) -> None:
    """Without stemming, and of ASCII: Google's package drops all other letters."""
    words = text.split() or ["mat"]
    answer = " ".join(data.draw(st.lists(st.sampled_from([*words, "dog"]), min_size=1, max_size=12)))
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    assert rouge_l(text, answer) == pytest.approx(scorer.score(answer, text)["rougeL"].fmeasure)


# --- changed rows -----------------------------------------------------------------------------------------------------

TEXT = "The film was very good, and Nobody I know would miss it"
TAGGED = Example("123 Main Street, Springfield", "x", spans=(Span(0, 3, "no"), Span(4, 8, "st"), Span(9, 15, "st")))
BY_NAME = {change.name: change for change in CHANGES}


def test_each_change_does_what_it_says() -> None:
    typos, cut, mixed = (BY_NAME[name].make(Example(TEXT, " yes"), 0) for name in ("typos", "truncated", "code-mixed"))
    pairs = [(a, b) for a, b in zip(TEXT.split(), typos.text.split(), strict=True) if a != b]
    assert pairs
    for before, after in pairs:
        assert len(before) >= 4
        assert abs(len(before) - len(after)) <= 1
        assert before[0] == after[0] or before[:2][::-1] == after[:2]
    assert cut.text == "The film was very good, and"
    assert mixed.text == "El película era muy bueno, y Nobody Yo know haría miss eso"
    assert typos.answer == cut.answer == mixed.answer == " yes"
    assert all(word == word.lower() and word != said for word, said in SPANISH.items())


@given(
    st.text(alphabet="abcdef ghi\n.,é", min_size=1, max_size=60),
    st.integers(0, 3),
    st.sampled_from([change.name for change in CHANGES]),
)
def test_a_change_depends_on_the_row_and_the_seed_alone(text: str, seed: int, name: str) -> None:
    example = Example(text, " x", "f", 1)
    once = BY_NAME[name].make(example, seed)
    assert BY_NAME[name].make(Example(text, " y", "g", 9), seed).text == once.text
    assert (once.answer, once.file, once.row) == (" x", "f", 1)


@given(st.integers(0, 20))
def test_the_labels_of_words_go_with_them(seed: int) -> None:
    for change in CHANGES:
        made = change.make(TAGGED, seed)
        assert [span.label for span in made.spans] == [span.label for span in TAGGED.spans][: len(made.spans)]
        assert made.spans
        for old, new in zip(TAGGED.spans, made.spans, strict=False):
            before, after = TAGGED.text[old.start : old.end], made.text[new.start : new.end]
            assert after.strip() == after
            assert before[0] == after[0] or change.name == "code-mixed" or before[:2][::-1] == after[:2]


def test_text_around_a_row_moves_its_labels() -> None:
    for made in (in_front(TAGGED, "Some words."), behind(TAGGED, "Some words."), joined([TAGGED, TAGGED])):
        words = [made.text[span.start : span.end] for span in made.spans]
        assert words == ["123", "Main", "Street"] * (len(words) // 3)
    assert in_front(Example("a", "x"), "b").text == "b\n\na"


# --- which rows -------------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer of one token a word."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def a_task(test: list[Example], train: list[Example], *, context: int = 600, metric: str = "exact") -> Task:
    recipe = Recipe.model_validate(
        {
            "task": "toy",
            "data": {"source": "file", "path": "x.csv"},
            "method": {"kind": "prompt_tuning", "virtual_tokens": 2},
            "train": {"steps": 1, "learning_rate": 1},
            "evaluate": {"metric": metric, "report_rows": 40},
        }
    )
    manifest = Manifest(
        digest="sha256:0", method="prompt_tuning", base_fingerprint="b", files=(), virtual_tokens=2, parameters=8,
        trained_lengths=(1, 12),
    )  # fmt: skip
    spec = ModelSpec(
        model_id="m", architecture="a", dtype="float32", hidden_size=4, vocab_size=100, context_length=context,
        base_fingerprint="b", tokenizer_fingerprint="t", layers=(LayerKV(1, 4),), eos_token_ids=(0,), parameters=1,
        device="cpu", embedding_norm=1.0,
    )  # fmt: skip
    return Task.of(0, recipe, manifest, spec, Words(), Split(tuple(train), tuple(train[:1]), tuple(test)))


def rows(count: int, longest: int = 10, word: str = "w") -> list[Example]:
    return [Example(" ".join([f"r{n}", *[word] * (n % longest)]), (" no", " yes")[n % 2], row=n) for n in range(count)]


def test_parts_by_length_hold_each_row_once_and_what_is_beyond_by_itself() -> None:
    test = [*rows(130), Example(" ".join(["x"] * 20), " no")]
    task = a_task(test, rows(30))
    parts = buckets(task, test)
    assert sorted(i for _, _, numbers in parts for i in numbers) == list(range(131))
    assert parts[-1] == (20, 20, [130])
    assert all(a[1] < b[0] for a, b in pairwise(parts))
    assert all(len(numbers) >= BUCKET_ROWS for _, _, numbers in parts[:-1])
    assert len(parts) > 3
    assert buckets(a_task(rows(5), rows(30)), rows(5)) == [(1, 5, [0, 1, 2, 3, 4])]


def test_the_rows_least_like_the_training_are_those_with_the_most_unknown_words() -> None:
    test = [replace(x, text=f"{x.text} strange words here") if x.row % 5 == 0 else x for x in rows(200)]
    found = least_alike(a_task(test, rows(200)))
    assert found is not None
    strangers, others, (strange, usual) = found
    assert sorted(strangers) == [x.row for x in test if x.row % 5 == 0]
    assert len(others) == 160
    assert strange > 0.3 > usual == 0
    assert least_alike(a_task(rows(50), rows(200))) is None, "a fifth of them is too few"
    assert least_alike(a_task(rows(200), rows(200))) is None, "all words are known"


def test_the_plan_holds_every_way_of_asking() -> None:
    task = a_task(rows(100, word="good"), rows(60, word="good"), context=2000)
    made = plan(task, rows(30, word="elsewhere"))
    tried = made.trials
    assert len(tried["plain"].examples) == 100
    assert len(tried["bare"].examples) == len(tried["elsewhere"].examples) + 10 == 40
    assert tried["few-shot"].before == "".join(f"{x.text}{x.answer}\n\n" for x in made.shots)
    assert {x.answer for x in made.shots} == {" no", " yes"}
    assert not {x.text for x in made.shots} - {x.text for x in task.parts.train}, "of the training part only"
    assert [least for least, _ in made.beyond] == [18, 36]
    for least, name in made.beyond:
        assert all(least < task.length(x) for x in tried[name].examples)
    by_text = {x.text: x.answer for x in task.parts.test}
    longer = tried["beyond 36"].examples[0]
    assert by_text[" ".join(longer.text.split()[: task.length(made.few[0])])] == longer.answer
    assert [tokens for tokens, _ in made.distances] == [0, 128, 512, 1024]
    near, far = (tried[name].examples[0].text for name in ("far 0", "far 512"))
    assert far.endswith(f"\n\n{near}")
    assert 400 < task.length(tried["far 512"].examples[0]) - task.length(tried["far 0"].examples[0]) <= 512
    assert tried["around"].examples[0].text.split("\n\n")[1] == near
    short = plan(a_task(rows(100), rows(60), context=110), [])
    assert [tokens for tokens, _ in short.distances] == [0, 33]
    assert short.around is None


def test_longer_inputs_of_answers_that_are_not_a_few_are_made_with_other_text() -> None:
    free = [Example(f"text {n}", f" {n}") for n in range(60)]
    made = plan(a_task(free, free), [])
    assert made.filled
    assert made.trials["beyond 18"].examples[0].text.startswith(SENTENCES[0])
    assert "bare, labels" not in made.trials


def test_rows_that_the_context_can_not_hold_are_left_out_and_counted() -> None:
    long = Example(" ".join(["w"] * 71), " no")
    task = a_task([*rows(30), long], rows(30), context=80)
    assert task.left_out == 1
    assert long not in task.parts.test
    assert "elsewhere" not in plan(task, [long]).trials
    with pytest.raises(InvalidRequest, match="longer than m's context"):
        a_task([long], rows(30), context=80)


def test_filler_is_whole_sentences_that_fit() -> None:
    encoder = TransformersEncoder(Words())
    assert filler(encoder, 1) == SENTENCES[0]
    long = filler(encoder, 1000)
    assert 980 <= len(long.split()) <= 1000
    assert long.startswith(" ".join(SENTENCES))


# --- the verdict ------------------------------------------------------------------------------------------------------

WELL = Figure(0.8, 0.7, 0.9, 100, "wilson")


def finding(rule: str, outcome: str) -> Finding:
    return Finding(rule, RULES[rule].must, outcome, f"{rule} {outcome}")  # type: ignore[arg-type]


def test_the_verdict_follows_from_the_findings() -> None:
    good = [finding(rule, "holds") for rule in RULES]
    assert judge(good).ship == "ship"
    assert judge([*good[:-1], not_tried("typos", "no row")]).ship == "ship"
    limited = judge([*good, finding("typos", "fails"), finding("length", "unsure")])
    assert limited.ship == "ship within limits"
    assert limited.reasons == ("typos fails", "length unsure (too few rows to be sure)")
    twice = [replace(finding("vanishing", "fails"), said=said) for said in ("near", "far")]
    assert judge([*good, *twice]).reasons == ("near",), "the first of a rule's"
    failed = judge([*good, finding("typos", "fails"), finding("bare model", "fails")])
    assert (failed.ship, failed.reasons) == ("do not ship", ("bare model fails",))
    assert judge([*good, finding("bare model", "fails"), finding("rows", "fails")]).ship == "cannot tell"


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (Drop(0.09, 0.05, 0.15), "holds"),
        (Drop(0.11, 0.05, 0.15), "fails"),
        (Drop(0.11, -0.05, 0.2), "unsure"),
        (Drop(-0.3, -0.4, -0.2), "holds"),
    ],
)
def test_a_fall_is_held_to_its_rules_threshold(change: Drop, outcome: str) -> None:
    assert RULES["typos"].threshold == 0.10
    assert falls("typos", "typos", change, WELL).outcome == outcome


def test_sentences_say_figures_and_sides() -> None:
    assert points(Drop(0.1234, 0.02, 0.2)) == "12.3 points lower (2.0 to 20.0)"
    assert points(Drop(-0.05, -0.1, 0.0001)) == "5.0 points higher (0.0 to 10.0)"
    assert holds("rows", "few", well=False).outcome == "fails"
    assert RULES["rows"].said.startswith("at least 100 held-out")
    assert "more than 10 points" in RULES["typos"].said
