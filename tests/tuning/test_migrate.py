"""Tasks of one base are taught to another: without their training data, beside their old versions, by one command."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from softmux.cli import app
from softmux.errors import TaskNotFound, VersionNotFound
from softmux.formats.folder import load_folder, parse_adapter, read_adapter
from softmux.formats.layout import Layout
from softmux.inspection.base import describe
from softmux.registry.registry import Registry
from softmux.tuning.migration import shelf, teaching
from softmux.tuning.migration.inputs import invented
from softmux.tuning.migration.migrate import Bases, migrate
from softmux.tuning.migration.migrated import Migration
from softmux.tuning.migration.plan import How, OldTask
from softmux.tuning.public import open_base
from softmux.tuning.training.checkpoint import Checkpoint
from softmux.tuning.training.many import Trainer
from softmux.tuning.training.together import Together
from softmux.tuning.voices.voice import Voice
from support.served import Served, upload_parts
from support.toy_language import ANSWERS, make_world, new_base, rows

T = TypeVar("T")
TASKS = list(ANSWERS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def on(data: Path, work: Callable[[Registry], Awaitable[T]]) -> T:
    async def run() -> T:
        registry = await Registry.open(None, data)
        try:
            return await work(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


def publish_all(world: Path, data: Path) -> None:
    spec = describe(str(world / "first"), fingerprints=True)

    async def work(registry: Registry) -> None:
        for task in TASKS:
            files = load_folder(world / "adapters" / task)
            await registry.publish("default", task, read_adapter(files, spec).manifest, files, actor="test")

    on(data, work)


def run(world: Path, cache: Path, *more: str, code: int = 0) -> Any:
    command = ["migrate", "--from", str(world / "first"), "--to", str(world / "second"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--cache", str(cache), "--json", *more])
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout) if code == 0 else done.output


def test_a_tenants_tasks_move_to_a_new_base_beside_their_old_versions(world: Path, tmp_path: Path) -> None:
    """Each old figure is kept without a row of the training data, but for what a few of 29 held-out rows are worth:
    another machine's rounding makes up other inputs."""
    data, report = tmp_path / "data", tmp_path / "report"
    publish_all(world, data)
    options = ["--data", str(data), "--recipes", str(world / "recipes"), "--report", str(report)]
    said = run(world, tmp_path / "cache", *options, "--rows", "300", "--steps", "110")
    assert said["learned_from"] == "distributions"
    assert said["embeddings_cosine"] > 0.8
    assert [task["task"] for task in said["tasks"]] == TASKS
    for task in said["tasks"]:
        assert task["inputs"] == "300 made up"
        assert task["old"]["exact"] > 0.95
        assert task["migrated"]["exact"] >= 0.8 * task["old"]["exact"], task
        assert task["agreement"]["same_answer"] >= task["unmigrated_agreement"]["same_answer"]
        assert task["agreement"]["divergence"] < 0.5 * task["unmigrated_agreement"]["divergence"]
    assert min(task["unmigrated"]["exact"] for task in said["tasks"]) < 0.5, "the new base is another one"
    assert json.loads((report / "migration.json").read_text()) == said
    page = (report / "migration.md").read_text()
    assert all(f"| {task} |" in page for task in TASKS)
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "nothing is kept of a run that is done"

    async def look(registry: Registry) -> None:
        for task in TASKS:
            old = await registry.active("default", task, said["from_fingerprint"])
            new = await registry.active("default", task, said["to_fingerprint"])
            assert (old.version, new.version) == (1, 2), "the old base goes on serving the old version"
            assert new.manifest.method == old.manifest.method
            assert new.manifest.labels == old.manifest.labels
            assert new.manifest.notes is not None
            assert new.manifest.notes.startswith(f"About {task}. Held-out exact ")

    on(data, look)
    again = run(world, tmp_path / "cache", *options, code=1)
    assert "all 3 tasks have a version for the new base; --again migrates them again" in again


SMALL = ["--rows", "80", "--steps", "20", "--save-every", "5", "--max-tokens", "3"]


