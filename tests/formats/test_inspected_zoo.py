"""Whatever is in a folder, inspecting it tells facts or a readable reason; what a base admits, it says fits."""

from __future__ import annotations

import pytest
from test_malformed_zoo import KINDS, bent
from zoo_fixtures import spec_of

from softmux.errors import SoftmuxError
from softmux.formats.folder import parse_adapter
from softmux.inspection.folder import inspect


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_folder_is_read_by_its_own_numbers(kind: str) -> None:
    base, make = KINDS[kind]
    files, spec = make(), spec_of(base)
    report = inspect(files, "here", spec)
    manifest = parse_adapter(files, spec).manifest
    assert "problem" not in report.facts
    assert (report.facts["fits"], report.facts["method"]) == (True, manifest.method)
    assert (report.facts["parameters"], report.facts["tokens_a_request"]) == (
        manifest.parameters,
        manifest.virtual_tokens,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_bent_folder_is_told_of_and_never_a_traceback(kind: str) -> None:
    base, make = KINDS[kind]
    spec = spec_of(base)
    told = 0
    for number, (what, files) in enumerate(bent(make())):
        if number % 5:
            continue  # a fifth is enough: the same reader is held to all of them beside
        try:
            facts = inspect(files, "here", spec).facts
        except SoftmuxError:
            continue  # not even its raw facts can be read; that the words are readable is held beside
        told += 1
        assert facts["fits"] or facts["why_not"], what
    assert told > 20
