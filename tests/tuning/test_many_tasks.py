"""What a task becomes does not depend on its neighbours."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from softmux.errors import InvalidRequest
from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.evaluate import continued, likeliest
from softmux.tuning.frozen.decoder import FrozenBase, padded_base, prove
from softmux.tuning.frozen.packing import prepare
from softmux.tuning.learned.methods import start_of, take_out
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.training.many import Trainer
from softmux.tuning.training.trainer import train
from support.models import ARCHITECTURES
from support.tuning_jobs import HOW, METHODS, apart, check_alone_as_among, fresh, gradients, job, rows_for

KINDS = list(METHODS)


def run(frozen: FrozenBase, jobs: list[Job], at_once: int = 64, tokens: int = 200) -> dict[str, Finished]:
    trainer = Trainer(frozen, tokens=tokens, at_once=at_once)
    for each in jobs:
        trainer.add(each)
    trainer.run()
    return {ended.name: ended for ended in trainer.finished}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_gradients_are_the_same_alone_and_among_64(base: Base, checkpointing: bool) -> None:
    jobs = [job(f"{i}", KINDS[i % len(KINDS)], base, i) for i in range(64)]
    frozen = FrozenBase(base.model, checkpointing=checkpointing)
    check_alone_as_among(frozen, jobs, jobs[:: 1 if not checkpointing else 9])


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_that_peft_computes(method: str, base: Base) -> None:
    each = job("x", method, base, 5)
    learned = fresh(method, base, 5)
    loss = learned.losses(each.rows[:4]).mean()
    loss.backward()
    expected = [parameter.grad for parameter in learned.parameters()]
    bare = LlamaForCausalLM(base.model.config)
    bare.load_state_dict(
        {n.replace(".base_layer", ""): v for n, v in base.model.state_dict().items() if "lora_" not in n}
    )
    mine = gradients(FrozenBase(bare), [each], 60)["x"]
    assert mine[0] == pytest.approx(loss.item(), rel=1e-6)
    assert apart(mine[1], [gradient for gradient in expected if gradient is not None]) < 1e-5


def test_fifty_steps_are_those_of_the_task_alone_and_of_plain_adamw(base: Base) -> None:
    how = HOW.model_copy(update={"steps": 50, "weight_decay": 0.1, "clip_norm": 0.5})
    chosen = ("prompt", "mlp", "prefix-projected", "lora")
    jobs = [job(name, name, base, KINDS.index(name), how) for name in chosen]
    frozen = FrozenBase(base.model)
    among = run(frozen, jobs)
    for name in ("prompt", "prefix-projected"):
        alone = run(frozen, [next(each for each in jobs if each.name == name)])[name]
        assert alone.trained.losses == pytest.approx(among[name].trained.losses, rel=1e-2)
        assert alone.trained.best_step == among[name].trained.best_step
        own = next(each for each in jobs if each.name == name)
        plain = train(fresh(name, base, KINDS.index(name)), own.rows, own.validation, own.how)
        assert plain.losses == pytest.approx(alone.trained.losses, rel=1e-2)
        assert plain.best_loss == pytest.approx(alone.trained.best_loss, rel=1e-2)


def test_tasks_come_in_as_others_leave_and_each_ends_as_it_would_alone(base: Base) -> None:
    steps = (3, 12, 7, 5, 9, 4)
    jobs = [
        job(f"{i}", KINDS[i % 3], base, i, HOW.model_copy(update={"steps": count})) for i, count in enumerate(steps)
    ]
    frozen = FrozenBase(base.model)
    trainer = Trainer(frozen, at_once=2)
    for each in jobs:
        trainer.add(each)
    most = []
    trainer.run(after=lambda: most.append(len(trainer.active)))
    assert max(most) == 2
    ended = {each.name: each for each in trainer.finished}
    assert [len(ended[f"{i}"].trained.losses) for i in range(6)] == list(steps)
    for each in jobs:
        alone = run(frozen, [each])[each.name]
        assert apart(list(alone.values.values()), list(ended[each.name].values.values())) < 1e-3


def test_a_task_that_breaks_leaves_and_its_neighbours_do_not_notice(base: Base) -> None:
    jobs = [job("good", "prompt", base, 0), job("bad", "prompt", base, 1), job("good-too", "lora", base, 2)]
    for value in jobs[1].start.values().values():
        value.fill_(math.nan)
    ended = run(FrozenBase(base.model), jobs)
    assert ended["bad"].error == "The loss is nan at step 1: lower train.learning_rate."
    for each in (jobs[0], jobs[2]):
        alone = run(FrozenBase(base.model), [each])[each.name]
        assert ended[each.name].error is None
        assert ended[each.name].trained.losses == pytest.approx(alone.trained.losses, rel=1e-3)


def test_a_task_stops_early_by_its_own_patience(base: Base) -> None:
    stuck = HOW.model_copy(update={"learning_rate": 1e-12, "patience": 2, "steps": 100})
    ended = run(FrozenBase(base.model), [job("stuck", "prompt", base, 0, stuck), job("runs", "prompt", base, 1)])
    assert len(ended["runs"].trained.losses) == 12
    assert len(ended["stuck"].trained.losses) < 100


def test_dampening_weighs_the_inputs_own_tokens(base: Base) -> None:
    row = Row((-1, -2, 5, 6, 7), (8, 9))
    assert prepare(row, 0, 0.25).kept.tolist() == [0, 0, 0.25, 0.25, 0.25, 1, 1]
    assert prepare(Row((-1, 5, 6), (8,)), 1, 0.25).kept.tolist() == [0, 0.25, 1]  # nothing comes before the first
    jobs = [job(f"{d}", "prompt", base, 3, HOW.model_copy(update={"dampening": d})) for d in (0.0, 0.25)]
    found = gradients(FrozenBase(base.model), jobs, 1000)
    vectors = next(iter(jobs[0].start.values().values()))
    total = weight = 0.0
    with torch.no_grad():
        for row in jobs[0].rows[:4]:
            ids = torch.tensor([*row.ids, *row.answer])
            embeddings = base.model.get_input_embeddings()(ids.clamp(min=0))
            embeddings[:4] = vectors
            losses = -base.model(inputs_embeds=embeddings[None]).logits[0].log_softmax(-1)
            for at in range(4, len(ids)):
                share = 1.0 if at >= len(row.ids) else 0.25
                total += share * float(losses[at - 1, ids[at]])
                weight += share
    assert found["0.25"][0] == pytest.approx(total / weight, rel=1e-5)
    assert found["0.0"][0] != pytest.approx(found["0.25"][0], rel=1e-3)


def test_noise_is_the_tasks_own(base: Base) -> None:
    noisy = HOW.model_copy(update={"noise": 5.0})
    jobs = [job("noisy", "prompt", base, 0, noisy), job("plain", "prompt", base, 0)]
    frozen = FrozenBase(base.model)
    among, alone = gradients(frozen, jobs, 100), gradients(frozen, jobs[:1], 1000)
    assert among["noisy"][0] == pytest.approx(alone["noisy"][0], rel=1e-6)
    assert among["noisy"][0] != pytest.approx(among["plain"][0], rel=1e-4)


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen3", "gpt2", "opt", "gpt_neox", "phi3", "gemma2", "gemma3"]
)
def test_packed_rows_are_rows_alone_on_every_architecture(architecture: str, tmp_path: object) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    prove(FrozenBase(model), 90)


def test_norms_are_fused_where_they_are_plain_and_given_back(base: Base) -> None:
    gemma = AutoModelForCausalLM.from_config(ARCHITECTURES["gemma2"]())
    for model, expected in ((base.model, 5), (gemma, 0)):
        with FrozenBase(model).running():
            assert sum("forward" in vars(module) for module in model.modules()) == expected
        assert not any("forward" in vars(module) for module in model.modules())


def test_a_base_whose_attention_is_its_own_is_refused(base: Base) -> None:
    class Skips(FrozenBase):
        def _attend(self, module, query, *rest, **named):  # type: ignore[no-untyped-def]
            return query.transpose(1, 2), None

    with pytest.raises(InvalidRequest, match="LlamaForCausalLM gives other values for packed rows"):
        prove(Skips(base.model), base.vocab_size)


def test_rows_are_exact_where_greedy_decoding_says_their_answer(base: Base) -> None:
    """Each answer is the base's own, token for token, but for one token of some."""
    jobs, meant = [], []
    for name, wrong in (("prompt", 2), ("prefix", 0), ("prompt-longer", 6)):
        learned = fresh(name, base, seed=3)
        rows = rows_for(learned.layout.virtual_tokens, 6, 3, base.vocab_size)
        said = continued(base, learned, rows, 4, likeliest)
        answers = [answer if at >= wrong else (*answer[:-1], answer[-1] ^ 1) for at, answer in enumerate(said)]
        checks = [Row(row.ids, answer) for row, answer in zip(rows, answers, strict=True)]
        jobs.append(Job(name, start_of(learned), checks, checks, HOW, learned.prefix, measures_start=True))
        take_out(learned)
        meant.append((6 - wrong) / 6)
    trainer = Trainer(padded_base(base.model))
    with trainer.base.running():
        active = [trainer.enter(one) for one in jobs]
        trainer.step()
    assert [(one.validations[0][0], one.exact[0]) for one in active] == [(0, share) for share in meant]


