"""A frozen encoder-decoder (T5, BART and their kin), run over the same packed steps, slots and adapters as others.

A row's prompt is its encoder's input, and runs whole in the row's first step. That step, and every later one, then runs
the decoder over all rows: each decoder layer makes keys and values of the encoder's last hidden states once, and the
slots of the prompt's tokens keep them for as long as the row runs (`ThreeWayAttention`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache

from softmux.engine.anatomy import linear_shapes
from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.attention.distances import DistanceBias
from softmux.engine.attention.three_ways import ThreeWayAttention
from softmux.engine.decoder_tokens import DecoderTokens
from softmux.engine.kv import PrefixKV
from softmux.engine.packed import PackedModel
from softmux.engine.serves import SERVES
from softmux.errors import ContextTooLong, InvalidRequest, SelfTestFailed
from softmux.scheduler.batch import Batch
from softmux.scheduler.rows import Ints
from softmux.scheduler.sequence import lead_of
from softmux.types import LayerKV, ModelSpec

Role = Literal["encoder", "own", "cross"]
_SOURCE, _TARGET = 3, 2
"""Tokens of the probe, by whose numbers modules are told apart."""


class _Passing(DynamicCache):  # type: ignore[misc]  # transformers is untyped here
    """A decoder's own keys and values go through it: the pool keeps them."""

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0


