from __future__ import annotations

import re
from pathlib import Path

import softmux
from softmux.api.server import WORKER_SETTINGS
from softmux.settings import Settings


def test_the_worker_is_told_every_setting_that_its_code_reads() -> None:
    package = Path(softmux.__file__).parent
    read = {
        name
        for folder in ("engine", "scheduler", "worker")
        for file in (package / folder).rglob("*.py")
        for name in re.findall(r"\bsettings\.([a-z_]+)\b", file.read_text())
    }
    assert {"max_rows", "max_loras"} <= read
    assert (read & Settings.model_fields.keys()) - WORKER_SETTINGS == set()
    assert Settings.model_fields.keys() >= WORKER_SETTINGS
