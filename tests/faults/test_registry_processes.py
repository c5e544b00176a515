"""Several real processes on one registry: killed, stopped and started anew while publishing goes on."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from registry.registry_fixtures import adapter
from softmux.errors import RegistryDown
from softmux.registry.backup import PATIENCE
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.registry import Registry
from softmux.registry.verify import verify
from support.waiting import eventually

_TESTS = Path(__file__).parents[1]

_FOLLOWER = """
import asyncio, sys, time
from pathlib import Path
from registry.registry_fixtures import BASE
from softmux.errors import SoftmuxError
from softmux.registry import connection
from softmux.registry.registry import Registry

connection.BUDGET = 30.0  # a busy machine is slow

async def main():
    registry = await Registry.open(sys.argv[1], Path(sys.argv[2]), begin=False)
    await registry.follow(collect=False)
    seen = {}
    print("ready", flush=True)
    while True:
        for task in sys.argv[3].split(","):
            try:
                version = registry.catalog.resolve("default", task, None, BASE).version
            except SoftmuxError:
                version = 0
            if seen.get(task) != version:
                seen[task] = version
                print(task, version, time.monotonic(), flush=True)
        await asyncio.sleep(0.002)

asyncio.run(main())
"""

_UPLOADER = """
import asyncio, itertools, random, sys
from pathlib import Path
from registry.registry_fixtures import LARGE, adapter
from softmux.registry import connection
from softmux.registry.registry import Registry

connection.BUDGET = 30.0  # a busy machine is slow

async def main():
    registry = await Registry.open(sys.argv[1], Path(sys.argv[2]), begin=False)
    who, rng = sys.argv[3], random.Random()
    print("ready", flush=True)
    for number in itertools.count():
        content = f"{who}-{rng.randrange(40)}"  # often what was there before, or is just being collected
        task = f"{who}-{rng.randrange(4)}"
        manifest, files = adapter(content, size=rng.choice((500, LARGE, 4 * LARGE)))
        if rng.random() < 0.3:
            print("-", task, flush=True)
            try:
                await registry.delete("default", task, actor="t")
            except Exception as error:
                if type(error).__name__ != "TaskNotFound":
                    raise
            continue
        made = await registry.publish("default", task, manifest, files, actor="t")
        print("+", task, made.version.version, manifest.digest, flush=True)

asyncio.run(main())
"""

_COLLECTOR = """
import asyncio, sys
from pathlib import Path
from softmux.registry import connection
from softmux.registry.registry import Registry

connection.BUDGET = 30.0  # a busy machine is slow

async def main():
    registry = await Registry.open(sys.argv[1], Path(sys.argv[2]), begin=False)
    print("ready", flush=True)
    while True:
        await registry.collect(grace=0.1)

asyncio.run(main())
"""


@contextlib.contextmanager
def _running(script: str, *arguments: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Ends it by SIGKILL. What it prints goes to `output`, whole lines at a time."""
    with output.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=file, stderr=file, cwd=_TESTS)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _lines(path: Path) -> list[list[str]]:
    """The whole lines so far."""
    return [line.split() for line in path.read_text().rpartition("\n")[0].splitlines()]


def test_processes_started_and_killed_while_publishing_goes_on_converge(tmp_path: Path) -> None:
    """Three at a time, each replaced now and then; how far each was behind what was acknowledged is measured."""
    tasks = [f"task-{number}" for number in range(8)]
    replacements = 6

    async def story() -> None:
        publisher = await Registry.open(None, tmp_path / "data")
        acknowledged: dict[tuple[str, int], float] = {}
        outputs: list[Path] = []
        done = asyncio.Event()

        async def publish() -> None:
            number = 0
            while True:
                task = tasks[number % len(tasks)]
                try:
                    made = await publisher.publish("default", task, *adapter(number), actor="t")
                except RegistryDown:  # a machine without time; what is not acknowledged is sent again
                    continue
                acknowledged[task, made.version.version] = time.monotonic()
                if done.is_set():
                    return
                number += 1
                await asyncio.sleep(0.02)

        publishing = asyncio.create_task(publish())
        with contextlib.ExitStack() as stack:
            alive: collections.deque[tuple[contextlib.ExitStack, Path]] = collections.deque()

            async def start() -> None:
                output, own = tmp_path / f"follower-{len(outputs)}.txt", stack.enter_context(contextlib.ExitStack())
                outputs.append(output)
                arguments = (publisher.url, str(tmp_path / "data"), ",".join(tasks))
                own.enter_context(_running(_FOLLOWER, *arguments, output=output))
                await eventually(lambda: ["ready"] in _lines(output), 150, "a process has started")
                alive.append((own, output))

            for _ in range(3):
                await start()
            for _ in range(replacements):
                await asyncio.sleep(random.uniform(0.1, 0.5))
                killed, _ = alive.popleft()
                killed.close()
                await start()
            await asyncio.sleep(0.5)
            done.set()
            await publishing
            latest = {task: max(version for name, version in acknowledged if name == task) for task in tasks}
            for _, output in alive:
                await eventually(lambda output=output: _seen(output) == latest, 60, "all know the same")  # type: ignore[misc]
        behind = sorted(
            max(0.0, float(line[2]) - acknowledged[line[0], int(line[1])])
            for output in outputs
            for line in _after_ready(output)
            if (line[0], int(line[1])) in acknowledged
        )
        assert len(behind) > 50
        median, late, last = statistics.median(behind), behind[int(0.99 * len(behind))], behind[-1]
        print(f"{len(acknowledged)} changes, {len(outputs)} processes: seen {median:.4f} s after the answer in the")
        print(f"median, {late:.4f} s at p99, {last:.4f} s at most")
        await publisher.close()

    asyncio.run(story())


