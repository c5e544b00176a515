"""Tasks with a head, trained at once: what each becomes is what PEFT's own forward pass makes of it alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as tf

from softmux.errors import InvalidRequest
from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.data.rows import IGNORE, HeadRow
from softmux.tuning.frozen.encoder import FrozenEncoder, padded_encoder, positions_of, prove_encoder
from softmux.tuning.frozen.packing import Place, pack, prepare
from softmux.tuning.frozen.tables import Tables
from softmux.tuning.learned.heads import head_start
from softmux.tuning.training.checkpoint import run_digest, sample
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.training.many import Trainer
from softmux.tuning.training.trainer import mean_loss, train
from support.head_jobs import HOW, KINDS, fresh, head_base, job
from support.headed import ENCODERS
from support.tuning_jobs import apart, check_alone_as_among, gradients

TINY: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 60,
    "pad_token_id": 1,
}


@pytest.fixture(scope="module")
def bert() -> HeadBase:
    return head_base("bert")


def run(frozen: FrozenEncoder, jobs: list[Job]) -> dict[str, Finished]:
    trainer = Trainer(frozen, tokens=200)
    for each in jobs:
        trainer.add(each)
    trainer.run()
    return {ended.name: ended for ended in trainer.finished}


@pytest.mark.parametrize("architecture", [*ENCODERS, "electra-narrow"])
def test_packed_rows_are_rows_alone_on_every_encoder(architecture: str) -> None:
    narrow = architecture == "electra-narrow"
    base = head_base("electra", embedding_size=24) if narrow else head_base(architecture)
    frozen = FrozenEncoder(base.model)
    prove_encoder(frozen, base.vocab_size)
    offset = base.model.config.pad_token_id + 1 if "roberta" in architecture else 0
    assert positions_of(base.model) == (offset, 130 - offset)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tf.AlbertConfig, "AlbertModel takes no prefix"),
        (tf.EsmConfig, "EsmModel does not number its positions in order"),
        (tf.RoFormerConfig, "RoFormerModel numbers its positions in a way that softmux does not know"),
        (tf.MPNetConfig, "MPNetModel gives other values for packed rows"),
        (tf.XmodConfig, "XmodModel does not run on rows as softmux gives them .Input language unknown"),
        (tf.LongformerConfig, "LongformerModel does not run on rows as softmux gives them"),
        (tf.MraConfig, "MraModel does not run on rows as softmux gives them .shape"),
        (tf.ModernBertConfig, "ModernBertModel gives other values for packed rows"),
    ],
)
def test_an_encoder_that_can_not_run_packed_is_refused(config: Any, words: str) -> None:
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(config(**TINY)).eval()
    with pytest.raises(InvalidRequest, match=words):
        prove_encoder(FrozenEncoder(model), 90)


@torch.no_grad()
def test_windows_reach_both_ways_in_packed_rows() -> None:
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(tf.ModernBertConfig(**TINY, local_attention=4)).eval()
    frozen = FrozenEncoder(model)
    rows = [torch.randint(0, 90, (length,)).tolist() for length in (17, 2, 9)]
    with frozen.running():
        packed = pack(
            [(prepare(HeadRow(tuple(ids), (0,) * len(ids)), 0, 0.0), Place(0)) for ids in rows], frozen.device
        )
        found = frozen.states(packed, Tables())
    alone = torch.cat([model(input_ids=torch.tensor([ids]))[0][0] for ids in rows])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_gradients_are_those_that_peft_computes(architecture: str) -> None:
    base = head_base(architecture)
    poolers = getattr(base.classifier("sequence", 2).base_model, "pooler", None) is not None
    jobs = [job(kind, kind, base, 5) for kind in KINDS if kind != "pooler" or poolers]
    assert poolers == (architecture == "bert"), "the others' heads have a layer of their own"
    among = gradients(FrozenEncoder(base.model), jobs, 60)
    for each in jobs:
        learned = fresh(each.name, base, 5)
        loss = learned.losses(each.rows[:4]).mean()  # type: ignore[arg-type]
        loss.backward()
        start = head_start(learned, 1)
        assert start.soft is not None
        assert start.head is not None
        expected = [parameter.grad for parameter in (*start.soft.parameters(), *dict(start.head.values()).values())]
        assert sum(parameter.grad is not None for parameter in learned.parameters()) == len(expected)
        assert among[each.name][0] == pytest.approx(loss.item(), rel=1e-5)
        assert apart(among[each.name][1], [gradient for gradient in expected if gradient is not None]) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_gradients_are_the_same_alone_and_among_15(bert: HeadBase, checkpointing: bool) -> None:
    kinds = list(KINDS)
    jobs = [job(f"{i}", kinds[i % len(kinds)], bert, i) for i in range(15)]
    frozen = FrozenEncoder(bert.model, checkpointing=checkpointing)
    check_alone_as_among(frozen, jobs, jobs[:: 1 if not checkpointing else 6])


@pytest.mark.parametrize(
    ("architecture", "kind"), [("bert", "projected"), ("bert", "token"), ("bert", "pooler"), ("roberta", "sequence")]
)
def test_a_task_becomes_what_pefts_padded_training_makes_of_it(architecture: str, kind: str) -> None:
    base = head_base(architecture)
    balanced = {"steps": 20, "weight_decay": 0.1, "clip_norm": 0.5, "validate_every": 5, "balance": True}
    how = HOW.model_copy(update=balanced | {"like_lengths": kind == "token"})
    own = job("own", kind, base, 3, how)
    short = HOW.model_copy(update={"steps": 5})
    others = [job(other, other, base, seed, short) for seed, other in enumerate(("projected", "token"))]
    among = run(FrozenEncoder(base.model), [others[0], own, others[1]])["own"]
    learned = fresh(kind, base, 3)
    plain = train(learned, own.rows, own.validation, own.how)  # type: ignore[type-var]
    assert among.trained.losses == pytest.approx(plain.losses, rel=1e-3)
    assert among.trained.best_step == plain.best_step
    assert among.trained.best_loss == pytest.approx(plain.best_loss, rel=1e-3)
    assert among.trained.best_loss == pytest.approx(mean_loss(learned, own.validation), rel=1e-3)


def test_a_task_that_breaks_leaves_and_its_neighbours_do_not_notice(bert: HeadBase) -> None:
    how = HOW.model_copy(update={"steps": 4})
    wanted = {"good": "sequence", "bad": "sequence", "good-too": "token"}
    jobs = [job(name, kind, bert, seed, how) for seed, (name, kind) in enumerate(wanted.items())]
    for value in jobs[1].start.values().values():
        value.fill_(math.nan)
    ended = run(FrozenEncoder(bert.model), jobs)
    assert ended["bad"].error == "The loss is nan at step 1: lower train.learning_rate."
    for each in (jobs[0], jobs[2]):
        alone = run(FrozenEncoder(bert.model), [each])[each.name]
        assert ended[each.name].error is None
        assert ended[each.name].trained.losses == pytest.approx(alone.trained.losses, rel=1e-4)
        assert ended[each.name].trained.exact == alone.trained.exact


def test_in_bfloat16_the_losses_are_near_and_heads_stay_in_float32(bert: HeadBase) -> None:
    each = [job(kind, kind, bert, 1) for kind in KINDS]
    whole = gradients(FrozenEncoder(bert.model), each, 500)
    half = FrozenEncoder(head_base("bert").model.to(torch.bfloat16))
    prove_encoder(half, bert.vocab_size)
    for name, (loss, found) in gradients(half, each, 500).items():
        assert loss == pytest.approx(whole[name][0], rel=0.1)
        assert {gradient.dtype for gradient in found} == {torch.float32}


def test_noise_is_drawn_on_a_heads_input_too(bert: HeadBase) -> None:
    noisy = HOW.model_copy(update={"noise": 5.0})
    jobs = [job("noisy", "token", bert, 0, noisy), job("plain", "token", bert, 0)]
    frozen = FrozenEncoder(bert.model)
    among, alone = gradients(frozen, jobs, 100), gradients(frozen, jobs[:1], 1000)
    assert among["noisy"][0] == pytest.approx(alone["noisy"][0], rel=1e-6)
    assert among["noisy"][0] != pytest.approx(among["plain"][0], rel=1e-4)


def test_a_label_is_at_its_token_and_a_sequences_at_its_first() -> None:
    token = prepare(HeadRow((2, 9, 8, 3), (IGNORE, 1, 0, IGNORE)), 0, 0.5)
    assert (token.ids.tolist(), token.kept.tolist()) == ([2, 9, 8, 3], [0, 1, 1, 0])
    assert token.labels is not None
    assert token.labels.tolist() == [IGNORE, 1, 0, IGNORE]
    sequence = prepare(HeadRow((2, 9, 3), (4,)), 0, 0.5)
    assert sequence.labels is not None
    assert (sequence.kept.tolist(), sequence.labels.tolist()) == ([1, 0, 0], [4, IGNORE, IGNORE])


def test_a_row_without_a_label_is_no_reason_to_fail(bert: HeadBase) -> None:
    one = job("one", "token", bert, 0)
    bare = HeadRow((5, 6, 7), (IGNORE,) * 3)
    trainer = Trainer(FrozenEncoder(bert.model), tokens=3)
    with trainer.base.running():
        trainer.enter(one)
        both = trainer.gradients([[prepare(row, 0, 0.0) for row in (bare, one.rows[0])]])
        alone = trainer.gradients([[prepare(one.rows[0], 0, 0.0)]])
    assert both.tolist() == pytest.approx(alone.tolist())


def test_a_lack_of_memory_is_not_taken_for_an_encoder_that_can_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head_base("bert").model

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        positions_of(model)


@torch.no_grad()
@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.bias"])
def test_a_run_over_another_fine_tune_of_the_same_checkpoint_is_another_run(name: str) -> None:
    """Which may differ in one number alone, far from the first ones; the same numbers are the same run."""
    first, same, other = (head_base("bert") for _ in range(3))
    other.model.get_parameter(name).flatten()[-3] += 1e-6
    digests = [
        run_digest([job("a", "token", first, 0)], Trainer(padded_encoder(base.model)), None)
        for base in (first, same, other)
    ]
    assert digests[0] == digests[1] != digests[2]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sample_sees_any_number_of_any_parameter(dtype: torch.dtype) -> None:
    """In parameters of every length from 1, and one that begins within another's memory, so that its bits do not lie
    as whole numbers do."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    for length in (*range(1, 12), 100):
        setattr(model, f"of_{length}", torch.nn.Parameter(torch.randn(length).to(dtype)))
    model.within = torch.nn.Parameter(torch.randn(103).to(dtype)[1:])
    whole = sample(model)
    for parameter in model.parameters():
        for i in range(len(parameter)):
            was = parameter[i].clone()
            parameter[i] += 0.25
            assert sample(model) != whole
            parameter[i] = was
    assert sample(model) == whole
