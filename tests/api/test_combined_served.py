"""Several cartridges in one request: exact, in order, named exactly, and only where they were trained for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from test_zoo_served import tuned
from transformers import DynamicCache

from support.served import Served, upload_parts

IDS = [5, 9, 17, 4]
LENGTHS = {"manual": 70, "appendix": 7, "apart": 5}
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base: tuple[Any, Path]) -> dict[str, Path]:
    made = {}
    for seed, (name, length) in enumerate(LENGTHS.items()):
        made[name] = tmp_path_factory.mktemp(name)
        config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
        tuned(base[0], config, made[name], seed)
    return made


@pytest.fixture(scope="module")
def tasks(server: Served, folders: dict[str, Path]) -> Iterator[dict[str, dict[str, Any]]]:
    published = {}
    for name, folder in folders.items():
        more = {} if name == "apart" else {"softmux.json": b'{"combines": true}'}
        answer = server.http.put(f"/v1/adapters/{name}", files=upload_parts(folder, **more))
        assert answer.status_code == 201, answer.text
        published[name] = answer.json()
    yield published
    for name in folders:
        server.http.delete(f"/v1/adapters/{name}")


@torch.inference_mode()
def by_hand(base: Any, folders: list[Path]) -> tuple[list[int], int]:
    """Greedy tokens behind the cartridges' keys and values laid end to end, and how many of them are sure."""
    config = base.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    tables = [load_file(folder / "adapter_model.safetensors")["prompt_embeddings"] for folder in folders]
    whole = torch.cat([t.view(len(t), config.num_hidden_layers, 2, heads, width) for t in tables])
    length, cache = len(whole), DynamicCache()
    for layer in range(config.num_hidden_layers):
        cache.update(*(whole[None, :, layer, side].transpose(1, 2) for side in range(2)), layer)
    ids, said, sure = torch.tensor([IDS]), [], None
    position = length
    for _ in range(NEW_TOKENS):
        places = torch.arange(position, position + ids.shape[1])[None]
        logits = base(input_ids=ids, past_key_values=cache, position_ids=places, use_cache=True).logits[0, -1]
        best = logits.topk(2).values
        if sure is None and best[0] - best[1] < 1e-4:
            sure = len(said)
        said.append(int(logits.argmax()))
        position += ids.shape[1]
        ids = torch.tensor([[said[-1]]])
    return said, len(said) if sure is None else sure


def ask(server: Served, task: str, **more: Any) -> Any:
    body = {"prompt": IDS, "max_tokens": NEW_TOKENS, "ignore_eos": True, "return_token_ids": True} | more
    return server.http.post("/v1/generate", params={"task": task}, json=body)


@pytest.mark.parametrize("order", [("manual", "appendix"), ("appendix", "manual"), ("appendix", "appendix")])
def test_cartridges_lead_a_request_in_order_as_laid_out_by_hand(
    order: tuple[str, str], server: Served, base: tuple[Any, Path], folders: dict[str, Path], tasks: dict[str, Any]
) -> None:
    expected, sure = by_hand(base[0], [folders[name] for name in order])
    assert sure > 0
    replies = [ask(server, ",".join(order)).json() for _ in range(2)]
    for reply in replies:
        assert reply["choices"][0]["token_ids"][:sure] == expected[:sure]
        assert reply["usage"]["virtual_tokens"] == sum(LENGTHS[name] for name in order)
    assert replies[1]["usage"]["cached_tokens"] >= sum(LENGTHS[name] for name in order)
    told = replies[0]["adapter"]
    assert (told["task"], told["version"], told["method"]) == (",".join(order), None, "cartridge")
    assert told["digest"] == "+".join(tasks[name]["digest"] for name in order)
    assert [(part["task"], part["version"], part["digest"]) for part in told["parts"]] == [
        (name, tasks[name]["version"], tasks[name]["digest"]) for name in order
    ]


def test_every_order_and_each_alone_are_others_to_every_cache(
    server: Served, base: tuple[Any, Path], folders: dict[str, Path], tasks: dict[str, Any]
) -> None:
    for order in (["manual"], ["manual", "appendix"], ["appendix"], ["appendix", "manual"]):
        expected, sure = by_hand(base[0], [folders[name] for name in order])
        reply = ask(server, ",".join(order)).json()
        assert reply["choices"][0]["token_ids"][:sure] == expected[:sure]


def test_a_combination_names_versions_and_streams(server: Served, tasks: dict[str, Any]) -> None:
    version = tasks["manual"]["version"]
    named = ask(server, f"manual@{version},appendix")
    assert named.json()["adapter"]["parts"][0]["version"] == version
    with server.http.stream(
        "POST", "/v1/generate", params={"task": "manual,appendix"}, json={"prompt": IDS, "stream": True}
    ) as streamed:
        assert streamed.status_code == 200
        assert '"parts"' in streamed.read().decode()


@pytest.mark.parametrize(
    ("task", "status", "code", "said"),
    [
        ("manual,apart", 422, "invalid_request", "Number 2 was not trained to be combined"),
        ("prefix-tuning,manual", 422, "invalid_request", "number 1 is prefix_tuning"),
        ("manual,none-such", 404, "task_not_found", "none-such"),
        ("manual,appendix@77", 404, "version_not_found", "77"),
        ("manual,", 404, "task_not_found", ""),
        (",".join(["manual"] * 9), 422, "invalid_request", "9 tasks are named; a request takes 8"),
        (",".join(["manual"] * 8), 400, "context_too_long", ""),
    ],
)
def test_what_does_not_combine_is_refused_in_words(
    task: str, status: int, code: str, said: str, server: Served, tasks: dict[str, Any]
) -> None:
    answer = ask(server, task)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert said in answer.json()["error"]["message"]


def test_a_combination_classifies_nothing(server: Served, tasks: dict[str, Any]) -> None:
    answer = server.http.post("/v1/classify", params={"task": "manual,appendix"}, json={"input": "text"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_task_kind")
