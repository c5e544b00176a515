"""Recipes of tasks with a head in one run: what is written, what is said, what a kill leaves, and a sweep of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers as tf
from rich.console import Console
from safetensors.torch import load_file, save_file

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.tuning.bases.head_base import HeadBase, open_head_base
from softmux.tuning.data.examples import BadData, Example, Span
from softmux.tuning.data.split import is_test, is_validation, split
from softmux.tuning.learned.heads import begin_prefix
from softmux.tuning.plan import Plan
from softmux.tuning.recipes.recipe import PTuningV2, read_recipe
from softmux.tuning.run import tune, tune_all
from softmux.tuning.run_heads import LaidHead, lay_out_heads
from softmux.tuning.sweep import sweep
from softmux.tuning.training.checkpoint import Checkpoint
from softmux.tuning.training.many import Trainer
from softmux.tuning.training.together import Together
from support.head_recipes import write
from support.killed_runs import killed_after

THREE = {"words": ("dull", "gripping", "long"), "answers": ("no", "yes", "perhaps")}
PROJECTED = "pooler = true\nprojection = true\nencoder_hidden_size = 16"
PLAIN = "probe = false\n"


def recipes_in(folder: Path, base: Path, steps: int = 10) -> list[Path]:
    return [
        write(folder / "two", base, name="two", steps=steps, full=PLAIN),
        write(folder / "three", base, name="three", steps=steps, full=PLAIN, **THREE),  # type: ignore[arg-type]
        write(folder / "projected", base, name="projected", steps=steps, full=PLAIN, method=PROJECTED),
    ]


def told(recipes: Sequence[Path], out: Path, kept: Path, **how: object) -> str:
    said = Console(file=io.StringIO(), width=200)
    together = Together(kept=kept, **how)  # type: ignore[arg-type]
    tune_all(recipes, out, "cpu", console=said, together=together)
    return str(said.file.getvalue())  # type: ignore[attr-defined]


def apart(one: Path, other: Path) -> float:
    """The largest difference between two folders' numbers, beside the largest of its tensor."""
    (first, second) = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((value - second[name]).abs().max() / value.abs().max()) for name, value in first.items())


def test_they_train_at_once_beside_what_generates_and_each_ends_as_it_would_alone(
    encoder_folder: Path, base_folder: Path, table: bytes, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    recipes = recipes_in(tmp_path, encoder_folder)
    words = tmp_path / "words"
    words.mkdir()
    (words / "rows.csv").write_bytes(table)
    (words / "recipe.toml").write_text(
        f'task = "words"\nbase = "{base_folder}"\n[data]\nsource = "file"\npath = "rows.csv"\n[method]\n'
        'kind = "prompt_tuning"\nvirtual_tokens = 2\n[train]\nsteps = 2\nlearning_rate = 0.01\n'
        "[evaluate]\nmax_tokens = 1\nbare = false\n"
    )
    said = told([*recipes, words / "recipe.toml"], tmp_path / "out", tmp_path / "kept", tensorboard=tmp_path / "tb")
    for name in ("two", "three", "projected"):
        assert f"{name}: accuracy" in said
        told([tmp_path / name / "recipe.toml"], tmp_path / "alone", tmp_path / "kept")
        assert apart(tmp_path / "alone" / name, tmp_path / "out" / name) < 1e-3
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["projected", "three", "two", "words"]
    assert not list((tmp_path / "kept").iterdir()), "a run that is written keeps nothing"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("three/loss")] == list(range(1, 11))
    assert [event.step for event in events.Scalars("projected/validation")] == [10]


def test_a_task_that_breaks_is_said_and_the_others_are_written(encoder_folder: Path, tmp_path: Path) -> None:
    recipes = recipes_in(tmp_path, encoder_folder)[:2]
    recipes[1].write_text(recipes[1].read_text().replace("= 0.02", "= 1e38\nclip_norm = 1e30"))
    with pytest.raises(SoftmuxError, match=r"three: The loss is (nan|inf) at step \d+: lower train.learning_rate"):
        told(recipes, tmp_path / "out", tmp_path / "kept")
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["two"]


class Broken(Exception):
    """Stands for what ends a run."""


