"""`/v1/adapters` of a real server: admission, versions, roll-back, downloads."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.loras import make_lora
from support.models import make_adapter
from support.served import Served, upload_parts

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIELDS = {
    "task", "version", "digest", "method", "virtual_tokens", "parameters", "bytes", "base_fingerprint", "created_at",
    "active",
}  # fmt: skip


@pytest.fixture
def task(server: Served, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a task that this test alone uses."""
    name = "t." + str(abs(hash(request.node.name)) % 10**9)
    yield name
    server.http.delete(f"/v1/adapters/{name}")


@pytest.fixture
def other(base: tuple[Any, Path], tmp_path: Path) -> Path:
    """Another prompt tuning adapter."""
    make_adapter(base[0], "prompt_tuning", tmp_path / "other", seed=99)
    return tmp_path / "other"


def put(server: Served, task: str, files: Any, **params: Any) -> httpx.Response:
    return server.http.put(f"/v1/adapters/{task}", files=files, params=params)


def text(server: Served, task: str) -> str:
    response = server.http.post(
        "/v1/generate", params={"task": task}, json={"prompt": "a film", "max_tokens": 8, "ignore_eos": True}
    )
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def test_versions_are_uploaded_activated_rolled_back_and_deleted(
    server: Served, task: str, adapters: dict[str, Path], other: Path
) -> None:
    first = put(server, task, upload_parts(adapters["prompt-tuning"]))
    assert first.status_code == 201
    one = first.json()
    assert one.keys() >= FIELDS
    assert (one["version"], one["active"], one["method"], one["virtual_tokens"]) == (1, True, "prompt_tuning", 5)
    assert len(one["checks"]) >= 4
    assert one["warnings"] == []
    before = text(server, task)

    again = put(server, task, upload_parts(adapters["prompt-tuning"]))
    assert (again.status_code, again.json()["version"], again.json()["digest"]) == (200, 1, one["digest"])

    quiet = put(server, task, upload_parts(other), activate="false")
    assert (quiet.status_code, quiet.json()["version"], quiet.json()["active"]) == (201, 2, False)
    assert text(server, task) == before
    assert text(server, f"{task}@2") != before
    assert server.http.get(f"/v1/adapters/{task}").json()["version"] == 1

    answer = server.http.post(f"/v1/adapters/{task}/activate", json={"version": 2})
    assert (answer.status_code, answer.json()["version"], answer.json()["active"]) == (200, 2, True)
    assert text(server, task) == text(server, f"{task}@2")
    versions = server.http.get(f"/v1/adapters/{task}/versions").json()["data"]
    assert [(v["version"], v["active"]) for v in versions] == [(2, True), (1, False)]
    server.http.post(f"/v1/adapters/{task}/activate", json={"version": 1})
    assert text(server, task) == before

    assert server.http.delete(f"/v1/adapters/{task}").status_code == 204
    assert server.http.get(f"/v1/adapters/{task}").status_code == 404
    assert server.http.delete(f"/v1/adapters/{task}").json()["error"]["code"] == "task_not_found"
    assert put(server, task, upload_parts(other)).json()["version"] == 3


def test_a_reply_names_the_version_that_made_it_while_the_name_moves(
    server: Served, task: str, adapters: dict[str, Path], other: Path
) -> None:
    put(server, task, upload_parts(adapters["prompt-tuning"]))
    put(server, task, upload_parts(other))
    body = {"prompt": "a film", "max_tokens": 8, "ignore_eos": True}
    expected = {number: text(server, f"{task}@{number}") for number in (1, 2)}
    assert expected[1] != expected[2]
    done = threading.Event()

    def move() -> None:
        with httpx.Client(base_url=server.url) as http:
            while not done.is_set():
                for number in (1, 2):
                    http.post(f"/v1/adapters/{task}/activate", json={"version": number})

    moving = threading.Thread(target=move)
    moving.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(server.http.post, "/v1/generate", params={"task": task}, json=body) for _ in range(60)]
            replies = [reply.result().json() for reply in asked]
    finally:
        done.set()
        moving.join()
    assert {reply["adapter"]["version"] for reply in replies} == {1, 2}
    for reply in replies:
        assert reply["choices"][0]["text"] == expected[reply["adapter"]["version"]]


