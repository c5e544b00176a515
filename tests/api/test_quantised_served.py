"""A server of a base in 4 bits: another base than the full checkpoint, beside it in one registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.served import Served, upload_parts


def test_a_task_belongs_to_the_base_it_was_published_on_in_full_or_in_4_bits(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    task = next(iter(adapters))
    parts = upload_parts(adapters[task])
    asked = {"prompt": [5, 6, 7, 8], "max_tokens": 6, "ignore_eos": True}
    with Served(base[1], tmp_path / "data") as full:
        assert full.http.put(f"/v1/adapters/{task}", files=parts).status_code == 201
        model = full.http.get("/v1/model").json()
        version = full.http.get(f"/v1/adapters/{task}").json()
    with Served(base[1], tmp_path / "data", "--quantization", "nf4") as packed:
        told = packed.http.get("/v1/model").json()
        assert told["quantization"] == "nf4"
        assert told["base_fingerprint"] != model["base_fingerprint"]
        assert told["parameters"] == model["parameters"]
        assert told["weight_bytes"] < model["weight_bytes"]
        assert packed.http.get(f"/v1/adapters/{task}").status_code == 404

        for fingerprint, expected in ((model, 409), (told, 201)):
            said = json.dumps({"base_fingerprint": fingerprint["base_fingerprint"]}).encode()
            given = upload_parts(adapters[task], **{"softmux.json": said})
            answer = packed.http.put(f"/v1/adapters/{task}", files=given)
            assert answer.status_code == expected, answer.text
        reply = packed.http.post(f"/v1/generate?task={task}", json=asked).json()
        assert reply["adapter"]["digest"] != version["digest"]
        assert packed.http.put("/v1/adapters/unsaid", files=parts).status_code == 201  # no fingerprint is given
