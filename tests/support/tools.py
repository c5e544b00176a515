"""Programs that some tests need and pip can't bring: where one is missing, which command installs it."""

from __future__ import annotations

import shutil

COMMANDS = {
    "chromium": "make tools",
    "prometheus": "make tools",
    "promtool": "make tools",
    "node": "apt-get install nodejs",
    "helm": "see https://helm.sh/docs/intro/install/",
}
"""What a test may name in its marker `tools(…)`, and how to get it. `make tools` installs by .ci/tools."""


def reason_to_skip(names: tuple[str, ...]) -> str | None:
    """Why a test that needs these programs can't run here, or None where all are there. Raises KeyError for others."""
    commands = {name: COMMANDS[name] for name in names}
    missing = [name for name in names if shutil.which(name) is None]
    if not missing:
        return None
    ways = " and ".join(dict.fromkeys(commands[name] for name in missing))
    return f"needs {', '.join(missing)}, not found here: {ways}"
