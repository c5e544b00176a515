"""Tasks with a head, tuned on a tiny encoder: the folder is one the server reads, and what is measured is PEFT's."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from softmux.errors import InvalidRequest
from softmux.evaluation.run import evaluate
from softmux.formats.folder import load_folder, parse_adapter
from softmux.formats.parts import HeadPart, PrefixPart
from softmux.inspection.base import describe
from softmux.tuning import sources
from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.bases.head_rows import encode_row
from softmux.tuning.data.examples import BadData, Example, Span
from softmux.tuning.data.rows import IGNORE, HeadRow
from softmux.tuning.evaluate import score_labels
from softmux.tuning.learned.heads import begin_full, begin_prefix
from softmux.tuning.recipes.recipe import PTuningV2, Train, read_recipe
from softmux.tuning.run import tune
from softmux.tuning.training.trainer import batches
from softmux.tuning.write import Report
from support.head_recipes import write

PARTS = ("number", "street")


def quietly(recipe: Path, out: Path | None = None) -> Report:
    return tune(recipe, out, "cpu", console=Console(file=io.StringIO()))


@pytest.mark.parametrize("method", ["", "pooler = true\nprojection = true\nencoder_hidden_size = 16"])
def test_a_sequence_task_becomes_a_folder_that_the_server_reads(
    method: str, encoder_folder: Path, tmp_path: Path
) -> None:
    report = quietly(write(tmp_path / "toy", encoder_folder, method=method, more='labels = ["yes", "no"]\n'))
    assert report.trained.best_loss < report.trained.losses[0]
    spec = describe(str(encoder_folder), fingerprints=True)
    adapter = parse_adapter(load_folder(tmp_path / "toy"), spec)
    assert adapter.manifest.method == "p_tuning_v2"
    assert adapter.manifest.labels == ("yes", "no")
    prefix, head = adapter.parts
    assert isinstance(prefix, PrefixPart)
    assert isinstance(head, HeadPart)
    assert (head.dense is not None) == bool(method)
    said = json.loads((tmp_path / "toy" / "softmux.json").read_text())
    assert said["base_fingerprint"] == spec.base_fingerprint
    readme = (tmp_path / "toy" / "README.md").read_text()
    assert "| figure | tuned | linear probe | full fine-tuning |" in readme
    figures = [f"{figures.values['accuracy']:.3f}" for figures in (report.tuned, *report.beside.values())]
    assert f"| accuracy | {' | '.join(figures)} |" in readme
    if method:
        return
    found = evaluate(tmp_path / "toy", device="cpu", console=Console(file=io.StringIO()))
    assert found.overall.value == pytest.approx(report.tuned.values["accuracy"])
    assert found.overall.interval == "wilson"
    assert found.beyond[-1].note == "several rows of one answer, end to end"
    assert {one.rule: one.outcome for one in found.verdict.findings}["bare model"] == "not tried"
    assert all(distance.gain is None for distance in found.distances)


def tagged(count: int) -> list[Example]:
    return [
        Example(f"{n} the {'film ' * (n % 3 + 1)}", "parts", row=n, spans=_spans(f"{n} the {'film ' * (n % 3 + 1)}"))
        for n in range(count)
    ]


def _spans(text: str) -> tuple[Span, ...]:
    number = len(text.split()[0])
    return (Span(0, number, "number"), Span(number + 1, number + 4, "street"))


def test_a_token_task_becomes_a_folder_that_the_server_reads(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "load", lambda *_: tagged(80))
    report = quietly(write(tmp_path / "toy", encoder_folder, method='head = "token"', metric="token_f1"))
    adapter = parse_adapter(load_folder(tmp_path / "toy"), describe(str(encoder_folder), fingerprints=True))
    assert adapter.manifest.labels == PARTS
    assert adapter.manifest.head == "token"
    assert report.tuned.values["token F1"] > 0.9
    found = evaluate(tmp_path / "toy", device="cpu", console=Console(file=io.StringIO()))
    assert found.overall.value == pytest.approx(report.tuned.values["token F1"])
    assert found.overall.interval == "bootstrap"
    assert {way.name for way in found.changes} == {"typos", "truncated", "code-mixed"}
    other = write(tmp_path / "other", encoder_folder)
    with pytest.raises(InvalidRequest, match="has a token head, and the recipe measures accuracy"):
        evaluate(tmp_path / "toy", other, device="cpu", console=Console(file=io.StringIO()))


def test_every_token_of_a_word_is_labelled_and_its_first_speaks_for_it(head_base: HeadBase) -> None:
    text = "film, gripping"
    example = Example(text, "x", spans=(Span(0, 5, "number"), Span(6, 14, "street")))
    row = encode_row(example, head_base, "token", PARTS)
    offsets = head_base.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    expected = [IGNORE if a == b else int(a >= 6) for a, b in offsets]
    assert list(row.targets) == expected
    assert [offsets[word][0] for word in row.words] == [0, 6]
    with pytest.raises(BadData, match=r"no token lies within the labelled '.'"):
        encode_row(Example(text, "x", row=3, spans=(Span(7, 8, "number"),)), head_base, "token", PARTS)


@pytest.mark.parametrize("head", ["sequence", "token"])
def test_a_rows_loss_does_not_depend_on_its_neighbours(head: str, head_base: HeadBase) -> None:
    torch.manual_seed(0)
    recipe = PTuningV2(kind="p_tuning_v2", virtual_tokens=3, head=head)
    learned = begin_prefix(recipe, head_base, 2)
    targets = {"sequence": [(0,), (1,)], "token": [(IGNORE, 1, IGNORE), (0, 1, 1, 0, IGNORE)]}[head]
    rows = [HeadRow((2, 9, 3), targets[0]), HeadRow((2, 10, 11, 12, 3), targets[1])]
    alone = torch.cat([learned.losses([row]) for row in rows])
    torch.testing.assert_close(learned.losses(rows), alone, rtol=0, atol=1e-5)
    learned.losses(rows).sum().backward()
    assert all(parameter.grad is not None for parameter in learned.parameters())


def test_the_whole_encoder_trains_where_it_is_asked_to(head_base: HeadBase) -> None:
    full = begin_full(head_base, "sequence", 2)
    assert sum(p.numel() for p in full.parameters()) == sum(p.numel() for p in full.model.parameters())


def test_token_f1_is_over_words_and_macro_over_the_labels_there_are() -> None:
    values = score_labels("token", [[0, 0], [1]], [[0, 1], [1]])
    assert values["token F1"] == pytest.approx(2 / 3)
    assert values["macro F1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert values["whole rows"] == pytest.approx(1 / 2)
    assert score_labels("sequence", [[0], [1]], [[0], [0]]) == {"accuracy": 0.5}


def test_batches_of_like_lengths_hold_every_row_once_before_any_again() -> None:
    rows = [HeadRow(tuple(range(1 + i % 16)), (0,)) for i in range(64)]
    how = Train(steps=1, learning_rate=1, batch_rows=4, like_lengths=True)
    draws = batches(rows, how)
    some = [next(draws) for _ in range(16)]
    assert sorted(row.length for batch in some for row in batch) == sorted(row.length for row in rows)
    assert all(len({row.length for row in batch}) == 1 for batch in some)


@pytest.mark.parametrize(
    ("method", "metric", "message"),
    [
        ("", "exact", "sequence head is measured by"),
        ('head = "token"', "accuracy", "token head is measured by"),
    ],
)
def test_a_metric_of_another_kind_is_refused(method: str, metric: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_recipe(write(tmp_path, "minilm", method=method, metric=metric))


def test_labels_that_the_data_has_not_are_refused(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequest,
        match=r"rows\.csv, row 1, .* is ' no', and the recipe's labels are maybe",
    ):
        quietly(write(tmp_path, encoder_folder, more='labels = ["yes", "maybe"]\n'))


def test_a_decoder_is_refused_in_words(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="tuned on encoders that take a prefix"):
        quietly(write(tmp_path, base_folder))
