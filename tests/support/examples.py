"""The examples of a page, run as written, in the page's order, against one server.

- Blocks of `python` share their names, as in one session; those of `bash` (or `sh`) run under `bash -euo pipefail`. All
  run in one folder, with `SOFTMUX_URL` set to the server's address, which also takes the place of `127.0.0.1:8000`.
- A block of `text` right behind one is what it must have printed; `…` stands for anything.
- `<!-- save: NAME -->` before a block puts it into the folder as that file.
- `<!-- body: ROUTE -->` before a block of JSON sends it there by POST; the answer must be 200.
- `<!-- the answer -->` before a block of JSON: what was answered or printed last has these fields, of these kinds.
- `<!-- not run: REASON -->` before a block leaves it out, for one of `REASONS`. Its syntax is checked all the same.
- JSON, JSON lines, TOML and YAML must parse. No other language is known, and every block has one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

REASONS = frozenset(
    {
        "it starts a server",
        "it needs Docker",
        "it needs a cluster",
        "it needs GPUs",
        "it needs the network",
        "it takes minutes",
        "it is another program's",
    }
)
"""Why a block may be left out."""

_BLOCK = re.compile(
    r"(?:<!-- (?P<note>save|body|not run|the answer)(?:: (?P<said>[^\n]+?))? -->\n+)?"
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
    body: str | None
    """The route that it is sent to."""
    answer: bool
    """Whether it is like what was answered last."""
    skipped: str | None
    """Why it is not run."""

    @property
    def runs(self) -> bool:
        if self.save or self.skipped:
            return False
        return self.language in ("python", *_SHELLS) or self.body is not None

    def fault(self) -> str | None:
        """What is wrong with how it is written, if anything is."""
        if self.skipped is not None and self.skipped not in REASONS:
            return f"{self.skipped!r} is no reason to leave a block out"
        try:
            self._parse()
        except (SyntaxError, ValueError, yaml.YAMLError, subprocess.CalledProcessError) as error:
            return f"{error} {getattr(error, 'stderr', None) or ''}".strip()
        return None

    def _parse(self) -> None:
        match self.language:
            case "python":
                compile(self.text, "page", "exec")
            case "bash" | "sh":
                subprocess.run(["bash", "-n"], input=self.text, capture_output=True, text=True, check=True)
            case "json":
                json.loads(self.text)
            case "jsonl":
                for line in self.text.splitlines():
                    json.loads(line)
            case "toml":
                tomllib.loads(self.text)
            case "yaml":
                list(yaml.safe_load_all(self.text))
            case "text":
                pass
            case _:
                raise ValueError(f"a block of {self.language or 'no language'}, which no test knows how to try")


def examples(page: Path) -> list[Example]:
    """All blocks of a page, but for what another must print."""
    return list(_examples(page.read_text(encoding="utf-8")))


def _examples(text: str) -> Iterator[Example]:
    for block in _BLOCK.finditer(text):
        said = {block["note"]: block["said"]}
        yield Example(
            line=text.count("\n", 0, block.start("fence")) + 1,
            language=block["language"],
            text=block["text"],
            printed=block["printed"],
            save=said.get("save"),
            body=said.get("body"),
            answer="the answer" in said,
            skipped=said.get("not run"),
        )


def run(page: Path, folder: Path, url: str, **env: str) -> int:
    """Runs all examples of a page in `folder`; how many. Raises AssertionError at the first that fails."""
    address = url.partition("://")[2]
    own = {name: value for name, value in os.environ.items() if not name.startswith("SOFTMUX_")}
    own |= {"SOFTMUX_URL": url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1", **env}
    count = 0
    printed = ""
    with subprocess.Popen(
        [sys.executable, "-c", _SESSION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=own
    ) as session:
        for example in examples(page):
            text = example.text.replace(_ADDRESS, address)
            where = f"{page.name}:{example.line}"
            if example.save:
                (folder / example.save).write_text(text, encoding="utf-8")
            if example.answer:
                unlike = _unlike(json.loads(example.text), json.loads(printed))
                assert unlike is None, f"{where} is not like the answer, {unlike}:\n{printed}"
            if not example.runs:
                continue
            count += 1
            if example.body is not None:
                printed, failed = _sent(f"{url}{example.body}", text, own.get("SOFTMUX_KEY"))
            elif example.language == "python":
                printed, failed = _python(session, where, text)
            else:
                printed, failed = _bash(text, folder, own)
            assert failed is None, f"{where} fails:\n{text}\n{printed}{failed}"
            if example.printed is not None:
                pattern = ".*?".join(map(re.escape, example.printed.strip().split("…")))
                assert re.fullmatch(pattern, printed.strip(), re.DOTALL), (
                    f"{where} prints\n{printed}\nand the page says\n{example.printed}"
                )
    return count


def _sent(url: str, body: str, key: str | None) -> tuple[str, str | None]:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    answer = httpx.post(url, content=body, headers=headers, timeout=60)
    return answer.text, None if answer.status_code == 200 else f"\nstatus {answer.status_code}"


def _unlike(said: Any, got: Any, where: str = "") -> str | None:
    """Where `got` lacks what `said` has, or has something of another kind there. Null is like everything."""
    if said is None or got is None:
        return None
    if isinstance(said, dict) and isinstance(got, dict):
        if missing := said.keys() - got.keys():
            return f"which has no {where}{sorted(missing)}"
        inner = [_unlike(said[name], got[name], f"{where}{name}.") for name in said]
        return next((found for found in inner if found), None)
    if isinstance(said, list) and isinstance(got, list):
        return _unlike(said[0], got[0], f"{where}0.") if said and got else None
    numbers = (int, float)
    alike = type(said) is type(got) or (type(said) in numbers and type(got) in numbers)
    return None if alike else f"where {where} is {got!r}"


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