class PackedEncoderDecoder(PackedModel):
    """`says`: what its decoder begins with, and is forced to say.

    `on_source`: paths of the linear modules that are given source tokens, where all others are given the decoder's.
    """

    causal = False
    loads_as: Any = AutoModelForSeq2SeqLM

    def __init__(self, module: nn.Module, folder: Path | None, model_id: str) -> None:
        self._three: ThreeWayAttention | None = None
        self._roles: dict[nn.Module, tuple[Role, int]] = {}
        self._seen: list[tuple[nn.Module, int, torch.Tensor]] = []
        self._packed = False
        self._positions: dict[str, torch.Tensor] = {}
        self._wanted: torch.Tensor | None = None
        self._known: EncoderDecoderCache | None = None
        super().__init__(module, folder, model_id)
        self.says = DecoderTokens.of(self.module, model_id)
        self.start = self.says.start

    # --- the packed run ----------------------------------------------------------------------------------------------

    def use(self, backend: AttentionBackend) -> None:
        super().use(backend)
        self._attend_by(self._attention)
        self._three = ThreeWayAttention(backend.pool)

    def _attend_by(self, implementation: str) -> None:
        """T5's two stacks have configs of their own, which the module does not pass this on to."""
        for part in (self.module, self.module.get_encoder(), self.module.get_decoder()):
            part.set_attn_implementation(implementation)

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        *_: Any,
        position_bias: Any = None,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface. `position_bias` is a `DistanceBias` where the module has distances."""
        if self._three is None:
            self._seen.append((module, query.shape[2], key))
            return query.transpose(1, 2), None
        self.on_layer()
        role, layer = self._roles[module]
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        bias = position_bias if isinstance(position_bias, DistanceBias) else None
        if role == "encoder":
            output = self._three.encode(q, k, v, scaling=scaling, bias=bias)
        elif role == "own":
            output = self._three.own(layer, q, k, v, scaling=scaling, bias=bias)
        else:
            output = self._three.cross(layer, q, (k, v) if self._known is None else None, scaling=scaling)
        return output[None], None

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor, rows: PackedRows
    ) -> torch.Tensor:
        """As `PackedModel.forward`: the encoder over the sources of rows that are new, then the decoder over all rows.

        Without new rows each layer's cross-attention is told that its keys and values are known: the pool has them.
        """
        assert self._three is not None
        step = self._three.begin(rows)
        self._positions = {"encoder": step.source_positions, "decoder": step.target_positions}
        self._wanted = step.rank[wanted]
        with self._packing():
            if len(step.source):
                states = self.module.get_encoder()(inputs_embeds=embeddings[None, step.source])[0]
            else:
                states, self._known = embeddings.new_zeros((1, 1, embeddings.shape[1])), self._known_to_all()
            output = self.module(
                encoder_outputs=(states,), decoder_inputs_embeds=embeddings[None, step.target],
                past_key_values=self._known, use_cache=False,
            )  # fmt: skip
        logits: torch.Tensor = output.logits[0]
        return logits

    @property
    def begins(self) -> tuple[int, ...]:
        return self.says.begins

    @contextmanager
    def _packing(self) -> Iterator[None]:
        """While it lasts, the module's positions and distances are the packed step's."""
        self._packed = True
        try:
            yield
        finally:
            self._packed, self._known, self._wanted = False, None, None

    def _known_to_all(self) -> EncoderDecoderCache:
        """A cache that has, so it says, every layer's keys and values of the source; one of zeros stands for them."""
        shape = self.layers[0]
        nothing = torch.zeros((1, shape.kv_heads, 1, shape.head_dim), dtype=self.dtype, device=self.device)
        return EncoderDecoderCache(_Passing(), DynamicCache([(nothing, nothing)] * len(self.layers)))

    @property
    def forced_first(self) -> int:
        return int(self.says.first is not None)

    def forced(self, batch: Batch) -> Ints | None:
        """By row that chooses a token: the one it must choose, −1 where it is free. None where nothing is forced."""
        first, last = self.says.first, self.says.last
        if first is None and last is None:
            return None
        table, rows, lengths = batch.table, batch.sampled[batch.choosing], batch.lengths[batch.choosing]
        forced = np.full(len(rows), -1, np.int64)
        if first is not None:
            forced[lengths == table.prompts[rows]] = first
        if last is not None:
            forced[(lengths + 1 == table.ends[rows]) & (lengths >= table.stops_from[rows])] = last
        return forced

    def eager(
        self, embeddings: torch.Tensor, target: torch.Tensor | None = None, prefix: PrefixKV | None = None
    ) -> torch.Tensor:
        """The reference: the module as it is, one row. `embeddings` of its source, `target` of what its decoder is
        given, `prefix` trained keys and values in front of that → logits of every target token."""
        self._attend_by("eager")
        past = None
        if prefix is not None:
            keys, values = prefix.transpose(2, 3)[:, :, None]
            past = EncoderDecoderCache(DynamicCache(list(zip(keys, values, strict=True))), DynamicCache())
        try:
            output = self.module(
                inputs_embeds=embeddings[None], decoder_inputs_embeds=target if target is None else target[None],
                past_key_values=past, use_cache=past is not None,
            )  # fmt: skip
        finally:
            if self._backend is not None:
                self._attend_by(self._attention)
        logits: torch.Tensor = output.logits[0]
        return logits

    # --- what the module shows of itself -----------------------------------------------------------------------------

    def _probe(self) -> tuple[LayerKV, ...]:
        """The decoder layers' KV shapes. Learns which attention is which, and which modules see the source, by a
        forward of three tokens there and two tokens here; and makes positions and distances those of packed rows."""
        for side, stack in (("encoder", self.module.get_encoder()), ("decoder", self.module.get_decoder())):
            self._check_embedding(side, stack)
            self._learn_positions(side, stack)
        self._learn_distances()
        self.module.get_decoder().register_forward_hook(self._narrow)
        self._attend_by(self._attention)
        linears = {
            name: self.module.get_submodule(name) for name in (shape.name for shape in linear_shapes(self.module))
        }
        given: dict[str, int] = {}
        hooks = [child.register_forward_hook(_count_into(given, name)) for name, child in linears.items()]
        self._positions = {"encoder": torch.arange(_SOURCE), "decoder": torch.arange(_TARGET)}
        self._positions = {side: at.to(self.device) for side, at in self._positions.items()}
        self._wanted = self._positions["decoder"]
        try:
            with torch.inference_mode(), self._packing():
                source, target = (self.embedding(at[None] * 0) for at in self._positions.values())
                states = self.module.get_encoder()(inputs_embeds=source)[0]
                self.module(encoder_outputs=(states,), decoder_inputs_embeds=target, use_cache=False)
        except Exception as error:
            raise SelfTestFailed(f"{self.architecture} does not run with a packed input: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        self.on_source = frozenset(name for name, tokens in given.items() if tokens == _SOURCE)
        return self._told_apart()

    def _told_apart(self) -> tuple[LayerKV, ...]:
        shapes: dict[Role, list[LayerKV]] = {"encoder": [], "own": [], "cross": []}
        for module, queries, key in self._seen:
            role: Role = "encoder" if queries == _SOURCE else "cross" if key.shape[2] == _SOURCE else "own"
            self._roles[module] = role, len(shapes[role])
            shapes[role].append(LayerKV(kv_heads=key.shape[1], head_dim=key.shape[3]))
        self._seen.clear()
        own = tuple(shapes["own"])
        if not own or not shapes["encoder"] or len({*own, *shapes["cross"]}) != 1 or len(own) != len(shapes["cross"]):
            raise SelfTestFailed(
                f"{self.architecture} does not send all its attention through transformers' AttentionInterface, in "
                "layers of one shape; softmux can only serve models that do"
            )
        return own

    def _check_embedding(self, side: str, stack: Any) -> None:
        ids = torch.arange(min(8, int(self.text_config.vocab_size)), device=self.device)
        if not torch.equal(stack.get_input_embeddings()(ids), self.embedding(ids)):
            raise SelfTestFailed(
                f"{self.architecture}'s {side} has an embedding of its own, where softmux knows one for both sides; "
                "save it with its embeddings tied"
            )

    def _learn_positions(self, side: str, stack: nn.Module) -> None:
        """Learned or sinusoidal positions of a stack are from now on those of the packed step's tokens."""
        table = getattr(stack, "embed_positions", None)
        if table is None:
            return
        if "position_ids" not in inspect.signature(table.forward).parameters:
            raise SelfTestFailed(
                f"{self.architecture} numbers its positions in a way that softmux does not know; it serves T5, BART "
                "and models of their build"
            )

        def number(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, named | {"position_ids": self._positions[side]} if self._packed else named

        table.register_forward_pre_hook(number, with_kwargs=True)

    def _learn_distances(self) -> None:
        """T5's attention adds a learned number for each distance. Of a packed step it is given the numbers themselves
        (`DistanceBias`), for the attention to look up by each row's own positions."""
        reach = self.context_length
        for module in self.module.modules():
            if getattr(module, "relative_attention_bias", None) is None:
                continue
            original = module.compute_bias
            with torch.inference_mode():
                behind = original(1, reach, past_seen_tokens=reach - 1)[0, :, 0]
                ahead = original(1, reach)[0, :, 0]
            bias = DistanceBias(torch.cat([behind, ahead[:, 1:]], dim=1).T.contiguous())
            module.compute_bias = _either(lambda: self._packed, bias, original)

    def _narrow(self, _module: nn.Module, _given: Any, output: Any) -> None:
        """Of a packed step only the wanted tokens go on to the module's head."""
        if self._packed and self._wanted is not None:
            output.last_hidden_state = output.last_hidden_state[:, self._wanted]

    # --- what others may know ----------------------------------------------------------------------------------------

    def keep_kv_in_fp8(self) -> None:
        raise SelfTestFailed("--kv-cache-dtype fp8 is for decoders, and this base is an encoder-decoder; leave it out")

    def row_length(self, context: int) -> int:
        """A row holds its encoder's input and its decoder's positions, `context` of each at most, and its end."""
        return 2 * context + 1

    def spec(self, context_length: int) -> ModelSpec:
        described = super().spec(context_length)
        return msgspec.structs.replace(described, family="encoder-decoder", serves=SERVES["encoder-decoder"])


def encoder_input(tokens: tuple[int, ...], max_tokens: int, context: int, *, trained_prefix: bool) -> tuple[int, int]:
    """`Sequence.source` of a request's tokens. Raises `InvalidRequest` where there are none, and `ContextTooLong` where
    these, or what the decoder may come to, are more than `context`."""
    lead = lead_of(tokens) if trained_prefix else 0
    length = len(tokens) - lead
    if not length:
        raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
    if length > context:
        raise ContextTooLong(
            f"{length} input tokens (virtual tokens included), and this model's encoder takes {context}; shorten the "
            "prompt",
            param="prompt",
        )
    if lead + max_tokens > context:
        raise ContextTooLong(
            f"max_tokens {max_tokens} and a trained prefix of {lead} need {lead + max_tokens} positions, and this "
            f"model's decoder has {context}; lower max_tokens",
            param="max_tokens",
        )
    return lead, len(tokens)


def _count_into(given: dict[str, int], name: str) -> Any:
    def count(_: nn.Module, args: tuple[torch.Tensor, ...], __: torch.Tensor) -> None:
        given[name] = args[0].numel() // args[0].shape[-1]

    return count


def _either(packed: Any, bias: DistanceBias, original: Any) -> Any:
    def compute_bias(*args: Any, **named: Any) -> Any:
        return bias if packed() else original(*args, **named)

    return compute_bias
