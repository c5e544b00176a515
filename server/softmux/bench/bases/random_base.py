"""Bases of known shapes with random weights, made on the device and nowhere else: by one process, or by several."""

from __future__ import annotations

import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import msgspec
import torch

from softmux.engine.engine import Engine, pick_device, pick_dtype
from softmux.engine.fp8 import Fp8Linear, swap_linears
from softmux.engine.packed import PackedModel
from softmux.engine.parallel.cut import Part
from softmux.engine.parallel.ranks import Ranks
from softmux.engine.parallel.sharded import ShardedModel
from softmux.engine.parallel.together import lead, meet
from softmux.settings import Settings
from softmux.worker.config import RankConfig
from softmux.worker.crew import Crew, Process, start_rank
from softmux.worker.rank import serve

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
    "1b": {  # Llama-3.2-1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8b": {  # Llama-3.1-8B
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "70b": {  # Llama-3.1-70B
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
_NAMED = "random:"


def config_of(shape: str, context: int = 4096) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=1,
        eos_token_id=2,
    )


def random_model(
    shape: str, dtype: torch.dtype, device: torch.device, quantization: str = "auto", context: int = 4096
) -> PackedModel:
    """Random weights on `device`, for texts of `context` tokens. In fp8 they are made and quantised one at a time, so
    that a model fits whose weights in half precision would not."""
    from transformers import AutoModelForCausalLM

    config = config_of(shape, context)
    torch.manual_seed(0)
    packed = quantization == "fp8"
    with torch.device("meta") if packed else device:
        module: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    if packed:
        _fill(module, config, dtype, device)
    return PackedModel(module, None, f"random-{shape}")


@torch.inference_mode()
def _fill(module: Any, config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Gives a Llama on the meta device fp8 linear layers and weights, drawn as `from_config` draws them."""

    spread = float(config.initializer_range)

    def drawn(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device) * spread

    swap_linears(module)
    for layer in module.modules():
        if isinstance(layer, Fp8Linear):
            layer.hold(layer.quantise(drawn(layer.weight.shape)))
        else:
            for name, parameter in list(layer.named_parameters(recurse=False)):
                made = drawn(parameter.shape) if parameter.dim() > 1 else torch.ones_like(parameter, device=device)
                setattr(layer, name, torch.nn.Parameter(made, requires_grad=False))
    module.tie_weights()
    with device:
        module.model.rotary_emb = type(module.model.rotary_emb)(config)


class _Drawn:
    """Weights of a Llama drawn as they are asked for: what several ranks ask for in full is the same for all."""

    def __init__(self, config: Any, ranks: Ranks, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(config)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        self._spread, self._device, self._dtype = float(config.initializer_range), ranks.device, dtype

    def __call__(self, name: str, part: Part | None) -> torch.Tensor:
        shape = list(self._shapes[name])
        if len(shape) == 1:
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        if part is not None:
            shape[part.dim] = part.end - part.begin
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()) + (part.begin if part else 0))
        return torch.randn(shape, dtype=self._dtype, device=self._device, generator=generator) * self._spread


def _sharded(settings: Settings, ranks: Ranks) -> ShardedModel:
    shape, dtype = settings.model.removeprefix(_NAMED), pick_dtype(settings.dtype, ranks.device)
    config = config_of(shape)
    weights = _Drawn(config, ranks, dtype)
    return ShardedModel.made(config, ranks, weights, dtype=dtype, folder=None, model_id=f"random-{shape}")


def random_engine(shape: str, settings: Settings) -> tuple[Engine, Crew | None]:
    """An engine over random weights, with the other processes where `tensor_parallel` asks for such."""
    if settings.tensor_parallel == 1:
        device = pick_device(settings.device)
        model = random_model(shape, pick_dtype(settings.dtype, device), device, settings.quantization)
        return Engine(settings, lambda key: {}, model=model), None
    settings = settings.model_copy(update={"model": _NAMED + shape})
    crew = Crew(
        settings.tensor_parallel, Path(tempfile.mkdtemp(prefix="softmux-bench-")),
        settings.model_dump(mode="json", exclude={"admin_key"}), _start,
    )  # fmt: skip
    model = _sharded(settings, meet(settings, 0, crew.meeting))
    engine = Engine(settings, lambda key: {}, model=model)
    lead(engine, crew.endpoints)
    return engine, crew


def _start(config: RankConfig) -> Process:
    return start_rank(config, (sys.executable, "-m", "softmux.bench.bases.random_base"))


if __name__ == "__main__":  # another rank's process
    _told = msgspec.json.decode(sys.stdin.buffer.readline(), type=RankConfig)
    sys.exit(serve(_told, _sharded))
