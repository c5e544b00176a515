"""Cartridges in one request: put together as PEFT composes them, and only where they say that they were made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from formats_fixtures import read_files
from peft.tuners.cartridge.utils import compose_cartridge_adapters
from zoo_fixtures import make_base, save, spec_of, tune

from softmux.errors import InvalidRequest
from softmux.formats.combination import combined
from softmux.formats.folder import Adapter, read_adapter
from softmux.formats.parts import PrefixPart

COMBINES = {"softmux.json": b'{"combines": true}'}


def files(tokens: int, seed: int) -> dict[str, bytes]:
    config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    return save(tune(make_base("llama"), config, seed=seed))


def cartridge(tokens: int, seed: int, more: dict[str, bytes] | None = None, **spec: Any) -> Adapter:
    return read_adapter(files(tokens, seed) | (COMBINES if more is None else more), spec_of("llama", **spec))


def test_they_follow_each_other_as_peft_composes_them(tmp_path: Path) -> None:
    paths = []
    for tokens, seed in ((3, 1), (7, 2), (2, 3)):
        paths.append(tmp_path / str(seed))
        paths[-1].mkdir()
        for name, data in files(tokens, seed).items():
            (paths[-1] / name).write_bytes(data)
    compose_cartridge_adapters(paths, output_path=tmp_path / "composed")
    (theirs,) = read_adapter(read_files(tmp_path / "composed"), spec_of("llama")).parts
    whole = combined([cartridge(tokens, seed) for tokens, seed in ((3, 1), (7, 2), (2, 3))])
    (ours,) = whole.parts
    assert isinstance(ours, PrefixPart)
    assert isinstance(theirs, PrefixPart)
    np.testing.assert_array_equal(ours.keys, theirs.keys)
    np.testing.assert_array_equal(ours.values, theirs.values)
    assert (whole.manifest.virtual_tokens, whole.manifest.parameters) == (12, ours.keys.size * 2)


def test_the_digest_names_each_of_them_and_their_order() -> None:
    one, other = cartridge(3, 1), cartridge(4, 2)
    digests = {one.manifest.digest, other.manifest.digest}
    digests |= {combined(pair).manifest.digest for pair in ([one, other], [other, one], [one, one])}
    assert len(digests) == 5
    assert combined([one]) is one


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cartridge(3, 1, {}), "not trained to be combined"),
        (lambda: cartridge(3, 1, {"softmux.json": b'{"combines": false}'}), "not trained to be combined"),
        (lambda: cartridge(3, 1, base_fingerprint="sha256:" + "d" * 64), "another base"),
        (lambda: cartridge(3, 1, {"softmux.json": b'{"combines": true, "template": "Say {x}"}'}), "template"),
        (
            lambda: read_adapter(
                save(tune(make_base("llama"), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)))
                | COMBINES,
                spec_of("llama"),
            ),
            "Only cartridges",
        ),
    ],
)
def test_others_are_refused_with_which_one(make: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        combined([cartridge(4, 2), make()])
    assert (refused.value.status, refused.value.code, refused.value.param) == (422, "invalid_request", "task")
    assert "umber 2" in refused.value.message
