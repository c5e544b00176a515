"""The command line against a real server and a real registry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from softmux.cli import app
from softmux.cli.publishing import DO_NOT_SHIP, Publisher, held_back
from support.served import Served


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), env=env)


def on(server: Served, *arguments: str) -> Result:
    return run(*arguments, env={"SOFTMUX_URL": server.url})


def test_an_adapter_is_pushed_listed_shown_activated_generated_with_and_deleted(
    server: Served, adapters: dict[str, Path]
) -> None:
    pushed = on(server, "upload", str(adapters["prompt-tuning"]), "--task", "mine")
    assert pushed.exit_code == 0, pushed.output
    assert "✓" in pushed.output
    assert "mine@1 prompt_tuning sha256:" in pushed.output
    second = on(server, "upload", str(adapters["prefix-tuning"]), "--task", "mine", "--no-activate", "--json")
    assert (json.loads(second.output)["version"], json.loads(second.output)["active"]) == (2, False)

    listed = on(server, "list", "--prefix", "mine")
    assert "prompt_tuning" in listed.output
    assert [version["task"] for version in json.loads(on(server, "list", "--json").output)].count("mine") == 1
    shown = on(server, "show", "mine")
    assert "virtual_tokens    5" in shown.output
    assert "adapter_config.json" in shown.output

    assert on(server, "activate", "mine", "2").output.startswith("mine@2 is active")
    options = ("--task", "mine", "--max-tokens", "5")
    text = on(server, "generate", "a film", *options)
    reply = json.loads(on(server, "generate", "a film", *options, "--json").output)
    assert text.output == reply["choices"][0]["text"] + "\n"
    assert reply["adapter"]["version"] == 2

    assert on(server, "delete", "mine", "--yes").exit_code == 0
    gone = on(server, "show", "mine")
    assert gone.exit_code == 1
    assert "there is no task 'mine'" in gone.output


def test_what_the_server_refuses_is_told_in_its_words(
    server: Served, adapters: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    refused = on(server, "upload", str(tmp_path), "--task", "bad")
    assert refused.exit_code == 1
    assert "error:" in refused.output
    assert "[adapter_config.json" in refused.output
    streamed = on(server, "generate", "a", "--task", "none")
    assert (streamed.exit_code, "there is no task 'none'" in streamed.output) == (1, True)
    assert "NAME=VALUE" in on(server, "generate", "--var", "x").output


def test_without_a_server_it_says_how_to_start_one() -> None:
    for command in (("list",), ("generate", "a")):
        nobody = run(*command, "--url", "http://127.0.0.1:9")
        assert nobody.exit_code == 1
        assert "softmux serve" in nobody.output
    assert run("list", "--url", "nonsense").exit_code == 1


def test_a_folder_is_inspected_without_any_server(adapters: dict[str, Path], tmp_path: Path) -> None:
    shown = run("inspect", str(adapters["prefix-tuning"]))
    assert "prefix_tuning" in shown.output
    facts = json.loads(run("inspect", str(adapters["prompt-tuning"]), "--json").output)
    assert (facts["virtual_tokens"], facts["parameters"]) == (5, 240)
    assert facts["tensors"] == {"prompt_embeddings": [5, 48]}
    assert facts["bytes"] == sum(facts["files"].values())
    odd = shutil.copytree(adapters["prompt-tuning"], tmp_path / "odd")
    (odd / "softmux.json").write_text("{not JSON")
    refused = run("inspect", str(odd))
    assert (refused.exit_code, "softmux.json can't be read" in refused.output) == (1, True)
    nothing = run("inspect", str(tmp_path))
    assert (nothing.exit_code, "lacks adapter_config.json" in nothing.output) == (1, True)


def test_tenants_and_keys_are_made_and_revoked_without_a_server(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    assert run("tenant", "create", "acme", *data).output == "tenant acme is created\n"
    assert run("tenant", "create", "acme", *data).output == "tenant acme is there already\n"
    assert run("tenant", "create", "No Name", *data).exit_code == 1
    made = json.loads(run("key", "create", "--tenant", "acme", "--role", "publisher", "--json", *data).output)
    assert made["key"].startswith("sk-")
    plain = run("key", "create", "--tenant", "default", *data).output
    assert "sk-" in plain
    listed = run("key", "list", "--json", *data).output
    assert made["key"] not in listed
    assert {key["id"]: key["revoked"] for key in json.loads(listed)}[made["id"]] is False
    assert run("key", "revoke", made["id"], *data).output == f"key {made['id']} is revoked\n"
    assert {key["id"]: key["revoked"] for key in json.loads(run("key", "list", "--json", *data).output)}[made["id"]]
    for wrong in (("--tenant", "nobody"), ("--tenant", "acme", "--role", "king")):
        assert run("key", "create", *wrong, *data).exit_code == 1
    assert run("key", "revoke", "none", *data).exit_code == 1


def test_a_tenants_limits_are_set_and_shown_and_all_is_in_the_log(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    assert run("tenant", "create", "acme", *data).exit_code == 0
    limits = ("--requests-per-minute", "60", "--adapters", "3")
    changed = json.loads(run("tenant", "set", "acme", "--weight", "2.5", *limits, "--json", *data).output)
    assert (changed["name"], changed["weight"]) == ("acme", 2.5)
    assert (changed["limits"]["requests_per_minute"], changed["limits"]["adapters"]) == (60, 3)
    assert json.loads(run("tenant", "set", "acme", "--adapters", "none", "--json", *data).output)["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "tokens_in_flight": None,
        "stored_bytes": None,
        "adapters": None,
    }
    shown = run("tenant", "show", "acme", *data).output
    assert "2.5" in shown
    assert "60" in shown
    for wrong in (("acme",), ("acme", "--adapters", "many"), ("acme", "--weight", "-1"), ("nobody", "--weight", "2")):
        assert run("tenant", "set", *wrong, *data).exit_code == 1
    made = json.loads(run("key", "create", "--tenant", "acme", "--json", *data).output)
    refused = run("tenant", "delete", "acme", *data)
    assert (refused.exit_code, "0 tasks and 1 keys" in refused.output) == (1, True)
    assert json.loads(run("key", "list", "--tenant", "default", "--json", *data).output) == []
    assert run("tenant", "delete", "acme", "--force", *data).output == "tenant acme is deleted\n"
    assert json.loads(run("tenant", "list", "--json", *data).output) == ["default"]
    lines = run("audit", "--json", "--tenant", "acme", *data).output.splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(entry["actor"], entry["action"]) for entry in entries] == [
        ("cli", action)
        for action in ("tenant.create", "tenant.set", "tenant.set", "key.create", "key.revoke", "tenant.delete")
    ]
    assert made["key"] not in "".join(lines)
    later = run("audit", "--json", "--after", entries[-2]["id"], *data).output
    assert [json.loads(line)["action"] for line in later.splitlines()] == ["tenant.delete"]
    assert "tenant.delete" in run("audit", *data).output


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help")])
def test_help_needs_no_heavy_library(arguments: tuple[str, ...]) -> None:
    heavy = ("torch", "transformers", "fastapi", "uvicorn", "redis", "zmq", "tokenizers", "httpx")
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom softmux.cli import app\n"
        f"print(CliRunner().invoke(app, {list(arguments)!r}).exit_code, [m for m in {heavy!r} if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "0 []"


def test_a_registry_is_backed_up_checked_and_restored(tmp_path: Path) -> None:
    one, two = ["--data", str(tmp_path / "one")], ["--data", str(tmp_path / "two")]
    missing = run("registry", "backup", str(tmp_path / "none.tar"), *one)
    assert missing.exit_code == 1
    assert "there is no registry in" in missing.output
    run("tenant", "create", "acme", *one)
    run("key", "create", "--tenant", "acme", *one)
    assert run("registry", "backup", str(tmp_path / "kept.tar"), *one).exit_code == 0
    assert run("registry", "backup", str(tmp_path), *one).exit_code == 0
    assert len(list(tmp_path.glob("softmux-*.tar"))) == 1
    assert "no folder" in run("registry", "backup", str(tmp_path / "no" / "kept.tar"), *one).output
    for _ in range(2):  # made, and there already
        assert run("registry", "backup", f"{tmp_path}/every/night/", *one).exit_code == 0
    kept = list((tmp_path / "every" / "night").iterdir())
    assert kept
    assert all(re.fullmatch(r"softmux-\d{8}T\d{6}Z.tar", file.name) for file in kept)
    in_the_way = run("registry", "backup", f"{tmp_path}/kept.tar/", *one)
    assert in_the_way.exit_code == 1
    assert "File exists; name another" in in_the_way.output

    restored = run("registry", "restore", str(tmp_path / "kept.tar"), *two)
    assert restored.exit_code == 0, restored.output
    assert "2 tenants" in restored.output
    assert run("tenant", "list", *two).output.split() == run("tenant", "list", *one).output.split()
    again = run("registry", "restore", str(tmp_path / "kept.tar"), *two)
    assert again.exit_code == 1
    assert "--replace" in again.output
    assert run("registry", "restore", str(tmp_path / "kept.tar"), "--replace", *two).exit_code == 0

    checked = run("registry", "verify", *two)
    assert checked.exit_code == 0, checked.output
    assert "0 tasks" in checked.output
    assert json.loads(run("registry", "verify", "--json", *two).output)["wrong"] == []
    nothing = run("registry", "verify", "--data", str(tmp_path / "three"))
    assert nothing.exit_code == 1
    assert "there is no registry in" in nothing.output


def test_what_is_done_is_told_as_json_too(server: Served, adapters: dict[str, Path], tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"), "--json")

    def told(*arguments: str, more: tuple[str, ...] = data) -> Any:
        result = on(server, *arguments, *more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert told("tenant", "create", "acme") == {"name": "acme", "created": True}
    assert told("tenant", "create", "acme") == {"name": "acme", "created": False}
    key = told("key", "create", "--tenant", "acme")
    assert told("key", "revoke", key["id"]) == {"id": key["id"], "revoked": True}
    assert told("registry", "backup", str(tmp_path / "kept.tar"))["tenants"] == 2
    assert told("registry", "restore", str(tmp_path / "kept.tar"), "--replace")["tenants"] == 2
    assert told("tenant", "delete", "acme") == {"name": "acme", "deleted": True}
    own = ("--json",)
    assert told("upload", str(adapters["prompt-tuning"]), "--task", "told", more=own)["version"] == 1
    assert told("share", "told", "--everyone", more=own)["everyone"] is True
    assert told("unshare", "told", more=own)["everyone"] is False
    assert told("delete", "told", "--yes", more=own) == {"task": "told", "deleted": True}


def test_a_recipe_begins_from_a_task_of_the_server_or_of_its_registry(
    server: Served, base: tuple[Any, Path], tmp_path: Path
) -> None:
    rows = "".join(f"film {i} was {('dull', 'good')[i % 2]},{('no', 'yes')[i % 2]}\n" for i in range(60))
    (tmp_path / "rows.csv").write_text(f"prompt,answer\n{rows}")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'task = "mine"\nbase = "{base[1]}"\n[data]\nsource = "file"\npath = "rows.csv"\n'
        '[method]\nkind = "prompt_tuning"\nvirtual_tokens = 5\ninit_from = "prompt-tuning@1"\n'
        "[train]\nsteps = 1\nlearning_rate = 1e-2\n[evaluate]\nmax_tokens = 2\nbare = false\n[sweep]\nseeds = [0]\n"
    )
    digest = server.http.get("/v1/adapters/prompt-tuning").json()["digest"]
    options = ("--device", "cpu", "--cache", str(tmp_path / "cache"))
    done = on(server, "tune", str(recipe), *options, "--no-report", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    notes = json.loads((tmp_path / "out" / "softmux.json").read_text())["notes"]
    assert f"Begun from prompt-tuning@1 ({digest}): all its 5 vectors." in notes

    recipe.write_text(recipe.read_text().replace("prompt-tuning@1", "auto"))
    swept = on(server, "sweep", str(recipe), *options, "--out", str(tmp_path / "swept"))
    assert swept.exit_code == 0, swept.output
    assert "begin from" in swept.output
    assert "prompt-tuning@1" in swept.output
    again = ("--no-report", "--out", str(tmp_path / "again"), "--data", str(server.data))
    local = run("tune", str(recipe), *options, *again)
    assert local.exit_code == 0, local.output
    assert f"| {digest} |" in (tmp_path / "again" / "README.md").read_text()


def test_what_is_tuned_is_published_at_once(
    server: Served, base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    rows = "".join(f"film {i} was {('dull', 'good')[i % 2]},{('no', 'yes')[i % 2]}\n" for i in range(60))
    recipes = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rows.csv").write_text(f"prompt,answer\n{rows}")
        recipes.append(folder / "recipe.toml")
        recipes[-1].write_text(
            f'task = "{name}"\nbase = "{base[1]}"\n[data]\nsource = "file"\npath = "rows.csv"\n'
            '[method]\nkind = "prompt_tuning"\nvirtual_tokens = 2\n'
            "[train]\nsteps = 1\nlearning_rate = 1e-2\n[evaluate]\nmax_tokens = 2\nbare = false\n"
        )
    options = ("--device", "cpu", "--cache", str(tmp_path / "cache"), "--no-report", "--publish")
    done = on(server, "tune", *map(str, recipes), *options, "--json")
    assert done.exit_code == 0, done.output
    for one in json.loads(done.stdout):
        served = server.http.get(f"/v1/adapters/{one['task']}").json()
        assert one["published"] == {"version": 1, "active": True, "digest": served["digest"]}
        body = {"prompt": "film", "max_tokens": 1}
        assert server.http.post(f"/v1/generate?task={one['task']}", json=body).status_code == 200
    told = on(server, "tune", str(recipes[0]), *options)
    assert "first@1 prompt_tuning" in told.stdout, "the same files are the same version"
    assert "now active" in told.stdout

    distillation = tmp_path / "short" / "recipe.toml"
    distillation.parent.mkdir()
    distillation.write_text(
        f'task = "short"\nbase = "{base[1]}"\n[teacher]\ntext = "Say it: {{input}}"\nmax_tokens = 2\n'
        '[inputs]\npath = "../first/rows.csv"\n[method]\nkind = "prompt_tuning"\nvirtual_tokens = 2\n'
        "[train]\nsteps = 1\nlearning_rate = 1e-2\n"
    )
    distilled = on(server, "distill", str(distillation), *options[:4], "--publish", "--json")
    assert distilled.exit_code == 0, distilled.output
    assert json.loads(distilled.stdout)["published"]["version"] == 1


def test_what_should_not_ship_is_published_and_not_active_and_what_is_refused_stays(
    server: Served, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = Publisher(server.url, None)
    assert [held_back(verdict) is None for verdict in ("ship", "ship within limits", DO_NOT_SHIP, None)] == [
        True, True, False, False,
    ]  # fmt: skip
    answer = publisher.publish(adapters["prompt-tuning"], "unfit", held_back(DO_NOT_SHIP), tell=True)
    assert answer is not None
    assert not answer["active"]
    said = capsys.readouterr()
    assert "not active" in said.out
    assert "its evaluation says not to ship it; softmux activate unfit 1" in said.err
    broken = tmp_path / "broken"
    shutil.copytree(adapters["prompt-tuning"], broken)
    (broken / "adapter_model.safetensors").write_bytes(b"cut off")
    assert publisher.publish(broken, "broken", tell=True) is None
    assert f"softmux upload {broken} --task broken" in capsys.readouterr().err


def test_a_server_to_publish_to_is_asked_for_before_anything_is_trained(tmp_path: Path) -> None:
    away = run("tune", str(tmp_path / "none.toml"), "--publish", "--url", "http://127.0.0.1:9")
    assert away.exit_code == 1
    assert "127.0.0.1:9" in away.output
    assert "no recipe" not in away.output
    elsewhere = run("tune", str(tmp_path / "none.toml"), "--publish", "--data", str(tmp_path))
    assert "a server tries what it takes: give its --url" in elsewhere.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "nowhere"), "there is no folder nowhere"),
        (("--tenant", "acme"), "a server knows its tenants by their keys"),
    ],
)
def test_where_a_recipe_begins_from_is_asked_for_rightly(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    refused = run("tune", str(tmp_path / "none.toml"), *options)
    assert refused.exit_code == 1
    assert words in refused.output
