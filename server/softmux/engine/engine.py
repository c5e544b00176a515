"""The engine: a frozen model, its caches, and `step()`."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from softmux.engine.anatomy import linear_shapes
from softmux.engine.bases import load_base, load_sharded
from softmux.engine.delta_selftest import prove_deltas
from softmux.engine.delta_slots import DeltaSlots
from softmux.engine.deltas import Deltas
from softmux.engine.device import is_shortage
from softmux.engine.disk import DiskTier
from softmux.engine.encoder_decoder import PackedEncoderDecoder, encoder_input
from softmux.engine.fast import best_backend, prove
from softmux.engine.grammars import Grammars, compiler_of
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.kv import KVPool
from softmux.engine.packed import PackedModel
from softmux.engine.parallel.leader import Leader
from softmux.engine.parallel.ranks import Ranks
from softmux.engine.runner import Launched, ModelRunner
from softmux.engine.shortage import LEAST, Shortage, run_in_parts
from softmux.engine.tiers import AdapterSource, AdapterTiers
from softmux.errors import InternalError, InvalidRequest, NotFinite, Overloaded, SelfTestFailed, SoftmuxError
from softmux.formats.parts import Parts
from softmux.recorder import FlightRecorder
from softmux.scheduler.batch import Batch
from softmux.scheduler.news import PlainTokens
from softmux.scheduler.radix import RootKey
from softmux.scheduler.reading import Reading
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence, lead_of
from softmux.settings import Settings
from softmux.types import HeadKind, ModelSpec, Output, SamplingParams

log = logging.getLogger(__name__)

_CPU_KV_TOKENS = 32768
_CPU_KV_BYTES = 2 << 30
_GROUP = 8
_READ = SamplingParams(max_tokens=1, ignore_eos=True)
_GPU_READERS = 4


@dataclass(slots=True)
class StepNews:
    """What a step brought: outputs of the sequences with more to tell than a token, the tokens of the others as
    columns, sequences that ended in an error, and the batch that ran."""

    outputs: list[tuple[Sequence, Output]] = field(default_factory=list)
    plain: PlainTokens | None = None
    failed: list[tuple[Sequence, SoftmuxError]] = field(default_factory=list)
    batch: Batch | None = None
    seconds: float = 0.0

    @property
    def ran(self) -> bool:
        """Whether a step with rows has been launched."""
        return self.batch is not None and len(self.batch) > 0

    def each(self) -> Iterator[tuple[Sequence, Output]]:
        """All outputs one by one."""
        yield from self.outputs
        if self.plain is not None:
            yield from self.plain.each()


def pick_device(name: str) -> torch.device:
    """Raises `SelfTestFailed` where there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        why = "and torch finds no GPU here" if torch.version.cuda else "and this torch was built without CUDA"
        raise SelfTestFailed(f"--device cuda, {why}: `softmux doctor` looks at both; --device cpu runs without")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


