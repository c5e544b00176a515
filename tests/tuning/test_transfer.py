"""A task begins from another's numbers, or is a residual over them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder, parse_adapter
from softmux.inspection.base import describe
from softmux.tuning import PromptTuning, Task, Train, tune
from softmux.tuning.bases.base import Base
from softmux.tuning.frozen.decoder import padded_base
from softmux.tuning.learned.methods import Learned, begin
from softmux.tuning.public import Tuned
from softmux.tuning.recipes.distillation import Distillation
from softmux.tuning.recipes.recipe import Lora
from softmux.tuning.run import tune as tune_recipe
from softmux.tuning.starts import beginning
from softmux.tuning.starts.beginning import Beginner
from softmux.tuning.starts.origin import Origins
from softmux.tuning.starts.transfer import LowRankVectors
from softmux.tuning.training.checkpoint import run_digest
from softmux.tuning.training.cohort import Start
from softmux.tuning.training.job import Job
from softmux.tuning.training.many import Trainer
from softmux.tuning.training.together import Together
from support.transfers import HOW, METHODS, begun, losses, make_origin, peft_losses, rows_of

KINDS = list(METHODS)
ROWS = [(f"film {i} was {('dull', 'gripping')[i % 2]}", (" no", " yes")[i % 2]) for i in range(40)]


def prefix_of(kind: str) -> int:
    return 4 if kind in ("prefix", "pair") else 0


def tuned(base: Base, folder: Path, how: Train = HOW, **changed: object) -> list[Tuned]:
    """A task of each kind in `changed`, begun from `folder/KIND`, tuned side by side."""
    methods = {
        kind: METHODS[kind].model_copy(update={"init_from": str(folder / kind)} | update)
        for kind, update in changed.items()
    }
    return tune([Task(name, ROWS, method, how) for name, method in methods.items()], base)


@pytest.mark.parametrize("kind", KINDS)
def test_at_step_0_a_task_is_the_one_that_it_begins_from(kind: str, base: Base, tmp_path: Path) -> None:
    theirs = make_origin(base, kind, tmp_path / "origin")
    origins = Origins(base, None)
    for residual in (False, True):
        method = METHODS[kind].model_copy(update={"residual": residual})
        made = begun(base, method, tmp_path, origins)
        assert made.warning is None
        own = losses(base, made.start, prefix_of(kind))
        torch.testing.assert_close(own, peft_losses(theirs, rows_of(made.start.outputs)), rtol=1e-4, atol=1e-4)


def test_a_residual_folds_into_an_ordinary_adapter_that_computes_the_same(
    base: Base, base_folder: Path, tmp_path: Path
) -> None:
    for kind in KINDS:
        make_origin(base, kind, tmp_path / kind)
    low_rank = {"residual": True, "residual_rank": 2}
    origins = Origins(base, None)
    found = tuned(base, tmp_path, prompt=low_rank, prefix={"residual": True}, lora={"residual": True}, pair=low_rank)
    spec = describe(str(base_folder))
    for one in found:
        assert one.trained.best_step > 0, "something was learned"
        adapter = parse_adapter(load_folder(one.save(tmp_path / "out" / one.name)), spec)
        assert adapter.manifest.method == METHODS[one.name].kind
        assert adapter.manifest.notes is not None
        assert f"Begun from {one.name} (sha256:" in adapter.manifest.notes
        if one.name in ("lora", "pair"):
            config = "adapter_config.json" if one.name == "lora" else "adapter_config.lora.json"
            assert json.loads((tmp_path / "out" / one.name / config).read_text())["r"] == 4 + 4
        again = METHODS[one.name].model_copy(update={"init_from": f"./{one.name}", "residual": False, "rank": 8})
        folded = losses(base, begun(base, again, tmp_path / "out", origins).start, prefix_of(one.name))
        changes = METHODS[one.name].model_copy(update={"init_from": f"./{one.name}", "residual": True})
        changes = changes.model_copy(update=low_rank if one.name in ("prompt", "pair") else {})
        start = begun(base, changes, tmp_path, origins).start
        trainer = Trainer(padded_base(base.model))
        rows = rows_of(start.outputs)
        jobs = [Job(str(i), start, [row], [row], HOW, prefix_of(one.name)) for i, row in enumerate(rows)]
        with trainer.base.running():
            active = [trainer.enter(job, list(one.values.values())) for job in jobs]
            trainer._validate(active)
        unfolded = torch.tensor([member.validations[0][1] for member in active])
        torch.testing.assert_close(folded, unfolded, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(folded, losses(base, start, prefix_of(one.name)), rtol=1e-3), "it moved"


def test_a_free_residual_goes_the_way_of_the_numbers_themselves(base: Base, tmp_path: Path) -> None:
    """AdamW without decay does not know where it began; with decay it is drawn to the origin, and not to zero."""
    make_origin(base, "prompt", tmp_path / "prompt")
    (plain,), (residual,) = (tuned(base, tmp_path, prompt={"residual": over}) for over in (False, True))
    assert plain.trained.losses == pytest.approx(residual.trained.losses, rel=1e-4)
    assert plain.begun.endswith("all its 5 vectors")
    assert "what was learned is added" in residual.begun
    heavy = HOW.model_copy(update={"weight_decay": 20.0, "learning_rate": 1e-2})
    (drawn,) = tuned(base, tmp_path, heavy, prompt={"residual": True})
    origin = load_file(tmp_path / "prompt" / "adapter_model.safetensors")["prompt_embeddings"]
    ended = load_file(drawn.save(tmp_path / "drawn") / "adapter_model.safetensors")["prompt_embeddings"]
    assert (ended - origin).abs().max() < 0.5 * origin.abs().max()


def test_residuals_over_different_adapters_share_a_batch_and_each_is_as_alone(base: Base, tmp_path: Path) -> None:
    tasks = []
    for seed, kind in enumerate(("prompt", "prompt", "lora", "lora")):
        name = f"{kind}-{seed}"
        make_origin(base, kind, tmp_path / name, seed)
        changes = {"init_from": str(tmp_path / name), "residual": True}
        tasks.append(Task(name, ROWS, METHODS[kind].model_copy(update=changes), HOW))
    together = tune(tasks, base)
    for task, among in zip(tasks, together, strict=True):
        (alone,) = tune([task], base)
        assert among.trained.losses == pytest.approx(alone.trained.losses, rel=1e-3)
        assert among.trained.validations[0][0] == 0, "what is begun from another is measured before the first step"


def test_a_run_over_another_origin_is_another_run(base: Base, tmp_path: Path) -> None:
    method = METHODS["prompt"].model_copy(update={"residual": True})
    digests, origins = set(), Origins(base, None)
    for seed in (0, 1):
        make_origin(base, "prompt", tmp_path / "origin", seed)
        start = begun(base, method, tmp_path, origins).start
        job = Job("a", start, rows_of(5), rows_of(5), HOW)
        digests.add(run_digest([job], Trainer(padded_base(base.model)), None))
    assert len(digests) == 2


def test_a_residual_that_was_killed_goes_on_with_the_same_numbers(base: Base, tmp_path: Path) -> None:
    make_origin(base, "prompt", tmp_path / "prompt")
    method = METHODS["prompt"].model_copy(update={"init_from": str(tmp_path / "prompt"), "residual": True})
    task = Task("a", ROWS, method.model_copy(update={"residual_rank": 2}), HOW)
    (whole,) = tune([task], base)

    def stop(_: str, progress: object) -> None:
        if getattr(progress, "step", 0) == 5:
            raise KeyboardInterrupt

    kept = Together(kept=tmp_path / "kept", save_every=3)
    with pytest.raises(KeyboardInterrupt):
        tune([task], base, together=kept, watch=stop)
    seen: list[int] = []
    (again,) = tune([task], base, together=kept, watch=lambda _, progress: seen.append(progress.step))
    assert seen[0] == 4
    assert again.trained == whole.trained
    assert all(value.equal(whole.values[name]) for name, value in again.values.items())


def test_what_is_shorter_is_cut_with_a_word_and_what_is_longer_is_the_tasks_own(base: Base, tmp_path: Path) -> None:
    make_origin(base, "prompt", tmp_path / "origin")
    make_origin(base, "lora", tmp_path / "low")
    theirs, origins = (
        load_file(tmp_path / "origin" / "adapter_model.safetensors")["prompt_embeddings"],
        Origins(base, None),
    )
    for count, words in ((3, "its first 3 of 5 vectors"), (7, "all its 5 vectors in front of 2 of this task's own")):
        method = PromptTuning(kind="prompt_tuning", virtual_tokens=count, init="sampled", init_from="./origin")
        made = begun(base, method, tmp_path, origins)
        vectors = made.start.values()["soft.embedding.weight"]
        assert vectors[:5].equal(theirs[:count])
        assert made.words.endswith(words)
        assert (made.warning is None) == (count == 7)
        table = base.model.get_input_embeddings().weight
        assert all((vector == table).all(1).any() for vector in vectors[5:])
    lora = origins.named("./low", METHODS["lora"], tmp_path).lora
    assert lora is not None
    for rank in (2, 6):
        made = begun(base, Lora(kind="lora", rank=rank, alpha=5, init_from="./low"), tmp_path, origins)
        for name, (a, b) in made.start.low_rank.items():
            layer = lora.layers[name]
            whole = layer.scaling * torch.from_numpy(layer.b) @ torch.from_numpy(layer.a)
            u, sizes, v = torch.linalg.svd(whole, full_matrices=False)
            best = (u[:, :rank] * sizes[:rank]) @ v[:rank]
            torch.testing.assert_close(made.start.scaling * b @ a, best, rtol=1e-3, atol=1e-4)
        assert ("was cut from rank 4 to 2" in (made.warning or "")) == (rank == 2)


def test_vectors_of_p_tuning_and_modules_that_a_lora_has_not_are_begun_with(base: Base, tmp_path: Path) -> None:
    theirs = make_origin(base, "p_tuning_mlp", tmp_path / "origin")
    origins = Origins(base, None)
    made = begun(base, PromptTuning(kind="prompt_tuning", virtual_tokens=3, init_from="./origin"), tmp_path, origins)
    torch.testing.assert_close(losses(base, made.start, 0), peft_losses(theirs, rows_of(3)), rtol=1e-4, atol=1e-4)
    theirs = make_origin(base, "lora", tmp_path / "low")
    wider = Lora(kind="lora", rank=4, alpha=3, init_from="./low", target_modules=["q_proj", "v_proj", "down_proj"])
    for residual in (False, True):
        start = begun(base, wider.model_copy(update={"residual": residual}), tmp_path, origins).start
        assert any("v_proj" in name for name in start.low_rank)
        torch.testing.assert_close(losses(base, start, 0), peft_losses(theirs, rows_of(0)), rtol=1e-4, atol=1e-4)


def test_what_can_not_be_begun_from_is_said_with_what_to_do(base: Base, tmp_path: Path) -> None:
    for kind in ("prompt", "lora"):
        make_origin(base, kind, tmp_path / kind)
    prompt, origins = PromptTuning(kind="prompt_tuning", virtual_tokens=5), Origins(base, None)

    def refused(match: str, name: str) -> None:
        with pytest.raises(InvalidRequest, match=match):
            begun(base, prompt.model_copy(update={"init_from": name}), tmp_path, origins)

    refused(r'lora is lora, and this recipe learns prompt_tuning.*set kind = "lora"', "./lora")
    refused(r"init_from = './none' can't be read: .*no folder", "./none")
    refused(r"neither a task .* nor a folder, which begins with \./", "Mood!")
    refused("looked up in a registry, and none was given: give --url and --key, or --data", "mood@2")
    (tmp_path / "prompt" / "softmux.json").write_text('{"base_fingerprint": "sha256:another"}')
    refused("prompt is no adapter of tiny-base.*made for another base model", "./prompt")
    make_origin(base, "p_tuning_mlp", tmp_path / "placed")
    (tmp_path / "placed" / "softmux.json").write_text('{"template": "{p:2} {text} {p:1}"}')
    refused("placed has its vectors at the places of a template", "./placed")
    config = json.loads((tmp_path / "prompt" / "adapter_config.json").read_text())
    (tmp_path / "prompt" / "softmux.json").unlink()
    (tmp_path / "prompt" / "adapter_config.json").write_text(json.dumps(config | {"token_dim": 576}))
    refused("vectors of 576 numbers", "./prompt")
    few = Lora(kind="lora", rank=4, alpha=3, init_from="./lora", target_modules=["v_proj"])
    with pytest.raises(InvalidRequest, match=r"a LoRA of down_proj, q_proj, .* leave target_modules out"):
        begun(base, few, tmp_path, origins)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "p_tuning", "virtual_tokens": 2, "init_from": "a"}, "p_tuning can't begin from an adapter"),
        ({"kind": "p_tuning_v2", "virtual_tokens": 2, "init_from": "a"}, "p_tuning_v2 can't begin from an adapter"),
        ({"kind": "prompt_tuning", "virtual_tokens": 2, "residual": True}, "residual is over what init_from names"),
        (
            {"kind": "prompt_tuning", "virtual_tokens": 2, "init_from": "a", "residual_rank": 2},
            "residual_rank goes with residual = true",
        ),
        (
            {"kind": "prefix_tuning", "virtual_tokens": 2, "init_from": "a", "projection": True},
            "leave projection out, or set it false",
        ),
    ],
)
def test_a_recipe_that_can_not_be_is_refused(method: dict[str, object], words: str) -> None:
    from pydantic import TypeAdapter

    from softmux.tuning.recipes.recipe import MethodRecipe

    with pytest.raises(ValueError, match=words):
        TypeAdapter(MethodRecipe).validate_python(method)


def test_a_student_begins_by_its_own_init() -> None:
    said = {
        "task": "a",
        "teacher": {"text": "{input}"},
        "inputs": {"generate": 1},
        "method": {"kind": "prompt_tuning", "virtual_tokens": 2, "init_from": "a"},
        "train": {"steps": 1, "learning_rate": 1e-2},
    }
    with pytest.raises(ValueError, match="init_from is of softmux tune"):
        Distillation.model_validate(said)


def test_the_folder_says_what_it_began_from_and_a_start_that_nothing_betters_is_kept(
    base: Base, base_folder: Path, write_recipe: object, tmp_path: Path
) -> None:
    make_origin(base, "prompt", tmp_path / "task" / "origin")
    method = 'kind = "prompt_tuning"\nvirtual_tokens = 4\ninit_from = "./origin"'
    recipe = write_recipe(method, steps=4)  # type: ignore[operator]
    recipe.write_text(recipe.read_text().replace("learning_rate = 0.05", "learning_rate = 1e-9"))
    said = Console(file=io.StringIO(), width=200)
    report = tune_recipe(recipe, tmp_path / "out", "cpu", base=base, console=said, together=Together(save_every=0))
    assert "begun from origin: its last 1 of 5 vectors were cut off" in said.file.getvalue()  # type: ignore[attr-defined]
    digest = parse_adapter(load_folder(tmp_path / "task" / "origin"), describe(str(base_folder), fingerprints=True))
    words = f"origin ({digest.manifest.digest}): its first 4 of 5 vectors"
    assert f"- Begun from: {words}." in (tmp_path / "out" / "README.md").read_text()
    assert words in json.loads((tmp_path / "out" / "softmux.json").read_text())["notes"]
    assert report.trained.validations[0] == (0, pytest.approx(report.trained.best_loss, rel=1e-3))


def test_low_rank_vectors_are_zero_at_first_and_of_their_rank() -> None:
    torch.manual_seed(0)
    made = LowRankVectors(6, 8, 2)
    assert not made(torch.arange(6)).any()
    with torch.no_grad():
        made.b.normal_()
    assert torch.linalg.matrix_rank(made(torch.arange(6))) == 2


def test_a_start_that_can_not_be_made_leaves_no_lora_in_the_base(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(learned: Learned) -> Start:
        raise InvalidRequest("No start.", param="method")

    make_origin(base, "lora", tmp_path / "lora")
    method = METHODS["lora"].model_copy(update={"init_from": "./lora", "rank": 2})
    own = Start(None, 0, False, {}, 1.0)
    task = Beginner("x", method, HOW, tmp_path, lambda shaped: begin(shaped, base), [], 0)  # type: ignore[arg-type]
    monkeypatch.setattr(beginning, "start_of", broken)
    with pytest.raises(InvalidRequest, match=r"No start\."):
        beginning.Beginnings(base, None, Console(quiet=True)).of(task, own)
    assert not any("lora" in name for name, _ in base.model.named_modules())
