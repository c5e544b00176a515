"""What the routes stand on, put together once and handed to `create_app`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from softmux.api.backlog import Backlog
from softmux.api.grammar_checks import GrammarChecks
from softmux.api.limits import Limiter
from softmux.api.siblings import Siblings
from softmux.api.standing import Standing
from softmux.api.tokenizer import Tokenizer
from softmux.api.uploads import UploadPlaces
from softmux.api.usage import Ledger
from softmux.errors import EngineDown, InvalidRequest, VersionNotFound
from softmux.formats.combination import combined_manifest
from softmux.formats.layout import Layout
from softmux.grammars.frames import Vocabulary
from softmux.registry.registry import Registry
from softmux.settings import Settings
from softmux.telemetry.exposition import Metrics
from softmux.telemetry.trail import current
from softmux.types import AdapterRef, Manifest
from softmux.worker.replicas import Replicas

_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_LAYOUTS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Resolved:
    """Which weights a request uses, and how its input is laid out. `adapter` None is the bare model."""

    tenant: str
    adapter: AdapterRef | None
    layout: Layout
    manifest: Manifest | None = None
    created_at: float = 0.0
    """Of the version, or the newest of several; Unix s."""


@dataclass(slots=True)
class Services:
    """One API process's parts. `tokenizer` comes once it is loaded, `started` when all that the server's start does
    is done, `everywhere` while all processes reach the worker, and `draining` when the server is told to end."""

    settings: Settings
    worker: Replicas
    registry: Registry
    metrics: Metrics
    siblings: Siblings
    limits: Limiter
    usage: Ledger
    standing: Standing
    backlog: Backlog
    tokenizer: Tokenizer | None = None
    started: bool = False
    everywhere: bool = False
    draining: bool = False
    began: int = field(default_factory=lambda: int(time.time()))
    """Unix s."""
    uploads: UploadPlaces = field(default_factory=UploadPlaces)
    grammars: GrammarChecks = field(init=False)
    _layouts: dict[str, Layout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.settings
        self.grammars = GrammarChecks(
            self._vocabulary, seconds=settings.grammar_seconds, most_bytes=settings.max_grammar_bytes
        )

    def _vocabulary(self) -> Vocabulary:
        """What grammars are compiled on. Raises `InvalidRequest` where that can't be."""
        spec = self.worker.spec
        if not spec.eos_token_ids:
            raise InvalidRequest("This model has no end token, so that a reply in a grammar could not end.")
        return Vocabulary(self.encoder().as_json(), spec.vocab_size, spec.eos_token_ids)

    @property
    def ready(self) -> bool:
        """Whichever process a client's next request comes to, it is served."""
        return self.started and self.everywhere and self.worker.ready and not self.draining

    def encoder(self) -> Tokenizer:
        """The tokenizer. Raises `EngineDown` while the server is starting."""
        if self.tokenizer is None:
            raise EngineDown("The server is still starting; try again shortly.")
        return self.tokenizer

    def resolve(self, tenant: str, name: str | None) -> Resolved:
        """The version that `name` (`task` or `task@version`; `tenant/task` where another tenant shares it) means now;
        several by commas: their combination. From memory: no call leaves the process.

        Raises `TaskNotFound`, `VersionNotFound`, `InvalidRequest` for tasks that do not combine, or `EngineDown` while
        no model has been loaded yet.
        """
        if name is None:
            return Resolved(tenant, None, Layout())
        trail = current()
        trail.asked = name
        found = [self._version(tenant, one) for one in name.split(",")]
        resolved = found[0] if len(found) == 1 else _combined(tenant, found)
        trail.adapter = resolved.adapter
        return resolved

    def _version(self, tenant: str, name: str) -> Resolved:
        base = self.worker.spec.base_fingerprint
        task, at, number = name.partition("@")
        if at and not _VERSION.fullmatch(number):
            raise VersionNotFound(
                f"“{name[:100]}” names no version: write task@3, or the task alone for the active one.", param="task"
            )
        record = self.registry.catalog.resolve(tenant, task, int(number) if at else None, base)
        manifest = record.manifest
        layout = self._layouts.get(manifest.digest)
        if layout is None:
            if len(self._layouts) >= _LAYOUTS_KEPT:
                self._layouts.clear()
            layout = self._layouts[manifest.digest] = Layout.of(manifest)
        known_as = record.task if record.tenant == tenant else f"{record.tenant}/{record.task}"
        adapter = AdapterRef(
            record.tenant, known_as, record.version, manifest.digest, manifest.method, manifest.virtual_tokens
        )
        return Resolved(tenant, adapter, layout, manifest, record.created_at)


def _combined(tenant: str, found: Sequence[Resolved]) -> Resolved:
    manifest = combined_manifest([one.manifest for one in found if one.manifest is not None])
    parts = tuple(one.adapter for one in found if one.adapter is not None)
    owners = {part.tenant for part in parts}
    if len(owners) > 1:
        raise InvalidRequest("The tasks are of several tenants; combine those of one.", param="task")
    names = ",".join(part.task for part in parts)
    adapter = AdapterRef(owners.pop(), names, 0, manifest.digest, manifest.method, manifest.virtual_tokens, parts)
    return Resolved(tenant, adapter, Layout.of(manifest), manifest, max(one.created_at for one in found))


def services_of(request: Request) -> Services:
    """The services of the app that answers `request`: a FastAPI dependency."""
    services: Services = request.app.state.services
    return services
