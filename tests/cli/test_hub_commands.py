"""`pull`, `push` and `export`: through the hub's own client to a hub over HTTP, and into PEFT."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import peft
import pytest
import torch
from typer.testing import CliRunner

from softmux.cli import app
from softmux.cli.hub import task_of
from support.hub_server import TOKEN, HubServer
from support.loras import make_pair
from support.served import Served, upload_parts

PARTS = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


class Shell:
    """softmux on a terminal whose hub, server and home are these."""

    def __init__(self, hub: HubServer, server: Served) -> None:
        self._env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "SOFTMUX_URL": server.url}

    def run(self, *arguments: str | Path, **env: str) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=self._env | env)


@pytest.fixture
def shell(hub: HubServer, server: Served, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The hub's client reads these of its environment once, when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return Shell(hub, server)


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in PARTS}


def test_a_version_goes_to_the_hub_and_comes_back_the_same(
    hub: HubServer, server: Served, shell: Shell, adapters: dict[str, Path], tmp_path: Path
) -> None:
    own = files_of(adapters["prompt-tuning"])
    pushed = shell.run("push", "prompt-tuning@1", "Acme/My_Task", "--json")
    assert pushed.exit_code == 0, pushed.stderr
    commit, there = hub.repos["Acme/My_Task"][-1]
    assert json.loads(pushed.stdout)["commit"] == commit
    assert {name: there[name] for name in PARTS} == own
    assert "library_name: peft" in there["README.md"].decode()
    hub.add("Acme/My_Task", there | {"README.md": b"mine", "model.py": b"raise SystemExit"})

    pulled = shell.run("pull", "Acme/My_Task", "--json")
    assert pulled.exit_code == 0, pulled.stderr
    answer = json.loads(pulled.stdout)
    assert (answer["task"], answer["version"], answer["active"]) == ("my_task", 1, True)
    assert answer["digest"] == json.loads(pushed.stdout)["digest"]
    assert set(hub.fetched) == set(PARTS)
    server.http.delete("/v1/adapters/my_task")

    assert shell.run("push", "prefix-tuning", "Acme/My_Task").exit_code == 0
    assert hub.repos["Acme/My_Task"][-1][1]["README.md"] == b"mine"
    old = shell.run("pull", f"Acme/My_Task@{commit}", "--out", tmp_path / "old")
    assert old.exit_code == 0, old.stderr
    assert files_of(tmp_path / "old") == own


def test_whatever_fails_is_said_and_nothing_is_published(
    hub: HubServer, server: Served, shell: Shell, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = files_of(adapters["prompt-tuning"])
    hub.add("acme/whole", own)
    hub.add("acme/other", {"config.json": b"{}", "sub/adapter_config.json": b"{}"})
    hub.add("acme/broken", own | {PARTS[1]: own[PARTS[1]][:-40]})
    hub.add("acme/gated", own)
    hub.gated.add("acme/gated")
    before = [task["task"] for task in server.http.get("/v1/adapters").json()["data"]]
    for arguments, env, told in (
        (("pull", "acme/none"), {}, "no repository acme/none"),
        (("pull", "acme/whole@v9"), {}, "no such branch, tag or commit"),
        (("pull", "acme/other"), {}, "There are: sub/adapter_config.json"),
        (("pull", "acme/broken"), {}, "adapter_model.safetensors"),
        (("pull", "acme/gated"), {}, "terms"),
        (("pull", "acme/whole"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "can't be reached"),
        (("push", "prompt-tuning", "acme/new"), {"HF_TOKEN": "hf_wrong"}, "HF_TOKEN"),
    ):
        failed = shell.run(*arguments, **env)
        assert (failed.exit_code, told in failed.stderr) == (1, True), (arguments, failed.stderr)
        assert isinstance(failed.exception, SystemExit)
    assert [task["task"] for task in server.http.get("/v1/adapters").json()["data"]] == before
    assert "acme/new" not in hub.repos
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in shell.run("pull", "acme/whole").stderr
    hub.refuse_commits = True
    refused = shell.run("push", "prompt-tuning", "acme/whole")
    assert (refused.exit_code, "may write there" in refused.stderr) == (1, True), refused.stderr
    assert len(hub.repos["acme/whole"]) == 1


def test_a_repositorys_name_becomes_a_tasks() -> None:
    assert [task_of(repo) for repo in ("Acme/My Task", "acme/_x.Y-1", "a/" + "b" * 80)] == [
        "my-task",
        "x.y-1",
        "b" * 64,
    ]


def export(server: Served, *arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)], env={"SOFTMUX_URL": server.url})


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return [int(token) for token in out[0, len(prompt) :]]


def served(server: Served, task: str, prompt: list[int], count: int) -> list[int]:
    body = {"prompt": prompt, "max_tokens": count, "return_token_ids": True}
    return list(server.http.post("/v1/generate", params={"task": task}, json=body).json()["choices"][0]["token_ids"])


@pytest.mark.parametrize("task", ["prompt-tuning", "prefix-tuning"])
def test_peft_loads_what_is_exported_and_says_the_same(
    task: str, server: Served, base: tuple[Any, Path], tmp_path: Path
) -> None:
    exported = export(server, f"{task}@1", tmp_path / "out", "--json")
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.output)["notes"] == []
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base[0]), str(tmp_path / "out")).eval()
    assert greedy(model, [5, 6, 7, 8], 8) == served(server, task, [5, 6, 7, 8], 8)
    again = CliRunner().invoke(
        app, ["upload", str(tmp_path / "out"), "--task", task, "--json"], env={"SOFTMUX_URL": server.url}
    )
    assert json.loads(again.output)["version"] == 1
    taken = export(server, task, tmp_path / "out")
    assert (taken.exit_code, "there already" in taken.output) == (1, True)
    assert "no version 9" in export(server, f"{task}@9", tmp_path / "nine").output


def test_a_pair_is_exported_in_two_steps_that_are_told(server: Served, base: tuple[Any, Path], tmp_path: Path) -> None:
    make_pair(base[0], "prompt_tuning", tmp_path / "pair")
    assert server.http.put("/v1/adapters/a-pair", files=upload_parts(tmp_path / "pair")).status_code == 201
    exported = export(server, "a-pair", tmp_path / "out")
    assert exported.exit_code == 0, exported.output
    assert "merge_and_unload" in exported.output
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(base[0]), str(tmp_path / "out" / "lora")).merge_and_unload()
    model = peft.PeftModel.from_pretrained(merged, str(tmp_path / "out")).eval()
    assert greedy(model, [5, 6, 7, 8], 8) == served(server, "a-pair", [5, 6, 7, 8], 8)
    server.http.delete("/v1/adapters/a-pair")
