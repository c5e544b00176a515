"""The wire between API processes and the worker: typed, tagged msgspec structs, several tokens to a message.

Encoding is msgpack of the tagged unions `ToWorker` and `ToClient`, one ZeroMQ message each: the worker binds a ROUTER
socket, each API process connects a DEALER. `PROTOCOL` is checked in `Hello`/`Welcome`, so that an old API and a new
worker refuse each other in words.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from softmux.types import AdapterRef, HeadKind, Manifest, ModelSpec, Output, SamplingParams

PROTOCOL = 5
LATE = "the request's deadline passed before it was done; raise it, or ask for less"
"""What is said with `deadline_exceeded`."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    pass


# --- from an API process to the worker -------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True):
    """First message of a client. Answered by `Welcome` once the model is loaded and self-tested."""

    protocol: int = PROTOCOL


class Generate(_Message, frozen=True, kw_only=True):
    """One sequence to generate. A request with n samples or several prompts is several of these.

    `tokens` are token ids; `-1 - i` names row i of the adapter's learned vectors (a virtual token). The leading
    virtual tokens of prompt, prefix and P-tuning are part of `tokens` (see `softmux.formats.layout`).
    `adapter` None is the bare model; `tenant`, who asks, keys every cache in both cases. `sample` numbers the sample
    of a prompt, so that one seed gives different samples. `deadline` is seconds from receipt, None for none. Higher
    `priority` goes before lower within the tenant, whose share of the engine is by `weight`.
    """

    id: str
    tenant: str
    tokens: tuple[int, ...]
    sampling: SamplingParams
    adapter: AdapterRef | None = None
    sample: int = 0
    deadline: float | None = None
    priority: int = 0
    weight: float = 1.0
    content: int = 0
    version: int = 0
    """What `softmux.marks` says of it."""
    suspect: bool = False
    """It, or its version, was in a step that a worker died in: it runs when no other suspect does."""


class Read(_Message, frozen=True, kw_only=True):
    """One sequence to be read: it chooses no token, and its one `Output` has `scores`. `tokens` are as in `Generate`.

    `head`: its adapter's head reads it, once or for each token behind the virtual ones. None: its last `scored` tokens'
    log probabilities are wanted, each after all that come before it.
    """

    id: str
    tenant: str
    tokens: tuple[int, ...]
    adapter: AdapterRef | None = None
    head: HeadKind | None = None
    scored: int = 0
    deadline: float | None = None
    priority: int = 0
    weight: float = 1.0
    content: int = 0
    version: int = 0
    suspect: bool = False


class Abort(_Message, frozen=True, kw_only=True):
    """The client no longer wants this sequence (stop string found, disconnect, deadline). Unknown ids are ignored."""

    id: str


class Admit(_Message, frozen=True, kw_only=True):
    """Run a not yet stored adapter once on the canary prompt. `files` are the upload's bytes by name."""

    id: str
    tenant: str
    manifest: Manifest
    files: dict[str, bytes]


class Ping(_Message, frozen=True, kw_only=True):
    """Answered by `Stats` at once."""


# --- from the worker to an API process -------------------------------------------------------------------------------


class Welcome(_Message, frozen=True, kw_only=True):
    protocol: int
    model: ModelSpec


class Outputs(_Message, frozen=True, kw_only=True):
    """All the new tokens of a step that belong to this client.

    `outputs` are of sequences with more to tell than a token: the first one, the end, log probabilities. The others
    brought one token each, and travel as columns: their numbers (which their first `Output` told) in `numbers`, int64,
    and the tokens in `tokens`, int32, both in this machine's byte order.
    """

    outputs: tuple[Output, ...] = ()
    numbers: bytes = b""
    tokens: bytes = b""

    def columns(self) -> Iterator[tuple[int, int]]:
        """The number and the token of each sequence that brought no more than that."""
        return zip(memoryview(self.numbers).cast("q"), memoryview(self.tokens).cast("i"), strict=True)


class Failed(_Message, frozen=True, kw_only=True):
    """The sequence ended in an error: `from_code(code, message, param)` is what its client is told."""

    id: str
    code: str
    message: str
    param: str | None = None
    not_finite: bool = False
    """Its adapter, or the bare model, gave numbers that are not finite."""


class Admitted(_Message, frozen=True, kw_only=True):
    """The canary ran. `warnings` and `checks` are sentences for a person; the first tokens it made are `tokens`."""

    id: str
    tokens: tuple[int, ...]
    warnings: tuple[str, ...]
    checks: tuple[str, ...]


class Histogram(msgspec.Struct, frozen=True, array_like=True):
    """Cumulative counts per declared bucket (the last is +Inf), and the sum of the observations."""

    counts: tuple[int, ...]
    sum: float


class Stats(_Message, frozen=True, kw_only=True):
    """Cumulative counters and present gauges of the worker, sent to every client about once a second.

    Keys are names of `softmux.telemetry.metrics`; a metric never carries a task or tenant.
    """

    counters: dict[str, float]
    gauges: dict[str, float]
    histograms: dict[str, Histogram] = {}
    labelled: dict[str, dict[str, float]] = {}
    """Counters with one bounded label, as `adapter_loads_total` by tier."""
    infos: dict[str, dict[str, str]] = {}
    """Gauges that are 1 and say something in their labels, as `fast_paths_info`."""
    queues: dict[str, tuple[float, float]] = {}
    """By tenant the cost of what waits (`softmux.cost`), and its weight: no metric, but for a newcomer's wait."""


class Spent(_Message, frozen=True, kw_only=True):
    """The engine's time since the last of these, in seconds, by the tenant that asked and the task (empty: the bare
    model), of this client's sequences. Comes with `Stats`."""

    booked: tuple[tuple[str, str, float], ...]


ToWorker = Hello | Generate | Read | Abort | Admit | Ping
ToClient = Welcome | Outputs | Failed | Admitted | Stats | Spent
