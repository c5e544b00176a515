"""The examples of a page, run as written, in the page's order, against one server.

- Blocks of `python` share their names, as in one session; those of `bash` (or `sh`) run under `bash -euo pipefail`. All
  run in one folder, with `SOFTMUX_URL` set to the server's address, which also takes the place of `127.0.0.1:8000`.
- A block of `text` right behind one is what it must have printed; `…` stands for anything.
- `<!-- save: NAME -->` before a block of any other kind puts it into the folder as that file.
- `<!-- not run: REASON -->` before a block leaves it out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:<!-- (?P<note>save|not run): (?P<said>[^\n]+?) -->\n+)?"
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)$"
    r"(?:\n+```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_SHELLS = ("bash", "sh")
_ADDRESS = "127.0.0.1:8000"

_SESSION = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    name, code = json.loads(line)
    printed, failed = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(code, name, "exec"), names)
        except BaseException:
            failed = traceback.format_exc()
    print(json.dumps([printed.getvalue(), failed]), flush=True)
"""


@dataclass(frozen=True)
class Example:
    line: int
    language: str
    text: str
    printed: str | None
    """What it must print."""
    save: str | None
    skipped: str | None
    """Why it is not run."""

    @property
    def runs(self) -> bool:
        return self.language in ("python", *_SHELLS) and self.skipped is None and self.save is None


def examples(page: Path) -> list[Example]:
    """All blocks of a page that are run, saved, or left out for a reason."""
    return list(_examples(page.read_text(encoding="utf-8")))


def _examples(text: str) -> Iterator[Example]:
    for block in _BLOCK.finditer(text):
        said = {block["note"]: block["said"]}
        example = Example(
            line=text.count("\n", 0, block.start("fence")) + 1,
            language=block["language"],
            text=block["text"],
            printed=block["printed"],
            save=said.get("save"),
            skipped=said.get("not run"),
        )
        if example.runs or example.save or example.skipped:
            yield example


def run(page: Path, folder: Path, url: str, **env: str) -> int:
    """Runs all examples of a page in `folder`; how many. Raises AssertionError at the first that fails."""
    address = url.partition("://")[2]
    own = {name: value for name, value in os.environ.items() if not name.startswith("SOFTMUX_")}
    own |= {"SOFTMUX_URL": url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1", **env}
    count = 0
    session = subprocess.Popen(
        [sys.executable, "-c", _SESSION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=own
    )
    try:
        for example in examples(page):
            text = example.text.replace(_ADDRESS, address)
            where = f"{page.name}:{example.line}"
            if example.save:
                (folder / example.save).write_text(text, encoding="utf-8")
                continue
            if not example.runs:
                continue
            count += 1
            if example.language == "python":
                printed, failed = _python(session, where, text)
            else:
                printed, failed = _bash(text, folder, own)
            assert failed is None, f"{where} fails:\n{text}\n{printed}{failed}"
            if example.printed is not None:
                pattern = ".*?".join(map(re.escape, example.printed.strip().split("…")))
                assert re.fullmatch(pattern, printed.strip(), re.DOTALL), (
                    f"{where} prints\n{printed}\nand the page says\n{example.printed}"
                )
    finally:
        session.kill()
        session.wait()
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.close()
        session.stdout.close()
    return count


def _python(session: subprocess.Popen[str], where: str, text: str) -> tuple[str, str | None]:
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(json.dumps([where, text]) + "\n")
    session.stdin.flush()
    line = session.stdout.readline()
    assert line, f"{where}: Python ended"
    printed, failed = json.loads(line)
    return printed, failed


def _bash(text: str, folder: Path, env: dict[str, str]) -> tuple[str, str | None]:
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, cwd=folder, env=env, check=False
    )
    return ran.stdout, None if ran.returncode == 0 else f"{ran.stderr}\nexit code {ran.returncode}"
