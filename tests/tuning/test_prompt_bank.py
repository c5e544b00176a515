"""What a task begins from is found in a registry: by its name, or as the best of all that are there."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder, parse_adapter
from softmux.inspection.base import describe
from softmux.registry.registry import Registry
from softmux.tuning import PromptTuning, Task, Train, open_base, tune
from softmux.tuning.bases.base import Base
from softmux.tuning.recipes.recipe import Lora, PrefixTuning
from softmux.tuning.run import tune as tune_recipe
from softmux.tuning.starts.bank import Score, tell
from softmux.tuning.starts.library import RegistryLibrary
from softmux.tuning.starts.origin import Origins
from softmux.tuning.training.together import Together
from softmux.types import ModelSpec
from support.transfers import make_origin

ROWS = [(f"film {i} was {('dull', 'gripping')[i % 2]}", (" no", " yes")[i % 2]) for i in range(60)]
BEGIN = PromptTuning(kind="prompt_tuning", virtual_tokens=5, init_from="auto")


@pytest.fixture
def spec(base_folder: Path) -> ModelSpec:
    return describe(str(base_folder), fingerprints=True)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[RegistryLibrary]:
    with RegistryLibrary(None, tmp_path / "data") as opened:
        yield opened


def publish(data: Path, spec: ModelSpec, *folders: Path) -> None:
    """Each as the task of its folder's name, in a registry that is begun where there is none."""

    async def run() -> None:
        registry = await Registry.open(None, data)
        try:
            for folder in folders:
                files = load_folder(folder)
                manifest = parse_adapter(files, spec).manifest
                await registry.publish("default", folder.name, manifest, files, actor="a test")
        finally:
            await registry.close()

    asyncio.run(run())


def test_auto_begins_from_the_best_of_the_registry_and_says_what_it_tried(
    base: Base, base_folder: Path, spec: ModelSpec, library: RegistryLibrary, write_recipe: object, tmp_path: Path
) -> None:
    """The best is planted: a prompt that was tuned on these rows. Others are noise, of another method, or too long."""
    how = Train(steps=40, learning_rate=5e-2, batch_rows=8, warmup_steps=5, validate_every=10)
    planted = tune([Task("planted", ROWS, BEGIN.model_copy(update={"init_from": None}), how)], base)[0]
    folders = [planted.save(tmp_path / "planted")]
    for number, kind in enumerate(("prompt", "prompt", "p_tuning_mlp", "prefix", "lora")):
        folders.append(tmp_path / f"{kind}-{number}")
        make_origin(base, kind, folders[-1], number)
    publish(tmp_path / "data", spec, *folders)

    recipe = write_recipe('kind = "prompt_tuning"\nvirtual_tokens = 5\ninit_from = "auto"', steps=2)  # type: ignore[operator]
    said = Console(file=io.StringIO(), width=200)
    unsaved = Together(save_every=0)
    report = tune_recipe(recipe, tmp_path / "out", "cpu", base=base, console=said, together=unsaved, library=library)
    told = said.file.getvalue()  # type: ignore[attr-defined]
    assert "toy begins from planted@1" in told
    assert report.tried[0].name == "planted@1"
    names = {"planted@1", "prompt-0@1", "prompt-1@1", "p_tuning_mlp-2@1", "its own start (sampled)"}
    assert {score.name for score in report.tried} == names
    assert [score.loss for score in report.tried] == sorted(score.loss for score in report.tried)
    assert report.trained.validations[0] == (0, pytest.approx(report.tried[0].loss, rel=1e-3))
    page = (tmp_path / "out" / "README.md").read_text()
    digest = parse_adapter(load_folder(tmp_path / "planted"), spec).manifest.digest
    assert f"| planted@1 | {report.tried[0].loss:.4f} | {digest} |" in page
    assert f"Begun from planted@1 ({digest})" in json.loads((tmp_path / "out" / "softmux.json").read_text())["notes"]

    origins = Origins(base, library)
    for method, name in (
        (PrefixTuning(kind="prefix_tuning", virtual_tokens=4, init_from="auto"), "prefix-3@1"),
        (Lora(kind="lora", rank=4, alpha=8, init_from="auto"), "lora-4@1"),
    ):
        assert [origin.name for origin in origins.all(method)] == [name]
    named = BEGIN.model_copy(update={"init_from": "prompt-1"})
    (by_name,) = tune([Task("named", ROWS, named, how.model_copy(update={"steps": 1}))], base, library=library)
    assert by_name.begun.startswith("prompt-1@1 (sha256:")


