"""Our reader and the safetensors library agree on what is a file, and ours is never the more trusting."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from formats_fixtures import bare_file
from hypothesis import given
from hypothesis import strategies as st

from softmux.errors import InvalidAdapter, TooLarge
from softmux.formats.tensors import read_safetensors

TENSORS = {
    "vectors": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], dtype=np.float16),
    "scalar": np.array(3.0, dtype=np.float32),
    "nothing": np.empty((0, 4), dtype=np.float32),
}


def header(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def test_reads_what_the_library_writes() -> None:
    read = read_safetensors(safetensors.numpy.save(TENSORS, metadata={"format": "pt"}))
    assert set(read) == set(TENSORS)
    for name, values in TENSORS.items():
        assert read[name].shape == values.shape
        assert np.array_equal(read[name].float32(), values.astype(np.float32))


@given(st.data())
def test_never_accepts_what_the_library_refuses(data: st.DataObject) -> None:
    """Single bytes and runs of bytes of a whole file changed, dropped or doubled."""
    whole = safetensors.numpy.save(TENSORS)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 9)))
    changed = whole[:start] + data.draw(st.binary(max_size=9)) + whole[stop:]
    try:
        read = read_safetensors(changed)
    except (InvalidAdapter, TooLarge):
        return
    assert {name for name, _ in safetensors.deserialize(changed)} == set(read)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes"),
        (b"\x00" * 7, "7 bytes"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "claims"),
        (b"\xff" * 8 + b"{}", "claims"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00cos\nsystem", "pickle"),
        (b"PK\x03\x04" + b"\x00" * 100, "pickle"),
        (bare_file(b""), "not JSON"),
        (bare_file(b"[]"), "object is expected"),
        (bare_file(b'{"__metadata__": {"a": 1}}'), "map of strings"),
        (bare_file(b"{}", b"1234"), "belong to no tensor"),
        (bare_file(header(a=entry(offsets=(4, 8))), b"\x00" * 8), "gap"),
        (bare_file(header(a=entry(), b=entry()), b"\x00" * 4), "overlaps"),
        (bare_file(header(a=entry()), b"\x00" * 3), "beyond the file"),
        (bare_file(header(a=entry(shape=[1 << 60], offsets=[0, 1 << 62])), b""), "two positions"),
        (bare_file(header(a=entry(shape=[1 << 60], offsets=[0, 4])), b"1234"), "lies"),
        (bare_file(header(a=entry(shape=[1 << 40, 1 << 40, 0], offsets=[0, 4])), b"1234"), "lies"),
        (bare_file(header(a=entry(shape=[-1], offsets=[0, 4])), b"1234"), "list of sizes"),
        (bare_file(header(a=entry(shape=[True])), b"1234"), "list of sizes"),
        (bare_file(header(a=entry(shape=[1.0])), b"1234"), "list of sizes"),
        (bare_file(header(a=entry(shape="1")), b"1234"), "list of sizes"),
        (bare_file(header(a=entry(shape=[1] * 9)), b"1234"), "list of sizes"),
        (bare_file(header(a=entry(offsets=[4, 0])), b"1234"), "lies"),
        (bare_file(header(a=entry(offsets=[0, 4, 8])), b"1234"), "two positions"),
        (bare_file(header(a=entry(dtype="F64", offsets=(0, 8))), b"\x00" * 8), "not one of F32"),
        (bare_file(header(a=entry(dtype="I32")), b"1234"), "not one of F32"),
        (bare_file(header(a=entry(dtype=["F32"])), b"1234"), "not one of F32"),
        (bare_file(header(a=entry(extra=1)), b"1234"), "nothing else"),
        (bare_file(header(a=[1]), b"1234"), "nothing else"),
        (bare_file(b'{"a": {}, "a": {}}', b""), "twice"),
    ],
)
def test_refused_in_words(data: bytes, said: str) -> None:
    with pytest.raises(InvalidAdapter, match=said) as refused:
        read_safetensors(data)
    assert refused.value.param is not None
    assert refused.value.param.startswith("adapter_model.safetensors")


def test_nothing_is_allocated_by_a_claim() -> None:
    lies = [
        (1 << 60).to_bytes(8, "little") + b"{}",
        bare_file(header(a=entry(shape=[1 << 60], offsets=[0, 1 << 61])), b"1234"),
        bare_file(header(a=entry(dtype="F16", shape=[1 << 58, 4], offsets=[0, 1 << 61])), b"1234"),
    ]
    tracemalloc.start()
    try:
        for lie in lies:
            with pytest.raises(InvalidAdapter):
                read_safetensors(lie)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
