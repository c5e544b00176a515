"""A model over two and over four processes against the same model in one: token for token, in fp32."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers as tf
from test_heads import read
from test_lora_parity import trained_tokens

from softmux.engine.parallel.sharded import ShardedModel
from support import headed
from support.engines import Finished, TestEngine
from support.loras import linear_names, make_lora, make_pair
from support.models import ARCHITECTURES, VOCABULARY, make_adapter, make_base
from support.ranks import RanksEngine

NEW_TOKENS = 8
REQUESTS = 30
CLOSE = 1e-4
"""Two log probabilities nearer than this are a tie, which sums in another order may decide otherwise."""


ZOO = ("prompt", "p-tuning", "prefix", "lora", "lora-rows", "lora-all", "lora+prompt", "lora+prefix", "tokens")


def make_zoo(base: Any, folder: Path) -> None:
    """Folders of adapters of every method, by these names."""
    names = linear_names(base)
    make_adapter(base, "prompt_tuning", folder / "prompt", seed=1)
    make_adapter(base, "p_tuning_lstm", folder / "p-tuning", seed=2)
    make_adapter(base, "prefix_tuning", folder / "prefix", seed=3)
    make_lora(base, folder / "lora", 4, target_modules=names)
    make_lora(base, folder / "lora-rows", 5, r=3, target_modules=["o_proj", "down_proj"])
    make_lora(base, folder / "lora-all", 6, r=16, lora_alpha=4, target_modules="all-linear")
    make_pair(base, "prompt_tuning", folder / "lora+prompt", 7, r=2, target_modules=names)
    make_pair(base, "prefix_tuning", folder / "lora+prefix", 8, r=2, target_modules=names[:2])
    trained_tokens(base, folder / "tokens")


def told(engine: TestEngine, folder: Path, *, quiet: int) -> list[Finished]:
    """What a mixed load brings, cold and once more from the caches; every fourth request draws its tokens. Every
    `quiet`-th tells no log probabilities, as most do."""
    adapters = {name: engine.adapter(folder / name) for name in ZOO}
    heard = []
    for _ in range(2):
        draw = random.Random("parity")
        asked = []
        for number in range(REQUESTS):
            name = [None, *ZOO][number % (len(ZOO) + 1)]
            ids = [draw.randrange(3, VOCABULARY - 1) for _ in range(draw.randint(1, 20))]
            root, virtual = adapters[name] if name else (None, 0)
            how: dict[str, Any] = {"temperature": 1.0, "seed": number, "top_p": 0.9} if number % 4 == 3 else {}
            how |= {"repetition_penalty": 1.2} if number % 7 == 5 else {}
            how["logprobs"] = 2 if (number + 1) % quiet else None
            asked.append(engine.add(ids, root, virtual, max_tokens=NEW_TOKENS, ignore_eos=True, **how))
        engine.run()
        heard += [engine.done[request] for request in asked]
    return heard


def certain(alone: Finished) -> int:
    """How many of a request's tokens come before the first that rounding may change."""
    for place, said in enumerate(alone.logprobs):
        first, second = said.top_logprobs
        if first - second < CLOSE:
            return place
    return len(alone.tokens)


def check_same(base: Any, folder: Path, *sizes: int, device: str = "cpu") -> None:
    make_zoo(base, folder)
    one = TestEngine(folder / "base", device=device)
    alone = told(one, folder, quiet=REQUESTS + 1)
    spec = one.engine.spec
    one.close()
    for size in sizes:
        ranks = RanksEngine(folder / "base", folder, size, device=device)
        assert isinstance(ranks.engine.model, ShardedModel)
        assert not any(weight.is_inference() for weight in ranks.engine.model.module.parameters()), "can't be merged"
        assert ranks.engine.runner.ways.fallbacks == dict.fromkeys(ranks.engine.runner.ways.fallbacks, 0)
        assert ranks.engine.spec.base_fingerprint == spec.base_fingerprint
        own, whole = ({each.name: each for each in linears} for linears in (ranks.engine.spec.linears, spec.linears))
        assert own.keys() == whole.keys()
        for name, linear in own.items():  # a part's numbers are like the whole's
            assert linear.scale == pytest.approx(whole[name].scale, rel=0.2)
            assert msgspec.structs.replace(linear, scale=whole[name].scale) == whole[name]
        assert ranks.engine.spec.layers == spec.layers
        compared = 0
        for number, (mine, theirs) in enumerate(zip(told(ranks, folder, quiet=3), alone, strict=True)):
            assert mine.error is None
            known = certain(theirs)
            assert mine.tokens[:known] == theirs.tokens[:known], f"{size} processes, request {number}"
            for said, expected in zip(mine.logprobs[:known], theirs.logprobs, strict=False):
                assert said.chosen == pytest.approx(expected.chosen, abs=5e-4)
            compared += known
        ranks.close()
        assert compared > 1.5 * REQUESTS * NEW_TOKENS, "ties leave too little for this to be a test"


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_two_and_four_processes_choose_the_tokens_that_one_does(architecture: str, tmp_path: Path) -> None:
    check_same(make_base(architecture, tmp_path / "base"), tmp_path, 2, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_two_gpus_choose_the_tokens_that_one_does(architecture: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs; the processes of the test above run everywhere")
    check_same(make_base(architecture, tmp_path / "base"), tmp_path, 2, device="cuda")


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "gemma2"])
def test_so_they_do_on_the_other_architectures_that_are_known(architecture: str, tmp_path: Path) -> None:
    check_same(make_base(architecture, tmp_path / "base"), tmp_path, 2, 4)


def test_a_tied_and_uneven_output_and_biases_are_dealt_out(tmp_path: Path) -> None:
    config: Any = ARCHITECTURES["llama"]()
    config.vocab_size, config.tie_word_embeddings, config.attention_bias = VOCABULARY - 1, True, True
    torch.manual_seed(0)
    base = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter.mul_(6.0) if parameter.dim() > 1 else None
            torch.nn.init.normal_(parameter, std=0.3) if name.endswith("bias") else None
    base.save_pretrained(tmp_path / "base")
    check_same(base, tmp_path, 2)


def test_the_first_rank_reads_heads_and_likelihoods(tmp_path: Path) -> None:
    base = headed.make_base("llama", tmp_path / "base")
    model = headed.tuned(base, "llama", "SEQ_CLS", "prompt", 4, tmp_path / "head")
    headed.tuned(base, "llama", "TOKEN_CLS", "lora", 2, tmp_path / "tokens")
    ids = [5, 6, 7, 30, 31]
    heard = []
    for engine in (TestEngine(tmp_path / "base"), RanksEngine(tmp_path / "base", tmp_path, 2)):
        names = [
            read(engine, tmp_path / "head", ids),
            read(engine, tmp_path / "tokens", ids),
            engine.read(ids, scored=2),
        ]
        names.append(engine.add(ids, max_tokens=4, ignore_eos=True))
        engine.run()
        assert all(engine.done[name].error is None for name in names)
        heard.append([np.frombuffer(engine.done[name].scores, np.float32) for name in names])
        engine.close()
    for alone, ranks in zip(*heard, strict=True):
        np.testing.assert_allclose(ranks, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(heard[1][0], headed.reference(model, ids, "SEQ_CLS")[0], rtol=1e-4, atol=1e-4)