def test_what_the_registry_has_not_is_said(
    base: Base, spec: ModelSpec, library: RegistryLibrary, tmp_path: Path
) -> None:
    folder = tmp_path / "mood"
    make_origin(base, "prompt", folder)
    elsewhere = ModelSpec(**{name: getattr(spec, name) for name in spec.__slots__} | {"base_fingerprint": "sha256:b"})
    publish(tmp_path / "data", elsewhere, folder)

    def refused(name: str, match: str) -> None:
        with pytest.raises(InvalidRequest, match=match):
            Origins(base, library).named(name, BEGIN, tmp_path)

    refused("mood@1", r"mood@1 was made for another base \(sha256:b\), and this recipe tunes over tiny-base")
    refused("mood@7", "init_from = 'mood@7' was not found: ")
    refused("mood", "no active version for this base model")
    refused("none", "there is no task 'none'")
    refused("acme/mood", "another tenant's")
    assert not Origins(base, library).all(BEGIN)


def test_a_registry_with_nothing_to_begin_from_leaves_the_recipes_own_start(
    base: Base, spec: ModelSpec, library: RegistryLibrary, write_recipe: object, tmp_path: Path
) -> None:
    publish(tmp_path / "data", spec)
    method = 'kind = "prompt_tuning"\nvirtual_tokens = 5\ninit_from = "auto"\ninit_text = "was it dull"'
    recipe = write_recipe(method, steps=2)  # type: ignore[operator]
    said = Console(file=io.StringIO(), width=300)
    report = tune_recipe(
        recipe, tmp_path / "out", base=base, console=said, together=Together(save_every=0), library=library
    )
    assert "the registry has no adapter over tiny-base that prompt_tuning could begin from; it begins from its own" in (
        said.file.getvalue()  # type: ignore[attr-defined]
    )
    assert (report.begun, report.tried) == ("", ())


def test_equal_scores_are_told_and_the_first_by_name_is_taken(
    base: Base, spec: ModelSpec, library: RegistryLibrary, tmp_path: Path
) -> None:
    make_origin(base, "prompt", tmp_path / "b")
    for name in ("c", "a"):
        shutil.copytree(tmp_path / "b", tmp_path / name)
    publish(tmp_path / "data", spec, *(tmp_path / name for name in "bca"))
    assert [origin.name for origin in Origins(base, library).all(BEGIN)] == ["a@1", "b@1", "c@1"]
    said = Console(file=io.StringIO(), width=200)
    tell(said, "toy", [Score("a@1", 0.5), Score("b@1", 0.5), Score("c@1", 0.6)], 40)
    assert "toy begins from a@1, first by name of 2 equal ones" in said.file.getvalue()  # type: ignore[attr-defined]
    assert "loss on 32 validation rows" in said.file.getvalue()  # type: ignore[attr-defined]
    tell(said, "toy", [Score(str(i), i) for i in range(11)], 40)
    assert "and 3 more" in said.file.getvalue()  # type: ignore[attr-defined]


def test_a_base_that_was_opened_by_its_folder_knows_its_fingerprint(base_folder: Path, spec: ModelSpec) -> None:
    base = open_base(base_folder, device="cpu")
    assert Origins(base, None).spec.base_fingerprint == spec.base_fingerprint
    base.model.name_or_path = ""
    with pytest.raises(InvalidRequest, match=r"made in memory.*open it by its folder"):
        _ = Origins(base, None).spec
