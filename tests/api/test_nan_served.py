"""An adapter that gives NaN for some inputs alone, as no admission can see: its row fails, later its version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.loras import make_lora
from support.served import VOCABULARY, Served, upload_parts

REPEATS = 3
FATAL = 97
_CANARY = [(7 * i + 3) % VOCABULARY for i in range(8)]
"""The tokens that admission tries an adapter on (`worker/canary.py`)."""


def make_trap(base: Any, folder: Path) -> dict[str, tuple[str, bytes]]:
    """A LoRA on the first layer's values, of rank 1, that nothing but the token FATAL excites, and that beyond all
    bounds: the others' embeddings are orthogonal to it."""
    make_lora(base, folder, r=1, lora_alpha=1, target_modules=["v_proj"], layers_to_transform=[0])
    layer = base.model.layers[0].input_layernorm
    with torch.no_grad():
        given = layer(base.model.embed_tokens(torch.tensor([*_CANARY, FATAL]))).double()
    others, fatal = given[:-1], given[-1]
    basis = torch.linalg.qr(others.T).Q
    direction = fatal - basis @ (basis.T @ fatal)
    weights = load_file(folder / "adapter_model.safetensors")
    for name, weight in weights.items():
        if "lora_A" in name:
            weight.copy_((direction / direction.norm())[None].float())
        else:
            weight.fill_(3e38)
    save_file(weights, folder / "adapter_model.safetensors")
    return upload_parts(folder)


@pytest.fixture(scope="module")
def trap(base: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Any]]:
    folder = tmp_path_factory.mktemp("trap")
    parts = make_trap(base[0], folder / "lora")
    with Served(base[1], folder / "data", "--not-finite-repeats", str(REPEATS)) as server:
        made = server.http.put("/v1/adapters/trap", files=parts)
        assert made.status_code == 201, made.text
        yield server, parts


def ask(server: Served, prompt: list[int], task: str | None = "trap", **more: Any) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 2, "ignore_eos": True, **more}
    return server.http.post("/v1/generate", params={"task": task} if task else {}, json=body)


def test_its_rows_fail_by_name_and_its_version_is_quarantined_until_it_is_activated_or_uploaded(
    trap: tuple[Served, Any],
) -> None:
    server, parts = trap
    for release in (
        lambda: server.http.post("/v1/adapters/trap/activate", json={"version": 1}),
        lambda: server.http.put("/v1/adapters/trap", files=parts),
    ):
        for repeat in range(REPEATS):
            failed = ask(server, [5, FATAL, 6 + repeat], stream=repeat == 1)
            error = failed.json()["error"]
            assert (failed.status_code, error["code"]) == (500, "internal")
            assert "trap@1" in error["message"]
            assert ask(server, [5, FATAL, 6], None).status_code == 200
        refused = ask(server, _CANARY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "quarantined")
        assert "trap@1" in refused.json()["error"]["message"]
        assert release().status_code == 200
        assert ask(server, _CANARY, max_tokens=1).status_code == 200
    text = server.http.get("/metrics").text
    assert f'softmux_rows_not_finite_total{{model="adapter"}} {2 * REPEATS}.0' in text
