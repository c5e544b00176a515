"""What an API process holds against requests and versions: who is refused, who runs on probation, who is cleared."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from softmux.api.siblings import Siblings
from softmux.errors import EngineDown, InternalError, NotFinite, Quarantined, SoftmuxError
from softmux.marks import version_mark
from softmux.telemetry.exposition import Metrics
from softmux.telemetry.trail import current
from softmux.types import AdapterRef, Manifest
from softmux.worker.quarantine import Verdicts

log = structlog.stdlib.get_logger(__name__)

MOST_NAMED = 20
"""Requests of one worker's last step that a process names in the log."""


@dataclass(slots=True)
class Standing:
    """`verdicts` are the server's, the same in all its API processes. Marks are those of `softmux.marks`."""

    siblings: Siblings
    metrics: Metrics
    verdicts: Verdicts = field(default_factory=Verdicts)
    fell: frozenset[int] = frozenset()
    """The requests in the steps that a worker died in last."""
    _named: int = 0
    """How many of these were named in the log."""

    def hear(self, verdicts: Verdicts, fell: frozenset[int], *, died: bool) -> None:
        """What the server tells; `died`: a worker has, since it told last."""
        self.verdicts, self.fell = verdicts, fell
        if died:
            self._named = 0

    def check(self, adapter: AdapterRef | None, content: int, version: int) -> bool:
        """Whether a sequence is to run on probation. Raises `Quarantined`."""
        verdicts = self.verdicts
        refused = self._refusal(adapter, content, version)
        if refused is not None:
            raise refused
        return content in verdicts.suspects or version in verdicts.suspects

    def check_upload(self, tenant: str, manifest: Manifest) -> None:
        """Raises `Quarantined` for a version that kept failing the engine: its canary would, too."""
        if version_mark(tenant, manifest.digest) in self.verdicts.felling:
            raise Quarantined("These files kept failing the engine, and are not run any more; upload others.")

    def ended_well(self, content: int, version: int) -> None:
        suspects = self.verdicts.suspects
        if suspects and (content in suspects or version in suspects):
            self.siblings.report_cleared(content, version)

    def explained(self, error: SoftmuxError, adapter: AdapterRef | None, content: int, version: int) -> SoftmuxError:
        """What to tell of a sequence that ended in `error`; what that says of its version is taken down."""
        if isinstance(error, EngineDown):
            self._name(adapter, content)
            return self._refusal(adapter, content, version) or error
        if not isinstance(error, NotFinite):
            return error
        self.metrics.not_finite("base" if adapter is None else "adapter")
        if adapter is None:
            return InternalError(
                "The base model gave numbers that are not finite for this input; send another, or use another dtype."
            )
        self.siblings.report_broke(version)
        return InternalError(
            f"{adapter.task}@{adapter.version} gave numbers that are not finite for this input; check its weights, and "
            "upload it again.",
            param="task",
        )

    def _name(self, adapter: AdapterRef | None, content: int) -> None:
        """Says in the log which request this is, where it was in the step that a worker died in; nothing of what was
        asked."""
        if content not in self.fell or self._named == MOST_NAMED:
            return
        self._named += 1
        log.warning(
            "a request was in the step that the worker died in",
            request_id=current().request_id,
            task=None if adapter is None else adapter.task,
            version=None if adapter is None else adapter.version or None,
            quarantined=content in self.verdicts.requests,
        )

    def _refusal(self, adapter: AdapterRef | None, content: int, version: int) -> Quarantined | None:
        verdicts = self.verdicts
        if content in verdicts.requests:
            self.metrics.refused("quarantined_request")
            return Quarantined(
                "This request was in the batch of two engine failures, and is not run again for a while; change it, "
                "and tell whoever runs the server."
            )
        if adapter is None or (version not in verdicts.felling and version not in verdicts.not_finite):
            return None
        self.metrics.refused("quarantined_version")
        why = "kept failing the engine" if version in verdicts.felling else "kept giving numbers that are not finite"
        return Quarantined(
            f"{adapter.task}@{adapter.version} {why}, and is not run any more; activate another version, or upload it "
            "again.",
            param="task",
        )
