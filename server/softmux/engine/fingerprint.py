"""Names for a base model and its tokenizer that change when, and only when, what they compute may change."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

_CHUNK = 1 << 24
_VOLATILE = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "architectures",
    "use_cache",
    "_attn_implementation",
    "_attn_implementation_internal",
    "attn_implementation",
}
_QUANTISED = {
    "int8": "int8, symmetric, a scale for each output",
    "nf4": "nf4, blocks of 64, their scales in blocks of 256",
}
"""What the server makes of a full checkpoint's linear layers, where adapters are trained on just that. fp8 is none of
these: it is a way to serve the checkpoint's own adapters."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer_config.json",
)


def base_fingerprint(folder: Path, quantization: str | None = None) -> str:
    """`sha256:…` over every tensor (name, dtype, shape, bytes), in name order, the lasting fields of `config.json`,
    and, where the server makes int8 or nf4 of a full checkpoint (`quantization`), that format. A checkpoint that is
    quantised already is named by its own tensors and its `quantization_config`.

    The config is taken as it lies in the folder, not as transformers reads it: a release that knows one more field
    would make another base of every checkpoint, and registries know tasks by their base. How the tensors are spread
    over files does not matter; the dtype they are served in is not part of it (the KV dtype is a part of every cache
    key instead). Reads the files once, in pieces; raises OSError or ValueError for a folder without safetensors.
    """
    tensors: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = (path, 8 + length, entry)
    if not tensors:
        raise ValueError(f"{folder} holds no .safetensors weights; convert the model with save_pretrained first")
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_bytes())
    if quantization in _QUANTISED and "quantization_config" not in config:
        digest.update(_QUANTISED[quantization].encode())
    digest.update(json.dumps(_lasting(config), sort_keys=True).encode())
    for name in sorted(tensors):
        path, offset, entry = tensors[name]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        begin, end = entry["data_offsets"]
        with path.open("rb") as file:
            file.seek(offset + begin)
            left = end - begin
            while left:
                piece = file.read(min(left, _CHUNK))
                if not piece:
                    raise ValueError(f"{path} is truncated: download or copy the model again")
                digest.update(piece)
                left -= len(piece)
    return "sha256:" + digest.hexdigest()


def _lasting(value: Any) -> Any:
    """A config without what says nothing about what is computed, in its parts, too."""
    if isinstance(value, list):
        return [_lasting(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key not in _VOLATILE}
    return {key: item if key == "quantization_config" else _lasting(item) for key, item in kept.items()}


def tokenizer_fingerprint(folder: Path) -> str:
    """`sha256:…` over the tokenizer's own files, as they lie in the model's folder."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{name}:{len(content)}:".encode())
            digest.update(content)
    return "sha256:" + digest.hexdigest()
