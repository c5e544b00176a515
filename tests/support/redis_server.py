"""A Redis that somebody else runs: a real server process over TCP, which the test stops, kills and starts again."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from softmux.registry.embedded import server_binary


class RedisServer:
    """`with RedisServer(folder, maxmemory="4mb") as server:` answers on entry, and is gone on exit.

    Its log of writes lies in `folder`, synced at each, so that a server started there again has what was acknowledged.
    """

    def __init__(self, folder: Path, port: int | None = None, **options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port or _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": "", **options}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        base = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder), "daemonize": "no"}
        options = [part for name, value in (base | self._options).items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [server_binary(), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            restore_signals=False,  # a file beyond `leave_room` is an error to it, as on a full disk, and no signal
        )
        limit = time.monotonic() + 30
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                assert self.process.poll() is None, "the Redis server ended"
                assert time.monotonic() < limit, "the Redis server does not answer"
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """It hangs, with its connections open."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def leave_room(self, bytes_: int) -> None:
        """From now on its log of writes may grow by so much: beyond it, writing fails as on a full disk."""
        assert self.process is not None
        size = sum(path.stat().st_size for path in self.folder.rglob("*.incr.aof"))
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size + bytes_, hard))

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
