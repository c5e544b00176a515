"""Which real tokens a learned vector lies next to: the cosine over the model's embedding, read from its file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from softmux.errors import InvalidRequest
from softmux.formats.parts import Float32Array
from softmux.types import ModelSpec

_ROWS = 16384
"""Rows of the table that are compared at a time."""


def read_embedding(folder: Path, spec: ModelSpec) -> torch.Tensor:
    """`[vocabulary, hidden]`, in the file's dtype. Raises `InvalidRequest` where no file of the folder holds it."""
    last = spec.input_embedding.rpartition(".")[2]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                if name.endswith(f"{last}.weight") and file.get_slice(name).get_shape()[-1] == spec.hidden_size:
                    table: torch.Tensor = file.get_tensor(name)
                    return table
    raise InvalidRequest(f"{folder} holds no safetensors with the embedding {last}.", param="--model")


def nearest(vectors: Float32Array, table: torch.Tensor, count: int) -> list[list[tuple[int, float]]]:
    """For each vector the `count` likeliest (token id, cosine), most alike first."""
    unit = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
    best = torch.full((len(vectors), count), -2.0)
    ids = torch.zeros((len(vectors), count), dtype=torch.int64)
    for start in range(0, len(table), _ROWS):
        rows = torch.nn.functional.normalize(table[start : start + _ROWS].float(), dim=1)
        cosines, found = (unit @ rows.T).topk(min(count, len(rows)), dim=1)
        merged, order = torch.cat([best, cosines], dim=1).topk(count, dim=1)
        ids = torch.cat([ids, found + start], dim=1).gather(1, order)
        best = merged
    return [
        [(int(token), float(cosine)) for token, cosine in zip(row, values, strict=True) if cosine > -2]
        for row, values in zip(ids, best, strict=True)
    ]


def words(folder: Path) -> Any:
    """A function from token ids to what they say; without a tokenizer in the folder, to nothing."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return lambda token: ""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return lambda token: str(tokenizer.decode([token]))
