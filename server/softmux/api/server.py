"""`softmux serve`: puts the parts together, runs them, and ends them in order.

registry → keys → socket → worker (supervised) → API processes → tokenizer → adapters at start → ready … drain → end
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import structlog

from softmux.api.admission import publish_folders
from softmux.api.control import ApiConfig
from softmux.api.isolation import Isolation
from softmux.api.loop import run_on_loop
from softmux.api.networks import is_loopback, parse_networks
from softmux.api.processes import ApiProcesses
from softmux.api.shares import on_gpus, replica_data, replica_environment, replica_settings
from softmux.api.tokenizer_export import ExportedTokenizer, export_aside
from softmux.recorder import FlightRecorder
from softmux.registry.registry import Registry
from softmux.settings import Settings
from softmux.telemetry.tracing import missing
from softmux.types import DEFAULT_TENANT
from softmux.worker.client import WorkerClient
from softmux.worker.config import WorkerConfig
from softmux.worker.quarantine import Quarantine
from softmux.worker.refusals import Refusals
from softmux.worker.replicas import Replicas
from softmux.worker.supervisor import WORKER_COMMAND, Supervisor

log = structlog.stdlib.get_logger(__name__)

WORKER_SETTINGS = frozenset(
    {
        "model", "device", "dtype", "max_rows", "max_step_tokens", "max_waiting", "kv_tokens", "kv_memory_fraction",
        "context_length", "group_by_adapter", "host_cache_bytes", "disk_cache_bytes", "resident_vectors", "threads",
        "log_level", "log_format", "quantization", "kv_cache_dtype", "attention_backend", "max_loras", "max_lora_rank",
        "lora_bytes", "tensor_parallel", "grammar_cache",
    }
)  # fmt: skip
"""What the worker is told of the settings: no keys, no addresses."""
_OWN_SETTINGS = frozenset({"admin_key", "admin_key_file", "adapters", "redis", "blobs"})
"""What is the server's own business, and no API process is told."""
_FULL_SECONDS = 0.02
"""How long a connection waits before it is offered again, where no process could take it."""
_BACKLOG = 2048
_FILES = 65536
_CORES_A_PROCESS, _MOST_PROCESSES = 4, 8


class RefusedToStart(Exception):
    """The server must not start; the message says why and what to do."""


