"""`make audit` says which pinned package was withdrawn, or has no hash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"


def _package(name: str, **more: Any) -> dict[str, Any]:
    archive = {"archive_info": {"hashes": {"sha256": "0" * 64}}}
    return {"metadata": {"name": name, "version": "1.0"}, "is_yanked": False, "download_info": archive, **more}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([_package("fine")], 0, "1 packages looked up, 0 findings"),
        ([_package("fine"), _package("gone", is_yanked=True)], 1, "gone 1.0 was withdrawn"),
        ([_package("odd", download_info={"dir_info": {}})], 1, "odd 1.0 has no SHA-256"),
        ([{key: value for key, value in _package("old").items() if key != "is_yanked"}], 1, "pip>=24"),
        ([], 1, "0 packages looked up"),
    ],
)
def test_findings(packages: list[dict[str, Any]], code: int, words: str) -> None:
    report = json.dumps({"version": "1", "install": packages})
    done = subprocess.run([sys.executable, SCRIPT], input=report, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stdout
