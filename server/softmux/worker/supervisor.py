"""Keeps one worker process alive: starts it, connects the client, tells of its death, starts it again.

A worker whose loop and steps have stopped moving, by its flight recorder, has died, too: it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from softmux.errors import EngineDown, SelfTestFailed, SoftmuxError
from softmux.recorder import SERVING, FlightRecorder, Running
from softmux.types import ModelSpec
from softmux.worker.client import WorkerClient
from softmux.worker.config import REFUSED, WorkerConfig
from softmux.worker.pauses import Pauses

log = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "softmux.worker")

_FIRST_PAUSE = 0.25
_REFUSED_PAUSE, _LONGEST_REFUSED = 2.0, 600.0
"""Loading a model only to see it refused again costs the others: a machine that is mended may wait ten minutes."""
_TERMINATE_SECONDS = 10.0
_LOAD_ATTEMPTS = 3
"""A worker that has never been ready is not started more often than this."""
_KEPT_LINES = 20
_WATCH_SECONDS = 0.25

Cause = Literal["crash", "hang", "refused"]
"""Refused: its model or its machine was found wanting before it served; starting another at once would not help."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why a worker is no more, and whose rows were in its last steps."""

    cause: Cause
    running: Running
    killed: bool = False
    """By a SIGKILL that was not the supervisor's."""


