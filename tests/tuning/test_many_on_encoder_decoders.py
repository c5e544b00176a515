"""Many tasks at once over a frozen encoder-decoder: each gradient is PEFT's own, whoever is beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from softmux.errors import InvalidRequest
from softmux.tuning.bases.base import Base, as_base
from softmux.tuning.frozen.decoder import prove
from softmux.tuning.frozen.encoder_decoder import FrozenEncoderDecoder, frozen_over
from softmux.tuning.frozen.packing import Packed
from softmux.tuning.learned.methods import Learned, begin, start_of, take_out
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning
from softmux.tuning.training.job import Job
from support.encoder_decoders import ARCHITECTURES
from support.toy_encoder_decoders import CONFIGS, new_base
from support.tuning_jobs import HOW, METHODS, apart, gradients, rows_for


@pytest.fixture(params=CONFIGS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return new_base(request.param, tmp_path)


def fresh(name: str, base: Base) -> Learned:
    """With the modules that PEFT knows. Of a LoRA the second matrix is not zero: every number has a gradient."""
    method = METHODS[name]
    if isinstance(method, Lora | LoraPrefixTuning):
        method = method.model_copy(update={"target_modules": None})
    torch.manual_seed(len(name))
    learned = begin(method, base)
    with torch.no_grad():
        for parameter in learned.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return learned


def job(name: str, base: Base) -> Job:
    learned = fresh(name, base)
    rows = rows_for(learned.layout.virtual_tokens, 6, len(name), base.vocab_size)
    made = Job(name, start_of(learned), rows, rows[:2], HOW, learned.prefix)
    take_out(learned)
    return made


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_gradients_are_pefts_and_the_same_alone_and_among_others(base: Base, checkpointing: bool) -> None:
    jobs = [job(name, base) for name in (METHODS if not checkpointing else ("prompt", "prefix", "pair"))]
    frozen = frozen_over(base, checkpointing=checkpointing)
    among = gradients(frozen, jobs, 150)
    for each in jobs:
        learned = fresh(each.name, base)
        loss = learned.losses(each.rows[:4]).mean()
        loss.backward()
        expected = [parameter.grad for parameter in learned.parameters() if parameter.grad is not None]
        take_out(learned)
        assert len(expected) == len(each.start.values()) == len(among[each.name][1])
        assert among[each.name][0] == pytest.approx(loss.item(), rel=1e-5)
        assert apart(among[each.name][1], expected) < 1e-4
        if not checkpointing:
            alone = gradients(frozen, [each], 10_000)[each.name]
            assert among[each.name][0] == pytest.approx(alone[0], rel=1e-6)
            assert apart(among[each.name][1], alone[1]) < 1e-4


def test_noise_is_on_the_inputs_alone(base: Base) -> None:
    one, noisy = job("prompt", base), HOW.model_copy(update={"noise": 5.0})
    jobs = [one, Job("noisy", one.start, one.rows, one.validation, noisy)]
    found = gradients(frozen_over(base), jobs, 100)
    assert found["noisy"][0] != pytest.approx(found["prompt"][0], rel=1e-4)
    assert gradients(frozen_over(base), jobs[1:], 1000)["noisy"][0] == pytest.approx(found["noisy"][0], rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_rows_are_rows_alone_on_every_architecture_that_is_served(architecture: str) -> None:
    torch.manual_seed(0)
    own = as_base(AutoModelForSeq2SeqLM.from_config(ARCHITECTURES[architecture]()), None, architecture)
    prove(frozen_over(own), own.vocab_size)


def test_a_base_that_gives_padded_rows_other_values_is_refused(base: Base) -> None:
    prove(frozen_over(base), base.vocab_size)

    class Shifts(FrozenEncoderDecoder):
        def _embedded(self, packed: Packed, *rest: object) -> torch.Tensor:
            return super()._embedded(packed, *rest) * 1.1  # type: ignore[arg-type]

    with pytest.raises(InvalidRequest, match="gives other values for packed rows"):
        prove(Shifts(base.model, base.says.begins, 4), base.vocab_size)  # type: ignore[attr-defined]
