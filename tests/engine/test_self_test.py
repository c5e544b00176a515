"""The self-test finds a wrong mask, a wrong position and a model that packing breaks; nothing of that is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from softmux.engine.attention.base import PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.engine import Engine, pick_device
from softmux.engine.packed import PackedModel
from softmux.engine.selftest import self_test
from softmux.errors import SelfTestFailed
from softmux.settings import Settings
from support.engines import TestEngine
from support.headed import make_base as make_encoder

SMALL: dict[str, Callable[[], Any]] = {
    "bloom": lambda: tf.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: tf.MptConfig(vocab_size=96, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "falcon-alibi": lambda: tf.FalconConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "gptj": lambda: tf.GPTJConfig(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
}


_ENCODER = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize("architecture", SMALL)
def test_models_that_do_not_survive_packing_are_refused_in_words(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(SMALL[architecture]()).save_pretrained(tmp_path)
    with pytest.raises(SelfTestFailed, match=r"softmux|packed"):
        TestEngine(tmp_path)


def test_layers_of_different_heads_are_refused_in_words(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = PackedModel._attend

    def halved(self: PackedModel, module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        heads = slice(None) if module.layer_idx else slice(0, 1)
        return attend(self, module, query, key[:, heads], value[:, heads], *rest, **more)

    monkeypatch.setattr(PackedModel, "_attend", halved)
    with pytest.raises(SelfTestFailed, match="differ in shape"):
        TestEngine(base_folder)


class SeesOneTooMany(TorchAttention):
    """Its mask lets a token see the next."""

    def begin(self, rows: PackedRows) -> None:
        super().begin(rows)
        for group in self._groups:
            group.query_positions = group.query_positions + 1


class SeesOneTooFew(TorchAttention):
    """Its mask hides a token's own key, but for the first."""

    def begin(self, rows: PackedRows) -> None:
        super().begin(rows)
        for group in self._groups:
            group.query_positions = (group.query_positions - 1).clamp(min=0)


class ForgetsTheFirst(TorchAttention):
    """Reads the second slot of a row where the first belongs."""

    def begin(self, rows: PackedRows) -> None:
        table = rows.table.clone()
        table[:, 0] = table[:, 1]
        rows.table = table
        super().begin(rows)


class SeesAnotherWindow(TorchAttention):
    """By how far a key is behind a token: whether that is seen, in place of the window."""

    sees: Callable[[torch.Tensor], torch.Tensor]

    def begin(self, rows: PackedRows) -> None:
        super().begin(rows)
        for group in self._groups:
            key = torch.arange(group.keys)
            seen = self.sees(group.query_positions[:, :, None] - key) & (key < group.lengths[:, None, None])
            group.masks[5] = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]


def test_an_encoders_window_that_is_another_is_caught(tmp_path: Path) -> None:
    make_encoder("modernbert", tmp_path)
    engine = TestEngine(tmp_path)
    runner = engine.engine.runner
    assert runner.model.windows == {5}
    broken = SeesAnotherWindow(runner.pool)
    runner.backend = broken
    runner.model.use(broken)
    broken.sees = lambda behind: behind.abs() < 5
    self_test(runner, engine.engine.spec)
    for sees in (lambda behind: behind < 5, lambda behind: behind.abs() < 6, lambda behind: behind.abs() < 4):
        broken.sees = sees
        with pytest.raises(SelfTestFailed, match="differs from the eager module by"):
            self_test(runner, engine.engine.spec)
    engine.close()


OTHER_ENCODERS: dict[str, Callable[[], Any]] = {
    "deberta-v2": lambda: tf.DebertaV2Config(**_ENCODER, pad_token_id=0),
    "eurobert": lambda: tf.EuroBertConfig(**_ENCODER, num_key_value_heads=4, pad_token_id=0),
}


@pytest.mark.parametrize("architecture", OTHER_ENCODERS)
def test_encoders_whose_attention_or_heads_are_not_known_are_refused_in_words(
    architecture: str, tmp_path: Path
) -> None:
    tf.AutoModel.from_config(OTHER_ENCODERS[architecture]()).save_pretrained(tmp_path)
    with pytest.raises(SelfTestFailed, match="softmux"):
        TestEngine(tmp_path)


@pytest.mark.parametrize("broken", [SeesOneTooMany, SeesOneTooFew, ForgetsTheFirst])
def test_a_backend_that_is_off_by_one_is_caught(broken: type[TorchAttention], base_folder: Path) -> None:
    engine = TestEngine(base_folder)
    runner = engine.engine.runner
    self_test(runner, engine.engine.spec)
    runner.backend = broken(runner.pool)
    runner.model.use(runner.backend)
    with pytest.raises(SelfTestFailed, match="differs from the eager module by"):
        self_test(runner, engine.engine.spec)
    engine.close()


def test_positions_that_are_off_by_one_in_decoding_are_caught(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PackedModel.forward

    def shifted(
        self: PackedModel, embeddings: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor, rows: PackedRows
    ) -> torch.Tensor:
        late = torch.tensor([start > 0 for start, n in zip(rows.starts, rows.counts, strict=True) for _ in range(n)])
        return forward(self, embeddings, positions + late, wanted, rows)

    monkeypatch.setattr(PackedModel, "forward", shifted)
    with pytest.raises(SelfTestFailed, match="differs"):
        TestEngine(base_folder)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_the_smallest_server_starts(base_folder: Path, rows: int, budget: int) -> None:
    engine = TestEngine(base_folder, max_rows=rows, host_cache_bytes=budget, kv_tokens=64, context_length=16)
    engine.engine.check_integrity()
    assert engine.engine.tiers.resident == 0, "the self-test leaves nothing behind"
    assert engine.engine.runner.vocabulary.resident == 0
    engine.close()


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SelfTestFailed, match=r"--device cuda, and .*--device cpu runs without"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


def test_a_deep_model_that_makes_much_of_a_last_bit_is_served() -> None:
    config = tf.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=24, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
    settings = Settings(model="deep", device="cpu", kv_tokens=256, kv_cache_dtype="fp8")
    engine = Engine(settings, lambda key: {}, model=PackedModel(module, None, "deep"))
    assert "lora" in engine.spec.serves
    engine.close()