def _seen(output: Path) -> dict[str, int]:
    return {line[0]: int(line[1]) for line in _lines(output) if len(line) == 3}


def _after_ready(output: Path) -> list[list[str]]:
    """Changes that a process saw while it followed: not what it found as it began."""
    lines = _lines(output)
    first = lines.index(["ready"])
    return [line for line in lines[first + 1 + len({line[0] for line in lines if len(line) == 3}) :] if len(line) == 3]


@pytest.mark.parametrize("rounds", [15, pytest.param(150, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_collecting_never_races_uploads_that_are_killed_or_stopped(tmp_path: Path, rounds: int) -> None:
    """Uploaders are killed at any moment, or stopped for longer than the grace period (0.1 s) and let go on, while two
    collectors run without rest, which are killed, too."""

    async def story() -> None:
        registry = await Registry.open(None, tmp_path / "data")
        place = (registry.url, str(tmp_path / "data"))
        outputs: list[Path] = []

        def start(stack: contextlib.ExitStack, script: str, *more: str) -> tuple[subprocess.Popen[bytes], Path]:
            outputs.append(tmp_path / f"{len(outputs)}.txt")
            return stack.enter_context(_running(script, *place, *more, output=outputs[-1])), outputs[-1]

        with contextlib.ExitStack() as everything:
            roles = [(_UPLOADER, "a"), (_UPLOADER, "b"), (_UPLOADER, "c"), (_COLLECTOR,), (_COLLECTOR,)]
            own = [everything.enter_context(contextlib.ExitStack()) for _ in roles]
            running = [start(stack, *role) for stack, role in zip(own, roles, strict=True)]
            for number in range(rounds):
                which = number % len(roles)
                process, output = running[which]
                least = 1 if roles[which][0] is _COLLECTOR else 4
                await eventually(lambda output=output, least=least: len(_lines(output)) >= least, 150, "it is at work")  # type: ignore[misc]
                await asyncio.sleep(random.uniform(0, 0.05))
                if number % 3 == 2:
                    process.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(0.4)
                    process.send_signal(signal.SIGCONT)
                else:
                    own[which].close()
                    own[which] = everything.enter_context(contextlib.ExitStack())
                    running[which] = start(own[which], *roles[which])
        for output in outputs:
            assert "Traceback" not in output.read_text(), output.read_text()
        await _check_all_is_there_and_nothing_else(registry, outputs, tmp_path / "data")
        await registry.close()

    asyncio.run(story())


async def _check_all_is_there_and_nothing_else(registry: Registry, outputs: list[Path], data: Path) -> None:
    acknowledged: dict[tuple[str, int], str] = {}
    for output in outputs:  # a task is one uploader's, whose outputs are in order
        for line in _lines(output):
            if line[0] == "-":
                acknowledged = {key: digest for key, digest in acknowledged.items() if key[0] != line[1]}
            elif line[0] == "+":
                acknowledged[line[1], int(line[2])] = line[3]
    assert acknowledged
    names = await registry._versions.names("default", after=None, prefix="", limit=1000)
    found = {(name, record.version): record for name in names for record in await registry.versions("default", name)}
    assert {key: found[key].manifest.digest for key in acknowledged} == acknowledged

    blobs = BlobStore(registry.blob_url)
    await asyncio.sleep(0.3)
    with redis.Redis.from_url(registry.url) as client:
        for sha in client.hkeys("softmux:t:default:deleting"):  # of a collector that was killed, a minute ago
            client.hset("softmux:t:default:deleting", sha, 1)
        for _ in range(10):
            await registry.collect(grace=0)
        assert not client.zcard("softmux:t:default:loose")
        assert not client.zcard("softmux:t:default:garbage")
        assert not client.hlen("softmux:t:default:deleting")
    connection = Connection(registry.url, read_timeout=PATIENCE)
    checked = await verify(connection, blobs)
    await connection.close()
    assert (checked.wrong, checked.unused) == ((), ())
    blobs.sweep(0.0)
    left = {path.name for path in (data / "blobs").rglob("*") if path.is_file()}
    used = {entry.sha256.partition(":")[2] for record in found.values() for entry in record.manifest.files}
    assert left <= used, "nothing is left of what was killed"
    print(
        f"{len(outputs)} processes: {len(acknowledged)} acknowledged versions whole, {len(left)} files, none left over"
    )
