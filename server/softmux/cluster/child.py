"""A `softmux serve` process of a replica's own: started, waited for, asked how it is, and ended with its requests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from softmux.errors import EngineDown

_LEASH = Path(__file__).with_name("leash.py")


class ServerProcess:
    """`settings` are `softmux serve`'s, by their names (`redis`, `kv_tokens`, …); the environment's count, too."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        variables = {f"SOFTMUX_{name.upper()}": value for name, value in settings.items()}
        variables |= {"SOFTMUX_HOST": "127.0.0.1", "SOFTMUX_PORT": str(port)}
        command = [sys.executable, str(_LEASH), str(os.getpid()), sys.executable, "-m", "softmux.cli", "serve"]
        self._process = subprocess.Popen(command, env=os.environ | variables)  # noqa: S603

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, seconds: float) -> None:
        """Returns once it answers requests. Raises `EngineDown` where it ends, or takes longer."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if (code := self._process.poll()) is not None:
                raise EngineDown(f"softmux serve ended with code {code}: its log says why")
            if self.ready():
                return
            time.sleep(0.1)
        raise EngineDown(f"softmux serve was not ready within {seconds:g} s: its log says what it does")

    def ready(self) -> bool:
        """Whether it would answer a request now."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def live(self) -> bool:
        """Whether it runs and its HTTP answers; its engine may be starting anew."""
        try:
            return self._process.poll() is None and httpx.get(f"{self.url}/health/live", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, seconds: float) -> None:
        """Lets it drain, and kills it where that takes longer."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
