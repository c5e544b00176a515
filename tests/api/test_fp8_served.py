"""A whole server in fp8: the same checkpoint's tasks, the format told, and a registry shared with a full one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.served import Served, upload_parts


def test_a_task_published_on_a_full_server_is_served_in_fp8(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    task = next(iter(adapters))
    asked = {"prompt": [5, 6, 7, 8], "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
    told = []
    with Served(base[1], tmp_path / "data") as full:
        assert full.http.put(f"/v1/adapters/{task}", files=upload_parts(adapters[task])).status_code == 201
        told.append(full.http.get("/v1/model").json())
        version = full.http.get(f"/v1/adapters/{task}").json()
    with Served(base[1], tmp_path / "data", "--quantization", "fp8", "--kv-cache-dtype", "fp8") as packed:
        told.append(packed.http.get("/v1/model").json())
        assert packed.http.get(f"/v1/adapters/{task}").json() == version
        answers = [packed.http.post(f"/v1/generate?task={task}", json=asked).json() for _ in range(2)]
    assert told[0]["base_fingerprint"] == told[1]["base_fingerprint"]
    assert [(model["quantization"], model["kv_cache_dtype"]) for model in told] == [(None, None), ("fp8", "fp8")]
    assert len(answers[0]["choices"][0]["token_ids"]) == 6
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["adapter"]["digest"] == version["digest"]
