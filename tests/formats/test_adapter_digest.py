from __future__ import annotations

import hashlib

from softmux.formats.digest import adapter_digest, file_entries, sha256

FILES = {"b.json": b"{}", "a.bin": b"\x00\x01"}


def test_entries_are_sorted_and_true() -> None:
    first, second = file_entries(FILES)
    assert (first.name, first.size, first.sha256) == ("a.bin", 2, "sha256:" + hashlib.sha256(b"\x00\x01").hexdigest())
    assert (second.name, second.size) == ("b.json", 2)


def test_the_rule_never_changes() -> None:
    """Registries hold names made by this rule: if this fails, the rule changed, not the test."""
    assert adapter_digest(file_entries(FILES), "sha256:base") == PINNED
    assert adapter_digest(reversed(file_entries(FILES)), "sha256:base") == PINNED


def test_everything_counts() -> None:
    names = {
        adapter_digest(file_entries(files), base)
        for files, base in [
            (FILES, "sha256:base"),
            (FILES, "sha256:other"),
            (FILES | {"a.bin": b"\x00\x02"}, "sha256:base"),
            ({"b.json": b"{}", "c.bin": b"\x00\x01"}, "sha256:base"),
            ({"b.json": b"\x00\x01", "a.bin": b"{}"}, "sha256:base"),
            ({"b.json": b"{}"}, "sha256:base"),
        ]
    }
    assert len(names) == 6


PINNED = sha256(
    b'{"base":"sha256:base","files":['
    b'["a.bin","sha256:b413f47d13ee2fe6c845b2ee141af81de858df4ec549a58b7970bb96645bc8d2",2],'
    b'["b.json","sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",2]],'
    b'"format":"softmux-adapter-1"}'
)
