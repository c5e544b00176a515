"""What fewer bits cost: a model's logits with weights in fp8, int8 or NF4, or keys and values in fp8, against without.

`softmux bench precision --model DIR TEXT…`: each text's first tokens go through the eager module, on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from softmux.engine.fp8 import Fp8Weight
from softmux.engine.packed import PackedModel


@dataclass(frozen=True, slots=True)
class Cost:
    """Over all positions: the largest and the mean square root error of logits, the share of positions whose likeliest
    token is the same, mean KL divergence, and the loss on the text before and after, in nats."""

    largest: float
    rms: float
    same_token: float
    divergence: float
    loss_before: float
    loss_after: float


def load(model: str, quantization: str = "auto", kv_cache_dtype: str = "auto", head: str = "auto") -> PackedModel:
    """In float32 on the CPU. `head` fp8 rounds the head, too, which the server never does."""
    packed = PackedModel.load(model, device=torch.device("cpu"), dtype=torch.float32, quantization=quantization)
    if kv_cache_dtype == "fp8":
        packed.keep_kv_in_fp8()
    if head == "fp8":
        weight = packed.module.get_output_embeddings().weight
        rounded = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        rounded.weight = torch.nn.Parameter(Fp8Weight.quantise(weight.data).dequantised(weight.dtype), False)
        packed.module.set_output_embeddings(rounded)
    return packed


@torch.inference_mode()
def logits(model: PackedModel, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """`[all tokens, vocab]` of texts `[tokens]`, each from its own start."""
    return torch.cat([model.eager(model.embedding(ids)).float() for ids in texts])


def cost(before: torch.Tensor, after: torch.Tensor, texts: Sequence[torch.Tensor]) -> Cost:
    """`before` and `after` `[all tokens, vocab]`."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    following = torch.cat([torch.cat([ids[1:], ids.new_full((1,), -1)]) for ids in texts])
    known = following >= 0
    at = following[known][:, None]
    return Cost(
        largest=float((before - after).abs().max()),
        rms=float((before - after).pow(2).mean().sqrt()),
        same_token=float((before.argmax(-1) == after.argmax(-1)).float().mean()),
        divergence=float((p.exp() * (p - q)).sum(-1).mean()),
        loss_before=-float(p[known].gather(1, at).mean()),
        loss_after=-float(q[known].gather(1, at).mean()),
    )


KINDS = {
    "KV in fp8": {"kv_cache_dtype": "fp8"},
    "weights in fp8": {"quantization": "fp8"},
    "both": {"kv_cache_dtype": "fp8", "quantization": "fp8"},
    "weights in int8": {"quantization": "int8"},
    "weights in nf4": {"quantization": "nf4"},
    "weights and head in fp8": {"quantization": "fp8", "head": "fp8"},
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="softmux bench precision", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face's layout")
    parser.add_argument("--tokens", type=int, default=160, help="of each text")
    parser.add_argument("texts", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [torch.tensor(tokenizer(path.read_text()).input_ids[: options.tokens]) for path in options.texts]
    before = logits(load(options.model), texts)
    sys.stdout.write(f"{len(before)} positions, logits' standard deviation {float(before.std()):.2f}\n")
    for name, how in KINDS.items():
        found = cost(before, logits(load(options.model, **how), texts), texts)
        sys.stdout.write(
            f"{name}: largest {found.largest:.2f}, rms {found.rms:.3f}, same token {100 * found.same_token:.1f} %, "
            f"KL {found.divergence:.4f}, loss {found.loss_before:.3f} → {found.loss_after:.3f}\n"
        )