def test_a_killed_migration_goes_on_and_ends_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it trains: the old base answers nothing twice, and training goes on where it was saved."""
    adapters = ["--adapters", str(world / "adapters"), "--task", "mood", *SMALL]
    whole = run(world, tmp_path / "whole", *adapters, "--out", str(tmp_path / "a"))
    after = Checkpoint.after_step

    def dies(self: Checkpoint, trainer: Trainer) -> None:
        after(self, trainer)
        if trainer.active and trainer.active[0].step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "after_step", dies)
        run(world, tmp_path / "cache", *adapters, "--out", str(tmp_path / "b"), code=130)
    assert not (tmp_path / "b").exists(), "nothing half-written"
    kept = {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(kept) == 2
    taught: list[str] = []
    monkeypatch.setattr(teaching, "teach", lambda *_, **__: taught.append("again"))
    arguments = ["migrate", "--from", str(world / "first"), "--to", str(world / "second"), "--device", "cpu"]
    done = CliRunner().invoke(
        app, [*arguments, "--cache", str(tmp_path / "cache"), *adapters, "--out", str(tmp_path / "b"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert "going on from step 10" in done.stderr
    assert not taught
    assert json.loads(done.stdout)["tasks"][0]["digest"] == whole["tasks"][0]["digest"]
    assert load_folder(tmp_path / "a" / "mood") == load_folder(tmp_path / "b" / "mood")


def test_a_base_of_other_words_learns_from_answers_as_text(world: Path, tmp_path: Path) -> None:
    """Of another width and vocabulary. What can't be taught is left with why, and the others go on."""
    other = new_base(tmp_path / "other", "unheard", "of", hidden=48)
    other.model.save_pretrained(tmp_path / "other")
    adapters = tmp_path / "adapters"
    for task in TASKS:
        shutil.copytree(world / "adapters" / task, adapters / task)
    (adapters / "place" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (adapters / "mood" / "softmux.json").write_text('{"template": "{p:4}{one} {two}"}')
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    said = "".join(json.dumps({"prompt": text, "answer": right}) + "\n" for text, right in rows("size"))
    (inputs / "size.jsonl").write_text(said)
    options = ["--adapters", str(adapters), "--inputs", str(inputs), "--out", str(tmp_path / "out")]
    found = run(world, tmp_path / "cache", "--to", str(tmp_path / "other"), *options, *SMALL)
    (size,) = found["tasks"]
    assert found["learned_from"] == "answers"
    assert (size["inputs"], size["begun_from"]) == ("80 kept", "a fresh LoRA")
    assert size["agreement"]["divergence"] is None
    assert size["unmigrated_agreement"] is None
    assert size["old"]["exact"] > 0.9
    assert any("agrees with the old in" in word for word in size["attention"])
    assert any("below 0.97 of the old" in word for word in size["attention"])
    why = {left["task"]: left["why"] for left in found["left"]}
    assert "IA3" in why["place"]
    assert why["mood"].startswith("its template has 2 slots")
    spec = describe(str(tmp_path / "other"), fingerprints=True)
    adapter = read_adapter(load_folder(tmp_path / "out" / "size"), spec)
    assert adapter.manifest.base_label == "other"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["migration.json", "migration.md", "size"]


def test_what_became_of_a_task_meanwhile_is_seen(world: Path, tmp_path: Path) -> None:
    """Deleted ones stay deleted, a limit is told, and an old version that is no longer the active one, too."""
    data = tmp_path / "data"
    publish_all(world, data)
    bases = Bases.of(str(world / "first"), str(world / "second"))
    tasks = [OldTask(task, load_folder(world / "adapters" / task), 1) for task in TASKS]
    together = Together(save_every=0, kept=tmp_path / "kept")
    quiet = Console(quiet=True)
    found, _ = migrate(tasks, bases, How(rows=60, steps=2, max_tokens=3), "cpu", console=quiet, together=together)
    assert len(found.moved) == 3

    async def change(registry: Registry) -> Migration:
        await registry.delete("default", "mood", actor="test")
        record = await registry.active("default", "place", found.old_fingerprint)
        files = {e.name: await registry.file("default", "place", 1, e.name) for e in record.manifest.files}
        files["softmux.json"] = b'{"notes": "another"}'
        manifest = read_adapter(files, bases.old_spec).manifest
        await registry.publish("default", "place", manifest, files, actor="test")
        return await shelf.publish(registry, "default", found, activate=False, actor="test")

    done = {one.task: one for one in on(data, change).moved}
    assert done["mood"].published is None
    assert "not published: there is no task 'mood'" in done["mood"].attention[-1]
    assert done["place"].published == 3
    assert "version 2 was made active meanwhile, and 1 was migrated" in done["place"].attention[-1]
    assert done["size"].published == 2

    async def look(registry: Registry) -> None:
        with pytest.raises(TaskNotFound):
            await registry.versions("default", "mood")
        with pytest.raises(VersionNotFound):
            await registry.active("default", "size", found.new_fingerprint)
        assert (await registry.active("default", "size", found.old_fingerprint)).version == 1

    on(data, look)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "FIRST", "--adapters", "ADAPTERS", "--out", "OUT"], "is the old base: its tasks need no migration"),
        (["--to", "NONE", "--adapters", "ADAPTERS", "--out", "OUT"], "no such folder, and not to be had from the hub"),
        (["--to", "BARE", "--adapters", "ADAPTERS", "--out", "OUT"], "holds no .safetensors weights"),
        (["--adapters", "ADAPTERS"], "folders become folders: give --out"),
        (["--adapters", "NONE", "--out", "OUT"], "there is no folder"),
        (["--adapters", "EMPTY", "--out", "OUT"], "has no folder of an adapter"),
        (["--adapters", "ADAPTERS", "--task", "moods", "--out", "OUT"], "has no task moods"),
        (["--adapters", "ADAPTERS", "--out", "TAKEN"], "is there, and is no adapter's folder"),
        (["--adapters", "ADAPTERS", "--out", "OUT", "--task", "mood", "--inputs", "FEW"], "The data has no"),
        (
            ["--adapters", "ADAPTERS", "--out", "OUT", "--task", "mood", "--max-tokens", "128", "--rows", "40"],
            "no input leaves room",
        ),
        (["--data", "DATA", "--task", "moods"], "has no task moods"),
        (["--data", "DATA", "--tenant", "acme"], "acme"),
        (["--data", "DATA", "--from", "SECOND", "--to", "FIRST"], "has no task for the old base"),
        (["--data", "EMPTY"], "there is no registry"),
    ],
)
def test_what_is_wrong_is_told(options: list[str], said: str, world: Path, tmp_path: Path) -> None:
    places = {"FIRST": world / "first", "SECOND": world / "second", "ADAPTERS": world / "adapters"}
    places |= {name: tmp_path / name for name in ("OUT", "NONE", "EMPTY", "TAKEN", "FEW", "DATA", "BARE", "ENOUGH")}
    shutil.copytree(world / "second", places["BARE"], ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("EMPTY", "FEW", "ENOUGH"):
        places[name].mkdir()
    for task in TASKS:
        (places["ENOUGH"] / f"{task}.csv").write_text("prompt\nlong film 7 was dull\n")
    (places["TAKEN"] / "mood").mkdir(parents=True)
    (places["FEW"] / "mood.csv").write_text("prompt\nlong film 7 was dull\n")
    if "DATA" in options:
        publish_all(world, places["DATA"])
    words = run(world, tmp_path / "cache", *(str(places.get(option, option)) for option in options), code=1)
    assert said in " ".join(words.split())
    assert not places["OUT"].exists()


def test_made_up_inputs_are_such_as_the_task_answers(world: Path) -> None:
    """By the seed; of a template what stands in its slot, and nothing behind it."""
    bases = Bases.of(str(world / "first"), str(world / "second"))
    base = open_base(world / "first", device="cpu")
    adapter = parse_adapter(load_folder(world / "adapters" / "mood"), bases.old_spec)
    voice = Voice.of(base, Layout.of(adapter.manifest), adapter.parts)
    texts = [invented(voice, adapter.manifest, 30, seed).texts for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 30
    said = [base.text(ids) for ids in voice.answers([voice.ids(text) for text in texts[0]], 3)]
    assert set(said) <= set(ANSWERS["mood"].values())
    placed = msgspec.structs.replace(adapter.manifest, template="long {p:4} {what} was dull", labels=None)
    voice = Voice.of(base, Layout.of(placed), adapter.parts)
    made = invented(voice, placed, 20, 1).texts
    assert made
    assert not any(" was dull" in text for text in made)


@pytest.mark.nightly
def test_the_old_base_goes_on_until_the_operator_switches(world: Path, tmp_path: Path) -> None:
    """Migrated beside a server of the old base, which notices nothing; one of the new base then has all tasks."""
    data = tmp_path / "data"
    said, right = "long film 7 was dull", {"mood": "no", "place": "screen", "size": "big"}

    def answers(server: Served) -> dict[str, tuple[int, str]]:
        found = {}
        for task in TASKS:
            reply = server.http.post(f"/v1/generate?task={task}", json={"prompt": said, "max_tokens": 2})
            assert reply.status_code == 200, reply.text
            found[task] = (reply.json()["adapter"]["version"], reply.json()["choices"][0]["text"].strip())
        return found

    with Served(world / "first", data) as server:
        for task in TASKS:
            reply = server.http.put(f"/v1/adapters/{task}", files=upload_parts(world / "adapters" / task))
            assert reply.status_code == 201, reply.text
        before = answers(server)
        assert before == {task: (1, word) for task, word in right.items()}
        places = ["--data", str(data), "--report", str(tmp_path / "report")]
        found = run(world, tmp_path / "cache", *places, "--rows", "300", "--steps", "110")
        assert [task["version"] for task in found["tasks"]] == [2, 2, 2]
        assert answers(server) == before
        reply = server.http.post("/v1/generate?task=mood@2", json={"prompt": said})
        assert reply.json()["error"]["code"] == "base_mismatch"
    with Served(world / "second", data) as server:
        assert answers(server) == {task: (2, word) for task, word in right.items()}
        reply = server.http.post("/v1/generate?task=mood@1", json={"prompt": said})
        assert reply.json()["error"]["code"] == "base_mismatch"