def test_a_request_ends_on_its_version_though_the_task_is_deleted(
    server: Served, task: str, adapters: dict[str, Path]
) -> None:
    put(server, task, upload_parts(adapters["prompt-tuning"]))
    body = {"prompt": "a film", "max_tokens": 300, "ignore_eos": True}
    expected = server.http.post("/v1/generate", params={"task": task}, json=body).json()["choices"][0]["text"]
    pieces = []
    with server.http.stream("POST", "/v1/generate", params={"task": task}, json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if not pieces:
                with httpx.Client(base_url=server.url) as http:
                    assert http.delete(f"/v1/adapters/{task}").status_code == 204
                    gone = http.post("/v1/generate", params={"task": task}, json=body)
                    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "task_not_found")
            if line.startswith("data: {"):
                pieces.append(json.loads(line.removeprefix("data: ")))
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == expected
    assert pieces[-1]["usage"]["completion_tokens"] == 300


def test_a_file_comes_back_byte_for_byte(server: Served, adapters: dict[str, Path]) -> None:
    for name in (CONFIG, WEIGHTS):
        response = server.http.get(f"/v1/adapters/prefix-tuning/versions/1/files/{name}")
        assert response.content == (adapters["prefix-tuning"] / name).read_bytes()
    missing = server.http.get("/v1/adapters/prefix-tuning/versions/1/files/passwd")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    for number in ("7", "x", "9" * 30):
        response = server.http.get(f"/v1/adapters/prefix-tuning/versions/{number}/files/{CONFIG}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "version_not_found")


def test_the_listing_goes_page_by_page(server: Served) -> None:
    seen, cursor = [], None
    for _ in range(10):
        params = {"limit": 1, "prefix": "p", **({"cursor": cursor} if cursor else {})}
        page = server.http.get("/v1/adapters", params=params).json()
        seen += [version["task"] for version in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["p-tuning-lstm", "prefix-tuning", "prompt-tuning"]
    for params in ({"limit": 0}, {"limit": 10**30}, {"limit": "x"}):
        response = server.http.get("/v1/adapters", params=params)
        assert (response.status_code, response.json()["error"]["param"]) == (422, "limit")


def test_a_template_is_filled_by_variables_or_by_the_prompt(
    server: Served, task: str, adapters: dict[str, Path]
) -> None:
    folder = adapters["prompt-tuning"]
    described = {"template": "{p:2}Name {country} in {p:3}", "labels": ["a", "b"], "notes": "of a test"}
    parts = upload_parts(folder, **{"softmux.json": json.dumps(described).encode()})
    answer = put(server, task, parts)
    assert answer.status_code == 201, answer.text
    assert {name: answer.json()[name] for name in described} == described

    def ask(**body: Any) -> httpx.Response:
        return server.http.post("/v1/generate", params={"task": task}, json={"max_tokens": 6, **body})

    filled = ask(variables={"country": "Peru"})
    assert filled.status_code == 200
    assert filled.json()["usage"]["virtual_tokens"] == 5
    assert ask(prompt="Peru").json()["choices"] == filled.json()["choices"]
    for wrong in (
        {},
        {"variables": {}},
        {"variables": {"country": "Peru", "river": "x"}},
        {"variables": {"country": 5}},
        {"variables": {"country": "Peru"}, "prompt": "Peru"},
    ):
        response = ask(**wrong)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_request")
    assert ask(messages=[{"role": "user", "content": "x"}]).json()["error"]["param"] == "messages"


def test_an_output_that_does_not_change_is_a_warning(server: Served, task: str, tmp_path: Path, base: Any) -> None:
    import torch
    from safetensors.torch import save_file

    make_adapter(base[0], "prefix_tuning", tmp_path / "odd")
    save_file({"prompt_embeddings": torch.full((4, 96), 2e5)}, tmp_path / "odd" / WEIGHTS)
    answer = put(server, task, upload_parts(tmp_path / "odd"))
    assert answer.status_code == 201
    assert any("norms" in warning for warning in answer.json()["warnings"])
    assert server.http.get(f"/v1/adapters/{task}").json()["warnings"] == answer.json()["warnings"]


def test_a_lora_that_drowns_the_model_is_warned_of(server: Served, task: str, tmp_path: Path, base: Any) -> None:
    from safetensors.torch import load_file, save_file

    make_lora(base[0], tmp_path / "odd", target_modules=["q_proj", "o_proj"])
    tensors = load_file(tmp_path / "odd" / WEIGHTS)
    save_file({name: tensor.fill_(1e30) if "lora_B" in name else tensor for name, tensor in tensors.items()},
              tmp_path / "odd" / WEIGHTS)  # fmt: skip
    answer = put(server, task, upload_parts(tmp_path / "odd"))
    assert answer.status_code == 201
    norms, uniform = answer.json()["warnings"]
    assert "unusual norms" in norms
    assert "no longer tells tokens apart" in uniform


def _safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = {"prompt_embeddings": {"dtype": "F32", "shape": [5, 48], "data_offsets": [0, 960]}}
BAD_WEIGHTS = {
    "empty": b"",
    "pickle": b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.",
    "truncated": _safetensors(GOOD, b"\0" * 900),
    "longer": _safetensors(GOOD, b"\0" * 961),
    "lying header": struct.pack("<Q", 2**63) + b"{}",
    "header is no JSON": _safetensors(b"{{{{", b""),
    "NaN": _safetensors(GOOD, struct.pack("<f", float("nan")) * 240),
    "infinity": _safetensors(GOOD, struct.pack("<f", float("inf")) * 240),
    "wrong shape": _safetensors({"prompt_embeddings": {**GOOD["prompt_embeddings"], "shape": [6, 40]}}, b"\0" * 960),
    "huge shape": _safetensors({"prompt_embeddings": {**GOOD["prompt_embeddings"], "shape": [2**62, 2**62]}}, b""),
    "wrong name": _safetensors({"weights": GOOD["prompt_embeddings"]}, b"\0" * 960),
    "one more": _safetensors({**GOOD, "b": {"dtype": "F32", "shape": [0], "data_offsets": [960, 960]}}, b"\0" * 960),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_are_refused_and_the_good_version_stays(
    server: Served, adapters: dict[str, Path], name: str
) -> None:
    before = server.http.get("/v1/adapters/prompt-tuning").json()
    parts = upload_parts(adapters["prompt-tuning"], **{WEIGHTS: BAD_WEIGHTS[name]})
    response = put(server, "prompt-tuning", parts)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "invalid_adapter"), error
    assert error["param"].startswith(WEIGHTS)
    assert server.http.get("/v1/adapters/prompt-tuning").json() == before


@pytest.mark.parametrize(
    "change",
    [
        {"auto_mapping": {"base_model_class": "x"}},
        {"trust_remote_code": True},
        {"peft_type": "EVIL"},
        {"unheard_of": 1},
        {"num_virtual_tokens": 10**30},
        {"num_virtual_tokens": "five"},
        {"token_dim": 47},
    ],
)
def test_a_bad_config_is_refused(server: Served, adapters: dict[str, Path], change: dict[str, Any]) -> None:
    config = json.loads((adapters["prompt-tuning"] / CONFIG).read_bytes()) | change
    response = put(
        server, "prompt-tuning", upload_parts(adapters["prompt-tuning"], **{CONFIG: json.dumps(config).encode()})
    )
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_adapter"), response.text
    assert response.json()["error"]["param"].startswith(CONFIG)


def test_another_base_is_a_conflict(server: Served, adapters: dict[str, Path]) -> None:
    said = json.dumps({"base_fingerprint": "sha256:" + "0" * 64}).encode()
    response = put(server, "prompt-tuning", upload_parts(adapters["prompt-tuning"], **{"softmux.json": said}))
    assert (response.status_code, response.json()["error"]["code"]) == (409, "base_mismatch")


def test_parts_sent_twice_missing_or_strange_are_refused(server: Served, adapters: dict[str, Path]) -> None:
    parts = upload_parts(adapters["prompt-tuning"])
    twice = [*parts.items(), (CONFIG, parts[CONFIG])]
    for files in (
        twice,
        {CONFIG: parts[CONFIG]},
        parts | {"../../etc/passwd": ("x", b"y")},
        parts | {"a.bin": ("a", b"")},
    ):
        response = put(server, "prompt-tuning", files)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_adapter"), response.text


@pytest.mark.parametrize("name", ["UPPER", "-x", "a" * 65, "a b", "ü", "a\nb"])
def test_a_name_no_task_may_have_is_refused(server: Served, adapters: dict[str, Path], name: str) -> None:
    from urllib.parse import quote

    response = put(server, quote(name), upload_parts(adapters["prompt-tuning"]))
    assert (response.status_code, response.json()["error"]["param"]) == (422, "task"), response.text


@pytest.mark.parametrize(
    ("kind", "content", "status", "code"),
    [
        ("application/json", b"{}", 415, "unsupported_media_type"),
        ("multipart/form-data", b"x", 400, "bad_request"),
        ("multipart/form-data; boundary=b", b"no boundary here", 400, "bad_request"),
        ("multipart/form-data; boundary=b", b"", 400, "bad_request"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nno name\r\n--b--\r\n", 400, "bad_request"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="adapter_config.json"\r\n\r\n{}',
            400,
            "bad_request",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A: " + b"x" * 20_000, 400, "bad_request"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 422, "invalid_adapter"),
        ("multipart/form-data; boundary=" + "b" * 300, b"", 400, "bad_request"),
    ],
)
def test_a_body_that_is_no_upload_is_refused(server: Served, kind: str, content: bytes, status: int, code: str) -> None:
    response = server.http.put("/v1/adapters/prompt-tuning", content=content, headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


def test_an_upload_beyond_the_limit_is_cut_off(server: Served, adapters: dict[str, Path]) -> None:
    parts = upload_parts(adapters["prompt-tuning"], **{WEIGHTS: b"\0" * 2_000_001})
    response = put(server, "prompt-tuning", parts)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="adapter_config.json"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 65536

    response = server.http.put(
        "/v1/adapters/prompt-tuning",
        content=endless(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", "/v1/adapters?lmit=1", "lmit"),
        ("GET", "/v1/adapters/none?version=1", "version"),
        ("DELETE", "/v1/adapters/none?force=true", "force"),
        ("GET", "/v1/shared?prefx=a", "prefx"),
        ("GET", "/v1/keys?tenent=acme", "tenent"),
        ("GET", "/v1/audit?limit=1&tennant=acme", "tennant"),
        ("GET", "/v1/usage?form=2026-01-01", "form"),
        ("GET", "/v1/model?a", "a"),
        ("GET", "/v1/adapters?limit=1&limit=2", "limit"),
        ("GET", "/v1/audit?tenant=acme&limit=1&tenant=default", "tenant"),
        ("GET", "/v1/usage?from=2026-01-01&from=2026-01-01", "from"),
        ("DELETE", "/v1/tenants/none?force=true&force=false", "force"),
    ],
)
def test_a_query_that_is_misspelt_or_says_a_thing_twice_is_refused(
    server: Served, method: str, path: str, param: str
) -> None:
    response = server.http.request(method, path)
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/adapters?limit=ten", "limit: send an integer."),
        ("/v1/adapters?limit=0", "limit: send 1 or more."),
        ("/v1/adapters?limit=1001", "limit: send 1000 or less."),
        (f"/v1/adapters?limit={'9' * 5000}", "limit: send an integer of fewer digits."),
        (f"/v1/adapters?prefix={'a' * 65}", "prefix: send 64 characters or fewer."),
        ("/v1/audit?order=sideways", "order: send 'oldest' or 'newest'."),
        ("/v1/usage?from=2026-01-01T00:00", "from: send 10 characters or fewer."),
    ],
)
def test_what_a_query_may_say_is_told(server: Served, path: str, message: str) -> None:
    response = server.http.get(path)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["message"] == message


def test_an_upload_whose_query_is_misspelt_publishes_nothing(
    server: Served, task: str, adapters: dict[str, Path]
) -> None:
    response = put(server, task, upload_parts(adapters["prompt-tuning"]), activate="maybe")
    assert (response.status_code, response.json()["error"]["message"]) == (422, "activate: send true or false.")
    response = put(server, task, upload_parts(adapters["prompt-tuning"]), activat="false")
    assert response.status_code == 422
    assert "it has activate" in response.json()["error"]["message"]
    assert server.http.get(f"/v1/adapters/{task}").status_code == 404


def test_activation_says_what_is_missing(server: Served) -> None:
    for body, status, code in (
        ({"version": 99}, 404, "version_not_found"),
        ({"version": 0}, 422, "invalid_request"),
        ({"version": "1"}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
        ({"version": 1, "x": 1}, 422, "invalid_request"),
    ):
        response = server.http.post("/v1/adapters/prompt-tuning/activate", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    response = server.http.post("/v1/adapters/nope/activate", json={"version": 1})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "task_not_found")


def test_copies_of_a_folder_are_the_same_version(
    server: Served, task: str, adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["p-tuning-lstm"], tmp_path / "copy")
    one = put(server, task, upload_parts(adapters["p-tuning-lstm"])).json()
    two = put(server, task, upload_parts(tmp_path / "copy")).json()
    assert one["digest"] == two["digest"] == server.http.get("/v1/adapters/p-tuning-lstm").json()["digest"]
