"""An adapter as the engine keeps it in host memory, and as the disk tier keeps it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from softmux.engine.kv import PrefixKV
from softmux.formats.parts import Parts, PrefixPart, PromptPart

_DIGEST_BYTES = 32


@dataclass(slots=True, eq=False)
class HostAdapter:
    """`vectors` `[k, hidden]` (prompt tuning, P-tuning), or None; `prefix` the compiled KV of its leading virtual
    tokens: trained (prefix tuning), or kept from their first computation. Both in the model's dtype. `holds` counts
    the sequences that run on it."""

    vectors: torch.Tensor | None
    prefix: PrefixKV | None = None
    holds: int = 0
    on_disk: bool = False

    @classmethod
    def from_parts(cls, parts: Parts, dtype: torch.dtype) -> HostAdapter:
        vectors, prefix = None, None
        for part in parts:
            match part:
                case PromptPart():
                    vectors = torch.from_numpy(part.vectors).to(dtype)
                case PrefixPart():
                    keys = torch.from_numpy(part.keys).to(dtype)
                    values = torch.from_numpy(part.values).to(dtype)
                    prefix = tuple(zip(keys.unbind(0), values.unbind(0), strict=True))
        return cls(vectors, prefix)

    @property
    def compiled(self) -> int:
        """Leading tokens whose KV is at hand."""
        return len(self.prefix[0][0]) if self.prefix else 0

    @property
    def nbytes(self) -> int:
        tensors = [] if self.vectors is None else [self.vectors]
        tensors += [tensor for pair in self.prefix or () for tensor in pair]
        return sum(tensor.nbytes for tensor in tensors)

    def to_bytes(self) -> bytes:
        """The disk tier's file: SHA-256 of the rest, then safetensors."""
        tensors = {} if self.vectors is None else {"vectors": self.vectors.contiguous()}
        for layer, (keys, values) in enumerate(self.prefix or ()):
            tensors[f"keys.{layer}"] = keys.contiguous()
            tensors[f"values.{layer}"] = values.contiguous()
        content: bytes = save(tensors)
        return hashlib.sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, raw: bytes) -> HostAdapter:
        """Raises ValueError where the file is not what was written."""
        content = raw[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != raw[:_DIGEST_BYTES]:
            raise ValueError("the file's checksum is wrong")
        tensors = load(content)
        layers = sum(name.startswith("keys.") for name in tensors)
        prefix = tuple((tensors[f"keys.{layer}"], tensors[f"values.{layer}"]) for layer in range(layers)) or None
        return cls(tensors.get("vectors"), prefix, on_disk=True)
