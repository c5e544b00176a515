"""Hundreds of malformed uploads and bodies at a real server: each a readable 4xx, and everything goes on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx

from support.malformed import malformed
from support.served import Served

NAMES = ("adapter_config.json", "adapter_model.safetensors")
HUGE: tuple[Any, ...] = (10**400, -(10**30), 2**63, 1e308, "NaN", -1, 1.5, None, [], {}, "x", [[1]], True)
FIELDS = (
    "prompt", "messages", "variables", "max_tokens", "min_tokens", "ignore_eos", "temperature", "top_p", "top_k",
    "min_p", "seed", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "stop", "n",
    "logprobs", "stream", "return_token_ids", "surprise",
)  # fmt: skip


def bodies() -> list[bytes]:
    """Broken JSON, and every field with values it may not have; those it may have are told by their answer."""
    broken = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "a", "prompt": "b"}', b'{"prompt": NaN}']
    broken += [b'{"prompt": 1e400}', b"[" * 100000, b'{"prompt": "\\udc00"}', b'{"prompt": [1e400]}', b"prompt=x"]
    for field in FIELDS:
        broken += [json.dumps({"prompt": "a", "max_tokens": 1} | {field: value}).encode() for value in HUGE]
    return broken


def told(answer: httpx.Response) -> str | None:
    """What is wrong with an answer to something malformed; None for a readable 4xx, or a 200 where it was fine."""
    if answer.status_code == 200:
        return None
    if not 400 <= answer.status_code < 500:
        return f"{answer.status_code} {answer.text[:200]}"
    error = answer.json()["error"]
    if len(error["message"]) < 15 or not error["code"]:
        return f"unreadable: {error}"
    return None


def test_uploads(server: Served, adapters: dict[str, Path]) -> None:
    good = {name: (adapters["prompt-tuning"] / name).read_bytes() for name in NAMES}
    before = server.http.get("/v1/adapters/prompt-tuning").json()
    cases = list(malformed(good))
    random.Random(0).shuffle(cases)
    wrong: list[str] = []
    sent = 0
    for what, files in cases:
        if any(not name.isprintable() or len(name) > 1000 for name in files):
            continue  # the client can't send such a name
        parts = {name: (name, data) for name, data in files.items()}
        answer = server.http.put("/v1/adapters/prompt-tuning", files=parts or {"": ("", b"")})
        sent += 1
        verdict = told(answer) or ("accepted" if answer.status_code in (200, 201) else None)
        if verdict:
            wrong.append(f"{what}: {verdict}")
    assert not wrong, "\n".join(wrong)
    assert sent >= 300
    assert server.http.get("/v1/adapters/prompt-tuning").json() == before


def test_bodies(server: Served) -> None:
    wrong: list[str] = []
    refused = 0
    for body in bodies():
        answer = server.http.post("/v1/generate", content=body, headers={"content-type": "application/json"})
        refused += answer.status_code != 200
        verdict = told(answer)
        if verdict:
            wrong.append(f"{body[:80]!r}: {verdict}")
    assert not wrong, "\n".join(wrong)
    assert refused >= 200
    assert server.http.post("/v1/generate", json={"prompt": "still here", "max_tokens": 1}).status_code == 200
