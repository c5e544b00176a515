"""`softmux serve`: puts the parts together, runs them, and ends them in order.

registry → keys → socket → worker (supervised) → tokenizer → adapters at start → ready … drain → end
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvicorn

from softmux.api.admission import publish_folders
from softmux.api.app import create_app
from softmux.api.auth import parse_networks
from softmux.api.observe import InFlight
from softmux.api.services import Services
from softmux.api.tokenizer import Tokenizer
from softmux.registry.registry import Registry
from softmux.settings import Settings
from softmux.telemetry.exposition import Metrics
from softmux.worker.client import WorkerClient
from softmux.worker.config import WorkerConfig
from softmux.worker.supervisor import Supervisor

log = structlog.stdlib.get_logger(__name__)

WORKER_SETTINGS = frozenset(
    {
        "model", "device", "dtype", "max_rows", "max_step_tokens", "max_waiting", "kv_tokens", "kv_memory_fraction",
        "context_length", "group_by_adapter", "host_cache_bytes", "disk_cache_bytes", "resident_vectors", "threads",
        "log_level", "quantization", "kv_cache_dtype",
    }
)  # fmt: skip
"""What the worker is told of the settings: no keys, no addresses."""
_CLOSE_SECONDS = 5


class RefusedToStart(Exception):
    """The server must not start; the message says why and what to do."""


class _Http(uvicorn.Server):
    """uvicorn without its own signal handling, which would end a drained server by the signal it drained for."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """One `softmux serve`. `run` returns when it has been told to end and everything that ran has."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._in_flight = InFlight()
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
        if secret is not None and secret.strip():
            await registry.keys.ensure_admin_key(secret.strip())
        await registry.follow()
        if not registry.keys.has_keys() and not _is_loopback(settings.host):
            raise RefusedToStart(
                f"without keys the server listens on the loopback address only, and {settings.host} is another one: "
                "set SOFTMUX_ADMIN_KEY, or create a key first (`softmux key create --tenant default --role admin`)"
            )

    async def _serve(self, registry: Registry, listening: socket.socket) -> None:
        settings = self._settings
        worker = WorkerClient()
        config = WorkerConfig(
            endpoint=f"ipc://{self._folder}/worker.sock",
            registry_url=registry.url,
            blob_url=registry.blob_url,
            data=str(settings.data.absolute()),
            settings=settings.model_dump(mode="json", include=set(WORKER_SETTINGS)),
        )
        supervisor = Supervisor(worker, config)
        metrics = Metrics(lambda: worker.stats, restarts=lambda: supervisor.restarts, up=lambda: worker.ready)
        services = Services(settings, worker, registry, metrics)
        http = _Http(
            uvicorn.Config(
                create_app(services, self._in_flight),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
            )
        )
        host, port = listening.getsockname()[:2]
        log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}", model=settings.model)
        answering = asyncio.create_task(http.serve([listening]))
        supervising = asyncio.create_task(supervisor.run())
        starting = asyncio.create_task(self._start(services, supervisor))
        ending = asyncio.create_task(self._ending.wait())
        try:
            await _first_failure_or(ending, supervising, starting, answering)
            services.draining = True
            log.info("draining", running=self._in_flight.count)
            if self._in_flight.count:
                await asyncio.wait(
                    {supervising, asyncio.create_task(self._in_flight.none())},
                    timeout=self._settings.drain_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self._in_flight.count:
                    log.warning("ended with requests running", running=self._in_flight.count)
                    http.force_exit = True
        finally:
            http.should_exit = True
            starting.cancel()
            ending.cancel()
            await asyncio.wait((answering, starting, ending))
            await supervisor.stop()
            await asyncio.wait((supervising,))
            worker.close()
        log.info("ended")

    async def _start(self, services: Services, supervisor: Supervisor) -> None:
        tokenizer, _ = await asyncio.gather(Tokenizer.load(self._settings.model), supervisor.ready())
        services.tokenizer = tokenizer
        if not tokenizer.usable:
            log.warning("the model has no tokenizer the server can run: prompts have to be token ids")
        if self._settings.adapters is not None:
            await publish_folders(services, self._settings.adapters)
        services.started = True
        log.info("ready", model=services.worker.spec.model_id, tasks=len(services.registry.catalog))

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


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """The socket to serve on. Raises `RefusedToStart` where it can't be had, or a setting makes no sense."""
    if not settings.model:
        raise RefusedToStart("which model? give --model: a folder in Hugging Face's layout, or a hub id")
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
        listening.set_inheritable(False)
        yield listening


def _is_loopback(host: str) -> bool:
    """Whether every address that `host` stands for is a loopback one."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def serve(settings: Settings) -> None:
    """Runs a server in this process until it is told to end. Raises as `Server.run` does."""
    try:
        import uvloop
    except ImportError:  # not on every platform
        factory = None
    else:
        factory = uvloop.new_event_loop

    async def run() -> None:
        await Server(settings).run()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())
