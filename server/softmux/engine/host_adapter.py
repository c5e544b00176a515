"""An adapter as the engine keeps it in host memory, and its file in the disk tier."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from softmux.engine.arena import Empty, pageable
from softmux.engine.delta import Delta, LowRank, TokenTable
from softmux.engine.heads import HeadShape, head_rows
from softmux.engine.kv import PrefixKV, as_kept
from softmux.formats.parts import HeadPart, Parts, PrefixPart, PromptPart

_MAGIC = b"softmux\4"
_DIGEST_BYTES = 32
_LENGTH_BYTES = 8
_BEGIN = len(_MAGIC) + _DIGEST_BYTES + _LENGTH_BYTES
"""Where the header begins."""
_FIRST_READ = 4096
"""Bytes that have all of the header but of very many tensors."""
_UNIT_BYTES = 64
_MOST_HEADER_BYTES = 64 << 20


class _Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Of the tensors: vectors, prefix, delta, head. `trained`: the prefix was trained, and no step computed it."""

    dtypes: tuple[str | None, str | None, str | None, str | None]
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    trained: bool
    updates: tuple[LowRank, ...]
    tables: tuple[TokenTable, ...]
    head: HeadShape | None


@dataclass(slots=True, eq=False)
class HostAdapter:
    """`vectors` `[k, hidden]` (prompt tuning, P-tuning), or None; `prefix` the compiled KV of its leading virtual
    tokens: `trained` (prefix tuning), or kept from a step that computed it, as the `computed`-th one did. Vectors
    are in the model's dtype, the prefix in the pool's. `delta` is what it changes of the base for its rows, or None.
    `head` and its `head_shape` are as `heads.head_rows` gives them. `holds` counts the sequences that run on it."""

    vectors: torch.Tensor | None
    prefix: PrefixKV | None = None
    trained: bool = False
    delta: Delta | None = None
    holds: int = 0
    computed: int = 0
    head: torch.Tensor | None = None
    head_shape: HeadShape | None = None
    serial: int = 0
    """The name under which the other ranks have their parts of it, where there are any."""

    @classmethod
    def from_parts(
        cls, parts: Parts, dtype: torch.dtype, empty: Empty = pageable, kv_dtype: torch.dtype | None = None
    ) -> HostAdapter:
        vectors, prefix, head, head_shape = None, None, None, None
        for part in parts:
            match part:
                case PromptPart():
                    vectors = empty(part.vectors.shape, dtype).copy_(torch.from_numpy(part.vectors))
                case PrefixPart():
                    kind = kv_dtype or dtype
                    prefix = empty((2, *part.keys.shape), kind)
                    prefix[0].copy_(as_kept(torch.from_numpy(part.keys), kind))
                    prefix[1].copy_(as_kept(torch.from_numpy(part.values), kind))
                case HeadPart():
                    head_shape, rows = head_rows(part)
                    head = empty(tuple(rows.shape), rows.dtype).copy_(rows)
                case _:
                    pass
        delta = Delta.of(parts, dtype, empty)
        return cls(vectors, prefix, prefix is not None, delta, head=head, head_shape=head_shape)

    @property
    def computes(self) -> bool:
        """Whether a step computes keys and values of its own that are worth keeping."""
        return self.vectors is not None and not self.trained

    @property
    def compiled(self) -> int:
        """Leading tokens whose KV is at hand."""
        return self.prefix.shape[2] if self.prefix is not None else 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors if tensor is not None)

    @property
    def _tensors(self) -> tuple[torch.Tensor | None, ...]:
        delta = self.delta.data if self.delta is not None else None
        return self.vectors, self.prefix, delta, self.head

    def moved(self, empty: Empty) -> HostAdapter:
        """The same in other memory."""
        vectors, prefix, data, head = (
            None if tensor is None else empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)
            for tensor in self._tensors
        )
        delta = self.delta.over(data) if self.delta is not None and data is not None else None
        return dataclasses.replace(self, vectors=vectors, prefix=prefix, delta=delta, head=head)

    def as_now(self) -> HostAdapter:
        """What a thread may write to disk while the engine goes on with this one."""
        return dataclasses.replace(self, holds=0, computed=0)

    # --- the disk tier's file ----------------------------------------------------------------------------------------
    # magic, SHA-256 of what follows the length, the header's length, the header padded with spaces, and the tensors'
    # bytes as they lie in memory: a load reads them straight into the tier's memory, and neither parses nor copies
    # while it holds the interpreter, which it gives up and waits for as few times as it can: so does the engine then.

    def frames(self) -> list[bytes | memoryview]:
        """The header, and the tensors that are there, in place."""
        tensors = self._tensors
        header = _Header(
            dtypes=tuple(None if t is None else str(t.dtype).removeprefix("torch.") for t in tensors),  # type: ignore[arg-type]
            shapes=tuple(() if t is None else tuple(t.shape) for t in tensors),  # type: ignore[arg-type]
            trained=self.trained,
            updates=self.delta.updates if self.delta is not None else (),
            tables=self.delta.tables if self.delta is not None else (),
            head=self.head_shape,
        )
        return [msgspec.json.encode(header), *(_raw(tensor) for tensor in tensors if tensor is not None)]

    @classmethod
    def of_frames(cls, frames: list[memoryview], empty: Empty = pageable) -> HostAdapter:
        """From what `frames` gave to another process."""
        header = msgspec.json.decode(frames[0], type=_Header)
        bodies = iter(frames[1:])
        tensors: list[torch.Tensor | None] = []
        for dtype, shape in zip(header.dtypes, header.shapes, strict=True):
            wanted = _wanted(dtype, shape)
            tensor = None if wanted is None else empty(wanted[1], wanted[0])
            if tensor is not None:
                _raw(tensor)[:] = next(bodies)
            tensors.append(tensor)
        return cls._from(header, tensors)

    def write(self, path: Path) -> int:
        """Writes the file; returns its bytes."""
        told, *bodies = self.frames()
        told = bytes(told)
        told = told.ljust(-(-len(told) // _UNIT_BYTES) * _UNIT_BYTES)
        parts: list[bytes | memoryview] = [told, *bodies]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        begin = _MAGIC + digest.digest() + len(told).to_bytes(_LENGTH_BYTES, "little")
        with path.open("wb", buffering=0) as file:
            for part in (begin, *parts):
                file.write(part)
        return len(begin) + sum(len(part) for part in parts)

    @classmethod
    def read(cls, path: Path, empty: Empty = pageable) -> HostAdapter:
        """Raises OSError, and ValueError where the file is not what was written."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            begun = os.read(file, _FIRST_READ)
            if begun[: len(_MAGIC)] != _MAGIC:
                raise ValueError("it is damaged, or of another version of softmux")
            length = int.from_bytes(begun[_BEGIN - _LENGTH_BYTES : _BEGIN], "little")
            if length > _MOST_HEADER_BYTES:
                raise ValueError("its header is damaged: it has no such length")
            end = _BEGIN + length
            if end > len(begun):
                begun += os.pread(file, end - len(begun), len(begun))
            header, wanted = _told(begun[_BEGIN:end])
            size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in filter(None, wanted))
            if size != os.fstat(file).st_size - end:
                raise ValueError("it has not the size that its header tells")
            tensors = [None if named is None else empty(named[1], named[0]) for named in wanted]
            bodies = [_memory(tensor) for tensor in tensors if tensor is not None and tensor.numel()]
            _fill(file, bodies, end)
        finally:
            os.close(file)
        digest = hashlib.sha256(begun[_BEGIN:end])
        for body in bodies:
            digest.update(body)
        if digest.digest() != begun[len(_MAGIC) : _BEGIN - _LENGTH_BYTES]:
            raise ValueError("its checksum is wrong")
        return cls._from(header, tensors)

    @classmethod
    def _from(cls, header: _Header, tensors: list[torch.Tensor | None]) -> HostAdapter:
        vectors, prefix, data, learned_head = tensors
        delta = Delta(data, header.updates, header.tables) if data is not None else None
        return cls(vectors, prefix, header.trained, delta, head=learned_head, head_shape=header.head)


def _fill(file: int, bodies: list[memoryview], at: int) -> None:
    """Reads what lies from `at` on into `bodies`: in one call, unless they are larger than a call may be."""
    left = list(bodies)
    while left:
        got = os.preadv(file, left, at)
        if not got:
            raise ValueError("it ends before its tensors do")
        at += got
        while left and got >= len(left[0]):
            got -= len(left.pop(0))
        if got:
            left[0] = left[0][got:]


def _told(head: bytes) -> tuple[_Header, list[tuple[torch.dtype, tuple[int, ...]] | None]]:
    """What a file's header says, and the dtype and shape of each tensor."""
    try:
        header = msgspec.json.decode(head, type=_Header)
        return header, [_wanted(*named) for named in zip(header.dtypes, header.shapes, strict=True)]
    except (msgspec.DecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"its header is damaged: {error}") from None


def _raw(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, in place."""
    flat: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, for as long as it lives. Torch's ways there give up the interpreter."""
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def _wanted(dtype: str | None, shape: tuple[int, ...]) -> tuple[torch.dtype, tuple[int, ...]] | None:
    return None if dtype is None else (getattr(torch, dtype), shape)
