"""Mutated adapters in mutated multipart bodies at a real server: no 5xx, nothing written where it must not be."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.mutants import Files, mutant
from support.served import METHODS, Served, upload_parts

TASK = "victim"
_MOST_GROWTH = 96 << 20
"""Bytes that the API process may grow by, a few uploads of the most that this server takes."""
_BLOB = re.compile(r"blobs/default/[0-9a-f]{2}/[0-9a-f]{64}")


@pytest.fixture(scope="module")
def attacked(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Path]]:
    data = tmp_path_factory.mktemp("attacked") / "data"
    with Served(base[1], data, "--max-upload-bytes", "2000000") as server:
        for task, folder in adapters.items():
            assert server.http.put(f"/v1/adapters/{task}", files=upload_parts(folder)).status_code == 201
        yield server, data


def _body(files: Files, dice: random.Random) -> tuple[bytes, str]:
    """`files` as multipart, written by hand so that it may be wrong, and its content type."""
    boundary = dice.choice(("b0undary", "-" * 60, "x'()+_,./:=?"))
    body = bytearray()
    for name, data in files.items():
        written = name.encode("utf-8", errors="surrogatepass").replace(b"\r", b"").replace(b"\n", b"")
        disposition = b'Content-Disposition: form-data; name="%s"; filename="%s"' % (written, written)
        if dice.random() < 0.05:
            disposition = dice.choice(
                (b"Content-Disposition: attachment", b"X: y", b"", disposition + b"; name*=utf-8''..%2Fx", b"a" * 9000)
            )
        body += b"--" + boundary.encode() + b"\r\n" + disposition + b"\r\n\r\n" + data + b"\r\n"
    body += b"--" + boundary.encode() + b"--\r\n"
    if dice.random() < 0.2:
        match dice.randrange(4):
            case 0:
                del body[dice.randrange(len(body)) :]
            case 1:
                body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
            case 2:
                body += dice.randbytes(50)
            case _:
                body[:0] = b"preamble" * dice.randrange(1, 20)
    kind = f'multipart/form-data; boundary="{boundary}"'
    return bytes(body), dice.choice((kind,) * 20 + ("multipart/form-data", "multipart/form-data; boundary=", "text/x"))


def _peak(server: Served) -> int:
    """The most memory that any of the processes answering HTTP has had, bytes."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    peaks = []
    for child in children:
        if "softmux.api.process" in Path(f"/proc/{child}/cmdline").read_text():
            status = Path(f"/proc/{child}/status").read_text()
            peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024)  # type: ignore[index]
    return max(peaks)


def _verdict(answer: httpx.Response) -> str | None:
    if answer.status_code in (200, 201):
        return None
    if not 400 <= answer.status_code < 500:
        return f"{answer.status_code} {answer.text[:200]}"
    error = answer.json()["error"]
    return None if len(error["message"]) > 15 and error["code"] else f"unreadable: {error}"


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_mutated_uploads(attacked: tuple[Served, Path], adapters: dict[str, Path], count: int) -> None:
    server, data = attacked
    originals = []
    for method in METHODS:
        folder = adapters[method.replace("_", "-")]
        originals.append({path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"})
    beside = set(data.parent.iterdir())
    before = _peak(server)
    wrong: list[str] = []
    accepted = 0
    for seed in range(count):
        what, files = mutant(originals[seed % len(originals)], seed)
        body, kind = _body(files, random.Random(seed))
        answer = server.http.put(f"/v1/adapters/{TASK}", content=body, headers={"content-type": kind})
        accepted += answer.status_code < 300
        verdict = _verdict(answer)
        if verdict is not None:
            wrong.append(f"{what}: {verdict}")
    assert not wrong, "\n".join(wrong)
    assert 0 < accepted < count / 2
    assert _peak(server) - before < _MOST_GROWTH
    assert set(data.parent.iterdir()) == beside, "something was written beside the data"
    stored = [path.relative_to(data).as_posix() for path in (data / "blobs").rglob("*") if path.is_file()]
    assert all(_BLOB.fullmatch(name) for name in stored), stored
    assert server.http.delete(f"/v1/adapters/{TASK}").status_code == 204
    for method in METHODS:
        answer = server.http.post("/v1/generate", params={"task": method.replace("_", "-")}, json={"prompt": "a"})
        assert answer.status_code == 200
