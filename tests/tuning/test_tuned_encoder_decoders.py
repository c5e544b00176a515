"""Tasks on encoder-decoders: from a table of rows to folders that the engine serves as PEFT runs them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from softmux.errors import InvalidRequest
from softmux.formats.layout import Layout, lay_out
from softmux.formats.template import Template
from softmux.tuning.bases.base import Base, open_source
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import split
from softmux.tuning.recipes.recipe import LoraPrefixTuning, PrefixTuning, PromptTuning, PTuning, Train
from softmux.tuning.run import tune, tune_all
from softmux.tuning.training.together import Together
from softmux.tuning.write import Report
from softmux.types import KV_METHODS
from support.engines import TestEngine
from support.models import greedy_reference
from support.toy_encoder_decoders import NEW_TOKENS, mood_recipe, new_base
from support.toy_language import rows

METHODS = {
    "prompt": ('kind = "prompt_tuning"\nvirtual_tokens = 4', 0.1),
    "template": (
        'kind = "p_tuning"\nencoder = "LSTM"\nencoder_hidden_size = 16\nvirtual_tokens = 3\n'
        'template = "{p:2} was {line} was {p:1}"',
        0.02,
    ),
    "prefix": ('kind = "prefix_tuning"\nvirtual_tokens = 4\nprojection = false', 0.2),
    "lora": ('kind = "lora"\nrank = 4\nalpha = 8', 0.02),
    "pair": ('kind = "lora+prefix_tuning"\nrank = 2\nalpha = 4\nvirtual_tokens = 4\nencoder_hidden_size = 24', 0.02),
}
QUIET = Console(file=io.StringIO())


@dataclass(frozen=True)
class World:
    folder: Path
    base: Base
    reports: Mapping[str, Report]


@pytest.fixture(scope="module", params=["t5", "bart"])
def world(
    request: pytest.FixtureRequest, spoken: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> World:
    """A base that speaks, and one task tuned on it by every method, all at once."""
    folder, base = tmp_path_factory.mktemp("tuned"), spoken(request.param)
    methods = [name for name in METHODS if request.param == "t5" or name in ("prompt", "prefix", "pair")]
    recipes = [mood_recipe(folder / name, base, *METHODS[name]) for name in methods]
    for recipe in recipes[1:]:  # the bare model is the same to all
        recipe.write_text(recipe.read_text() + "bare = false\n")
    reports = tune_all(recipes, device="cpu", console=QUIET, together=Together(save_every=0))
    return World(folder, open_source(str(base), base.name), dict(zip(methods, reports, strict=True)))


def test_a_rule_is_learned_from_a_table(world: World) -> None:
    bare = world.reports["prompt"].beside["the bare model"].values["exact"]
    for name, report in world.reports.items():
        losses = report.trained.losses
        if name == "prefix":  # it stands before the decoder, and learns slowly what to look for in the input
            assert report.trained.best_loss < 0.5 * losses[0]
            continue
        assert report.tuned.values["exact"] >= max(0.9, bare + 0.2), name
        assert report.tuned.values["label accuracy"] >= 0.9, name
        assert report.trained.best_loss < 0.2 * losses[0], name


BEGUN = {
    "prompt": "residual = true\nresidual_rank = 2",
    "prefix": "",
    "lora": "",
    "pair": "residual = true",
}


def test_a_task_begins_as_another_is_and_a_residual_is_folded(world: World) -> None:
    """Whichever layers a prefix is dealt out to, and however many of the learned numbers nobody uses."""
    recipes = []
    chosen = [name for name in BEGUN if name in world.reports]
    for name in chosen:
        method = METHODS[name][0].replace("encoder_hidden_size = 24", "projection = false")
        method += f'\ninit_from = "../{name}"\n{BEGUN[name]}'
        folder, base = world.folder / f"{name}-again", Path(world.base.model.name_or_path)
        recipes.append(mood_recipe(folder, base, method, rate=1e-9))
        recipes[-1].write_text(recipes[-1].read_text().replace("steps = 40", "steps = 2"))
    again = tune_all(recipes, device="cpu", console=QUIET, together=Together(save_every=0))
    for name, report in zip(chosen, again, strict=True):
        first = world.reports[name]
        assert report.trained.validations[0] == (0, pytest.approx(first.trained.best_loss, rel=1e-4)), name
        assert report.tuned.values["exact"] == pytest.approx(first.tuned.values["exact"]), name


def test_the_folder_is_pefts_own_form(world: World) -> None:
    for name, report in world.reports.items():
        said = json.loads((world.folder / name / "adapter_config.json").read_text())
        assert said["task_type"] == "SEQ_2_SEQ_LM"
        assert said["base_model_name_or_path"] == world.base.label
        text = (world.folder / name / "README.md").read_text()
        assert f"| exact | {report.tuned.values['exact']:.3f} |" in text
    vectors = load_file(world.folder / "prompt" / "adapter_model.safetensors")["prompt_embeddings"]
    assert vectors.shape == (4, 32), "none that nobody would use"


def reference(world: World, name: str) -> Any:
    """PEFT's model of the folder: of a pair the soft prompt's, on the base with the LoRA merged into it."""
    folder = world.folder
    module: Any = AutoModelForSeq2SeqLM.from_pretrained(world.base.model.name_or_path, dtype=torch.float32)
    if name == "pair":
        lora = folder / "only-lora"
        lora.mkdir(exist_ok=True)
        for file in ("adapter_config{}.json", "adapter_model{}.safetensors"):
            (lora / file.format("")).write_bytes((folder / name / file.format(".lora")).read_bytes())
        module = PeftModel.from_pretrained(module, lora).merge_and_unload()
    return PeftModel.from_pretrained(module, folder / name).eval()


def test_it_is_served_as_peft_generates_and_the_figure_is_what_is_served(world: World) -> None:
    engine = TestEngine(Path(world.base.model.name_or_path))
    asked = [(one.text, one.answer) for one in split([Example(*row) for row in rows("mood")], 512).test]
    names, compared = {}, 0
    for name in world.reports:
        template = json.loads((world.folder / name / "softmux.json").read_text()).get("template")
        root, count = engine.adapter(world.folder / name)
        method = "prefix_tuning" if name in ("prefix", "pair") else "prompt_tuning"
        layout = Layout(count, Template.parse(template) if template else None, method)
        for text, _ in asked:
            ids = lay_out(layout, world.base.encoder, vocab_size=world.base.vocab_size, prompt=text)
            number = engine.text(list(ids), root, max_tokens=NEW_TOKENS, trained_prefix=method in KV_METHODS)
            names[name, text] = number
    engine.run()
    for name in world.reports:
        said = [engine.done[names[name, text]] for text, _ in asked]
        right = sum(world.base.text(one.tokens) == answer for one, (_, answer) in zip(said, asked, strict=True))
        assert right / len(asked) == pytest.approx(world.reports[name].tuned.values["exact"])
        if name == "template":
            continue  # PEFT knows no places but the front
        model = reference(world, name)
        for one, (text, _) in list(zip(said, asked, strict=True))[:6]:
            expected, certain = greedy_reference(model, world.base.encoder.encode(text, True), NEW_TOKENS)
            ended = expected[-1] in world.base.eos_ids
            wanted = (expected[:-1] if ended else expected)[:certain]
            assert one.tokens[: len(wanted)] == wanted, name
            compared += len(wanted)
    assert compared >= 6 * (len(world.reports) - 1) // 2
    engine.close()


REFUSED = [
    ('kind = "prompt_tuning"\nvirtual_tokens = 2', "dampening = 0.1\n", "train.dampening", "says none of them"),
    (
        'kind = "lora"\nrank = 1\nalpha = 1\ntarget_modules = ["nothing"]',
        "",
        "method.target_modules",
        "no linear module nothing",
    ),
    ('kind = "lora"\nrank = 1\nalpha = 1\ntarget_modules = ["lm_head"]', "", "method.target_modules", "output head"),
]


@pytest.mark.parametrize(("method", "train", "field", "words"), REFUSED)
def test_what_can_not_be_tuned_on_it_is_refused_by_field(
    method: str, train: str, field: str, words: str, tmp_path: Path
) -> None:
    base = new_base("t5", tmp_path / "base")
    recipe = mood_recipe(tmp_path / "task", tmp_path / "base", method, train=train)
    with pytest.raises(InvalidRequest, match=words) as caught:
        tune(recipe, tmp_path / "out", "cpu", base=base, console=QUIET)
    assert caught.value.param == field
    assert not (tmp_path / "out").exists()
    assert not any("lora" in name for name, _ in base.model.named_modules())


def test_a_prefix_for_more_layers_than_the_encoder_has_is_refused(tmp_path: Path) -> None:
    base = new_base("bart", tmp_path)
    base.model.config.decoder_layers = 3
    how, shape = Train(steps=1, learning_rate=1), {"virtual_tokens": 2}
    for method in (
        PrefixTuning(kind="prefix_tuning", **shape),
        LoraPrefixTuning(kind="lora+prefix_tuning", rank=1, alpha=1, **shape),
    ):
        with pytest.raises(InvalidRequest, match="2 there and 3 in its decoder: tune prompt_tuning, p_tuning or lora"):
            base.check(method, how)
    base.check(PromptTuning(kind="prompt_tuning", **shape), how)
    base.check(PTuning(kind="p_tuning", **shape), how)


def test_a_head_is_refused_with_what_is_tuned_instead(tmp_path: Path) -> None:
    new_base("t5", tmp_path / "base").model.save_pretrained(tmp_path / "base")
    recipe = mood_recipe(tmp_path / "task", tmp_path / "base", 'kind = "p_tuning_v2"\nvirtual_tokens = 2')
    recipe.write_text(recipe.read_text().replace("[evaluate]", '[evaluate]\nmetric = "accuracy"'))
    with pytest.raises(InvalidRequest, match=r"of type t5, .* On this one tune prompt_tuning, p_tuning,"):
        tune(recipe, tmp_path / "out", "cpu", console=QUIET)
