"""A rank's part of a decoder: a smaller module of the same class, whose layers' outputs are summed over all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from softmux.engine.anatomy import embeddings, linear_shapes, weighed
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.packed import PackedModel
from softmux.engine.parallel.cut import Cut, Part, refusal, refuse
from softmux.engine.parallel.one_shot import take_one_shot
from softmux.engine.parallel.ranks import Ranks
from softmux.errors import SelfTestFailed
from softmux.types import LayerKV, LinearShape, ModelSpec

Weights = Callable[[str, Part | None], torch.Tensor]
"""A tensor of the whole model by its name, or a part of it."""


@dataclass(frozen=True, slots=True)
class Whole:
    """What is to be known of the model that the ranks have between them."""

    architecture: str
    layers: tuple[LayerKV, ...]
    linears: tuple[LinearShape, ...]
    input_embedding: str
    output_embedding: str
    tied: bool
    parameters: int
    weight_bytes: int

    @classmethod
    def of(cls, config: Any, cut: Cut, dtype: torch.dtype) -> Whole:
        """By a module without memory."""
        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        given, output, tied = embeddings(module)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        return cls(
            architecture=type(module).__name__,
            layers=(LayerKV(cut.kv_heads, cut.head_dim),) * int(config.num_hidden_layers),
            linears=linear_shapes(module),
            input_embedding=given,
            output_embedding=output,
            tied=tied,
            parameters=parameters,
            weight_bytes=parameters * dtype.itemsize,
        )


class GatheredLinear(nn.Linear):
    """The output projection: each rank multiplies by its rows of the weight, and has the logits of all."""

    def __init__(self, weight: torch.Tensor, outputs: int, ranks: Ranks) -> None:
        with torch.device("meta"):
            super().__init__(weight.shape[1], 1, bias=False)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.out_features = outputs
        self._ranks = ranks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = F.linear(x, self.weight)
        every = self._ranks.gather(own.reshape(-1, own.shape[-1]), self.out_features)
        return every.view(*x.shape[:-1], self.out_features)


class ShardedModel(PackedModel):
    """Runs what `PackedModel` runs, together with the other ranks. Its module's `self_attn` and `mlp` give sums over
    all ranks; the linear layers within are plain ones on the rank's own part, so that LoRAs add their own part of an
    update before the sum. The input embedding is whole, the output projection has the rank's rows (a view of the
    embedding where the two are tied)."""

    def __init__(
        self, module: nn.Module, folder: Path | None, model_id: str, *, ranks: Ranks, cut: Cut, whole: Whole
    ) -> None:
        self.cut, self.whole, self.ranks = cut, whole, ranks
        super().__init__(module, folder, model_id)
        if self.device.type == "cuda":
            take_one_shot(ranks, self.dtype)

    @classmethod
    def read(cls, model: str, ranks: Ranks, *, dtype: torch.dtype) -> ShardedModel:
        """From a folder or a hub id, as `PackedModel.load`; each rank reads its own parts of the tensors alone.

        Raises `SelfTestFailed`, in words, for what can't be served so.
        """
        folder = cls.folder_of(model)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            raise SelfTestFailed(f"--model {model} has no config that can be read: {error}") from error
        try:
            made = cls.made(config, ranks, _Files(folder), dtype=dtype, folder=folder, model_id=model)
            with contextlib.suppress(OSError):
                made.module.generation_config = GenerationConfig.from_pretrained(folder)
        except SelfTestFailed:
            raise
        except Exception as error:
            raise SelfTestFailed(f"{model} cannot be loaded as a causal language model: {error}") from error
        return made

    @classmethod
    def made(
        cls, config: Any, ranks: Ranks, weights: Weights, *, dtype: torch.dtype, folder: Path | None, model_id: str
    ) -> ShardedModel:
        """Of these `weights`, taken one after the other."""
        cut = Cut.of(config, ranks.rank, ranks.size)
        whole = Whole.of(config, cut, dtype)
        refuse(refusal(whole.architecture, config, ranks.size))
        with _weightless():
            module: Any = AutoModelForCausalLM.from_config(cut.config(config), dtype=dtype, attn_implementation="eager")
        _fill(module, cut, whole, weights, ranks, dtype)
        name = folder.name if folder is not None and Path(model_id).is_dir() else model_id
        return cls(module.eval(), folder, name, ranks=ranks, cut=cut, whole=whole)

    def own(self, adapter: HostAdapter) -> HostAdapter:
        return self.cut.adapter(adapter)

    def spec(self, context_length: int) -> ModelSpec:
        whole = self.whole
        return msgspec.structs.replace(
            super().spec(context_length),
            layers=whole.layers,
            linears=weighed(whole.linears, self.module),
            input_embedding=whole.input_embedding,
            output_embedding=whole.output_embedding,
            tied_embeddings=whole.tied,
            parameters=whole.parameters,
            weight_bytes=whole.weight_bytes,
            device=f"{self.device.type} × {self.cut.size}",
        )

    def _fingerprint(self) -> str:
        """The whole model's, so that its adapters fit; read once for all."""
        assert self.ranks is not None
        words, error = "", None
        if not self.ranks.rank:
            try:
                words = super()._fingerprint()
            except (OSError, ValueError) as unread:
                error = unread
        words = self.ranks.said(words)
        if error is not None:
            raise error
        if not words:
            raise SelfTestFailed("rank 0 could not read the model's files")
        return words


