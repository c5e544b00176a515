"""What `softmux serve` refuses before it has begun anything, and what it warns of."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from softmux.api.server import RefusedToStart, Server, _listen
from softmux.settings import Settings


def test_a_folder_of_adapters_that_cannot_be_read_starts_no_empty_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, why in (("none", "No such file"), ("file", "Not a directory")):
        settings = Settings(model="x", port=0, adapters=tmp_path / name)
        with pytest.raises(RefusedToStart, match=f"--adapters .*{name} .*{why}"), _listen(settings):
            pass
    with _listen(Settings(model="x", port=0, adapters=tmp_path)) as listening:
        assert listening.getsockname()[1]


def test_serve_warns_of_a_variable_that_nothing_reads_and_leaves_nothing(tmp_path: Path) -> None:
    given = {"SOFTMUX_DRAIN_SECOND": "5", "SOFTMUX_ADAPTERS": str(tmp_path / "none")}
    ran = subprocess.run(
        [sys.executable, "-m", "softmux.cli", "serve", "--model", "x", "--port", "0", "--data", str(tmp_path / "data")],
        env=os.environ | given, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "SOFTMUX_DRAIN_SECOND" in ran.stderr
    assert "did you mean SOFTMUX_DRAIN_SECONDS?" in ran.stderr
    assert "not started: --adapters" in ran.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_an_empty_file_of_the_admin_key_starts_no_server_without_keys(tmp_path: Path, host: str) -> None:
    (tmp_path / "key").write_text("\n")
    settings = Settings(model="x", host=host, port=0, data=tmp_path / "data", admin_key_file=tmp_path / "key")
    with pytest.raises(RefusedToStart, match=r"key's file .*key is empty: write a key into it"):
        asyncio.run(Server(settings).run())