def test_a_run_that_breaks_off_goes_on_and_ends_with_the_same_numbers(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = recipes_in(tmp_path, encoder_folder)
    told(recipes, tmp_path / "whole", tmp_path / "other", save_every=0)
    save = Checkpoint.save

    def breaks_off(self: Checkpoint, trainer: Trainer) -> None:
        save(self, trainer)
        if trainer.active[0].step == 6:
            raise Broken

    monkeypatch.setattr(Checkpoint, "save", breaks_off)
    with pytest.raises(Broken):
        told(recipes, tmp_path / "out", tmp_path / "kept", save_every=3)
    assert not (tmp_path / "out").exists(), "nothing is written before all is there"
    monkeypatch.undo()
    said = told(recipes, tmp_path / "out", tmp_path / "kept", save_every=3)
    assert "going on from step 6" in said
    for name in ("two", "three", "projected"):
        assert apart(tmp_path / "whole" / name, tmp_path / "out" / name) == 0


@pytest.mark.nightly
def test_a_run_that_is_killed_ten_times_ends_with_the_same_numbers(encoder_folder: Path, tmp_path: Path) -> None:
    recipes = recipes_in(tmp_path, encoder_folder, steps=90)
    told(recipes, tmp_path / "whole", tmp_path / "other", save_every=0)
    for _ in range(10):
        assert killed_after(2, recipes, tmp_path / "out", tmp_path / "kept")
        assert not (tmp_path / "out").exists()
    said = told(recipes, tmp_path / "out", tmp_path / "kept" / "tuning", save_every=3)
    assert "going on from step 60" in said
    for name in ("two", "three", "projected"):
        assert apart(tmp_path / "whole" / name, tmp_path / "out" / name) == 0


def test_a_sweep_tries_heads_side_by_side_and_the_pick_tunes_to_the_same_loss(
    encoder_folder: Path, tmp_path: Path
) -> None:
    recipe = write(tmp_path / "toy", encoder_folder, steps=40, full=PLAIN)
    recipe.write_text(recipe.read_text() + "[sweep]\nlearning_rates = [1e-6, 2e-2]\nvirtual_tokens = [2, 4]\n")
    said, kept = Console(file=io.StringIO(), width=200), Together(kept=tmp_path / "kept")
    swept = sweep(recipe, device="cpu", console=said, together=kept)
    assert len(swept.tries) == 4
    assert swept.pick.recipes[0].train.learning_rate == 0.02
    figures = json.loads((recipe.parent / "sweep" / "sweep.json").read_text())
    assert [one["loss"] for one in figures["tries"]] == sorted(one["loss"] for one in figures["tries"])
    report = tune(recipe.parent / "sweep" / "recipe.toml", tmp_path / "out", "cpu", console=said, together=kept)
    assert report.trained.best_loss == pytest.approx(swept.pick.loss, rel=1e-4)


def test_rows_that_the_base_has_no_room_for_are_named(encoder_folder: Path, tmp_path: Path) -> None:
    room = write(tmp_path / "room", encoder_folder, method="pooler = false", name="room")
    text = room.read_text()
    room.write_text(text.replace("virtual_tokens = 4", "virtual_tokens = 60"))
    with pytest.raises(
        BadData, match=r"every train row is longer than 4 tokens, the lesser of data.max_tokens and what"
    ):
        told([room], tmp_path / "out", tmp_path / "kept")
    room.write_text(text.replace("virtual_tokens = 4", "virtual_tokens = 54"))
    with pytest.raises(BadData, match=r"rows.csv, row \d+: this text is \d+ tokens, and behind the prefix .* takes 10"):
        told([room], tmp_path / "out", tmp_path / "kept")
    assert not (tmp_path / "out").exists()


def laid(base: HeadBase, examples: Sequence[Example], folder: Path, head: str, metric: str) -> LaidHead:
    path = write(folder, base.label, method=f'head = "{head}"', metric=metric, full=PLAIN)
    return lay_out_heads(Plan(path, folder, read_recipe(path), examples, split(examples, 99), []), base, 4)


def test_validation_rows_are_left_out_by_the_same_length_and_one_must_be_left(
    head_base: HeadBase, tmp_path: Path
) -> None:
    texts = [f"film {number} was dull" for number in range(99)]
    long = [f"{'long ' * 80}{text}" for text in texts]
    held_back = [is_validation(text) and not is_test(text) for text in texts]
    short = [Example(text, "no", "rows.csv", i) for i, text in enumerate(texts)]
    only_long = [
        *(one for one, back in zip(short, held_back, strict=True) if not back),
        *(Example(text, "no", "rows.csv", 100) for text in long if is_validation(text) and not is_test(text)),
    ]
    with pytest.raises(BadData, match=r"rows\.csv: every validation row is longer than 60 tokens, the lesser of"):
        laid(head_base, only_long, tmp_path, "sequence", "accuracy")
    found = laid(head_base, [*short, *only_long[-2:]], tmp_path, "sequence", "accuracy")
    assert len(found.validation) == sum(held_back), "a long one is left out where others are there"


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_without_a_labelled_word_is_said_and_a_row_without_one_is_not_trained_on(
    part: str, head_base: HeadBase, tmp_path: Path
) -> None:
    def labelled(but: str) -> list[Example]:
        texts = [f"film {number} was dull" for number in range(99)]
        kinds = ["test" if is_test(text) else "validation" if is_validation(text) else "train" for text in texts]
        word = (Span(0, 4, "thing"),)
        return [Example(t, "", "rows.csv", spans=() if k == but else word) for t, k in zip(texts, kinds, strict=True)]

    with pytest.raises(BadData, match=rf"rows\.csv: no {part} row has a labelled word; give more rows"):
        laid(head_base, labelled(part), tmp_path, "token", "token_f1")
    whole = labelled("none")
    bare = [Example(f"film {number} was long", "", "rows.csv") for number in range(99)]
    found = laid(head_base, [*whole, *bare], tmp_path, "token", "token_f1")
    assert len(found.rows) + len(found.validation) == len(whole) - sum(is_test(one.text) for one in whole)


def test_a_head_on_a_pooler_of_random_numbers_is_refused(
    encoder_folder: Path, head_base: HeadBase, tmp_path: Path
) -> None:
    assert head_base.has_pooler
    for file in encoder_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    bare = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    base = open_head_base(str(tmp_path), "bare", "cpu")
    with pytest.raises(InvalidRequest, match=r"bare has no pooler of its own, .*: set pooler = true"):
        begin_prefix(PTuningV2(kind="p_tuning_v2", virtual_tokens=2), base, 2)
    begin_prefix(PTuningV2(kind="p_tuning_v2", virtual_tokens=2, head="token"), base, 2)
    learned = begin_prefix(PTuningV2(kind="p_tuning_v2", virtual_tokens=2, pooler=True), base, 2)
    assert torch.equal(learned.peft.base_model.bert.embeddings.word_embeddings.weight, weights[_embeddings(weights)])


def _embeddings(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in weights if name.endswith("word_embeddings.weight"))


def test_what_weighs_tokens_is_refused_under_a_head(encoder_folder: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "toy", encoder_folder, train="dampening = 0.1\n")
    with pytest.raises(InvalidRequest, match=r"train\.dampening weighs an input's tokens beside an answer's"):
        read_recipe(recipe)


def test_tasks_share_one_encoder_and_each_has_its_own_head(head_base: HeadBase) -> None:
    method = PTuningV2(kind="p_tuning_v2", virtual_tokens=2, pooler=True)
    one, other = (begin_prefix(method, head_base, 2) for _ in range(2))
    shared = one.peft.base_model.bert.encoder.layer[0]
    assert shared is other.peft.base_model.bert.encoder.layer[0] is head_base.model.encoder.layer[0]
    assert one.peft.base_model.bert.pooler is not other.peft.base_model.bert.pooler
    assert type(head_base.model.pooler).__name__ == "BertPooler", "PEFT's wrapper is in no other's way"
    assert not torch.equal(*(each.peft.base_model.classifier.original_module.weight for each in (one, other)))


def test_a_fresh_head_is_as_the_model_begins_one(head_base: HeadBase) -> None:
    torch.manual_seed(3)
    head = head_base.classifier("sequence", 25).classifier
    assert not head.bias.any()
    assert float(head.weight.detach().std()) == pytest.approx(head_base.model.config.initializer_range, rel=0.1)


def test_an_encoder_without_a_head_that_is_known_is_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    none = tf.BertGenerationConfig(vocab_size=40, bos_token_id=1, eos_token_id=2, **sizes)
    other = tf.FlaubertConfig(vocab_size=40, emb_dim=32, n_layers=1, n_heads=4)
    for config, words in ((none, "tiny .bert-generation. has no sequence head"), (other, "head is of a build")):
        base = HeadBase("", "tiny", None, None, tf.AutoModel.from_config(config), True)
        with pytest.raises(InvalidRequest, match=words):
            base.classifier("sequence", 2)