class _Files:
    """The tensors of a folder's safetensors files."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(list(file.keys()), file)  # type: ignore[no-untyped-call]
        if not self._files:
            raise SelfTestFailed(
                f"{folder} holds no .safetensors weights; convert the model with save_pretrained first"
            )

    def __call__(self, name: str, part: Part | None) -> torch.Tensor:
        file = self._files.get(name)
        if file is None:
            raise SelfTestFailed(f"its files hold no tensor {name}: save it anew with save_pretrained")
        kept = file.get_slice(name)
        if part is None:
            found: torch.Tensor = kept[:]
            return found
        found = kept[part.begin : part.end] if part.dim == 0 else kept[:, part.begin : part.end]
        return found


@torch.no_grad()  # not inference mode: fused layers lay the weights out anew, which tensors made there do not allow
def _fill(module: Any, cut: Cut, whole: Whole, weights: Weights, ranks: Ranks, dtype: torch.dtype) -> None:
    """Gives the module its memory, a tensor at a time, and its sums over ranks."""
    device = ranks.device

    def placed(tensor: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(device=device, dtype=dtype).contiguous(), requires_grad=False)

    for path, layer in list(module.named_modules()):
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if path == whole.output_embedding:
                continue
            part = cut.part(path)
            if name == "bias" and part is not None and part.dim == 1:
                if ranks.rank:  # it is added once: by rank 0, before the sum
                    layer.bias = None
                    continue
                part = None
            made = placed(weights(f"{path}.{name}", part))
            if made.shape != parameter.shape:
                raise SelfTestFailed(f"{path}.{name} is {list(made.shape)}, where {list(parameter.shape)} was expected")
            setattr(layer, name, made)
        for name, buffer in list(layer.named_buffers(recurse=False)):
            setattr(layer, name, buffer.to(device))
    module.set_output_embeddings(
        GatheredLinear(_output_rows(module, cut, whole, weights, placed), cut.vocabulary, ranks)
    )
    for layer in module.model.layers:
        layer.self_attn.register_forward_hook(lambda _, __, output: (ranks.reduce(output[0]), *output[1:]))
        layer.mlp.register_forward_hook(lambda _, __, output: ranks.reduce(output))


def _output_rows(
    module: Any, cut: Cut, whole: Whole, weights: Weights, placed: Callable[[torch.Tensor], nn.Parameter]
) -> torch.Tensor:
    """The rank's rows of the output projection."""
    each = cut.output_rows
    begin, end = (min(cut.vocabulary, rank * each) for rank in (cut.rank, cut.rank + 1))
    if whole.tied:
        rows: torch.Tensor = module.get_input_embeddings().weight.data[begin:end]
    else:
        rows = placed(weights(f"{whole.output_embedding}.weight", Part(0, begin, end))).data
    missing = each - len(rows)
    return rows if not missing else torch.cat([rows, rows.new_zeros((missing, rows.shape[1]))])


@contextlib.contextmanager
def _weightless() -> Iterator[None]:
    """Modules made meanwhile have parameters without memory; their buffers, which are computed, are real."""
    register = nn.Module.register_parameter

    def without(layer: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(layer, name, parameter)

    nn.Module.register_parameter = without  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
