"""The coverage-guided fuzzer finds nothing, for as long as a night's run gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzz_adapter.py")


@pytest.mark.parametrize("runs", [20_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
@pytest.mark.skipif(sys.platform != "linux", reason="atheris has packages for Linux alone")
def test_nothing_is_found(tmp_path: Path, runs: int) -> None:
    options = [
        f"-runs={runs}",
        "-max_len=40000",
        "-rss_limit_mb=4096",
        f"-artifact_prefix={tmp_path}/found-",
        "-seed=1",
    ]
    done = subprocess.run(
        [sys.executable, str(FUZZER), str(tmp_path / "corpus"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr or f"#{runs}" in done.stderr, done.stderr[-1000:]