class Engine:
    """Loads, self-tests and runs one model. Single-threaded: one caller adds sequences and calls `step`."""

    def __init__(
        self,
        settings: Settings,
        source: AdapterSource,
        *,
        on_arrival: Callable[[], None] = lambda: None,
        disk_folder: Path | None = None,
        model: PackedModel | None = None,
        recorder: FlightRecorder | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`ranks`: the processes that each have an engine over a part of the model. All are made at the same time, and
        one then leads the others (`lead`)."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if model is None and ranks is not None:
            model = load_sharded(settings, ranks, pick_dtype(settings.dtype, ranks.device))
        elif model is None:
            device = pick_device(settings.device)
            model = load_base(
                settings.model,
                device=device,
                dtype=pick_dtype(settings.dtype, device),
                quantization=settings.quantization,
            )
        self.model = model
        self.recorder = recorder or FlightRecorder(settings.max_rows)
        model.on_layer = self.recorder.beat
        device = model.device
        if settings.kv_cache_dtype == "fp8":
            model.keep_kv_in_fp8()
        deltas = DeltaSlots(
            linear_shapes(model.module), slots=settings.max_loras, largest_rank=settings.max_lora_rank,
            room=settings.lora_bytes if device.type == "cuda" else 0, dtype=model.dtype, device=device,
        )  # fmt: skip
        slots = settings.kv_tokens or self._kv_tokens(settings)
        if model.ranks is not None:
            slots = model.ranks.least(slots)
        context = min(self.model.context_length, settings.context_length or self.model.context_length, slots)
        self.spec: ModelSpec = self.model.spec(context)
        disk = DiskTier(disk_folder, settings.disk_cache_bytes) if disk_folder is not None else None
        self.tiers = AdapterTiers(
            spec=self.spec,
            dtype=self.model.dtype,
            kv_dtype=self.model.kv_dtype,
            budget=settings.host_cache_bytes,
            gpu=device.type == "cuda",
            readers=_GPU_READERS if device.type == "cuda" else 1,
            source=source,
            disk=disk,
            slots=deltas,
            on_arrival=on_arrival,
        )
        self.scheduler = Scheduler(
            slots=slots,
            max_rows=settings.max_rows,
            max_step_tokens=max(settings.max_step_tokens, 0 if self.model.causal else context + 1),  # rows run whole
            context_length=self.model.row_length(context),
            eos=self.model.eos_token_ids,
            shelf=self.tiers,
            max_waiting=settings.max_waiting,
            group=_GROUP if settings.group_by_adapter else 1,
        )
        self.runner = ModelRunner(
            self.model,
            slots=slots,
            max_rows=settings.max_rows,
            context_length=self.model.row_length(context),
            resident_vectors=settings.resident_vectors,
            tiers=self.tiers,
            deltas=Deltas.of(model.module, deltas, model.on_source),
            backend=best_backend(device, settings.attention_backend, self.spec.family),
        )
        self._leader: Leader | None = None
        self.grammars = Grammars(
            lambda: compiler_of(settings.model, self.spec.vocab_size, self.spec.eos_token_ids),
            keep=settings.grammar_cache,
            on_ready=on_arrival,
        )
        self._overlap = device.type == "cuda"
        if device.type == "cuda":
            _tell_of_compilations(self.recorder)
        self._flying: Launched | None = None
        self.steps = 0
        self.shortage = Shortage()
        prove(self.runner, self.spec, self.scheduler.max_step_tokens)
        self.spec = self.tiers.loader.spec = prove_deltas(self.runner, self.spec)

    def _kv_tokens(self, settings: Settings) -> int:
        each = KVPool.bytes_per_token(self.model.layers, self.model.kv_dtype)
        if self.model.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.model.device)
            spare = free - (1 - settings.kv_memory_fraction) * total - (2 << 30)  # the step's own tensors
            return max(64, int(spare // each))
        return max(1024, min(_CPU_KV_TOKENS, _CPU_KV_BYTES // each))

    def lead(self, leader: Leader) -> None:
        """From here on this engine runs with those of the other ranks, which hear by `leader` of each step."""
        self._leader = self.runner.orders = self.tiers.orders = leader
        self.tiers.loader.own = leader.give

    # --- sequences ---------------------------------------------------------------------------------------------------

    def key(self, tenant: str, digest: str | None, owner: str | None = None) -> RootKey:
        """The root of what `tenant` asks of an adapter or of the bare model. `owner`: whose it is, if not its own."""
        other = owner if owner is not None and owner != tenant else ""
        return RootKey(tenant, digest, self.spec.base_fingerprint, self.spec.kv_format, other)

    def add(
        self,
        sequence_id: str,
        tokens: tuple[int, ...],
        sampling: SamplingParams,
        *,
        root: RootKey,
        now: float,
        trained_prefix: bool = False,
        client: bytes = b"",
        sample: int = 0,
        deadline: float | None = None,
        priority: int = 0,
        weight: float = 1.0,
        marks: tuple[int, int] = (0, 0),
    ) -> Sequence:
        """Queues a sequence. `trained_prefix`: its virtual tokens are keys and values, which an encoder-decoder takes
        into its decoder. `marks` are its content's and its version's, for the flight recorder. A grammar that
        `grammars.expect` did not know is compiled first. Raises a `SoftmuxError` where it can't ever run."""
        self._check_tokens(tokens, root, "prompt")
        if self.spec.family == "encoder":
            raise InvalidRequest("an encoder generates nothing: POST /v1/classify?task=…", param="prompt")
        if sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        for token, _ in sampling.logit_bias:
            if not 0 <= token < self.spec.vocab_size:
                raise InvalidRequest(f"token id {token} is not below {self.spec.vocab_size}", param="logit_bias")
        guide = None
        if (grammar := sampling.grammar) is not None:
            if sampling.ignore_eos or sampling.min_tokens:
                what = "ignore_eos" if sampling.ignore_eos else "min_tokens"
                raise InvalidRequest(f"a grammar says where the text ends, and {what} says otherwise", param=what)
            guide = self.grammars.guide(root.tenant, grammar)
        if sampling.seed is None and sampling.temperature > 0:
            sampling = msgspec.structs.replace(sampling, seed=secrets.randbits(63))
        prompt, source, model = list(tokens), None, self.model
        if isinstance(model, PackedEncoderDecoder):
            source = encoder_input(tokens, sampling.max_tokens, self.spec.context_length, trained_prefix=trained_prefix)
            prompt.append(model.start)
        sequence = Sequence(
            id=sequence_id,
            client=client,
            root=root,
            prompt=prompt,
            sampling=sampling,
            arrival=now,
            sample=sample,
            deadline=deadline,
            priority=priority,
            weight=weight,
            content=marks[0],
            version=marks[1],
            source=source,
            guide=guide,
            closes=isinstance(model, PackedEncoderDecoder) and model.says.last is not None,
        )
        self.scheduler.add(sequence)
        return sequence

    def read(
        self,
        sequence_id: str,
        tokens: tuple[int, ...],
        *,
        root: RootKey,
        now: float,
        head: HeadKind | None = None,
        trained_prefix: bool = False,
        scored: int = 0,
        client: bytes = b"",
        deadline: float | None = None,
        priority: int = 0,
        weight: float = 1.0,
        marks: tuple[int, int] = (0, 0),
    ) -> Sequence:
        """Queues a sequence that is read, and chooses no token: by its adapter's head, or, where that is None, for the
        likelihood of its last `scored` tokens. `trained_prefix`: its virtual tokens are keys and values. Its `Output`
        has `scores`. Raises a `SoftmuxError` where it can't ever run."""
        self._check_tokens(tokens, root, "input")
        lead = lead_of(tokens)
        length, alone = len(tokens), self.spec.family == "encoder"
        if lead == length or not 0 <= scored < length:
            raise InvalidRequest("the input has no tokens; send at least one", param="input")
        if (head is None and not scored) or (head is not None and root.digest is None) or (alone and head is None):
            raise InvalidRequest("nothing is to be read of this input: name a task with a head, or tokens to score")
        whole_from = lead if trained_prefix else 0
        prompt, source = list(tokens), None
        if isinstance(self.model, PackedEncoderDecoder):
            if head is not None:
                raise InvalidRequest(
                    "an encoder-decoder is served without heads: name a task with labels", param="task"
                )
            given, context = tokens[: length - scored], self.spec.context_length
            source = encoder_input(given, scored + 2, context, trained_prefix=trained_prefix)
            prompt = [*given, *self.model.begins, *tokens[length - scored :]]
            length = len(prompt)
            reading = Reading("likelihood", length - scored, length, whole_from, alone=True)
        elif head is None:
            reading = Reading("likelihood", length - scored, length, length - scored - 1)
        elif head == "token":
            reading = Reading("head", lead, length, whole_from if alone else lead, alone)
        elif alone:
            end = length if self.model.reads_mean else whole_from + 1
            reading = Reading("head", whole_from, end, whole_from, alone, mean=self.model.reads_mean)
        else:
            reading = Reading("head", length - 1, length, length - 1)
        sequence = Sequence(
            id=sequence_id,
            client=client,
            root=root,
            prompt=prompt,
            sampling=_READ,
            arrival=now,
            deadline=deadline,
            priority=priority,
            weight=weight,
            reading=reading,
            content=marks[0],
            version=marks[1],
            source=source,
        )
        self.scheduler.add(sequence)
        return sequence

    def _check_tokens(self, tokens: tuple[int, ...], root: RootKey, param: str) -> None:
        if not tokens:
            raise InvalidRequest(f"the {param} has no tokens; send at least one", param=param)
        if (largest := max(tokens)) >= self.spec.vocab_size:
            raise InvalidRequest(f"token id {largest} is not below {self.spec.vocab_size}", param=param)
        if root.digest is None and min(tokens) < 0:
            raise InvalidRequest("token ids must not be negative", param=param)

    def adopt(self, root: RootKey, parts: Parts) -> None:
        """Puts an adapter that is at hand into host memory, without any store."""
        whole = HostAdapter.from_parts(parts, self.model.dtype, kv_dtype=self.model.kv_dtype)
        own = self.model.own if self._leader is None else self._leader.give
        self.tiers.adopt(root, own(whole))

    # --- the loop's body ---------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing to do until a sequence or an adapter arrives."""
        return self._flying is None and not self.scheduler.table.taken and not self._movable()

    def _movable(self) -> bool:
        return self.scheduler.waiting.movable

    def step(self) -> StepNews:
        """One step: schedule, run, book. With overlap, the tokens it brings are those of the step before."""
        began = time.perf_counter()
        news = StepNews()
        for adapter in self.tiers.arrivals():
            self.scheduler.adapter_arrived(adapter)
        self.tiers.await_only(self.scheduler.waits_for)
        batch, news.failed = self.scheduler.next(time.monotonic())
        launched = None
        if len(batch) or batch.loads:  # what is to be copied in is in the tree already, even if no row found room
            table, rows = self.scheduler.table, batch.rows
            self.recorder.step(table.contents[rows], table.versions[rows])
            try:
                launched = self.runner.launch(batch)
                self.steps += 1
                self._calm()
            except Exception as error:
                if self._leader is not None:
                    raise  # the others are in the midst of it: all begin anew
                self._land(news)
                if is_shortage(error):
                    launched = self._squeeze(batch, news)
                else:
                    log.exception("a step of %d rows failed", len(batch))
                    self._fell(batch, error, news)
        if self._leader is not None:
            self._leader.flush()
        if self._overlap:
            self._flying, launched = launched, self._flying
        if launched is not None:
            self._book(launched, news)
        self.recorder.landed(idle=not self.scheduler.table.taken)
        news.batch = batch
        news.seconds = time.perf_counter() - began
        return news

    def _land(self, news: StepNews) -> None:
        if self._flying is not None:
            flying, self._flying = self._flying, None
            self._book(flying, news)

    def _book(self, launched: Launched, news: StepNews) -> None:
        batch, output = launched.batch, self.runner.collect(launched)
        stuck = {batch.table.sequences[batch.sampled[place]]: why for place, why in output.stuck.items()}
        booked = self.scheduler.update(batch, output, time.monotonic())
        news.plain = booked.plain
        for sequence, out in booked.outputs:
            if out.finish_reason == "abort":
                error = _stuck(sequence, stuck[sequence]) if sequence in stuck else _not_finite(sequence)
                news.failed.append((sequence, error))
            else:
                news.outputs.append((sequence, out))

    def _calm(self) -> None:
        self.shortage.calm(self.scheduler.max_step_tokens)
        self.scheduler.limit = self.shortage.limit

    def _squeeze(self, batch: Batch, news: StepNews) -> Launched | None:
        """There was no memory for the step: runs it in parts, or puts its work back and sheds what has come last."""
        least, waiting = self.shortage.limit == LEAST, len(self.scheduler.waiting)
        self.shortage.tighten(batch.tokens)
        self.scheduler.limit = self.shortage.limit
        log.warning("no memory for a step of %d tokens: at most %d for a while", batch.tokens, self.shortage.limit)
        try:
            launched = run_in_parts(self.runner, batch)
        except Exception as error:
            if not is_shortage(error):
                log.exception("a step of %d rows failed", len(batch))
                self._fell(batch, error, news)
                return None
            self.runner.undo(batch)
            self.scheduler.step_undone(batch)
            self.shortage.counts["requeued"] += 1
            for sequence in self.scheduler.shed(max((waiting + 1) // 2, least)):
                self.shortage.refused += 1
                news.failed.append((sequence, Overloaded("the server is short of memory; retry later")))
            return None
        self.shortage.counts["split"] += 1
        self.steps += 1
        return launched

    def _fell(self, batch: Batch, error: Exception, news: StepNews) -> None:
        self.runner.undo(batch)
        for sequence in self.scheduler.step_failed(batch):
            news.failed.append((sequence, InternalError(f"the step that ran this request failed: {error}")))

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        self.tiers.check_integrity()
        self.runner.vocabulary.check_integrity()

    def close(self) -> None:
        self.tiers.close()
        if self._leader is not None:
            self._leader.close()
        self.grammars.close()
        self.runner.masks.close()


def _tell_of_compilations(recorder: FlightRecorder) -> None:
    """Triton compiles a kernel when a step first needs it: what such a step takes longer is no hang."""
    from triton import knobs

    knobs.runtime.jit_cache_hook = recorder.compiling
    knobs.runtime.jit_post_compile_hook = recorder.compiled


def _stuck(sequence: Sequence, why: str) -> SoftmuxError:
    grammar = sequence.sampling.grammar
    return InvalidRequest(
        f"the reply came to where its grammar can't be followed: {why}; make the grammar simpler",
        param=grammar.param if grammar is not None else None,
    )


def _not_finite(sequence: Sequence) -> SoftmuxError:
    digest = sequence.root.digest
    whose = f"adapter {digest}" if digest else "the base model"
    return NotFinite(f"{whose} gave logits that are not finite for this request; check the adapter's vectors")
