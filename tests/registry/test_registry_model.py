"""The registry against a model of it: dictionaries, on a real server, with the server killed now and then."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from registry.registry_fixtures import BASE, OTHER_BASE, adapter, pid_if_up, server_pid, wait_for
from softmux.errors import SoftmuxError, TaskNotFound, VersionNotFound
from softmux.registry.registry import Registry
from softmux.types import Manifest

TENANTS = st.sampled_from(["default", "acme"])
TASKS = st.sampled_from(["a", "a.b", "b"])
BASES = st.sampled_from([BASE, OTHER_BASE])
SEEDS = st.integers(0, 3)
SIZES = st.sampled_from([10, 70_000])


@dataclass
class _Task:
    """A task in the model; `count` outlives the rest."""

    count: int = 0
    versions: dict[int, Manifest] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="softmux-model-"))
        self.runner = asyncio.Runner()
        self.registry = self.runner.run(Registry.open(None, self.folder))
        self.runner.run(self.registry.follow())
        self.runner.run(self.registry.tenants.create("acme", actor="t"))
        self.model = {(tenant, task): _Task() for tenant in ("default", "acme") for task in ("a", "a.b", "b")}

    def teardown(self) -> None:
        self.runner.run(self.registry.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    @rule(
        tenant=TENANTS, task=TASKS, seed=SEEDS, size=SIZES, base=BASES, activate=st.booleans(), only_new=st.booleans()
    )
    def publish(self, tenant: str, task: str, seed: int, size: int, base: str, activate: bool, only_new: bool) -> None:
        manifest, files = adapter(seed, size=size, base=base)
        model = self.model[tenant, task]
        if only_new:
            activate = True
            made = self.runner.run(self.registry.publish_if_absent(tenant, task, manifest, files, actor="t"))
            assert (made is None) == (model.count > 0)
            if made is None:
                return
        else:
            made = self.runner.run(self.registry.publish(tenant, task, manifest, files, activate=activate, actor="t"))
        known = next((number for number, found in model.versions.items() if found == manifest), None)
        assert made.created == (known is None)
        if known is None:
            model.count += 1
            known = model.count
            model.versions[known] = manifest
        if activate:
            model.active[base] = known
        assert made.version.version == known
        assert made.version.active == (model.active.get(base) == known)

    @rule(tenant=TENANTS, task=TASKS, number=st.integers(1, 5))
    def activate(self, tenant: str, task: str, number: int) -> None:
        model = self.model[tenant, task]
        if number in model.versions:
            assert self.runner.run(self.registry.activate(tenant, task, number, actor="t")).version == number
            model.active[model.versions[number].base_fingerprint] = number
        else:
            with pytest.raises(VersionNotFound if model.versions else TaskNotFound):
                self.runner.run(self.registry.activate(tenant, task, number, actor="t"))

    @rule(tenant=TENANTS, task=TASKS)
    def delete(self, tenant: str, task: str) -> None:
        model = self.model[tenant, task]
        if model.versions:
            self.runner.run(self.registry.delete(tenant, task, actor="t"))
        else:
            with pytest.raises(TaskNotFound):
                self.runner.run(self.registry.delete(tenant, task, actor="t"))
        model.versions.clear()
        model.active.clear()

    @rule()
    def collect(self) -> None:
        self.runner.run(self.registry.collect(grace=0))

    @rule()
    def kill_the_server(self) -> None:
        before = server_pid(self.registry.url)
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: pid_if_up(self.registry.url) not in (None, before), 10, "the server is back")

    @invariant()
    def every_question_is_answered_as_the_model_does(self) -> None:
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        for (tenant, task), model in self.model.items():
            if model.versions:
                found = {record.version: record for record in await self.registry.versions(tenant, task)}
                assert {number: record.manifest for number, record in found.items()} == model.versions
                for number, record in found.items():
                    assert record.active == (model.active.get(record.manifest.base_fingerprint) == number)
                newest = max(model.versions)
                for entry in model.versions[newest].files:
                    assert len(await self.registry.file(tenant, task, newest, entry.name)) == entry.size
            else:
                with pytest.raises(TaskNotFound):
                    await self.registry.versions(tenant, task)
            for base, version in itertools.product((BASE, OTHER_BASE), (None, 1, 2)):
                self._compare_catalog(tenant, task, version, base, model)
        for tenant, base in itertools.product(("default", "acme"), (BASE, OTHER_BASE)):
            expected = sorted(task for (t, task), model in self.model.items() if t == tenant and base in model.active)
            page = await self.registry.tasks(tenant, base, limit=10)
            assert [record.task for record in page.data] == expected
            assert page.next_cursor is None

    def _compare_catalog(self, tenant: str, task: str, version: int | None, base: str, model: _Task) -> None:
        wanted = model.active.get(base) if version is None else version
        manifest = model.versions.get(wanted) if wanted is not None else None
        try:
            found = self.registry.catalog.resolve(tenant, task, version, base)
        except SoftmuxError:
            assert manifest is None or manifest.base_fingerprint != base
        else:
            assert (found.version, found.manifest) == (wanted, manifest)


TestRegistryModel = RegistryMachine.TestCase
TestRegistryModel.settings = settings(
    max_examples=5,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