class Server:
    """One `softmux serve`. `run` returns when it has been told to end and everything that ran has.

    `worker_command` is what a worker is started with.
    """

    def __init__(self, settings: Settings, *, worker_command: Sequence[str] = WORKER_COMMAND) -> None:
        self._settings = settings
        self._worker_command = worker_command
        self._folder = Path(tempfile.mkdtemp(prefix="softmux-"))
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Raises `RefusedToStart`, or `SoftmuxError` where the registry or the model cannot be had."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end, number)
        try:
            with _listen(self._settings) as listening:
                registry = await Registry.open(self._settings.redis, self._settings.data, self._settings.blobs)
                try:
                    await self._keys(registry)
                    await self._serve(registry, listening)
                finally:
                    await registry.close()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _keys(self, registry: Registry) -> None:
        settings = self._settings
        secret = settings.admin_key.get_secret_value() if settings.admin_key is not None else None
        if settings.admin_key_file is not None:
            try:
                secret = await asyncio.to_thread(settings.admin_key_file.read_text)
            except OSError as error:
                raise RefusedToStart(f"the admin key's file {settings.admin_key_file}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise RefusedToStart(f"the admin key's file {settings.admin_key_file} is not text") from None
            if not secret.strip():  # a server without keys is none that somebody gave a key's file
                raise RefusedToStart(f"the admin key's file {settings.admin_key_file} is empty: write a key into it")
        if secret is not None and secret.strip():
            await registry.keys.ensure_admin_key(secret.strip())
        await registry.follow()
        if not registry.keys.has_keys() and not is_loopback(settings.host):
            raise RefusedToStart(
                f"without keys the server listens on the loopback address only, and {settings.host} is another one: "
                "set SOFTMUX_ADMIN_KEY, or create a key first (`softmux key create --tenant default --role admin`)"
            )

    async def _serve(self, registry: Registry, listening: socket.socket) -> None:
        settings = self._settings
        clients = [WorkerClient() for _ in range(settings.replicas)]
        worker, tokenizer = Replicas(clients), self._folder / "tokenizer.json"
        endpoints = tuple(f"ipc://{self._folder}/worker-{number}.sock" for number in range(settings.replicas))
        processes = ApiProcesses(
            ApiConfig(
                settings=settings.model_dump(mode="json", exclude=set(_OWN_SETTINGS)),
                endpoints=endpoints,
                registry_url=registry.url,
                blob_url=registry.blob_url,
                tokenizer=str(tokenizer),
            ),
            settings.api_processes or _processes_for(settings),
        )
        isolation = Isolation(Quarantine(settings.quarantine_seconds, settings.not_finite_repeats), processes.tell)
        processes.heed = isolation.hear
        workers, refusals = [-1] * settings.replicas, Refusals(settings.replicas)
        supervisors: list[Supervisor] = []

        def tell(number: int, up: bool) -> None:
            workers[number] = supervisors[number].restarts if up else -1
            restarts = sum(supervisor.restarts for supervisor in supervisors)
            if up:
                refusals.over(number)
            else:
                worker.lost(number)
            told = {"workers": tuple(workers), "restarts": restarts, "gone": worker.gone}
            processes.tell(lambda state: msgspec.structs.replace(state, **told))

        for number, (client, endpoint) in enumerate(zip(clients, endpoints, strict=True)):
            recorder = self._folder / f"recorder-{number}"
            supervisors.append(
                Supervisor(
                    client,
                    WorkerConfig(
                        endpoint=endpoint,
                        registry_url=registry.url,
                        blob_url=registry.blob_url,
                        data=str(replica_data(settings, number).absolute()),
                        settings=replica_settings(settings, WORKER_SETTINGS),
                        recorder=str(recorder),
                    ),
                    command=self._worker_command,
                    env=replica_environment(settings, number),
                    tell=partial(tell, number),
                    died=isolation.died,
                    bearable=partial(refusals.bearable, number),
                    name="the worker" if settings.replicas == 1 else f"replica {number}",
                    recorder=FlightRecorder(settings.max_rows, recorder),
                    hang_seconds=settings.hang_seconds,
                    load_seconds=settings.load_seconds,
                )
            )
        host, port = listening.getsockname()[:2]
        log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}", model=settings.model)
        handing = asyncio.create_task(_hand_connections(listening, processes))
        answering = asyncio.create_task(processes.run())
        supervising = [asyncio.create_task(supervisor.run()) for supervisor in supervisors]
        starting = asyncio.create_task(self._start(registry, worker, supervisors, processes, tokenizer))
        forgetting = asyncio.create_task(isolation.run())
        ending = asyncio.create_task(self._ending.wait())
        try:
            await _first_failure_or(ending, *supervising, starting, answering, handing, forgetting)
            log.info("draining")
            draining = asyncio.create_task(processes.drained())
            await asyncio.wait(
                {*supervising, draining}, timeout=settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            draining.cancel()
        finally:
            for task in (starting, ending, handing, forgetting):
                task.cancel()
            await processes.end()
            await asyncio.wait((answering, starting, ending, handing, forgetting))
            await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
            await asyncio.wait(supervising)
            worker.close()
        log.info("ended")

    async def _start(
        self,
        registry: Registry,
        worker: Replicas,
        supervisors: Sequence[Supervisor],
        processes: ApiProcesses,
        tokenizer: Path,
    ) -> None:
        exported, specs = await asyncio.gather(
            export_aside(self._settings.model), asyncio.gather(*(supervisor.ready() for supervisor in supervisors))
        )
        if len({spec.base_fingerprint for spec in specs}) > 1:
            raise RefusedToStart("the model's files changed while replicas loaded them: start the server again")
        await asyncio.to_thread(tokenizer.write_bytes, exported)
        if msgspec.json.decode(exported, type=ExportedTokenizer).tokenizer is None:
            log.warning("the model has no tokenizer the server can run: prompts have to be token ids")
        processes.tell(lambda state: msgspec.structs.replace(state, tokenizer=True))
        if self._settings.adapters is not None:
            limit = self._settings.max_upload_bytes
            for task in await publish_folders(worker, registry, self._settings.adapters, limit):
                await processes.see(DEFAULT_TENANT, task)
        await processes.ready()
        processes.tell(lambda state: msgspec.structs.replace(state, started=True))
        log.info("ready", model=specs[0].model_id, replicas=len(specs), tasks=len(registry.catalog))

    def _told_to_end(self, number: int) -> None:
        if self._ending.is_set():
            shutil.rmtree(self._folder, ignore_errors=True)
            os._exit(128 + number)  # at once: the worker and the embedded registry see it and end by themselves
        self._ending.set()


async def _first_failure_or(ending: asyncio.Task[bool], *others: asyncio.Task[None]) -> None:
    """Waits for `ending`; raises what any other task raises before."""
    waiting: set[asyncio.Task[None] | asyncio.Task[bool]] = {ending, *others}
    while not ending.done():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _hand_connections(listening: socket.socket, processes: ApiProcesses) -> None:
    """Accepts clients' connections and hands each to an API process, for as long as it is not cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(listening)
        except OSError as error:  # too many open files, or a client that is gone already
            log.warning("a connection could not be accepted", reason=error.strerror)
            await asyncio.sleep(_FULL_SECONDS)
            continue
        with connection:
            while not processes.hand(connection):  # noqa: ASYNC110 - a socket's buffer, or a start, tells nobody
                await asyncio.sleep(_FULL_SECONDS)


def _processes_for(settings: Settings) -> int:
    """One API process keeps up with a CPU; a GPU's tokens take several, if there are cores for them."""
    return max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) // _CORES_A_PROCESS)) if on_gpus(settings) else 1


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """The socket to serve on. Raises `RefusedToStart` where it can't be had, or a setting makes no sense."""
    if settings.otlp_traces_endpoint and missing():
        raise RefusedToStart("--otlp-traces-endpoint takes OpenTelemetry's packages: pip install 'softmux[otel]'")
    if not settings.model:
        raise RefusedToStart("which model? give --model: a folder in Hugging Face's layout, or a hub id")
    try:
        if settings.adapters is not None:
            os.scandir(settings.adapters).close()
    except OSError as error:
        raise RefusedToStart(f"--adapters {settings.adapters} (or SOFTMUX_ADAPTERS): {error.strerror}") from None
    try:
        parse_networks(settings.metrics_networks)
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except ValueError as error:
        raise RefusedToStart(f"--metrics-networks: {error}") from None
    except OSError as error:
        raise RefusedToStart(f"--host {settings.host}: {error.strerror or error}") from None
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            raise RefusedToStart(
                f"{settings.host}:{settings.port} can't be listened on ({error.strerror}); give another --port"
            ) from None
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        yield listening


def _open_more_files() -> None:
    """A connection is an open file: raises this process's limit, which those it starts inherit, as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def serve(settings: Settings) -> None:
    """Runs a server in this process until it is told to end. Raises as `Server.run` does."""
    _open_more_files()

    async def run() -> None:
        await Server(settings).run()

    run_on_loop(run())
