"""safetensors, read defensively: a file is believed only as far as its bytes bear it out.

The format: 8 bytes of little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, the data.
Nothing is allocated by a number that the header states; only slices of bytes that are there are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from softmux.errors import InvalidAdapter
from softmux.formats.json_file import read_object, shown
from softmux.formats.parts import Float32Array

WEIGHTS_FILE = "adapter_model.safetensors"

MAX_HEADER_BYTES = 1 << 20
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named slice of the file: `data` holds exactly the bytes that `dtype` and `shape` need."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def float32(self) -> Float32Array:
        """The values, widened exactly, as a new array. Raises `InvalidAdapter` for NaN and infinity."""
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            wide = np.frombuffer(self.data, dtype="<u2").astype(np.uint32)
            values = np.left_shift(wide, 16, out=wide).view(np.float32)
        else:
            values = np.frombuffer(self.data, dtype="<f4" if self.dtype == "F32" else "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            bad = int(np.count_nonzero(~np.isfinite(values)))
            raise invalid_tensor(self.name, f"{bad} of its {values.size} values are NaN or infinite; train it again.")
        return values.reshape(self.shape)


def invalid_tensor(name: str, message: str) -> InvalidAdapter:
    name = shown(name)
    return InvalidAdapter(f"{WEIGHTS_FILE}: the tensor “{name}”: {message}", param=f"{WEIGHTS_FILE}: {name}")


def _broken(reason: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{WEIGHTS_FILE} is not a whole safetensors file: {reason}. Save the adapter again (`save_pretrained`) and "
        "send the file unchanged.",
        param=WEIGHTS_FILE,
    )


def read_safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in the order of their data. Raises `InvalidAdapter`.

    The tensors must fill the data without gap or overlap, as every writer of the format lays them out.
    """
    if len(data) < 8:
        raise _broken(f"it has {len(data)} bytes, fewer than its header length needs")
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
            raise _broken("it is a pickle or a torch archive, which this server never opens")
        raise _broken(f"its header claims {header_bytes} bytes, the file has {len(data) - 8} after the length")
    header = read_object(data[8 : 8 + header_bytes], WEIGHTS_FILE)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken("its __metadata__ is not a map of strings")
    body = memoryview(data)[8 + header_bytes :]
    tensors: dict[str, Tensor] = {}
    end = 0
    for start, stop, name, dtype, shape in sorted(_entry(name, entry) for name, entry in header.items()):
        if start != end or stop > len(body):
            raise _broken(
                f"the data of “{shown(name)}” overlaps another tensor's, leaves a gap, or ends beyond the file"
            )
        tensors[name] = Tensor(name, dtype, shape, body[start:stop])
        end = stop
    if end != len(body):
        raise _broken(f"{len(body) - end} bytes at its end belong to no tensor")
    return tensors


def _entry(name: str, entry: Any) -> tuple[int, int, str, str, tuple[int, ...]]:
    """A header's entry as (start, stop, name, dtype, shape), consistent in itself."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise invalid_tensor(name, "its header entry must hold dtype, shape and data_offsets, and nothing else.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise invalid_tensor(name, f"its dtype {shown(dtype)} is not one of F32, F16, BF16; convert it and save again.")
    if not _sizes(shape) or len(shape) > 8:
        raise invalid_tensor(name, "its shape is not a short list of sizes.")
    if not _sizes(offsets) or len(offsets) != 2:
        raise invalid_tensor(name, "its data_offsets are not two positions in the file.")
    start, stop = offsets
    if stop - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise invalid_tensor(name, "its data_offsets do not span what its shape and dtype need; the header lies.")
    return start, stop, name, dtype, tuple(shape)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def expect(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Float32Array]:
    """The values of exactly the tensors that `shapes` names, each of that shape. Raises `InvalidAdapter`."""
    for name, tensor in tensors.items():
        if name not in shapes:
            raise invalid_tensor(name, f"it is not expected; only {', '.join(sorted(shapes))} belong here.")
        if tensor.shape != shapes[name]:
            raise invalid_tensor(
                name,
                f"its shape is {list(tensor.shape)}, and the config and this server's model need {list(shapes[name])}.",
            )
    for name in shapes:
        if name not in tensors:
            raise invalid_tensor(name, f"it is missing; expected are {', '.join(sorted(shapes))}.")
    return {name: tensors[name].float32() for name in shapes}
