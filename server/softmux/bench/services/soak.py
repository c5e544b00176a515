"""A long day in minutes: random load on a tiny model whose KV pool, tiers and tables are all too small for it.

`softmux bench soak --steps 200000`. Requests of every method come and go, clients abort, disconnect and miss
deadlines, adapters are replaced while they run; the books are checked every few steps, answers against the first ones
given, and the process's memory at rest. Ends with 1 where anything does not add up, or memory grows over a run that is
long enough to tell.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from softmux.bench.bases.tiny import CONTEXT, METHODS, VOCABULARY, adapter_files, tiny_model
from softmux.bench.services.memory import Growth, Sample
from softmux.engine.engine import Engine, pick_device
from softmux.errors import InvalidRequest, SoftmuxError, VersionNotFound
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence as Running
from softmux.settings import Settings
from softmux.types import DEFAULT_TENANT, SamplingParams, TokenLogprobs

ADAPTERS, CLIENTS = 24, 4
_SURE = 1e-3
"""Where two best tokens are nearer, rounding may choose: an answer is compared up to there."""


_MAY_FAIL = {
    "version_not_found": "of a replaced adapter, refused",
    "overloaded": "displaced from a full queue by a tenant with less in it",
}


@dataclass(frozen=True, slots=True)
class Adapter:
    key: RootKey
    method: str
    virtual: int


@dataclass(slots=True)
class Asked:
    """A request under way. `probe` names it where the same one was asked before, or will be."""

    probe: tuple[RootKey, tuple[int, ...]] | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Soak:
    """Drives one engine. `run` raises AssertionError where the books or an answer are wrong."""

    def __init__(self, *, seed: int = 0, device: str = "cpu", scratch: Path, check_every: int = 25) -> None:
        self.draw = random.Random(seed)  # noqa: S311
        self.files: dict[RootKey, Mapping[str, bytes]] = {}
        where = pick_device(device)
        settings = Settings(
            model="soak",
            device="cuda" if where.type == "cuda" else "cpu",
            dtype="float32",
            kv_tokens=320,
            max_rows=12,
            max_step_tokens=48,
            max_waiting=64,
            host_cache_bytes=24 << 10,
            disk_cache_bytes=48 << 10,
            resident_vectors=64,
        )
        self.engine = Engine(settings, self._source, disk_folder=scratch, model=tiny_model(where))
        self.check_every = check_every
        self.growth = Growth()
        self.counts: Counter[str] = Counter()
        self.asked: dict[str, Asked] = {}
        self.known: dict[tuple[RootKey, tuple[int, ...]], tuple[int, ...]] = {}
        self._made = 0
        self.adapters = [self._upload(number) for number in range(ADAPTERS)]
        self.texts = [tuple(self.draw.randrange(3, VOCABULARY) for _ in range(40)) for _ in range(6)]

    def _source(self, key: RootKey) -> Mapping[str, bytes]:
        files = self.files.get(key)
        if files is None:
            raise VersionNotFound(f"{key.digest} was replaced")
        return files

    def _upload(self, number: int) -> Adapter:
        self._made += 1
        method = METHODS[number % len(METHODS)]
        virtual = self.draw.choice([1, 3, 8, 20])
        tenant = DEFAULT_TENANT if number % 3 else "other"
        key = self.engine.key(tenant, f"version-{self._made}")
        self.files[key] = adapter_files(method, virtual, self._made)
        return Adapter(key, method, virtual)

    # --- the load ----------------------------------------------------------------------------------------------------

    def _replace(self) -> None:
        """A new version in an old one's place; what was known of the old is forgotten, whoever still runs on it."""
        number = self.draw.randrange(ADAPTERS)
        old = self.adapters[number].key
        self.adapters[number] = self._upload(number)
        del self.files[old]
        self.known = {probe: tokens for probe, tokens in self.known.items() if probe[0] != old}
        self.counts["adapters replaced"] += 1

    def _ask(self) -> None:
        draw = self.draw
        adapter = draw.choice(self.adapters) if draw.random() < 0.85 else None
        probe = draw.random() < 0.3
        text = self.texts[draw.randrange(len(self.texts))]
        ids = text[: draw.choice([1, 2, 5, 16, 40]) if probe else draw.randint(1, 40)]
        if not probe and draw.random() < 0.5:
            ids = (*ids[: len(ids) // 2], *(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 12))))
        lead = tuple(-1 - i for i in range(adapter.virtual)) if adapter else ()
        tokens = (*lead, *ids)
        if adapter is not None and adapter.method == "template":
            tokens = (*ids[:2], *lead, *ids[2:])
        wishes: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True, "logprobs": 2}
        if not probe:
            wishes = {"max_tokens": draw.randint(1, CONTEXT - len(tokens)), "ignore_eos": draw.random() < 0.5}
            if draw.random() < 0.3:
                wishes |= {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "presence_penalty": draw.choice([0, 0.5])}
            if draw.random() < 0.1:
                wishes["logprobs"] = draw.randint(0, 5)
        root = adapter.key if adapter else self.engine.key(draw.choice((DEFAULT_TENANT, "other")), None)
        name = str(self.counts["requests"])
        now = time.monotonic()
        self.counts["requests"] += 1
        try:
            self.engine.add(
                name,
                tokens,
                SamplingParams(**wishes),
                root=root,
                now=now,
                client=b"client-%d" % draw.randrange(CLIENTS),
                deadline=now + draw.random() * 0.2 if draw.random() < 0.03 else None,
            )
        except SoftmuxError as error:
            self.counts[error.code] += 1
            return
        self.asked[name] = Asked((root, tokens) if probe else None)

    def _disturb(self, step: int) -> None:
        draw, scheduler = self.draw, self.engine.scheduler
        rush = step // 64 % 4 != 0  # now and then the queue runs dry
        for _ in range(draw.choice((0, 0, 1, 1)) if rush else 0):
            self._ask()
        if draw.random() < 0.03 and self.asked:
            running = draw.choice(list(scheduler.sequences()) or [None])
            if running is not None:
                scheduler.abort(running.client, running.id)
                self._gone(running, "aborted")
        if draw.random() < 0.002:
            client = b"client-%d" % draw.randrange(CLIENTS)
            leaving = [sequence for sequence in scheduler.sequences() if sequence.client == client]
            scheduler.abort_client(client)
            for sequence in leaving:
                self._gone(sequence, "disconnected")
        if draw.random() < 0.02:
            self._replace()
        for sequence in scheduler.expired(time.monotonic()):
            self._gone(sequence, "past their deadline")

    def _gone(self, sequence: Running, why: str) -> None:
        self.counts[why] += 1
        del self.asked[sequence.id]

    # --- the steps ---------------------------------------------------------------------------------------------------

    def run(self, steps: int, samples: int = 40, until: float = math.inf) -> None:
        """`steps` forward passes, or fewer where `time.perf_counter` comes to `until` first, with a rest and a sample
        of memory `samples` times over the steps or over the time, whichever is further; fewer where resting takes as
        long as what lies between."""
        began, turn = time.perf_counter(), 0

        def part() -> int:
            over_time = (time.perf_counter() - began) / (until - began)
            return int(max(self.engine.steps / steps, over_time) * samples)

        rested = 0
        while self.engine.steps < steps and time.perf_counter() < until:
            turn += 1
            self._disturb(turn)
            self._step()
            if turn % self.check_every == 0:
                self.engine.check_integrity()
            if part() > rested:
                self.rest()
                rested = part()
        weighed = self.growth.samples
        if turn and (not weighed or weighed[-1].step < self.engine.steps):
            self.rest()  # its time was over between two samples

    def rest(self) -> None:
        """Lets everything end; then nothing may be held, and what is held is weighed."""
        while self.engine.scheduler.running or len(self.engine.scheduler.waiting) or not self.engine.idle:
            self._step()
        self.engine.check_integrity()
        assert not self.asked, f"{len(self.asked)} requests were never answered"
        cache = self.engine.scheduler.cache
        assert cache.pool.free + cache.tree.tokens == cache.pool.capacity, "a slot is held by nobody"
        assert cache.tree.evictable == cache.tree.tokens, "a part of the tree is held by nobody"
        self.growth.samples.append(Sample.taken(self.engine.steps))

    def _step(self) -> None:
        news = self.engine.step()
        for sequence, error in news.failed:
            told = f"{sequence.id}: {error.code}: {error.message}"
            assert error.code in _MAY_FAIL, told
            assert not self.engine.shortage.refused, told
            self._gone(sequence, _MAY_FAIL[error.code])
        for sequence, output in news.each():
            asked = self.asked[sequence.id]
            asked.tokens.extend(output.tokens)
            asked.logprobs.extend(output.logprobs)
            self.counts["tokens"] += len(output.tokens)
            if output.finish_reason:
                del self.asked[sequence.id]
                self.counts["finished"] += 1
                if asked.probe is not None:
                    self._compare(asked.probe, asked)
        pool = self.engine.scheduler.cache.pool
        self.counts["turns with the pool full"] += pool.free == 0
        if news.batch is None or not news.ran:
            time.sleep(0.0002)  # an adapter is on its way

    def _compare(self, probe: tuple[RootKey, tuple[int, ...]], asked: Asked) -> None:
        certain = len(asked.tokens)
        for at, entry in enumerate(asked.logprobs):
            if entry.top_logprobs[0] - entry.top_logprobs[1] < _SURE:
                certain = at
                break
        sure = tuple(asked.tokens[:certain])
        if probe[0].digest is not None and probe[0] not in self.files:
            return
        before = self.known.setdefault(probe, sure)
        shorter = min(len(before), len(sure))
        assert before[:shorter] == sure[:shorter], f"{probe}: {sure} where it was {before} before"
        self.counts["answers compared"] += 1

    def told(self) -> str:
        scheduler, tiers = self.engine.scheduler, self.engine.tiers
        counts = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        return (
            f"{self.engine.steps:,} steps: {counts}\n{scheduler.preemptions:,} preemptions; adapters loaded "
            f"{dict(tiers.counts.loads)}, vectors swapped {self.engine.runner.vocabulary.swaps:,} times\n"
            f"{self.growth.told()}"
        )

    def close(self) -> None:
        self.engine.close()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="ends then, however few steps it has made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    if options.steps < 1 or not options.seconds > 0:
        raise InvalidRequest("--steps is at least 1, and --seconds above 0.", param="steps")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        soak = Soak(seed=options.seed, device=options.device, scratch=Path(scratch))
        began = time.perf_counter()
        try:
            soak.run(options.steps, until=began + options.seconds)
        finally:
            sys.stdout.write(f"{soak.told()}\n{time.perf_counter() - began:.0f} s\n")
        soak.close()
    beyond = soak.growth.beyond()
    sys.stdout.writelines(f"{words}\n" for words in beyond)
    return 1 if beyond else 0
