"""Whether grammars can be followed, found out aside: by processes that are killed where one takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable

import msgspec

from softmux.errors import InvalidRequest, Overloaded
from softmux.grammars.frames import HEAD, Vocabulary, frame
from softmux.types import Grammar

_PLACES = 2
_REMEMBERED = 4096
_MOST_OF_A_TENANT = 64
_START_SECONDS = 60.0
"""A checker reads the tokenizer first, and starts when it is first needed."""

_Key = tuple[str, bytes]
"""A tenant, and the digest of a grammar: thousands of texts would be hundreds of MiB."""


class _Died(Exception):
    """The checker ended over a grammar."""


class Checker:
    """One process, started when it is first asked."""

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        self._vocabulary = vocabulary
        self._process: Process | None = None
        self._unfit = ""

    async def ask(self, grammar: Grammar, seconds: float) -> str:
        """What is wrong with it. Raises `TimeoutError`, or `_Died`; the next question then starts another process."""
        try:
            if self._process is None:
                async with asyncio.timeout(_START_SECONDS):
                    await self._start()
            if self._unfit:
                return f"This model's tokenizer can't follow grammars: {self._unfit}"
            async with asyncio.timeout(seconds):
                return await self._exchange(grammar)
        except BaseException:
            self.end()
            raise

    async def _start(self) -> None:
        vocabulary = self._vocabulary()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "softmux.grammars.checker", stdin=PIPE, stdout=PIPE
        )
        self._unfit = await self._exchange(vocabulary)

    async def _exchange(self, asked: object) -> str:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(frame(asked))
            await process.stdin.drain()
            head = await process.stdout.readexactly(HEAD)
            return msgspec.msgpack.decode(await process.stdout.readexactly(int.from_bytes(head, "little")), type=str)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise _Died from error

    def end(self) -> Process | None:
        """The process that is ending now."""
        process, self._process, self._unfit = self._process, None, ""
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return process


class GrammarChecks:
    """Verdicts are remembered, a tenant's for itself: nobody can tell by an answer's time what others ask for. A tenant
    has one check under way at a time, so that whoever sends what takes long holds up its own alone."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], *, seconds: float, most_bytes: int) -> None:
        self._seconds, self._most_bytes = seconds, most_bytes
        self._verdicts: OrderedDict[_Key, str] = OrderedDict()
        self._checkers = [Checker(vocabulary) for _ in range(_PLACES)]
        self._idle: asyncio.LifoQueue[Checker] = asyncio.LifoQueue()
        for checker in self._checkers:
            self._idle.put_nowait(checker)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: Counter[str] = Counter()

    async def check(self, tenant: str, grammar: Grammar) -> None:
        """Raises `InvalidRequest` for what can't be followed, or is too large or takes too long to compile, and
        `Overloaded` where too many of the tenant's wait."""
        text = grammar.text.encode()
        if len(text) > self._most_bytes:
            raise InvalidRequest(
                f"What the reply has to look like takes more than the {self._most_bytes:,} bytes that this server "
                "reads; make it smaller.",
                param=grammar.param,
            )
        key = (tenant, hashlib.blake2b(b"%s\0%s" % (grammar.kind.encode(), text), digest_size=16).digest())
        verdict = self._verdicts.get(key)
        if verdict is None:
            async with self._turn(tenant):
                verdict = self._verdicts.get(key)
                if verdict is None:
                    verdict = await self._try(grammar)
                    self._remember(key, verdict)
        else:
            self._verdicts.move_to_end(key)
        if verdict:
            raise InvalidRequest(verdict, param=grammar.param)

    async def _try(self, grammar: Grammar) -> str:
        checker = await self._idle.get()
        try:
            return await checker.ask(grammar, self._seconds)
        except TimeoutError:
            raise InvalidRequest(
                f"What the reply has to look like took more than the {self._seconds:g} s that this server gives to "
                "compile it; make it simpler.",
                param=grammar.param,
            ) from None
        except _Died:
            raise InvalidRequest(
                "What the reply has to look like is too large to compile; make it simpler.", param=grammar.param
            ) from None
        finally:
            self._idle.put_nowait(checker)

    def _remember(self, key: _Key, verdict: str) -> None:
        self._verdicts[key] = verdict
        while len(self._verdicts) > _REMEMBERED:
            self._verdicts.popitem(last=False)

    @contextlib.asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        if self._waiting[tenant] >= _MOST_OF_A_TENANT:
            raise Overloaded("Too many new grammars of yours wait to be checked; retry later.")
        self._waiting[tenant] += 1
        try:
            async with self._turns[tenant]:
                yield
        finally:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant], self._turns[tenant]

    async def close(self) -> None:
        for checker in self._checkers:
            ended = checker.end()
            if ended is not None:
                await ended.wait()
