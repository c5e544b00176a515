"""A real server over the worker without a model: `python echo_server.py`, its settings as JSON on standard input.

`EchoServed` runs it as `Served` runs `softmux serve`. Its model folder needs a tokenizer
alone; what `EchoWorker` says of prompts holds: send token ids below 256, 13 and 253 to 255 aside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softmux.api.loop import run_on_loop
from softmux.api.server import Server
from softmux.settings import Settings
from support import echo_worker
from support.served import Served
from support.tokenizers_made import byte_level, save


class EchoServed(Served):
    """`settings` by their names. The model's folder is made under `data`'s parent."""

    def __init__(self, data: Path, *, key: str | None = None, env: Mapping[str, str] | None = None, **settings: Any):
        model = data.parent / "echo"
        if not model.exists():
            model.mkdir(parents=True)
            save(byte_level(), model)
        tests = str(Path(__file__).parents[1])
        super().__init__(model, data, key=key, env={"PYTHONPATH": f"{tests}:{':'.join(sys.path[1:])}", **(env or {})})
        given = {"model": str(model), "data": str(data), "port": self.port, "device": "cpu", **settings}
        self._settings = json.dumps(given).encode() + b"\n"
        self._command = [sys.executable, __file__]

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._env, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert self.process.stdin is not None
        self.process.stdin.write(self._settings)
        self.process.stdin.close()


async def _run() -> None:
    settings = Settings(**json.loads(sys.stdin.buffer.readline()))
    await Server(settings, worker_command=(sys.executable, echo_worker.__file__)).run()


if __name__ == "__main__":
    run_on_loop(_run())
