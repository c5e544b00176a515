"""A T5 through a real server: bare rows, prompts and prefixes at once, as PEFT computes each; the rest refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.encoder_decoders import make_adapter, make_base
from support.models import greedy_reference
from support.served import Served, upload_parts
from support.tokenizers_made import byte_level, save

TASKS = {"a-prompt": "prompt_tuning", "a-prefix": "prefix_tuning", "a-lora": "lora"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str | None, Any], Path]]:
    folder = tmp_path_factory.mktemp("t5")
    base = make_base("t5", folder / "base")
    save(byte_level(), folder / "base")
    models: dict[str | None, Any] = {None: base}
    with Served(folder / "base", folder / "data") as server:
        for task, method in TASKS.items():
            models[task] = make_adapter(base, method, folder / task)
            reply = server.http.put(f"/v1/adapters/{task}", files=upload_parts(folder / task))
            assert reply.status_code == 201, reply.text
        yield server, models, folder


def test_bare_rows_and_three_methods_at_once_are_pefts(served: tuple[Served, dict[str | None, Any], Path]) -> None:
    server, models, _ = served
    asked = [(task, [5 + number, 9, 40, 17 + number][: 1 + number % 4]) for number in range(4) for task in models]

    def post(one: tuple[str | None, list[int]]) -> Any:
        body = {"prompt": one[1], "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
        reply = server.http.post("/v1/generate", params={"task": one[0]} if one[0] else {}, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(post, asked))
    for (task, ids), reply in zip(asked, replies, strict=True):
        expected, certain = greedy_reference(models[task], ids, 6)
        wanted = expected[:certain]
        assert reply["choices"][0]["token_ids"][: len(wanted)] == wanted, task
        assert reply["usage"]["prompt_tokens"] == len(ids)
        assert reply["usage"]["virtual_tokens"] == {"a-prompt": 5, "a-prefix": 4}.get(task or "", 0)


def test_a_stream_and_samples_are_those_of_one_answer(served: tuple[Served, dict[str | None, Any], Path]) -> None:
    server, _, _ = served
    body = {"prompt": [5, 9, 40], "max_tokens": 6, "ignore_eos": True, "temperature": 1.0, "seed": 3, "n": 2}
    whole = server.http.post("/v1/generate", params={"task": "a-prefix"}, json=body).json()
    streamed = ["", ""]
    with server.http.stream("POST", "/v1/generate", params={"task": "a-prefix"}, json=body | {"stream": True}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    streamed[choice["index"]] += choice["text"]
    assert streamed == [choice["text"] for choice in whole["choices"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task_type": "CAUSAL_LM"}, "SEQ_2_SEQ_LM"),
        ({"task_type": "SEQ_CLS"}, "without a head"),
        ({"num_transformer_submodules": 3}, "submodules"),
        ({"token_dim": 47}, "hidden size"),
        ({"peft_type": "CPT"}, ""),
    ],
)
def test_what_is_made_for_another_kind_of_base_is_refused_in_words(
    served: tuple[Served, dict[str | None, Any], Path], change: dict[str, Any], words: str
) -> None:
    server, _, folder = served
    config = json.loads((folder / "a-prompt" / "adapter_config.json").read_text()) | change
    parts = upload_parts(folder / "a-prompt", **{"adapter_config.json": json.dumps(config).encode()})
    reply = server.http.put("/v1/adapters/bent", files=parts)
    assert reply.status_code == 422, reply.text
    assert words in reply.json()["error"]["message"]
    assert server.http.get("/v1/adapters/bent").status_code == 404


def test_a_prefix_of_one_submodule_or_too_few_layers_is_refused(
    served: tuple[Served, dict[str | None, Any], Path],
) -> None:
    server, _, folder = served
    config = json.loads((folder / "a-prefix" / "adapter_config.json").read_text())
    for change in ({"num_transformer_submodules": 1}, {"num_layers": 2}):
        parts = upload_parts(folder / "a-prefix", **{"adapter_config.json": json.dumps(config | change).encode()})
        reply = server.http.put("/v1/adapters/bent", files=parts)
        assert reply.status_code == 422, reply.text
        assert next(iter(change)) in reply.json()["error"]["param"]