class Supervisor:
    """Runs the worker of `config` for `client`. `run` is the task that does it; `stop` ends both.

    `command` is what a worker is started with, its config on standard input, in the environment `env` (None: this
    process's). `tell` is called with True each time a worker is there, its model loaded, and with False when it has
    died; `died` before that, where nobody wanted it.

    Where a worker is refused that has served before, and `bearable` says that the server can do without it, it stays
    down and is tried again by and by. `name` is what the log calls it.

    With a `recorder`, whose file the config names, a worker is taken for hung, and killed, that has not moved for
    `hang_seconds`, or, while it loads its model or compiles, for `load_seconds`.
    """

    def __init__(
        self,
        client: WorkerClient,
        config: WorkerConfig,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        env: Mapping[str, str] | None = None,
        tell: Callable[[bool], None] = lambda up: None,
        died: Callable[[Death], None] = lambda death: None,
        bearable: Callable[[], bool] = lambda: False,
        name: str = "the worker",
        recorder: FlightRecorder | None = None,
        hang_seconds: float = 8.0,
        load_seconds: float = 1800.0,
    ) -> None:
        self._client = client
        self._config = config
        self._command, self._env = tuple(command), env
        self._tell = tell
        self._died = died
        self._bearable = bearable
        self._name = name
        self._recorder = recorder
        self._hang_seconds, self._load_seconds = hang_seconds, load_seconds
        self._alive = False
        self._served = False
        """Whether the present or last worker has been ready."""
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._stopping = asyncio.Event()
        self._starts = self._restarts = 0
        self._ready_once = asyncio.Event()
        self._spec: ModelSpec | None = None
        self._fatal: str | None = None

    @property
    def restarts(self) -> int:
        """How often the worker was started again after a crash or a hang; not how often a refused one was tried."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The worker's process, while there is one."""
        return None if self._process is None else self._process.pid

    async def ready(self) -> ModelSpec:
        """Waits until a worker has been ready once. Run `run` beside it, which raises where that never happens."""
        await self._ready_once.wait()
        assert self._spec is not None
        return self._spec

    async def run(self) -> None:
        """Keeps a worker running until `stop`. Raises `SelfTestFailed` where starting another would not help: it
        refused the model, never became ready, or came back with another model than the one being served; and the
        server can't do without it."""
        pauses, refused = Pauses(_FIRST_PAUSE), Pauses(_REFUSED_PAUSE, _LONGEST_REFUSED)
        reason: str | None = ""
        while not self._stopping.is_set():
            started = time.monotonic()
            self._starts += 1
            self._restarts += reason is None
            code = await self._one_life()
            if self._stopping.is_set():
                return
            if self._served:
                refused = Pauses(_REFUSED_PAUSE, _LONGEST_REFUSED)
            if (reason := self._refused(code)) is None:
                pause = pauses.after(time.monotonic() - started, served=self._served)
                log.error("%s ended with code %s; it is started again in %.2g s", self._name, code, pause)
            elif self._spec is None or not self._bearable():
                raise SelfTestFailed(reason)
            else:
                pause = refused.after(0.0, served=False)  # however long it took to load
                log.error(
                    "%s is refused, and stays down: %s. The others serve; it is tried again in %.3g s. See what has "
                    "changed since it served: the model's files, its device, the packages; `softmux doctor` looks at "
                    "them. Where the change is meant, start the server anew",
                    *(self._name, reason.rstrip("."), pause),
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def stop(self) -> None:
        """Ends the worker, by force where it does not listen. Nothing is started any more."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _TERMINATE_SECONDS)
            except TimeoutError:
                log.warning("the worker did not end on SIGTERM within %.0f s: killed", _TERMINATE_SECONDS)
                process.kill()
                await process.wait()

    async def _one_life(self) -> int:
        """Starts a worker and connects the client; returns its exit code after its death was told."""
        self._lines.clear()
        if self._recorder is not None:
            self._recorder.clear()
        # Its own session: Ctrl-C is for the server, which lets running requests finish before it ends the worker.
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=self._env,
        )
        self._process = process
        self._alive, self._served, self._fatal = True, False, None
        if self._stopping.is_set():  # `stop` came while it was being started, and could not see it
            process.kill()
        assert process.stdin is not None
        config = msgspec.structs.replace(self._config, supervisor=os.getpid())
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        passing = asyncio.create_task(self._pass_stderr(process))
        connecting = asyncio.create_task(self._connect(process))
        watching = asyncio.create_task(self._watch(process))
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
        finally:
            watching.cancel()
            if self._fatal is not None or process.returncode == REFUSED:
                self._tell_death("refused")
            else:
                self._tell_death("crash", killed=process.returncode == -signal.SIGKILL)
            connecting.cancel()
            await asyncio.wait({passing, connecting}, timeout=1.0)
        return code

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kills the worker once it hangs. What this process itself slept through (it was stopped, the machine was
        busy) is not held against the worker."""
        recorder = self._recorder
        beats, silent = 0, 0.0
        while recorder is not None:
            before = time.monotonic()
            await asyncio.sleep(_WATCH_SECONDS)
            if recorder.beats != beats:
                beats, silent = recorder.beats, 0.0
                continue
            silent += min(time.monotonic() - before, 2 * _WATCH_SECONDS)
            limit = self._hang_seconds if recorder.phase == SERVING else self._load_seconds
            if silent > limit:
                log.error("the worker has not moved for %.0f s: killed", silent)
                self._tell_death("hang")  # before its end, for which a stuck device may let it wait
                process.kill()
                return

    def _tell_death(self, cause: Cause, *, killed: bool = False) -> None:
        """Once a life."""
        if not self._alive:
            return
        self._alive = False
        if not self._stopping.is_set():
            running = Running() if self._recorder is None else self._recorder.running()
            self._died(Death(cause, running, killed))
        self._client.lost()
        self._tell(False)

    async def _connect(self, process: asyncio.subprocess.Process) -> None:
        try:
            spec = await self._client.connect(self._config.endpoint)
        except EngineDown:
            return  # the worker died before it was ready
        except SoftmuxError as error:
            self._fatal = error.message
        else:
            if self._spec is None or spec.base_fingerprint == self._spec.base_fingerprint:
                self._spec = spec
                self._served = True
                if self.restarts:
                    log.warning("%s is ready again, after restart %d", self._name, self.restarts)
                self._tell(True)
                self._ready_once.set()
                return
            self._fatal = "the base model's files changed under the running server; start it anew to serve the new ones"
        process.kill()

    async def _pass_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with contextlib.suppress(ValueError):  # a line longer than the stream's limit
            async for line in process.stderr:
                text = line.decode(errors="replace")
                sys.stderr.write(text)
                if text.strip():
                    self._lines.append(text.rstrip())

    def _refused(self, code: int) -> str | None:
        """Why starting another would not help, as things are; None where it may."""
        if self._fatal is not None:
            return self._fatal
        if code == REFUSED:
            return self._lines[-1] if self._lines else "the worker refused the model"
        if self._spec is None and self._starts >= _LOAD_ATTEMPTS:
            said = "\n".join(self._lines)
            return f"the worker ended {self._starts} times before it was ready, last with code {code}. It said:\n{said}"
        return None
