"""A server whose adapters' files lie in an S3-compatible store, while that store is there, away, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from softmux.bench.bases.tiny import adapter_files, save_tiny
from support.s3 import address, new_bucket
from support.served import Served


def upload(http: httpx.Client, task: str, number: int) -> httpx.Response:
    """Of an adapter too large to lie in Redis."""
    files = adapter_files("PROMPT_TUNING", 4, number, padding=80_000)
    return http.put(f"/v1/adapters/{task}", files={name: (name, data) for name, data in files.items()})


def said(http: httpx.Client, task: str) -> Any:
    body = {"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, "return_token_ids": True}
    return http.post("/v1/generate", params={"task": task}, json=body)


def test_what_is_resident_serves_while_the_store_is_away_and_uploads_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.server import ThreadedMotoServer

    save_tiny(tmp_path / "model")
    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    address(monkeypatch, f"http://{host}:{port}")
    bucket = new_bucket(f"http://{host}:{port}")
    with Served(tmp_path / "model", tmp_path / "data", "--blobs", bucket) as server:
        http = server.http
        assert upload(http, "first", 1).status_code == 201
        before = said(http, "first").json()
        assert not list((tmp_path / "data" / "blobs").rglob("*")), "nothing large lies on this machine's disk"

        store.stop()
        assert said(http, "first").json()["choices"] == before["choices"]
        refused = upload(http, "second", 2)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "registry_down"
        assert "retry-after" in refused.headers
        assert said(http, "second").status_code == 404, "an upload that was refused left nothing"
        assert http.get("/health/ready").status_code == 200
        small = adapter_files("PROMPT_TUNING", 4, 3)
        files = {name: (name, data) for name, data in small.items()}
        assert http.put("/v1/adapters/small", files=files).status_code == 201, "small files lie in Redis"

        again = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        again.start()
        try:
            assert upload(http, "second", 2).status_code == 201
            assert said(http, "second").status_code == 200
            version = http.get("/v1/adapters/first").json()["version"]
            name = "adapter_model.safetensors"
            file = http.get(f"/v1/adapters/first/versions/{version}/files/{name}")
            assert file.content == adapter_files("PROMPT_TUNING", 4, 1, padding=80_000)[name]
        finally:
            again.stop()
