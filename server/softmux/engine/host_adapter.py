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
                    prefix = torch.stack([keys, values])
        return cls(vectors, prefix)

    @property
    def compiled(self) -> int:
        """Leading tokens whose KV is at hand."""
        return self.prefix.shape[2] if self.prefix is not None else 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.vectors, self.prefix) if tensor is not None)

    def to_bytes(self) -> bytes:
        """The disk tier's file: SHA-256 of the rest, then safetensors."""
        named = {"vectors": self.vectors, "prefix": self.prefix}
        tensors = {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}
        content: bytes = save(tensors)
        return hashlib.sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, raw: bytes) -> HostAdapter:
        """Raises ValueError where the file is not what was written."""
        content = raw[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != raw[:_DIGEST_BYTES]:
            raise ValueError("the file's checksum is wrong")
        tensors = load(content)
        if not tensors.keys() & {"vectors", "prefix"}:
            raise ValueError("the file is of another version of softmux")
        return cls(tensors.get("vectors"), tensors.get("prefix"), on_disk=True)

    def pin(self) -> None:
        """Moves it to page-locked memory, from which a GPU copies without the host's waiting."""
        self.vectors = None if self.vectors is None else self.vectors.pin_memory()
        self.prefix = None if self.prefix is None else self.prefix.pin_memory()
