"""The output file and what it answers: each row once, however often the work is killed and taken up again.

Lines are appended whole; one that was torn when the writer or the machine fell is cut off before more is written. What
the answers are of (input, parameters, task, base) stands beside the file, in `NAME.run.json`, which is also the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from softmux.errors import Conflict, InternalError

_SYNC_SECONDS = 1.0


class Journal:
    """Open it with `with`. `record` says what the answers are of; another one than before is a `Conflict`."""

    def __init__(self, output: Path, record: Mapping[str, Any], lines: int, *, overwrite: bool = False) -> None:
        self.output = output
        self.beside = output.with_name(output.name + ".run.json")
        self._record = dict(record)
        self._overwrite = overwrite
        self._done = bytearray(lines)
        self._synced = 0.0
        self.before = 0
        """Rows that were answered when it was opened."""
        self.failed_before = 0

    def __enter__(self) -> Journal:
        try:
            self._lock = os.open(self.beside, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise Conflict(f"{self.output} can't be written: {error.strerror}.", param="output") from None
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"Another softmux run is writing {self.output}; wait for it to end.") from None
            self._file = os.open(self.output, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                self._begin()
            except BaseException:
                os.close(self._file)
                raise
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _begin(self) -> None:
        if self._overwrite:
            os.ftruncate(self._file, 0)
        before = self._recorded()
        size = os.fstat(self._file).st_size
        if before is None or not size:
            if size:
                raise Conflict(
                    f"{self.output} is there already, and nothing says what it answers; give another -o, or "
                    "--overwrite."
                )
            self._write_record()
        elif different := sorted(name for name in self._record if before.get(name) != self._record[name]):
            told = "; ".join(
                f"{name} was {_short(before.get(name))}, is {_short(self._record[name])}" for name in different
            )
            raise Conflict(
                f"{self.output} holds answers of something else: {told}. Give another -o, or --overwrite to begin anew."
            )
        self._read()

    def _recorded(self) -> dict[str, Any] | None:
        """What was written beside the output; None where that is nothing, or torn."""
        data = os.pread(self._lock, os.fstat(self._lock).st_size, 0)
        try:
            value = json.loads(data)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def _write_record(self) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps(self._record, indent=2).encode() + b"\n", 0)
        os.fsync(self._lock)

    def _read(self) -> None:
        """Learns what is answered, and cuts a torn last line off."""
        whole = 0
        with self.output.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                try:
                    told = json.loads(line)
                    number, failed = int(told["row"]), told["error"] is not None
                    again, self._done[number] = self._done[number], 1
                except (ValueError, KeyError, TypeError, IndexError):
                    raise Conflict(
                        f"{self.output} has a line at byte {whole:,} that softmux run did not write; give another -o, "
                        "or --overwrite to begin anew."
                    ) from None
                if again:
                    raise Conflict(f"{self.output} answers row {number} twice; give another -o, or --overwrite.")
                whole += len(line)
                self.before += 1
                self.failed_before += failed
        os.ftruncate(self._file, whole)

    def drop_failed(self) -> None:
        """Takes the lines of rows that failed out, so that these rows are to do again."""
        kept = self.output.with_name(self.output.name + ".kept")
        with self.output.open("rb") as old, kept.open("wb") as new:
            for line in old:
                told = json.loads(line)
                if told["error"] is None:
                    new.write(line)
                else:
                    self._done[told["row"]] = 0
                    self.before -= 1
            new.flush()
            os.fsync(new.fileno())
        kept.replace(self.output)
        os.close(self._file)
        self._file = os.open(self.output, os.O_RDWR | os.O_APPEND)
        self.failed_before = 0

    def has(self, number: int) -> bool:
        return bool(self._done[number])

    def append(self, number: int, line: bytes) -> None:
        """Writes a row's line. Raises `InternalError` where there is no room for it; what is written stays good."""
        assert not self._done[number], f"row {number} is answered already"
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise InternalError(
                f"{self.output} can't be written ({error.strerror}). Make room, then run the same command again: it "
                "goes on where this ended."
            ) from None
        self._done[number] = 1

    def sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
            os.close(self._lock)


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str | int) or value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
