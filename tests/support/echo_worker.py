"""A peer that speaks the worker's protocol without a model, to test what is around the engine.

It answers a prompt with the prompt's own real tokens over and over, one token a message unless `burst` says more, each
`delay` seconds. `python echo_worker.py`, its config on standard input, runs it as the supervisor runs a worker; a few
special models (the setting `model`) make it misbehave: `refuse` exits with REFUSED, as any does while its data's folder
has a file of that name, `crash` at once, `deaf` never answers. The token 255 fells it, 254 makes it hang; a prompt with
253 gets `HELD_AFTER` tokens, and then none until it is aborted; 13 is refused.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import zmq

from softmux.errors import InvalidAdapter
from softmux.recorder import FlightRecorder
from softmux.types import LayerKV, ModelSpec, Output
from softmux.worker.config import REFUSED, WorkerConfig
from softmux.worker.messages import (
    PROTOCOL,
    Abort,
    Admit,
    Admitted,
    Failed,
    Generate,
    Hello,
    Outputs,
    Ping,
    Spent,
    Stats,
    ToWorker,
    Welcome,
)
from softmux.worker.probation import Probation, Suspect

SPEC = ModelSpec(
    model_id="echo",
    architecture="EchoForCausalLM",
    dtype="float32",
    hidden_size=16,
    vocab_size=256,
    context_length=512,
    base_fingerprint="sha256:" + "b" * 64,
    tokenizer_fingerprint="sha256:" + "a" * 64,
    layers=(LayerKV(2, 8), LayerKV(2, 8)),
    eos_token_ids=(2,),
    parameters=1234,
    device="cpu",
    embedding_norm=1.0,
)
TOKEN = 0.001
"""Seconds of the engine's time that a token is said to take."""


ROWS = 256
"""Of its flight recorder."""
HELD_AFTER = 12


class EchoWorker:
    def __init__(
        self,
        endpoint: str,
        *,
        delay: float = 0.0,
        burst: int = 1,
        protocol: int = PROTOCOL,
        recorder: FlightRecorder | None = None,
    ) -> None:
        self.recorder = recorder or FlightRecorder(ROWS)
        self._probation = Probation()
        self._tried: SimpleNamespace | None = None
        self.delay, self.burst, self.protocol = delay, burst, protocol
        self.aborted: list[str] = []
        self.running: deque[tuple[bytes, Generate, int]] = deque()
        self.stopping = False
        self.spent: defaultdict[tuple[bytes, str, str], float] = defaultdict(float)
        self._socket: Any = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def run(self) -> None:
        parent = os.getppid()
        told = time.monotonic()
        clients: set[bytes] = set()
        while not self.stopping and os.getppid() == parent:
            self.recorder.serve()
            if self._socket.poll(0 if self.running else 20):
                client, payload = self._socket.recv_multipart()
                clients.add(client)
                self._handle(client, self._decoder.decode(payload))
                continue
            self._step()
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                for client in clients:
                    self._stats(client)
        self._socket.close()

    def _handle(self, client: bytes, message: ToWorker) -> None:
        match message:
            case Hello():
                self._send(client, Welcome(protocol=self.protocol, model=SPEC))
            case Ping():
                self._stats(client)
            case Generate():
                if 13 in message.tokens:
                    self._send(client, Failed(id=message.id, code="overloaded", message="13 is one too many"))
                elif message.suspect:
                    self._probation.wait(Suspect(client, message, 0.0))
                else:
                    self.running.append((client, message, 0))
            case Abort():
                self.aborted.append(message.id)
                self._end(message.id)
                self.running = deque(row for row in self.running if row[1].id != message.id)
            case Admit():
                if message.manifest.virtual_tokens > 99:
                    error = InvalidAdapter("too long a prompt", param="adapter_config.json: num_virtual_tokens")
                    self._send(client, Failed(id=message.id, code=error.code, message=error.message, param=error.param))
                else:
                    self._send(client, Admitted(id=message.id, tokens=(5,), warnings=(), checks=("It ran.",)))

    def _end(self, name: str) -> None:
        if self._tried is not None and self._tried.id == name:
            self._tried.finished = "stop"

    def _step(self) -> None:
        if (suspect := self._probation.turn()) is not None:
            self._tried = SimpleNamespace(id=suspect.message.id, finished=None)
            self._probation.began(self._tried)  # type: ignore[arg-type]
            self.running.append((suspect.client, suspect.message, 0))  # type: ignore[arg-type]
        if not self.running:
            return
        asked = [request for _, request, _ in self.running][:ROWS]
        self.recorder.step(np.array([one.content for one in asked]), np.array([one.version for one in asked]))
        if any(255 in request.tokens for _, request, _ in self.running):
            os._exit(1)
        if any(254 in request.tokens for _, request, _ in self.running):
            time.sleep(3600)
        if self.delay:
            time.sleep(self.delay)
        outputs: dict[bytes, list[Output]] = {}
        for _ in range(len(self.running)):
            client, request, done = self.running.popleft()
            if done >= HELD_AFTER and 253 in request.tokens:
                self.running.append((client, request, done))
                continue
            real = [token for token in request.tokens if token >= 0] or [5]
            wanted = request.sampling.max_tokens
            new = tuple(real[(done + i) % len(real)] for i in range(min(self.burst, wanted - done)))
            done += len(new)
            last = done >= wanted
            self.spent[client, request.tenant, request.adapter.task if request.adapter else ""] += len(new) * TOKEN
            outputs.setdefault(client, []).append(
                Output(
                    id=request.id,
                    tokens=new,
                    finish_reason="length" if last else None,
                    cached_tokens=len(request.tokens) - len(real) if done == len(new) else 0,
                )
            )
            if last:
                self._end(request.id)
            else:
                self.running.append((client, request, done))
        for client, rows in outputs.items():
            self._send(client, Outputs(outputs=tuple(rows)))

    def _stats(self, client: bytes) -> None:
        mine = [key for key in self.spent if key[0] == client]
        if mine:
            self._send(client, Spent(booked=tuple((key[1], key[2], self.spent.pop(key)) for key in mine)))
        gauges = {"num_requests_running": float(len(self.running)), "num_requests_waiting": 0.0}
        self._send(client, Stats(counters={"engine_steps_total": 1.0}, gauges=gauges))

    def _send(self, client: bytes, message: Any) -> None:
        self._socket.send_multipart([client, msgspec.msgpack.encode(message)])


def main() -> int:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerConfig)
    behaviour = config.settings["model"]
    if behaviour == "refuse" or (Path(config.data) / "refuse").exists():
        print("loading", file=sys.stderr)
        print("this model cannot be served: it echoes", file=sys.stderr)
        return REFUSED
    if behaviour == "crash":
        return 1
    if behaviour == "deaf":
        time.sleep(60)
    recorder = FlightRecorder(ROWS, Path(config.recorder)) if config.recorder is not None else None
    EchoWorker(config.endpoint, delay=0.005, recorder=recorder).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
