"""A long prompt becomes a short soft one that answers as it does."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from softmux.cli import app
from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder, parse_adapter
from softmux.inspection.base import describe
from softmux.tuning import sources
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import Row
from softmux.tuning.distilling.distill import distill
from softmux.tuning.distilling.distilled import Distilled
from softmux.tuning.distilling.teacher import invented
from softmux.tuning.evaluate import answered, continued
from softmux.tuning.frozen.decoder import FrozenBase
from softmux.tuning.frozen.packing import Place, pack, prepare
from softmux.tuning.frozen.tables import Tables
from softmux.tuning.learned.methods import begin, start_of, take_out
from softmux.tuning.recipes.distillation import read_distillation
from softmux.tuning.recipes.recipe import PrefixTuning, PromptTuning, Train
from softmux.tuning.training.job import Job
from softmux.tuning.training.many import Trainer
from softmux.tuning.training.together import Together
from softmux.tuning.voices.sampler import Sampler
from softmux.tuning.voices.voice import Voice
from support.models import make_adapter, make_base

TEXT = "Answer with one word, and be brief about it: {input} is"
PROMPT = 'kind = "prompt_tuning"\nvirtual_tokens = 4'


def recipe_in(folder: Path, base: Path, **changed: str) -> Path:
    """A recipe over 60 inputs; a section is changed by its whole text."""
    folder.mkdir(exist_ok=True)
    table = io.StringIO()
    csv.writer(table).writerows([["prompt"], *([f"film {i} was {('dull', 'gripping')[i % 2]}"] for i in range(60))])
    (folder / "inputs.csv").write_text(table.getvalue())
    (folder / "long.txt").write_text("no place for a text")
    sections = {
        "teacher": f'text = "{TEXT}"\nmax_tokens = 5',
        "inputs": 'path = "inputs.csv"',
        "method": PROMPT,
        "train": "steps = 40\nbatch_rows = 8\nlearning_rate = 0.2\nwarmup_steps = 5\nvalidate_every = 10",
    } | changed
    head = sections.pop("head", f'task = "short"\nbase = "{base}"\n')
    recipe = folder / "recipe.toml"
    recipe.write_text(head + "".join(f"[{name}]\n{text}\n" for name, text in sections.items()))
    return recipe


@pytest.fixture
def run(base: Base) -> Callable[[Path, Path], Distilled]:
    def distilled(recipe: Path, out: Path) -> Distilled:
        quiet = Console(file=io.StringIO())
        return distill(recipe, out, "cpu", base=base, console=quiet, together=Together(save_every=0))

    return distilled


def plain(model: Any, ids: torch.Tensor, answer: int) -> torch.Tensor:
    """Log-probabilities before each of the last `answer` tokens, by the module alone; `ids` or their embeddings."""
    given = {"inputs_embeds": ids[None]} if ids.is_floating_point() else {"input_ids": ids[None]}
    words: torch.Tensor = model(**given, use_cache=False).logits[0, -answer - 1 : -1].log_softmax(-1)
    return words


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite"])
def test_the_loss_is_the_divergence_over_the_whole_vocabulary(name: str, base: Base, tmp_path: Path) -> None:
    """Of a packed teacher and two students, whatever the model does behind its output head, beside a row of words."""
    model = make_base(name, tmp_path)
    model.set_attn_implementation("eager")
    own = Base(model, base.tokenizer, name, torch.device("cpu"), (2,))
    (long,) = Voice(own).taught([(3, 4, 5, 6, 8, 12)], 3)
    answer = long.answer
    rows = [Row((5, 6), answer, long.taught), Row((5, 13, 6), (4, 9)), Row(long.ids, answer, long.taught)]
    frozen = FrozenBase(model)
    with torch.no_grad(), frozen.running():
        found = frozen.losses(pack([(prepare(row, 0, 0.0), Place(0)) for row in rows], own.device), Tables())
    with torch.no_grad():
        theirs = plain(model, torch.tensor([*long.ids, *answer]), 3)
        mine = plain(model, torch.tensor([5, 6, *answer]), 3)
        words = plain(model, torch.tensor([5, 13, 6, 4, 9]), 2)
    divergence = (theirs.exp() * (theirs - mine)).sum(-1)
    expected = torch.cat([divergence, -words[[0, 1], [4, 9]], torch.zeros(3)])
    assert divergence.min() > 1e-4
    assert torch.allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "method",
    [
        PromptTuning(kind="prompt_tuning", virtual_tokens=3),
        PrefixTuning(kind="prefix_tuning", virtual_tokens=3, projection=False),
    ],
    ids=lambda method: method.kind,
)
def test_gradients_are_those_of_the_plain_divergence(method: PromptTuning | PrefixTuning, base: Base) -> None:
    torch.manual_seed(1)
    learned = begin(method, base)
    asked = [Row((3, 4, 5, 6, 8), ()), Row((20, 21, 22, 23), ())]
    long = [answered(base, None, [row], tokens)[0] for row, tokens in zip(asked, (3, 1), strict=True)]
    assert [len(row.answer) for row in long] == [3, 1]
    rows = [Row((-1, -2, -3, 30, 31 + i), row.answer, row.taught) for i, row in enumerate(long)]
    expected = torch.zeros(())
    for own, theirs in zip(rows, long, strict=True):
        size = len(own.answer)
        with torch.no_grad():
            wanted = plain(base.model, torch.tensor([*theirs.ids, *theirs.answer]), size)
        logits = base.model(**learned.inputs(learned.collate([own]))).logits[0, -size - 1 : -1]
        expected = expected + (wanted.exp() * (wanted - logits.log_softmax(-1))).sum()
    (expected / 4).backward()
    gradients = [parameter.grad for parameter in learned.parameters()]
    job = Job("x", start_of(learned), rows, rows, Train(steps=1, learning_rate=0.1), learned.prefix)
    take_out(learned)
    trainer = Trainer(FrozenBase(base.model), tokens=6)  # each row in a pack of its own
    trainer.add(job)
    trainer.admit()
    with trainer.base.running():
        loss = trainer.gradients([[prepare(row, learned.prefix, 0.0) for row in rows]])
    assert loss.item() == pytest.approx(expected.item() / 4, rel=1e-5)
    for value, gradient in zip(trainer.active[0].cohort.values, gradients, strict=True):
        assert gradient is not None
        assert value.grad is not None
        assert (value.grad[0] - gradient).abs().max() < 1e-5 * gradient.abs().max()


def test_the_command_distils_a_text(tmp_path: Path, base_folder: Path) -> None:
    train = "steps = 80\nbatch_rows = 8\nlearning_rate = 0.1\nwarmup_steps = 5\nvalidate_every = 20"
    teacher, method = f'text = "{TEXT}"\nmax_tokens = 1', PROMPT.replace("4", "8")
    recipe = recipe_in(tmp_path / "short", base_folder, teacher=teacher, method=method, train=train)
    arguments = ["distill", str(recipe), "--device", "cpu", "--cache", str(tmp_path / "cache"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["distilled"]["divergence"] < 0.3 * said["start"]["divergence"]
    for other in ("start", "no_prompt"):
        assert said["distilled"]["same_token"] > said[other]["same_token"] + 0.5
        assert said["distilled"]["same_answer"] > said[other]["same_answer"] + 0.5
    assert said["cost"]["tokens"] == 8
    assert said["tokens_saved"] == said["teacher_cost"]["tokens"] - 8 > 10
    assert min(said["cost"]["milliseconds"], said["teacher_cost"]["milliseconds"]) > 0
    page = (recipe.parent / "README.md").read_text()
    assert f"| {said['distilled']['divergence']:.4f} | {said['start']['divergence']:.4f} |" in page
    assert "Teacher: the same base with the recipe's text" in page
    assert (recipe.parent / "inputs.csv").is_file(), "what lay in the folder stays"
    adapter = parse_adapter(load_folder(recipe.parent), describe(str(base_folder)))
    assert (adapter.manifest.method, adapter.manifest.virtual_tokens) == ("prompt_tuning", 8)
    assert adapter.manifest.trained_lengths is not None


def test_a_long_soft_prompt_becomes_a_short_one(
    tmp_path: Path, base_folder: Path, base: Base, run: Callable[[Path, Path], Distilled]
) -> None:
    make_adapter(base.model, "prompt_tuning", tmp_path / "long")
    made = 'adapter = "../long"\nmax_tokens = 5'
    short = recipe_in(tmp_path / "short", base_folder, teacher=made, method=PROMPT.replace("4", "2"))
    found = run(short, tmp_path / "out")
    assert (found.long.tokens, found.short.tokens) == (5, 2)
    assert found.student.divergence < 0.8 * found.start.divergence
    assert "the adapter `long`" in (tmp_path / "out" / "README.md").read_text()
    make_adapter(base.model, "prefix_tuning", tmp_path / "prefix")
    refused = recipe_in(tmp_path / "short", base_folder, teacher=made.replace("long", "prefix"))
    with pytest.raises(InvalidRequest, match="is a prefix_tuning; a teacher is prompt tuning or P-tuning"):
        run(refused, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_teacher_without_a_prompt_is_the_base_and_sampled_answers_follow_the_seed(base: Base) -> None:
    inputs = [Voice(base).ids(prompt) for prompt in ("film 1 was", "a much longer text about film 2")]
    bare = continued(base, None, [Row(ids, ()) for ids in inputs], 6)
    assert [row.answer for row in Voice(base).taught(inputs, 6)] == bare
    sampled = [Voice(base).taught(inputs, 6, Sampler(1.0, seed, base.device)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_inputs_that_the_base_makes(
    tmp_path: Path, base_folder: Path, base: Base, run: Callable[[Path, Path], Distilled]
) -> None:
    made = "generate = 50\nmax_tokens = 3\ntemperature = 5\n"
    train = "steps = 5\nbatch_rows = 8\nlearning_rate = 0.05\nvalidate_every = 5\nseed = {}"

    def texts(inputs: str, seed: int = 0) -> list[str]:
        recipe = recipe_in(tmp_path / "asked", base_folder, inputs=inputs, train=train.format(seed))
        return invented(read_distillation(recipe), base)

    first = texts(made)
    assert len(first) == len(set(first)) == 50
    assert first == texts(made)
    assert first != texts(made, seed=1)
    assert first != texts(made + 'instruction = "films:"')
    with pytest.raises(InvalidRequest, match=r"The base made \d+ different inputs of the 50 asked for") as error:
        texts("generate = 50\nmax_tokens = 3\ntemperature = 1e-3")
    assert error.value.param == "inputs.generate"
    recipe = recipe_in(tmp_path / "short", base_folder, inputs=made, train=train.format(0))
    assert sum(run(recipe, tmp_path / "out").rows) == 50
    page = (tmp_path / "out" / "README.md").read_text()
    assert "Inputs: 50 texts that the base sampled after nothing, at temperature 5." in page


def test_inputs_are_a_shipped_sources_texts(
    base_folder: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [Example(f"film {i}", f" {i}") for i in range(60)]
    monkeypatch.setitem(sources.SOURCES, "text-source", sources.Source((), lambda: texts, True, "films."))
    recipe = recipe_in(tmp_path / "short", base_folder, inputs='source = "text-source"')
    assert sum(run(recipe, tmp_path / "out").rows) == 60
    assert "Inputs: the texts of `text-source`: films." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changed", "param", "said"),
    [
        ({"teacher": 'text = "no place"'}, "teacher", "text must hold {input} once"),
        ({"teacher": "max_tokens = 3"}, "teacher", "give one of text, file and adapter"),
        ({"teacher": f'text = "{TEXT}"\nfile = "x.txt"'}, "teacher", "give one of text, file and adapter"),
        ({"teacher": 'file = "none.txt"'}, "teacher.file", "There is no file at"),
        ({"teacher": 'file = "long.txt"'}, "teacher.file", "long.txt must hold {input} once"),
        ({"teacher": 'adapter = "none"'}, "teacher.adapter", "none is no folder"),
        ({"teacher": f'text = "{TEXT}"\nmax_tokens = 120'}, "data", "inputs.csv, row 1: this input, the teacher's"),
        ({"inputs": ""}, "inputs", "give one of path, source and generate"),
        ({"inputs": 'source = "file"'}, "inputs", "a file goes by its path alone"),
        ({"inputs": 'path = "inputs.csv"\ninstruction = "x"'}, "inputs", "instruction goes with generate"),
        ({"inputs": 'path = "inputs.csv"\ncolumn = "text"'}, "data", "no such column; there are: prompt"),
        ({"inputs": 'path = "none.csv"'}, "data", "there is no such file"),
        ({"method": 'kind = "lora"\nrank = 2\nalpha = 4'}, "method", "does not match any of the expected tags"),
        ({"method": f'{PROMPT}\ninit = "labels"'}, None, "needs labels"),
        ({"train": "steps = 2\nlearning_rate = 0.1\ndampening = 0.1"}, None, "leave them out"),
        ({"head": 'task = "short"\ncolour = "red"\n'}, "colour", "Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_named(
    changed: dict[str, str], param: str | None, said: str, tmp_path: Path, base_folder: Path, run: Callable[..., Any]
) -> None:
    with pytest.raises(InvalidRequest) as error:
        run(recipe_in(tmp_path / "short", base_folder, **changed), tmp_path / "out")
    assert said in error.value.message
    assert error.value.param == param
    assert not (tmp_path / "out").exists()
