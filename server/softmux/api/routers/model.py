"""`GET /v1/model`: what the base model is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from softmux.api.replies import ModelReply, answers
from softmux.api.services import services_of

router = APIRouter(tags=["model"])


@router.get("/v1/model", responses=answers(ModelReply), response_model=None, summary="The base model")
async def model(request: Request) -> dict[str, Any]:
    spec = services_of(request).worker.spec
    return {
        "id": spec.model_id,
        "object": "model",
        "architecture": spec.architecture,
        "family": spec.family,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "kv_cache_dtype": spec.kv_cache_dtype,
        "device": spec.device,
        "hidden_size": spec.hidden_size,
        "layers": len(spec.layers),
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "parameters": spec.parameters,
        "weight_bytes": spec.weight_bytes,
        "base_fingerprint": spec.base_fingerprint,
        "tokenizer_fingerprint": spec.tokenizer_fingerprint,
    }
