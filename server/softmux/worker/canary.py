"""Admission's last check: an adapter that is not stored yet runs once, beside whatever else is running."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from softmux.engine.engine import Engine
from softmux.errors import InvalidAdapter, SoftmuxError
from softmux.formats.folder import read_adapter
from softmux.marks import version_mark
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import KV_METHODS, Output, SamplingParams, TokenLogprobs
from softmux.worker.messages import Admit, Admitted, Failed

CLIENT = b"\0canary"
"""The client of the canary's sequences: no socket has this identity."""
_LENGTH = 8
_GENERATED = 4
_SAME = 1e-4
"""Log probabilities that differ by less did not change."""
_UNIFORM = 1e-3
"""So near to one in all tokens, the likeliest one's log probability says that none is likelier than another."""


@dataclass(slots=True)
class _Trial:
    client: bytes
    admit: Admit
    open: set[str]
    tokens: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    refused: bool = False


class Canary:
    """Runs each upload's parts on a fixed prompt, and the bare model on the same, in the ordinary batch, by whatever
    weight its tenant has there.

    `start` and `heard`/`failed` are the worker's; `answers` are (client, message) for it to send.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._trials: dict[str, _Trial] = {}
        vocabulary = engine.spec.vocab_size
        self._prompt = tuple((7 * i + 3) % vocabulary for i in range(_LENGTH))
        self._sampling = SamplingParams(max_tokens=_GENERATED, ignore_eos=True, logprobs=min(5, vocabulary))

    def start(self, client: bytes, admit: Admit, now: float) -> list[tuple[bytes, Admitted | Failed]]:
        """Queues the two rows. An answer comes at once only where the upload can't even be tried."""
        engine = self._engine
        root = engine.key(admit.tenant, admit.manifest.digest)
        virtual = admit.manifest.virtual_tokens
        try:
            room = engine.spec.context_length - _LENGTH - _GENERATED
            if virtual > room:
                raise InvalidAdapter(
                    f"{virtual} virtual tokens leave no room for a prompt: this server's context is "
                    f"{engine.spec.context_length} tokens",
                    param="adapter_config.json: num_virtual_tokens",
                )
            engine.adopt(root, read_adapter(admit.files, engine.spec).parts)
            trial = _Trial(client, admit, set())
            self._trials[admit.id] = trial
            lead = tuple(-1 - i for i in range(virtual))
            if admit.manifest.head is not None:
                self._read(admit, root, lead, now)
                trial.open.add(f"{admit.id}/tuned")
                return []
            rows = {"tuned": (root, lead + self._prompt), "bare": (engine.key(admit.tenant, None), self._prompt)}
            for name, (key, tokens) in rows.items():
                sequence_id = f"{admit.id}/{name}"
                marks = (0, version_mark(key.tenant, key.digest))
                engine.add(
                    sequence_id, tokens, self._sampling, root=key, now=now, client=CLIENT, marks=marks,
                    trained_prefix=name == "tuned" and admit.manifest.method in KV_METHODS,
                    weight=engine.scheduler.counters.weight(key.tenant),
                )  # fmt: skip
                trial.open.add(sequence_id)
        except SoftmuxError as error:
            self._trials.pop(admit.id, None)
            engine.tiers.forget(root)
            return [(client, _failure(admit.id, error))]
        return []

    def _read(self, admit: Admit, root: RootKey, lead: tuple[int, ...], now: float) -> None:
        """Of an adapter with a head there is nothing bare to compare with: its scores must be finite."""
        self._engine.read(
            f"{admit.id}/tuned",
            lead + self._prompt,
            root=root,
            now=now,
            head=admit.manifest.head,
            trained_prefix=admit.manifest.method in KV_METHODS,
            client=CLIENT,
            marks=(0, version_mark(root.tenant, root.digest)),
            weight=self._engine.scheduler.counters.weight(root.tenant),
        )

    def heard(self, sequence: Sequence, output: Output) -> list[tuple[bytes, Admitted | Failed]]:
        trial = self._trials.get(sequence.id.rpartition("/")[0])
        if trial is None:
            return []
        trial.tokens.setdefault(sequence.id, []).extend(output.tokens)
        trial.logprobs.setdefault(sequence.id, []).extend(output.logprobs)
        if output.finish_reason is None:
            return []
        trial.open.discard(sequence.id)
        if trial.open:
            return []
        del self._trials[trial.admit.id]
        return [(trial.client, self._verdict(trial))]

    def failed(self, sequence: Sequence, error: SoftmuxError) -> list[tuple[bytes, Admitted | Failed]]:
        admit_id, _, name = sequence.id.rpartition("/")
        trial = self._trials.pop(admit_id, None)
        if trial is None:
            return []
        self._engine.tiers.forget(sequence.root)
        if name == "tuned" and error.status == 500:
            error = InvalidAdapter(
                f"the adapter does not run on this model: {error.message}", param="adapter_model.safetensors"
            )
        return [(trial.client, _failure(admit_id, error))]

    def _verdict(self, trial: _Trial) -> Admitted:
        if trial.admit.manifest.head is not None:
            checks = ("its head scored the canary prompt with finite numbers",)
            return Admitted(id=trial.admit.id, tokens=(), warnings=(), checks=checks)
        tuned, bare = (f"{trial.admit.id}/{name}" for name in ("tuned", "bare"))
        pairs = zip(trial.logprobs[tuned], trial.logprobs[bare], strict=True)
        same = trial.tokens[tuned] == trial.tokens[bare] and all(abs(a.chosen - b.chosen) < _SAME for a, b in pairs)
        warnings = []
        if same:
            warnings.append("the adapter does not change what the model says to the canary prompt: is it trained?")
        elif self._uniform(trial.logprobs[tuned]) and not self._uniform(trial.logprobs[bare]):
            warnings.append(
                "under the adapter the model no longer tells tokens apart: to the canary prompt each is as likely as "
                "any other. Are its numbers too large, and did training converge?"
            )
        return Admitted(
            id=trial.admit.id,
            tokens=tuple(trial.tokens[tuned]),
            warnings=tuple(warnings),
            checks=(f"it generated {_GENERATED} tokens on the canary prompt with finite logits",),
        )

    def _uniform(self, chosen: list[TokenLogprobs]) -> bool:
        """The tokens were the likeliest ones."""
        least = -math.log(self._engine.spec.vocab_size)
        return all(each.chosen < least + _UNIFORM for each in chosen)


def _failure(admit_id: str, error: SoftmuxError) -> Failed:
    return Failed(id=admit_id, code=error.code, message=error.public, param=error.param)
