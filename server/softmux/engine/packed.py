"""The frozen transformers module, unmodified, run over packed `[1, tokens]` inputs."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import eager_mask

from softmux.engine.anatomy import embeddings, linear_shapes, weighed
from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.fingerprint import base_fingerprint, tokenizer_fingerprint
from softmux.engine.fp8 import E4M3, E4M3_MAX, Fp8Linear, has_kernels
from softmux.engine.fp8_loading import load_fp8
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.kv import as_kept
from softmux.engine.parallel.ranks import Ranks
from softmux.engine.poolers import Pooler
from softmux.engine.quantised import QuantisedLinear, format_of, size
from softmux.engine.quantised_loading import load_quantised, own_method
from softmux.engine.serves import SERVES
from softmux.errors import SelfTestFailed
from softmux.scheduler.batch import Batch
from softmux.scheduler.rows import Ints
from softmux.types import LayerKV, ModelSpec

log = logging.getLogger(__name__)
_names = itertools.count()
_ROPE_BY_LENGTH = {"dynamic", "longrope"}


@dataclass(slots=True)
class _Probe:
    """Stands in for a backend during one forward, and takes down what each layer asks of attention."""

    layers: dict[int, LayerKV]
    windows: set[int]
    name: str = "probe"

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int | None, **_: Any
    ) -> torch.Tensor:
        if key.shape != value.shape:
            raise SelfTestFailed(f"layer {layer} has keys and values of different shapes; softmux cannot serve that")
        self.layers[layer] = LayerKV(kv_heads=key.shape[1], head_dim=key.shape[2])
        if window is not None:
            self.windows.add(window)
        repeats = query.shape[1] // value.shape[1]
        return value.repeat_interleave(repeats, 1)


class PackedModel:
    """A causal language model whose attention goes through one `AttentionBackend`.

    `module` is what transformers loaded, untouched; its attention implementation is a name registered for this object
    alone, so several models can live in a process. `folder` is where its files lie; None for one made in memory.
    `causal`: a position attends to none after it.
    """

    causal = True
    loads_as: Any = AutoModelForCausalLM
    ranks: Ranks | None = None
    """The processes it runs over, where they are several."""
    pooler: Pooler | None = None
    """The base's own before a head, if it has one."""
    reads_mean = False
    """Whether a sequence's head reads the mean of all its row's last hidden states."""

    def __init__(self, module: nn.Module, folder: Path | None, model_id: str) -> None:
        loaded: Any = module
        self.module: Any = loaded.eval().requires_grad_(False)
        self.folder = folder
        self.model_id = model_id
        self.config: Any = loaded.config
        self.text_config: Any = self.config.get_text_config()
        self.device: torch.device = next(module.parameters()).device
        self.dtype: torch.dtype = next(p.dtype for p in module.parameters() if p.dtype != E4M3)
        self.kv_dtype = self.dtype
        self.quantization = format_of(module)
        self._quantised = [layer for layer in module.modules() if isinstance(layer, Fp8Linear | QuantisedLinear)]
        self.embedding: Any = self.module.get_input_embeddings()
        self._attention = f"softmux_{next(_names)}"
        self._rounded = f"{self._attention}_rounded"
        self._backend: Any = None
        self.on_layer: Callable[[], None] = lambda: None
        """Called as each layer attends: a long step on a CPU gets on, and is seen to."""
        AttentionInterface.register(self._attention, self._attend)
        self._numbers: dict[nn.Module, int] = {}
        self._last: torch.Tensor = torch.empty(0)
        self.module.base_model.register_forward_hook(self._keep_states)
        self.windows: frozenset[int] = frozenset()
        """How far its layers' attention reaches, where that is not over the whole row (`AttentionBackend.attend`)."""
        self.layers = self._probe()

    @classmethod
    def load(cls, model: str, *, device: torch.device, dtype: torch.dtype, quantization: str = "auto") -> PackedModel:
        """From a folder in Hugging Face's layout, or a hub id. Only safetensors are read; no code of the model's.
        `quantization` fp8, int8, nf4: linear layers are quantised as they are read (`load_fp8`, `load_quantised`).

        A folder's model goes by the folder's name: where it lies is not its clients' business.

        Raises `SelfTestFailed` with what is wrong where it can't be loaded as a causal language model.
        """
        folder = cls.folder_of(model)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if quantization == "fp8":
                module = load_fp8(folder, config, device=device, dtype=dtype)
            elif quantization != "auto" or own_method(config):
                module = load_quantised(folder, config, quantization, device=device, dtype=dtype)
            else:
                module = cls.loads_as.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    trust_remote_code=False,
                    attn_implementation="eager",
                ).to(device)
        except Exception as error:
            raise SelfTestFailed(f"{model} cannot be loaded as a causal language model: {error}") from error
        return cls(module, folder, folder.name if Path(model).is_dir() else model)

    @staticmethod
    def folder_of(model: str) -> Path:
        """Where its files lie; those of a hub id are fetched. Raises `SelfTestFailed`."""
        folder = Path(model)
        if folder.is_dir():
            return folder
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"]))
        except Exception as error:
            raise SelfTestFailed(f"--model {model}: no such folder, and not to be had from the hub: {error}") from error

    def own(self, adapter: HostAdapter) -> HostAdapter:
        """What this process needs of an adapter."""
        return adapter

    # --- the packed run ----------------------------------------------------------------------------------------------

    def use(self, backend: AttentionBackend) -> None:
        self._backend = backend
        self.module.set_attn_implementation(self._attention)

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface: `[1, heads, tokens, head_dim]` in, `[1, tokens, heads, head_dim]` out."""
        self.on_layer()
        layer: Any = getattr(module, "layer_idx", None)
        if layer is None:  # DistilBERT's layers have no number: they come in order
            layer = self._numbers.setdefault(module, len(self._numbers))
        output = self._backend.attend(
            layer,
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            window=sliding_window,
            softcap=softcap,
        )
        return output[None], None

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor, rows: PackedRows
    ) -> torch.Tensor:
        """One step. `embeddings [tokens, hidden]`, `positions [tokens]`, `wanted [rows]` packed indices whose logits
        are needed → logits `[rows, vocab]` in the model's dtype, by the module's own head and scaling."""
        self._backend.begin(rows)
        given = {"inputs_embeds": embeddings[None], "position_ids": positions[None], "use_cache": False}
        if not len(wanted):
            self.module.base_model(**given)
            return embeddings.new_empty((0, int(self.text_config.vocab_size)))
        output = self.module(**given, logits_to_keep=wanted)
        logits: torch.Tensor = output.logits[0]
        return logits

    @property
    def forced_first(self) -> int:
        """How many tokens of a row `forced` says before any other."""
        return 0

    def forced(self, batch: Batch) -> Ints | None:
        """By row that chooses a token: the one it must choose, −1 where it is free. None where nothing is forced."""
        return None

    def will_read(self, at: torch.Tensor | None, tokens: int) -> None:
        """Said before a forward of so many `tokens`: `states` will be asked of those `at`, and of no other; None: of
        any. A model may then leave out what they do not need."""

    def states(self, at: torch.Tensor) -> torch.Tensor:
        """The last hidden states, as heads read them, of the tokens `at` of the forward that ran last: `[len(at),
        state_width]`."""
        return self._last[at]

    def _keep_states(self, _module: nn.Module, _given: Any, output: Any) -> None:
        self._last = output[0][0]

    def eager(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The reference: the same module, its own eager attention, quantised weights multiplied plainly, one row from
        its start → logits of every token."""
        self.module.set_attn_implementation("eager" if self.kv_dtype == self.dtype else self._rounded)
        self._multiply_plainly(True)
        try:
            output = self.module(inputs_embeds=embeddings[None], use_cache=False)
        finally:
            self._multiply_plainly(False)
            if self._backend is not None:
                self.module.set_attn_implementation(self._attention)
        logits: torch.Tensor = output.logits[0]
        return logits

    def keep_kv_in_fp8(self) -> None:
        """Said before a pool is made. The reference (`eager`) then rounds keys and values as the pool does."""
        if self.device.type == "cuda" and not has_kernels(self.device):
            raise SelfTestFailed("--kv-cache-dtype fp8 needs Triton and a card that knows fp8 (Ada, Hopper or later)")
        self.kv_dtype = E4M3
        AttentionInterface.register(self._rounded, self._attend_rounded)
        AttentionMaskInterface.register(self._rounded, eager_mask)

    def _attend_rounded(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
    ) -> Any:
        """The module's own eager attention, over what the pool would keep. Raises `SelfTestFailed` for keys or values
        beyond the format."""
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if eager is None:
            raise SelfTestFailed(f"{self.architecture} cannot be tested with --kv-cache-dtype fp8; leave it out")
        largest = max(float(key.abs().max()), float(value.abs().max()))
        if largest > E4M3_MAX:
            raise SelfTestFailed(
                f"its keys and values reach {largest:.0f}, beyond fp8's {E4M3_MAX:.0f}; leave --kv-cache-dtype out"
            )
        kept = [as_kept(x, self.kv_dtype).to(x.dtype) for x in (key, value)]
        return eager(module, query, *kept, *rest, **named)

    def _multiply_plainly(self, plainly: bool) -> None:
        for layer in self._quantised:
            layer.plainly = plainly

    def _probe(self) -> tuple[LayerKV, ...]:
        """The layers' KV shapes, as the module itself shows them in a forward of one token."""
        probe = _Probe({}, set())
        self._backend = probe
        self.module.set_attn_implementation(self._attention)
        try:
            with torch.inference_mode():
                ids = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
                self.module(inputs_embeds=self.embedding(ids), position_ids=torch.zeros_like(ids), use_cache=False)
        except SelfTestFailed:
            raise
        except Exception as error:
            raise SelfTestFailed(f"{self.architecture} does not run with a packed input: {error}") from error
        finally:
            self._backend = None
        expected = self.text_config.num_hidden_layers
        if sorted(probe.layers) != list(range(expected)):
            raise SelfTestFailed(
                f"{self.architecture} sends the attention of {len(probe.layers)} of its {expected} layers through "
                "transformers' AttentionInterface; softmux can only serve models that send all of it"
            )
        layers = tuple(probe.layers[layer] for layer in range(expected))
        if len(set(layers)) != 1:
            raise SelfTestFailed(f"{self.architecture}: its layers' keys differ in shape; softmux needs one for all")
        self.windows = frozenset(probe.windows)
        return layers

    # --- what others may know ----------------------------------------------------------------------------------------

    on_source: frozenset[str] = frozenset()
    """On an encoder-decoder: the paths of the linear modules that are given its source."""

    def row_length(self, context: int) -> int:
        """How many positions a row has where `context` is the most that one may use."""
        return context

    @property
    def state_width(self) -> int:
        """Of the hidden states that heads read."""
        return int(self.embedding.weight.shape[1])

    @property
    def architecture(self) -> str:
        return type(self.module).__name__

    @property
    def context_length(self) -> int:
        """Positions a sequence may use. Where rotary frequencies depend on the longest row of the batch (dynamic and
        long RoPE), the length up to which they do not: a packed step must not let one row change another."""
        length = int(getattr(self.text_config, "max_position_embeddings", 0) or 2048)
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        for entry in [rope, *rope.values()]:  # of all layers, or of each type of layer
            if isinstance(entry, dict) and entry.get("rope_type") in _ROPE_BY_LENGTH:
                original = (
                    entry.get("original_max_position_embeddings")
                    or rope.get("original_max_position_embeddings")
                    or getattr(self.text_config, "original_max_position_embeddings", None)
                )
                length = min(length, int(original or length))
        return length

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        generation = getattr(self.module, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        if eos is None:
            eos = getattr(self.text_config, "eos_token_id", None)
        if eos is None:
            return ()
        return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)

    def spec(self, context_length: int) -> ModelSpec:
        """Reads the weights' files once for the fingerprint."""
        hidden_size, norm = self._embedding_scale()
        given, output, tied = embeddings(self.module)
        parameters, weight_bytes = size(self.module)
        return ModelSpec(
            model_id=self.model_id,
            architecture=self.architecture,
            dtype=str(self.dtype).removeprefix("torch."),
            hidden_size=hidden_size,
            vocab_size=int(self.text_config.vocab_size),
            context_length=context_length,
            base_fingerprint=self._fingerprint(),
            tokenizer_fingerprint=tokenizer_fingerprint(self.folder) if self.folder else "in-memory",
            layers=self.layers,
            eos_token_ids=self.eos_token_ids,
            parameters=parameters,
            weight_bytes=weight_bytes,
            device=str(self.device),
            embedding_norm=norm,
            quantization=self.quantization,
            kv_cache_dtype="fp8" if self.kv_dtype == E4M3 else None,
            model_type=str(getattr(self.text_config, "model_type", "")),
            serves=SERVES["decoder"],
            linears=weighed(linear_shapes(self.module), self.module),
            input_embedding=given,
            output_embedding=output,
            tied_embeddings=tied,
        )

    def _fingerprint(self) -> str:
        if self.folder is None:
            return "in-memory"
        return base_fingerprint(self.folder, self.quantization)

    @torch.inference_mode()
    def _embedding_scale(self) -> tuple[int, float]:
        """Width and mean norm of what the embedding module gives (some models scale inside it), over 1,024 ids."""
        count = min(1024, int(self.text_config.vocab_size))
        given = self.embedding(torch.arange(count, device=self.device))
        return int(given.shape[-1]), float(given.float().norm(dim=-1).mean())
