"""What else is done with a base that tasks are tuned on: on an encoder-decoder each works, or says why not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig
from rich.console import Console

from softmux.errors import InvalidRequest
from softmux.evaluation.run import evaluate
from softmux.formats.folder import load_folder, parse_adapter
from softmux.inspection.base import describe
from softmux.tuning.bases.base import Base, as_base, open_source
from softmux.tuning.data.rows import Row
from softmux.tuning.distilling.distill import distill
from softmux.tuning.evaluate import continued, inputs_of
from softmux.tuning.frozen.encoder_decoder import frozen_over
from softmux.tuning.frozen.packing import Place, pack, prepare
from softmux.tuning.frozen.tables import Tables
from softmux.tuning.migration.migrate import Bases
from softmux.tuning.public import Task, open_base
from softmux.tuning.public import tune as tune_tasks
from softmux.tuning.recipes.recipe import Train
from softmux.tuning.run import tune
from softmux.tuning.sweep import sweep
from softmux.tuning.training.together import Together
from softmux.tuning.voices.shared_prompt import shared_prompt
from softmux.tuning.voices.voice import Voice
from support.encoder_decoders import make_base
from support.engines import TestEngine
from support.toy_encoder_decoders import CONFIGS, mood_recipe, new_base
from support.toy_language import rows

QUIET, UNSAVED = Console(file=io.StringIO()), Together(save_every=0)
PROMPT = 'kind = "prompt_tuning"\nvirtual_tokens = 4'
Spoken = Callable[[str], Path]


@pytest.fixture(params=CONFIGS)
def base(request: pytest.FixtureRequest, spoken: Spoken) -> Base:
    return open_source(str(spoken(request.param)), request.param)


def test_what_is_said_is_what_the_engine_says_however_short(base: Base) -> None:
    """A forced first token counts, and a forced last one is in the place of another."""
    texts = [f"{mark} long {rest}" for mark in ("mood:", "size:", "place:") for rest in ("film 7 was dull", "play")]
    asked = [tuple(base.encoder.encode(text, True)) for text in texts]
    engine = TestEngine(Path(base.model.name_or_path))
    for tokens in (1, 2, 3, 8):
        names = [engine.add(list(ids), max_tokens=tokens) for ids in asked]
        engine.run()
        said = continued(base, None, [Row(ids, ()) for ids in asked], tokens)
        for name, ids in zip(names, said, strict=True):
            assert base.text(engine.done[name].tokens) == base.text(ids)
    engine.close()


@torch.no_grad()
def test_answers_that_begin_alike_are_each_scored_as_alone(base: Base) -> None:
    inputs = inputs_of(base, None, [Row((5, 9, 7), ()), Row((6, 8), ())])
    answers = [(7, 9, 11), (7, 4), (7,), (12, 9)]
    together = base.read(inputs).scores(answers)
    alone = torch.cat([base.read(inputs).scores([answer]) for answer in answers], 1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_sweep_tries_ways_on_it_and_its_pick_tunes(spoken: Spoken, tmp_path: Path) -> None:
    more = "[sweep]\nlearning_rates = [1e-6, 0.1]\nvirtual_tokens = [2, 4]\n"
    recipe = mood_recipe(tmp_path / "mood", spoken("bart"), PROMPT, more=more)
    swept = sweep(recipe, device="cpu", console=QUIET, together=UNSAVED)
    assert len(swept.tries) == 4
    assert swept.pick.recipes[0].train.learning_rate == 0.1
    assert swept.pick.loss < 0.5 * swept.tries[-1].loss
    report = tune(tmp_path / "mood" / "sweep" / "recipe.toml", device="cpu", console=QUIET, together=UNSAVED)
    assert report.trained.best_loss == pytest.approx(swept.pick.loss, rel=1e-2)
    assert report.tuned.values["exact"] > 0.9


@pytest.mark.parametrize("architecture", ["bart", pytest.param("t5", marks=pytest.mark.nightly)])
def test_a_report_is_made_of_it(architecture: str, spoken: Spoken, tmp_path: Path) -> None:
    """Nightly, of a T5: it takes inputs of any length, so that all that is long is asked, too."""
    recipe = mood_recipe(tmp_path / "mood", spoken(architecture), PROMPT, more="report_rows = 6\n")
    report = tune(recipe, device="cpu", console=QUIET, together=UNSAVED)
    found = evaluate(tmp_path / "mood", device="cpu", console=QUIET)
    told = json.loads((tmp_path / "mood" / "evaluation.json").read_text())
    assert told["overall"]["value"] == found.overall.value == pytest.approx(report.tuned.values["exact"])
    assert found.overall.value > 0.9 > found.compared[1].figure.value
    assert "<html" in (tmp_path / "mood" / "evaluation.html").read_text()


def test_a_long_prompt_becomes_a_short_one_on_it(spoken: Spoken, tmp_path: Path) -> None:
    with (tmp_path / "inputs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt",), *([text] for text, _ in rows("mood")[::3])])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'task = "short"\nbase = "{spoken("t5")}"\n[teacher]\ntext = "mood: {{input}}"\nmax_tokens = 4\n[inputs]\n'
        f'path = "inputs.csv"\n[method]\n{PROMPT}\n[train]\nsteps = 40\nbatch_rows = 8\nlearning_rate = 0.1\n'
        "warmup_steps = 5\nvalidate_every = 20\n"
    )
    found = distill(recipe, tmp_path / "out", "cpu", console=QUIET, together=UNSAVED)
    assert found.student.same_answer >= 0.9
    assert found.bare.same_answer < found.student.same_answer - 0.2
    assert found.student.divergence < 0.2 * found.start.divergence
    adapter = parse_adapter(load_folder(tmp_path / "out"), describe(str(spoken("t5"))))
    assert (adapter.manifest.method, adapter.manifest.virtual_tokens) == ("prompt_tuning", 4)

    recipe.write_text(recipe.read_text().replace('path = "inputs.csv"', "generate = 8"))
    with pytest.raises(InvalidRequest, match="goes on from nothing with nothing: say in") as caught:
        distill(recipe, tmp_path / "none", "cpu", console=QUIET, together=UNSAVED)
    assert caught.value.param == "inputs.instruction"


@torch.no_grad()
def test_what_a_teacher_gave_its_output_head_is_the_whole_distribution(base: Base) -> None:
    inputs = [(3, 4, 5, 6, 8), (3, 4, 5, 7)]
    teacher = Voice(base)
    assert shared_prompt(base, teacher, [Row(ids, ()) for ids in inputs], 3) is teacher
    (long, _) = teacher.taught(inputs, 3)
    answer = long.answer
    assert len(answer) > 1
    taught = [Row((5, 6), answer, long.taught), Row((5, 13, 6), (4, 9)), Row(long.ids, answer, long.taught)]
    frozen = frozen_over(base)
    with frozen.running():
        packed = pack([(prepare(row, 0, 0.0), Place(0)) for row in taught], base.device)
        found = frozen.losses(packed, Tables())

    def plain(ids: tuple[int, ...], said: tuple[int, ...]) -> torch.Tensor:
        begins = base.says.begins  # type: ignore[attr-defined]
        given = torch.tensor([[*begins, *said[:-1]]])
        words: torch.Tensor = base.model(input_ids=torch.tensor([ids]), decoder_input_ids=given).logits[0]
        return words[len(begins) - 1 :].log_softmax(-1)

    theirs, mine = plain(long.ids, answer), plain((5, 6), answer)
    expected = torch.cat([(theirs.exp() * (theirs - mine)).sum(-1), -plain((5, 13, 6), (4, 9))[[0, 1], [4, 9]],
                          torch.zeros(len(answer))])  # fmt: skip
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert expected[: len(answer)].min() > 1e-4


def test_a_killed_run_goes_on_and_pefts_configs_are_taken(spoken: Spoken, tmp_path: Path) -> None:
    """In bfloat16, as on a GPU."""
    base, stopped = open_base(spoken("bart")), []
    how = Train(steps=8, learning_rate=0.1, batch_rows=4, warmup_steps=2, validate_every=4, bfloat16=True)
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    task = Task("mood", rows("mood")[:40], config, how)

    def kill(name: str, progress: object) -> None:
        if progress.step == 6 and not stopped:  # type: ignore[attr-defined]
            stopped.append(name)
            raise KeyboardInterrupt

    kept = Together(save_every=3, kept=tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        tune_tasks([task], base, together=kept, watch=kill)
    (again,) = tune_tasks([task], base, together=kept)
    (whole,) = tune_tasks([task], base, together=UNSAVED)
    assert again.trained.losses == whole.trained.losses
    assert all(torch.equal(again.values[name], whole.values[name]) for name in whole.values)
    said = json.loads((whole.save(tmp_path / "saved") / "adapter_config.json").read_text())
    assert (said["task_type"], said["num_transformer_submodules"]) == ("SEQ_2_SEQ_LM", 1)

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(InvalidRequest, match="this base is an encoder-decoder: train it with SEQ_2_SEQ_LM"):
        tune_tasks([Task("mood", rows("mood")[:40], config, how)], base)


def test_prompts_are_not_migrated_to_or_from_it_and_that_is_said(spoken: Spoken) -> None:
    with pytest.raises(InvalidRequest, match="is an encoder-decoder, and prompts are migrated between decoders"):
        Bases.of(str(spoken("t5")), str(spoken("bart")))


def test_modules_that_peft_does_not_know_are_asked_for(tmp_path: Path) -> None:
    tokenizer = new_base("bart", tmp_path / "words").tokenizer
    base = as_base(make_base("mbart", tmp_path / "base"), tokenizer, "mbart")
    recipe = mood_recipe(tmp_path / "task", tmp_path / "base", 'kind = "lora"\nrank = 1\nalpha = 1')
    with pytest.raises(InvalidRequest, match="PEFT knows no modules of mbart by default: name linear modules"):
        tune(recipe, tmp_path / "out", "cpu", base=base, console=QUIET)