def test_a_step_that_runs_out_of_memory_is_made_again_as_if_nothing_had_been(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With activations computed again in the backward, LoRAs are still in the base when it fails."""
    one = job("one", "lora", base, 0)

    def gradients_of(fails: int) -> list[torch.Tensor]:
        trainer = Trainer(FrozenBase(base.model, checkpointing=True), tokens=2048)
        active = trainer.enter(one)
        plain, left = torch.Tensor.backward, [fails]

        def backward(tensor: torch.Tensor) -> None:
            if left[0]:
                left[0] -= 1
                raise torch.cuda.OutOfMemoryError
            plain(tensor)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        with trainer.base.running():
            trainer.gradients([[prepare(row, 0, 0.0) for row in one.rows[:4]]])
        monkeypatch.undo()
        return [value.grad for value in active.cohort.values if value.grad is not None]

    for clean, retried in zip(gradients_of(0), gradients_of(1), strict=True):
        torch.testing.assert_close(retried, clean)
    hooks = [module for module in base.model.modules() if module._forward_hooks]
    assert not hooks, "and nothing of it stays in the base"


def test_nothing_keeps_what_was_trained_on(base_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base_folder)
    frozen = FrozenBase(model)
    gone = weakref.ref(frozen), weakref.ref(model)
    with frozen.running():
        pass
    del frozen, model
    gc.collect()
    assert [held() for held in gone] == [None, None]
