"""Checks of grammars: bounded in time, a tenant's beside another's, remembered."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from softmux.api.grammar_checks import GrammarChecks
from softmux.errors import InvalidRequest
from softmux.grammars.frames import Vocabulary
from softmux.types import Grammar
from support.tokenizers_made import byte_level

LONG = Grammar("regex", ".*" * 2000)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


def vocabulary() -> Vocabulary:
    return Vocabulary(byte_level().to_str(), 420, (2,))


@in_a_loop
async def test_one_that_takes_too_long_holds_up_its_own_tenant_alone() -> None:
    checks = GrammarChecks(vocabulary, seconds=30, most_bytes=1 << 16)
    started: list[int] = []
    try:
        await asyncio.gather(*(checks.check(name, Grammar("regex", "a+")) for name in ("one", "other")))
        started = [checker._process.pid for checker in checks._checkers if checker._process is not None]
        assert len(started) == 2, "each has a process of its own"
        checks._seconds = 0.001
        with pytest.raises(InvalidRequest, match=r"0\.001 s"):
            await checks.check("one", LONG)
        checks._seconds = 30
        await asyncio.gather(*(checks.check(name, Grammar("regex", "b+")) for name in ("one", "other")))
        alive = [checker._process.pid for checker in checks._checkers if checker._process is not None]
        assert len(set(started) - set(alive)) == 1, "the one that was late was killed, and another started"
    finally:
        await checks.close()


@in_a_loop
async def test_verdicts_are_remembered_by_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = GrammarChecks(vocabulary, seconds=30, most_bytes=64)
    tried: list[Grammar] = []
    real = checks._try

    async def counted(grammar: Grammar) -> str:
        tried.append(grammar)
        return await real(grammar)

    monkeypatch.setattr(checks, "_try", counted)
    try:
        for tenant in ("one", "one", "other"):
            await checks.check(tenant, Grammar("regex", "a+"))
        assert len(tried) == 2, "nobody learns from the time of an answer what others ask"
        for _ in range(2):
            with pytest.raises(InvalidRequest) as refusal:
                await checks.check("one", Grammar("regex", "(", "response_format"))
            assert refusal.value.param == "response_format"
        assert len(tried) == 3
        with pytest.raises(InvalidRequest, match="64 bytes"):
            await checks.check("one", Grammar("regex", "a" * 65))
        assert len(tried) == 3
    finally:
        await checks.close()


@in_a_loop
async def test_a_checker_that_dies_is_started_again() -> None:
    checks = GrammarChecks(vocabulary, seconds=30, most_bytes=64)
    try:
        await checks.check("one", Grammar("regex", "a+"))
        for checker in checks._checkers:
            if checker._process is not None:
                checker._process.kill()
                await checker._process.wait()
        with pytest.raises(InvalidRequest, match="too large"):
            await checks.check("one", Grammar("regex", "b+"))
        await checks.check("one", Grammar("regex", "b+"))
    finally:
        await checks.close()


@in_a_loop
async def test_a_tokenizer_that_is_none_is_told() -> None:
    checks = GrammarChecks(lambda: Vocabulary("{}", 420, (2,)), seconds=30, most_bytes=64)
    try:
        with pytest.raises(InvalidRequest, match="can't follow grammars"):
            await checks.check("one", Grammar("regex", "a+"))
    finally:
        await checks.close()


@in_a_loop
async def test_what_is_remembered_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = GrammarChecks(vocabulary, seconds=30, most_bytes=1 << 16)
    tried: list[Grammar] = []

    async def fits(grammar: Grammar) -> str:
        tried.append(grammar)
        return ""

    monkeypatch.setattr(checks, "_try", fits)
    others = Grammar("regex", "a" * 60_000), Grammar("grammar", "a" * 60_000), Grammar("regex", "b" * 60_000)
    for _ in range(2):
        for grammar in others:
            await checks.check("one", grammar)
    assert tried == list(others)
    kept = [part for key in checks._verdicts for part in key]
    assert max(map(len, kept)) < 100, "thousands of texts of 64 KiB would be hundreds of MiB"
    await checks.close()
