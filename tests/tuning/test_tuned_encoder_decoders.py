"""Tasks on encoder-decoders: from a table of rows to folders that the engine serves as PEFT runs them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
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
from softmux.tuning.base import Base
from softmux.tuning.data import Example
from softmux.tuning.recipe import LoraPrefixTuning, PrefixTuning, PromptTuning, PTuning, Train
from softmux.tuning.run import tune, tune_all
from softmux.tuning.split import split
from softmux.tuning.together import Together
from softmux.tuning.write import Report
from softmux.types import KV_METHODS
from support.engines import TestEngine
from support.models import greedy_reference
from support.toy_encoder_decoders import new_base, speaking
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
NEW_TOKENS = 6
QUIET = Console(file=io.StringIO())


def recipe_in(folder: Path, base: Path, method: str, rate: float = 0.1, train: str = "", **more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "answer"), *rows("mood")])
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'task = "{folder.name}"\nbase = "{base}"\n[data]\nsource = "file"\npath = "rows.csv"\n[method]\n{method}\n'
        f"[train]\nsteps = 50\nbatch_rows = 8\nlearning_rate = {rate}\nwarmup_steps = 5\nvalidate_every = 25\n{train}"
        f"[evaluate]\nmax_tokens = {NEW_TOKENS}\n" + "".join(f"[{name}]\n{text}\n" for name, text in more.items())
    )
    return recipe


@dataclass(frozen=True)
class World:
    folder: Path
    base: Base
    reports: Mapping[str, Report]


@pytest.fixture(scope="module", params=["t5", "bart"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base that speaks, and one task tuned on it by every method, all at once."""
    folder = tmp_path_factory.mktemp(request.param)
    base = speaking(request.param, folder / "base")
    recipes = [recipe_in(folder / name, folder / "base", *how) for name, how in METHODS.items()]
    reports = tune_all(recipes, device="cpu", console=QUIET, together=Together(save_every=0))
    return World(folder, base, dict(zip(METHODS, reports, strict=True)))


def test_a_rule_is_learned_from_a_table(world: World) -> None:
    for name, report in world.reports.items():
        bare = report.beside[next(iter(report.beside))].values["exact"]
        losses = report.trained.losses
        assert bare < 0.6, name
        if name == "prefix":  # it stands before the decoder, and learns slowly what to look for in the input
            assert report.tuned.values["exact"] >= bare + 0.2
            assert report.trained.best_loss < 0.5 * losses[0]
            continue
        assert report.tuned.values["exact"] >= 0.9, name
        assert report.tuned.values["label accuracy"] >= 0.9, name
        assert report.trained.best_loss < 0.2 * losses[0], name


def test_the_folder_is_pefts_own_form(world: World) -> None:
    for name, report in world.reports.items():
        said = json.loads((world.folder / name / "adapter_config.json").read_text())
        assert said["task_type"] == "SEQ_2_SEQ_LM"
        assert said["base_model_name_or_path"] == "base"
        text = (world.folder / name / "README.md").read_text()
        assert f"| exact | {report.tuned.values['exact']:.3f} |" in text
    vectors = load_file(world.folder / "prompt" / "adapter_model.safetensors")["prompt_embeddings"]
    assert vectors.shape == (4, 32), "none that nobody would use"


def reference(folder: Path, name: str) -> Any:
    """PEFT's model of the folder: of a pair the soft prompt's, on the base with the LoRA merged into it."""
    module = AutoModelForSeq2SeqLM.from_pretrained(folder / "base", dtype=torch.float32)
    if name == "pair":
        lora = folder / "only-lora"
        lora.mkdir(exist_ok=True)
        for file in ("adapter_config{}.json", "adapter_model{}.safetensors"):
            (lora / file.format("")).write_bytes((folder / name / file.format(".lora")).read_bytes())
        module = PeftModel.from_pretrained(module, lora).merge_and_unload()
    return PeftModel.from_pretrained(module, folder / name).eval()


def test_it_is_served_as_peft_generates_and_the_figure_is_what_is_served(world: World) -> None:
    engine = TestEngine(world.folder / "base")
    asked = [(one.text, one.answer) for one in split([Example(*row) for row in rows("mood")], 512).test]
    names, compared = {}, 0
    for name in METHODS:
        template = json.loads((world.folder / name / "softmux.json").read_text()).get("template")
        root, count = engine.adapter(world.folder / name)
        method = "prefix_tuning" if name in ("prefix", "pair") else "prompt_tuning"
        layout = Layout(count, Template.parse(template) if template else None, method)
        for text, _ in asked:
            ids = lay_out(layout, world.base.encoder, vocab_size=world.base.vocab_size, prompt=text)
            number = engine.text(list(ids), root, max_tokens=NEW_TOKENS, trained_prefix=method in KV_METHODS)
            names[name, text] = number
    engine.run()
    for name in METHODS:
        said = [engine.done[names[name, text]] for text, _ in asked]
        right = sum(world.base.text(one.tokens) == answer for one, (_, answer) in zip(said, asked, strict=True))
        assert right / len(asked) == pytest.approx(world.reports[name].tuned.values["exact"])
        if name == "template":
            continue  # PEFT knows no places but the front
        model = reference(world.folder, name)
        for one, (text, _) in list(zip(said, asked, strict=True))[:6]:
            expected, certain = greedy_reference(model, world.base.encoder.encode(text, True), NEW_TOKENS)
            ended = expected[-1] in world.base.eos_ids
            wanted = (expected[:-1] if ended else expected)[:certain]
            assert one.tokens[: len(wanted)] == wanted, name
            compared += len(wanted)
    assert compared >= 6 * (len(METHODS) - 1) // 2
    engine.close()


REFUSED = [
    ('kind = "prompt_tuning"\nvirtual_tokens = 2', "dampening = 0.1\n", "train.dampening", "says none of them"),
    ('kind = "lora"\nrank = 1\nalpha = 1\ntarget_modules = ["nothing"]', "", "method.target_modules", "not all there"),
    ('kind = "lora"\nrank = 1\nalpha = 1\ntarget_modules = ["lm_head"]', "", "method.target_modules", "output head"),
]


@pytest.mark.parametrize(("method", "train", "field", "words"), REFUSED)
def test_what_can_not_be_tuned_on_it_is_refused_by_field(
    method: str, train: str, field: str, words: str, tmp_path: Path
) -> None:
    base = new_base("t5", tmp_path / "base")
    recipe = recipe_in(tmp_path / "task", tmp_path / "base", method, train=train)
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
    recipe = recipe_in(tmp_path / "task", tmp_path / "base", 'kind = "p_tuning_v2"\nvirtual_tokens = 2')
    recipe.write_text(recipe.read_text().replace("[evaluate]", '[evaluate]\nmetric = "accuracy"'))
    with pytest.raises(InvalidRequest, match="of type t5, and p_tuning_v2 is tuned on encoders"):
        tune(recipe, tmp_path / "out", "cpu", console=QUIET)
