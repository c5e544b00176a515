"""One task, tried in many ways in one batch."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from softmux.cli import app
from softmux.errors import InvalidRequest, SoftmuxError
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import BadData
from softmux.tuning.recipes.recipe import PromptTuning, read_recipe, to_toml
from softmux.tuning.run import tune
from softmux.tuning.sweep import RATES, sweep, tries_of
from softmux.tuning.swept import Swept, Try, figures, steps_to_text
from softmux.tuning.training.together import Together
from softmux.tuning.training.trainer import Trained
from support.transfers import make_origin

Write = Callable[..., Path]
LORA = 'kind = "lora"\nrank = 1\nalpha = 1'
LABELS = 'labels = [" no", " yes"]\n'
SWEEP = """
[sweep]
learning_rates = [1e-6, 5e-2]
virtual_tokens = [2, 4]
inits = ["labels", "random"]
[[sweep.methods]]
kind = "prompt_tuning"
virtual_tokens = 4
[[sweep.methods]]
kind = "lora"
rank = 2
alpha = 4
target_modules = ["q_proj"]
"""


def swept_recipe(write_recipe: Write, section: str = SWEEP, **how: object) -> Path:
    recipe = write_recipe(extra=LABELS, **how)
    recipe.write_text(recipe.read_text() + section)
    return recipe


def test_every_combination_is_tried_once_and_what_a_method_has_not_makes_no_more(write_recipe: Write) -> None:
    tries = tries_of(read_recipe(swept_recipe(write_recipe)))
    assert [tuple(one.choices.values())[:1] for one in tries].count(("prompt_tuning",)) == 8
    assert len(tries) == 10
    assert {one.recipes[0].method.kind for one in tries} == {"prompt_tuning", "lora"}
    how = tries_of(read_recipe(swept_recipe(write_recipe, "[sweep]\nwarmups = [0, 5]\ndampenings = [0, 0.1, 0.3]\n")))
    assert [(one.recipes[0].train.warmup_steps, one.recipes[0].train.dampening) for one in how] == [
        (warmup, dampening) for warmup in (0, 5) for dampening in (0.0, 0.1, 0.3)
    ]
    assert how[-1].choices == {"warm-up": "5", "dampening": "0.3"}
    assert len({one.recipes[0].train.learning_rate for one in how}) == 1, "what is not listed is the recipe's"
    plain = tries_of(read_recipe(write_recipe()))
    assert [one.recipes[0].train.learning_rate for one in plain] == list(RATES)


def test_the_pick_is_the_best_by_validation_and_tunes_to_the_same_loss(
    write_recipe: Write, base: Base, tmp_path: Path
) -> None:
    recipe, said = swept_recipe(write_recipe, steps=8), Console(file=io.StringIO(), width=200)
    other = '[evaluate.elsewhere]\nsource = "file"\npath = "rows.csv"\n'
    recipe.write_text(recipe.read_text().replace("[sweep]", f"{other}[sweep]", 1))
    swept = sweep(recipe, base=base, console=said, together=Together(kept=tmp_path / "kept"))
    assert [one.loss for one in swept.tries] == sorted(one.loss for one in swept.tries)
    assert swept.pick.recipes[0].train.learning_rate == 0.05
    out = recipe.parent / "sweep"
    assert sorted(file.name for file in out.iterdir()) == ["recipe.toml", "sweep.json", "sweep.md", "sweep.png"]
    elsewhere = read_recipe(out / "recipe.toml").evaluate.elsewhere
    assert elsewhere is not None
    assert elsewhere.path == Path("../rows.csv"), "seen from there"
    figures = json.loads((out / "sweep.json").read_text())
    assert figures["tries"][0]["loss"] == swept.pick.loss
    assert len((out / "sweep.md").read_text().splitlines()) == 12
    assert f"{swept.pick.loss:.4f}" in said.file.getvalue()  # type: ignore[attr-defined]
    report = tune(
        out / "recipe.toml", tmp_path / "out", base=base, console=said, together=Together(kept=tmp_path / "kept")
    )
    assert report.trained.best_loss == pytest.approx(swept.pick.loss, rel=1e-4)


def test_seeds_are_averaged_and_a_sweep_where_all_break_says_so(
    write_recipe: Write, base: Base, tmp_path: Path
) -> None:
    kept = Together(kept=tmp_path / "kept")
    recipe = swept_recipe(write_recipe, "[sweep]\nseeds = [0, 1]\nlearning_rates = [0.05]\n", steps=6)
    said = Console(file=io.StringIO())
    (one,) = sweep(recipe, base=base, console=said, together=kept).tries
    assert one.loss == pytest.approx(sum(run.best_loss for run in one.trained if run) / 2)
    assert one.trained[0] != one.trained[1]
    recipe = swept_recipe(write_recipe, "[sweep]\nlearning_rates = [1e38]\n", steps=6)
    recipe.write_text(recipe.read_text().replace("[train]", "[train]\nclip_norm = 1e30"))
    with pytest.raises(SoftmuxError, match="No try could be learned"):
        sweep(recipe, tmp_path / "none", base=base, console=said, together=kept)
    assert not (tmp_path / "none").exists()


def test_starts_are_swept_and_steps_are_told_to_what_the_text_came_to(
    write_recipe: Write, base: Base, tmp_path: Path
) -> None:
    make_origin(base, "prompt", tmp_path / "task" / "origin")
    inits = 'inits = ["text", "random", "./origin", "residual:./origin"]\nseeds = [0, 1]\n'
    recipe = write_recipe(steps=10)
    recipe.write_text(recipe.read_text() + "[sweep]\n" + inits)
    said, kept = Console(file=io.StringIO(), width=200), Together(kept=tmp_path / "kept")
    swept = sweep(recipe, base=base, console=said, together=kept)
    by_init = {one.choices["init"]: one for one in swept.tries}
    assert list(by_init) == sorted(by_init, key=lambda init: by_init[init].loss)
    assert all(run is not None and run.validations[0][0] == 0 for one in swept.tries for run in one.trained)
    assert by_init["./origin"].loss == pytest.approx(by_init["residual:./origin"].loss, rel=1e-3)
    assert steps_to_text(by_init["text"], swept) == [run.best_step for run in by_init["text"].trained if run]
    for one, seeds in ((one, steps_to_text(one, swept)) for one in swept.tries):
        assert seeds is not None
        for run, text, step in zip(one.trained, by_init["text"].trained, seeds, strict=True):
            assert run is not None
            assert text is not None
            reached = [at for at, loss in run.validations if loss <= text.best_loss]
            assert step == (reached[0] if reached else None)
            assert len(run.exact) == len(run.validations)
    table = (recipe.parent / "sweep" / "sweep.md").read_text()
    assert "| exact | best step | steps to text's best loss |" in table
    written = json.loads((recipe.parent / "sweep" / "sweep.json").read_text())["tries"]
    assert [one["steps_to_text"] for one in written] == [steps_to_text(one, swept) for one in swept.tries]
    pick = read_recipe(recipe.parent / "sweep" / "recipe.toml").method
    if swept.pick is by_init["./origin"]:
        assert isinstance(pick, PromptTuning)
        assert pick.init_from == "../origin"


def test_a_start_of_another_replaces_the_recipes_own_and_makes_no_try_of_what_has_none(write_recipe: Write) -> None:
    method = 'kind = "prompt_tuning"\nvirtual_tokens = 4\ninit_text = "a"\ninit_from = "b"\nresidual = true\n'
    method += "residual_rank = 2"
    section = '[sweep]\ninits = ["text", "mood@2", "residual:mood@2"]\n'
    recipe = write_recipe(method)
    recipe.write_text(recipe.read_text() + section)
    said = [one.recipes[0].method for one in tries_of(read_recipe(recipe))]
    assert [(m.init_from, m.residual, m.residual_rank) for m in said if isinstance(m, PromptTuning)] == [
        (None, False, None),
        ("mood@2", False, None),
        ("mood@2", True, 2),
    ]
    lora = write_recipe('kind = "lora"\nrank = 2\nalpha = 4')
    lora.write_text(lora.read_text() + section)
    assert [one.choices for one in tries_of(read_recipe(lora))] == [{}, {"init": "mood@2"}, {"init": "residual:mood@2"}]


def test_what_can_not_be_swept_is_said(write_recipe: Write) -> None:
    with pytest.raises(InvalidRequest, match=r"sweep\.toml|sweep"):
        read_recipe(swept_recipe(write_recipe, "[sweep]\nlearning_rates = [-1]\n"))
    heads = '[sweep]\n[[sweep.methods]]\nkind = "p_tuning_v2"\nvirtual_tokens = 2\n'
    with pytest.raises(InvalidRequest, match="a sequence head is measured by"):
        tries_of(read_recipe(swept_recipe(write_recipe, heads)))
    with pytest.raises(InvalidRequest, match="init_text"):
        tries_of(read_recipe(swept_recipe(write_recipe, '[sweep]\ninits = ["text"]\n', method="prompt_sampled")))


def test_the_command_sweeps(write_recipe: Write, base_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(extra=f'base = "{base_folder}"\n', steps=3)
    done = CliRunner().invoke(
        app,
        [
            "sweep",
            str(recipe),
            "--device",
            "cpu",
            "--cache",
            str(tmp_path / "c"),
            "--out",
            str(tmp_path / "swept"),
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "swept" / "recipe.toml").is_file()
    assert json.loads(done.stdout)["task"] == "toy"


def test_a_recipe_written_as_toml_is_the_same_recipe(write_recipe: Write, tmp_path: Path) -> None:
    extra = 'notes = "quoted \\"words\\" – and\\ttabs"\n'
    recipe = write_recipe("p_tuning_template", extra=extra)
    recipe.write_text(recipe.read_text() + '[labels]\n"a b" = " x"\nc = " y"\n')
    said = read_recipe(recipe)
    (tmp_path / "again.toml").write_text(to_toml(said))
    assert read_recipe(tmp_path / "again.toml") == said


def test_rows_that_are_refused_leave_no_lora_in_the_base(write_recipe: Write, base: Base) -> None:
    recipe = swept_recipe(write_recipe, "[sweep]\nlearning_rates = [0.05]\n", method=LORA)
    recipe.write_text(recipe.read_text().replace("[data]", "[data]\nmax_tokens = 1"))
    with pytest.raises(BadData, match=r"every row is longer than data\.max_tokens = 1"):
        sweep(recipe, base=base, console=Console(file=io.StringIO()))
    assert not any("lora" in name for name, _ in base.model.named_modules())


def test_a_run_that_was_never_validated_as_a_number_is_none_in_json(write_recipe: Write) -> None:
    recipe = read_recipe(write_recipe())
    never = Trained((1.0,), ((1, math.nan),), 0, math.inf, (0.0,))
    once = Trained((1.0, 1.0), ((1, math.nan), (2, 0.5)), 2, 0.5, (0.0, 1.0))
    swept = Swept((Try({}, (recipe,), (once,)), Try({}, (recipe,), (never,))), 1.0)
    tries = json.loads(json.dumps(figures(swept), allow_nan=False))["tries"]
    assert [one["loss"] for one in tries] == [0.5, None]
    assert [one["runs"][0]["best_loss"] for one in tries] == [0.5, None]
    assert [one["runs"][0]["validations"] for one in tries] == [[[1, None], [2, 0.5]], [[1, None]]]
