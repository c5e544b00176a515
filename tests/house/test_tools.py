"""Programs that pip can't bring are installed where that is allowed, and a test that misses one says how to get it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.tools import COMMANDS, reason_to_skip

SCRIPT = Path(__file__).parents[2] / ".ci" / "tools"
FAKE_APT = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *install*)
    for name in {brings}; do printf '#!/bin/sh\\n' > "{bin}/$name"; chmod +x "{bin}/$name"; done
esac
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with what the script itself needs and nothing else: it is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env", "tail", "chmod"):
        (folder / name).symlink_to(str(shutil.which(name)))
    _program(folder, "id", "echo 0")
    return folder


def _program(folder: Path, name: str, says: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{says}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT], env={"PATH": str(folder)}, capture_output=True, text=True, check=False)


def test_without_apt_a_line_says_what_is_left_out(programs: Path) -> None:
    _program(programs, "promtool", "true")
    done = _run(programs)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "need chromium, prometheus will be skipped" in done.stderr
    assert "apt-get install --no-install-recommends chromium prometheus fonts-dejavu-core" in done.stderr


def test_without_root_nothing_is_tried(programs: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    _program(programs, "id", "echo 1000")
    _program(programs, "apt-get", f'echo "$@" >> "{log}"')
    done = _run(programs)
    assert done.returncode == 1
    assert "will be skipped" in done.stderr
    assert not log.exists()


@pytest.mark.parametrize(("brings", "code"), [("chromium prometheus promtool", 0), ("chromium", 1)])
def test_as_root_the_missing_are_installed_once(programs: Path, tmp_path: Path, brings: str, code: int) -> None:
    log = tmp_path / "log"
    (programs / "apt-get").write_text(FAKE_APT.format(log=log, bin=programs, brings=brings), encoding="utf-8")
    (programs / "apt-get").chmod(0o755)
    done = _run(programs)
    assert done.returncode == code, done.stderr
    assert ("need prometheus, promtool will be skipped" in done.stderr) == (code == 1)
    asked = log.read_text(encoding="utf-8").splitlines()
    assert asked[-1].endswith("install --no-install-recommends chromium prometheus fonts-dejavu-core")
    if code == 0:
        assert _run(programs).returncode == 0
        assert log.read_text(encoding="utf-8").splitlines() == asked


def test_a_missing_program_is_named_with_its_command(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs))
    _program(programs, "promtool", "true")
    assert reason_to_skip(("promtool",)) is None
    assert reason_to_skip(("chromium", "promtool", "node")) == (
        "needs chromium, node, not found here: make tools and apt-get install nodejs"
    )
    with pytest.raises(KeyError):
        reason_to_skip(("chrome",))
    listed = SCRIPT.read_text(encoding="utf-8").split("programs=(")[1].split(")")[0].split()
    assert listed == [name for name, command in COMMANDS.items() if command == "make tools"]
