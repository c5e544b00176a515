"""What each method costs on one base: numbers learned, stored, resident, and tokens that a request grows by.

k learned positions, width d, L layers, keys of kv numbers a token: prompt tuning learns k·d (2104.08691), prefix tuning
k·L·2·kv (2101.00190), a LoRA of rank r the sum of r·(in + out) over its targets (2106.09685).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softmux.errors import InvalidRequest
from softmux.formats.peft_types import takes_prefix
from softmux.types import LinearShape, ModelSpec

_BF16, _FP32 = 2, 4
_NF4_BITS = 4.127
"""Bits a weight in QLoRA's NF4 with doubly quantised scales (2305.14314, section 3)."""
_QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("q", "v"))
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
_SMALL = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """A task's, of one method. `trained` counts what training learns, `parameters` what is stored and served; bytes are
    of those. `resident_bytes` is what the server holds in bfloat16 while it serves the task, its keys and values
    included; `base_bytes` what the base takes, once for all tasks where they share it."""

    method: str
    acts_on: str
    trained: int
    parameters: int
    share: float
    bytes_float32: int
    bytes_bfloat16: int
    resident_bytes: int
    base_bytes: int
    added_tokens: int
    shares_base: bool


def costs(spec: ModelSpec, *, virtual_tokens: int = 20, rank: int = 8, labels: int = 2) -> list[Cost]:
    """One `Cost` a method, cheapest first as the textbook lists them. Raises `InvalidRequest`."""
    if virtual_tokens < 1 or rank < 1 or labels < 1:
        raise InvalidRequest("Virtual tokens, rank and labels are at least 1.", param="--virtual-tokens")
    k, d = virtual_tokens, spec.hidden_size
    kv = sum(2 * layer.kv_heads * layer.head_dim for layer in spec.layers)
    shares = spec.family != "encoder-decoder"  # there a prompt is part of each request's own source, and nothing stays
    base, kv_bytes = spec.parameters * _BF16, k * kv * _BF16 * shares
    vectors, prefix, head = k * d, k * kv, labels * d + labels
    targets = lora_targets(spec)
    low_rank = sum(rank * (linear.inputs + linear.outputs) for linear in targets)
    where = ", ".join(dict.fromkeys(linear.name.rpartition(".")[2] for linear in targets))
    mlp = 3 * (d * d + d)

    def cost(method: str, acts_on: str, served: int, **more: int | bool) -> Cost:
        return Cost(
            method=method,
            acts_on=acts_on,
            trained=int(more.get("trained", served)),
            parameters=served,
            share=served / spec.parameters,
            bytes_float32=served * _FP32,
            bytes_bfloat16=served * _BF16,
            resident_bytes=served * _BF16 + int(more.get("kv", 0)),
            base_bytes=int(more.get("base", base)),
            added_tokens=int(more.get("tokens", 0)),
            shares_base=bool(more.get("shared", True)),
        )

    found = [
        cost("prompt_tuning", "the input", vectors, kv=kv_bytes, tokens=k),
        cost("p_tuning", "the input, anywhere in a template", vectors, kv=kv_bytes, tokens=k, trained=vectors + mlp),
        cost("prefix_tuning", "keys and values of every layer", prefix, tokens=k),
        cost("p_tuning_v2", f"keys and values of every layer, a head of {labels}", prefix + head, tokens=k),
        cost("lora", f"{where}, rank {rank}", low_rank),
        cost("qlora", f"{where}, rank {rank}, over a 4-bit base", low_rank, base=_quantised(spec)),
        cost("full_fine_tuning", "every weight", spec.parameters, shared=False),
    ]
    return [each for each in found if _exists(each.method, spec)]


def _exists(method: str, spec: ModelSpec) -> bool:
    """Whether there is that on this base: not every kind has classification heads, or takes keys and values."""
    if method == "p_tuning_v2" and spec.family == "encoder-decoder":
        return False
    return method not in ("prefix_tuning", "p_tuning_v2") or takes_prefix(spec.model_type)


def lora_targets(spec: ModelSpec) -> Sequence[LinearShape]:
    """The query and value projections of every layer, or what is fused of them: what LoRA's paper adapts."""
    by_last: dict[str, list[LinearShape]] = {}
    for linear in spec.linears:
        by_last.setdefault(linear.name.rpartition(".")[2], []).append(linear)
    for query, value in _QUERY_AND_VALUE:
        if query in by_last and value in by_last:
            return [*by_last[query], *by_last[value]]
    for fused in _FUSED:
        if fused in by_last:
            return by_last[fused]
    raise InvalidRequest(f"Which of {spec.model_id}'s layers make queries and values is not known.", param="--model")


def _quantised(spec: ModelSpec) -> int:
    """Bytes of the base with its linear layers in NF4, the output projection and the rest in bfloat16."""
    linear = sum(shape.inputs * shape.outputs for shape in spec.linears if shape.name != spec.output_embedding)
    return round(linear * _NF4_BITS / 8) + (spec.parameters - linear) * _BF16


def guide(spec: ModelSpec, found: Sequence[Cost]) -> list[dict[str, str]]:
    """When to take which, with this base's own numbers."""
    by_name = {cost.method: cost for cost in found}
    lora, prompt, prefix = by_name["lora"], by_name["prompt_tuning"], by_name.get("prefix_tuning")
    small = spec.parameters < _SMALL
    prompt_when = (
        "the base is large, the tasks are many, each is a narrow change of behaviour"
        if not small
        else "tasks are many and easy; on a base this small the others usually reach more (2104.08691, figure 1)"
    )
    advice = [
        {
            "use": "prompt_tuning",
            "when": prompt_when,
            "because": f"{prompt.bytes_float32:,} bytes a task, {lora.parameters / prompt.parameters:,.0f} times fewer "
            f"numbers than the LoRA; {prompt.added_tokens} tokens of context a request",
        },
        {
            "use": "p_tuning",
            "when": "prompt tuning trains unsteadily, or learned tokens belong inside a template",
            "because": "an encoder makes the same vectors in training; what is served costs the same",
        },
        {
            "use": "prefix_tuning",
            "when": "the text generated must change more than a prompt can change it, and nothing may be merged",
            "because": f"every layer is reached with {prefix.parameters if prefix else 0:,} numbers; nothing is "
            "computed to prefill them",
        },
        {
            "use": "p_tuning_v2",
            "when": "texts or tokens are classified, on encoders above all, or the base is small",
            "because": "a prefix in every layer with a head matches full fine-tuning there (2110.07602)",
        },
        {
            "use": "lora",
            "when": "the model must learn new knowledge or another style, and there is data for it",
            "because": f"{lora.share:.3%} of the base is learned, no token is added to a request",
        },
        {
            "use": "qlora",
            "when": f"the base does not fit in training: {by_name['full_fine_tuning'].base_bytes:,} bytes in bfloat16",
            "because": f"the base takes {by_name['qlora'].base_bytes:,} bytes in 4 bits, the adapter is a LoRA",
        },
        {
            "use": "full_fine_tuning",
            "when": "one task alone is worth a model of its own",
            "because": f"each task stores {by_name['full_fine_tuning'].bytes_bfloat16:,} bytes, and shares no batch",
        },
    ]
    return [each for each in advice if each["use"] in by_name]
