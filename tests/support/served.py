"""A real `softmux serve` in its own process, over a tiny random Llama with a tiny tokenizer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from support.models import make_adapter
from support.tokenizers_made import byte_level, save

VOCABULARY = 420
CONTEXT = 512
METHODS = ("prompt_tuning", "prefix_tuning", "p_tuning_lstm")


def make_model(folder: Path) -> Any:
    """Saves the model and its tokenizer; returns the model, in fp32 on the CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.eval().save_pretrained(folder)
    save(byte_level(), folder)
    return model


def make_adapters(base: Any, folder: Path) -> dict[str, Path]:
    """A folder a method, named as tasks are."""
    folders = {}
    for number, method in enumerate(METHODS):
        name = method.replace("_", "-")
        make_adapter(base, method, folder / name, seed=number)
        folders[name] = folder / name
    return folders


def upload_parts(folder: Path, **more: bytes) -> dict[str, tuple[str, bytes]]:
    """The multipart body of a folder, for httpx' `files=`."""
    lora = ("adapter_config.lora.json", "adapter_model.lora.safetensors")
    names = ("adapter_config.json", "adapter_model.safetensors", "softmux.json", *lora)
    parts = {name: (name, (folder / name).read_bytes()) for name in names if (folder / name).exists()}
    return parts | {name: (name, data) for name, data in more.items()}


class Served:
    """`with Served(model, data) as server:` is ready on entry, and ended by SIGTERM on exit."""

    def __init__(
        self, model: Path | str, data: Path, *options: str, env: Mapping[str, str] | None = None, key: str | None = None
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = data
        self.log = data.parent / f"serve-{self.port}.log"
        self._command = [
            *(sys.executable, "-m", "softmux.cli", "serve", "--model", str(model), "--data", str(data)),
            *("--port", str(self.port), "--device", "cpu", "--dtype", "float32", *options),
        ]
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("SOFTMUX_")}
        self._env |= {"OMP_NUM_THREADS": "1", **(env or {})}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._env, stdout=log, stderr=log)

    def wait_ready(self, seconds: float = 200) -> None:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            assert self.process is not None
            assert self.process.poll() is None, f"serve ended: {self.log.read_text()}"
            try:
                if self.http.get("/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready in {seconds} s: {self.log.read_text()}")

    def worker_pid(self) -> int:
        return self.worker_pids()[0]

    def worker_pids(self) -> list[int]:
        """Of the replicas that run, oldest first."""
        assert self.process is not None
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "softmux.worker|echo_worker"],
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(pid) for pid in found.stdout.split()]

    def samples(self) -> dict[str, float]:
        """What `/metrics` says now, by a connection of its own: it may be of any process."""
        text = httpx.get(f"{self.url}/metrics", headers=self.http.headers, timeout=60).text
        parts = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in parts}

    def end(self, seconds: float = 60) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def __enter__(self) -> Served:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.http.close()
        self.end()
