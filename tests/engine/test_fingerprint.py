"""A base's name: the same for as long as it computes the same, on whatever transformers reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from softmux.engine.fingerprint import base_fingerprint
from support.served import make_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    make_model(folder)
    return folder


@pytest.fixture
def changed(original: Path, tmp_path: Path) -> Callable[..., str]:
    """The fingerprint of a copy whose config has these fields more, or others."""

    def change(**fields: Any) -> str:
        copy = tmp_path / "copy"
        shutil.copytree(original, copy, dirs_exist_ok=True)
        config = json.loads((original / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | fields))
        return base_fingerprint(copy)

    return change


def test_who_wrote_it_and_in_which_order_does_not_matter(original: Path, changed: Callable[..., str]) -> None:
    name = base_fingerprint(original)
    assert changed() == name
    assert changed(transformers_version="99.0", dtype="bfloat16", torch_dtype="float16", use_cache=False) == name


def test_what_is_computed_matters(original: Path, changed: Callable[..., str]) -> None:
    assert changed(rms_norm_eps=1e-3) != base_fingerprint(original)


def test_only_the_folder_is_read(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of transformers that adds a field to its configs must not make another base of this one."""
    import transformers

    def taken(*_: Any, **__: Any) -> Any:
        raise AssertionError("transformers was asked")

    name = base_fingerprint(original)
    monkeypatch.setattr(transformers.PretrainedConfig, "to_dict", taken)
    assert base_fingerprint(original) == name


def test_files_may_be_cut_otherwise_and_no_weight_may_change(original: Path, tmp_path: Path) -> None:
    tensors = load_file(original / "model.safetensors")
    names = sorted(tensors)
    shutil.copy(original / "config.json", tmp_path)
    for part, some in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in some}, tmp_path / f"model-{part}.safetensors")
    assert base_fingerprint(tmp_path) == base_fingerprint(original)
    one = {name: tensors[name].clone() for name in names[::2]}
    one[names[0]].view(-1)[0] += 1
    save_file(one, tmp_path / "model-0.safetensors")
    assert base_fingerprint(tmp_path) != base_fingerprint(original)
