"""The registry against a model of it: dictionaries, on a real server, which is killed now and then, or closed and
opened again: tasks, versions and their files, shares, tenants and keys."""

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

from registry.registry_fixtures import BASE, OTHER_BASE, adapter, pid_if_up, server_pid
from softmux.errors import NotFound, SoftmuxError, TaskNotFound, VersionNotFound
from softmux.registry.blobs import BlobStore, default_blob_url
from softmux.registry.files import is_inline
from softmux.registry.keys import ROLES, Role
from softmux.registry.records import Share
from softmux.registry.registry import Registry
from softmux.types import Manifest
from support.waiting import wait_for

TENANTS = st.sampled_from(["default", "acme"])
TASKS = st.sampled_from(["a", "a.b", "b"])
BASES = st.sampled_from([BASE, OTHER_BASE])
SEEDS = st.integers(0, 3)
SIZES = st.sampled_from([10, 70_000])
WEIGHTS = st.sampled_from([0.5, 1.0, 3.0])
SHARES = st.sampled_from([None, Share(everyone=True), Share(tenants=("acme",)), Share(tenants=("late", "default"))])
WHO = ("default", "acme", "late")
"""All who may come to exist."""


@dataclass
class _Task:
    """A task in the model; `count` outlives the rest."""

    count: int = 0
    versions: dict[int, Manifest] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    share: Share | None = None


@dataclass
class _Key:
    id: str
    secret: str
    tenant: str
    role: Role
    revoked: bool = False


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="softmux-model-"))
        self.runner = asyncio.Runner()
        self._open()
        self.runner.run(self.registry.tenants.create("acme", actor="t"))
        self.tenants = {"default": 1.0, "acme": 1.0}
        """Weights, by name."""
        self.keys: list[_Key] = []
        self.model = {(tenant, task): _Task() for tenant in ("default", "acme") for task in ("a", "a.b", "b")}

    def _open(self) -> None:
        self.registry = self.runner.run(Registry.open(None, self.folder))
        self.runner.run(self.registry.follow(collect=False))

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
        model.share = None

    @rule(tenant=TENANTS, task=TASKS, share=SHARES)
    def share(self, tenant: str, task: str, share: Share | None) -> None:
        model = self.model[tenant, task]
        if model.versions:
            self.runner.run(self.registry.share(tenant, task, share, actor="t"))
            model.share = share
        else:
            with pytest.raises(TaskNotFound):
                self.runner.run(self.registry.share(tenant, task, share, actor="t"))

    @rule(name=st.sampled_from(WHO), weight=WEIGHTS)
    def create_tenant(self, name: str, weight: float) -> None:
        record, new = self.runner.run(self.registry.tenants.create(name, weight=weight, actor="t"))
        assert new == (name not in self.tenants)
        assert record.weight == self.tenants.setdefault(name, weight)

    @rule(name=st.sampled_from(WHO), weight=WEIGHTS)
    def weigh_tenant(self, name: str, weight: float) -> None:
        if name in self.tenants:
            self.runner.run(self.registry.tenants.set(name, weight=weight, actor="t"))
            self.tenants[name] = weight
        else:
            with pytest.raises(NotFound):
                self.runner.run(self.registry.tenants.set(name, weight=weight, actor="t"))

    @rule(tenant=st.sampled_from(WHO), role=st.sampled_from(ROLES))
    def create_key(self, tenant: str, role: Role) -> None:
        if tenant in self.tenants:
            key_id, secret = self.runner.run(self.registry.keys.create_key(tenant, role, actor="t"))
            self.keys.append(_Key(key_id, secret, tenant, role))
        else:
            with pytest.raises(NotFound):
                self.runner.run(self.registry.keys.create_key(tenant, role, actor="t"))

    @rule(draw=st.data())
    def revoke_key(self, draw: st.DataObject) -> None:
        """One that is there, perhaps revoked already, or one that never was."""
        key = draw.draw(st.sampled_from([None, *self.keys]))
        if key is None:
            with pytest.raises(NotFound):
                self.runner.run(self.registry.keys.revoke_key("0" * 12, actor="t"))
        else:
            self.runner.run(self.registry.keys.revoke_key(key.id, actor="t"))
            key.revoked = True

    @rule()
    def collect(self) -> None:
        """What no version names is gone afterwards, and all that one names is there."""
        self.runner.run(self.registry.collect(grace=0))
        named = {
            (tenant, entry.sha256)
            for (tenant, _), model in self.model.items()
            for manifest in model.versions.values()
            for entry in manifest.files
            if not is_inline(entry)
        }
        assert set(BlobStore(default_blob_url(self.folder)).names()) == named

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.registry.close())
        self._open()

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
                self._compare_shares(tenant, task, version, base, model)
        for tenant, base in itertools.product(("default", "acme"), (BASE, OTHER_BASE)):
            expected = sorted(task for (t, task), model in self.model.items() if t == tenant and base in model.active)
            page = await self.registry.tasks(tenant, base, limit=10)
            assert [record.task for record in page.data] == expected
            assert page.next_cursor is None
        await self._compare_tenants_and_keys()

    async def _compare_tenants_and_keys(self) -> None:
        tenants, keys = self.registry.tenants, self.registry.keys
        assert {record.name: record.weight for record in await tenants.list()} == self.tenants
        assert all(tenants.get(name).weight == weight for name, weight in self.tenants.items())
        listed = {record.id: record for record in await keys.list_keys()}
        assert set(listed) == {key.id for key in self.keys}
        assert keys.has_keys() == bool(self.keys)
        for key in self.keys:
            assert (listed[key.id].revoked_at is not None) == key.revoked
            assert (listed[key.id].tenant, listed[key.id].role) == (key.tenant, key.role)
            who = keys.authenticate(key.secret)
            assert (who is None) == key.revoked
            assert who is None or (who.tenant, who.role, who.key_id) == (key.tenant, key.role, key.id)
            assert keys.authenticate(key.secret[:-1]) is None

    def _compare_shares(self, owner: str, task: str, version: int | None, base: str, model: _Task) -> None:
        """What is shared resolves for whom it reaches as for its owner; for others it does not exist."""
        for tenant in WHO:
            if tenant == owner or (model.share is not None and model.share.reaches(tenant)):
                self._compare_catalog(tenant, f"{owner}/{task}", version, base, model)
            else:
                with pytest.raises(TaskNotFound):
                    self.registry.catalog.resolve(tenant, f"{owner}/{task}", version, base)

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
    max_examples=6,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
