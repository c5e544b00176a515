"""Whole adapters: the files that may come, the manifest they become, what is odd about them; local folders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from formats_fixtures import make_spec

from softmux.errors import InvalidAdapter, TooLarge
from softmux.formats.digest import adapter_digest, file_entries
from softmux.formats.folder import load_folder, read_adapter
from softmux.types import LayerKV

Saved = Callable[[str, str], dict[str, bytes]]


def with_tensor(files: dict[str, bytes], values: np.ndarray) -> dict[str, bytes]:
    return files | {"adapter_model.safetensors": safetensors.numpy.save({"prompt_embeddings": values})}


def test_manifest_names_the_version(saved: Saved) -> None:
    files, spec = saved("gqa", "prefix"), make_spec()
    manifest = read_adapter(files, spec).manifest
    assert manifest.files == file_entries(files)
    assert manifest.digest == adapter_digest(manifest.files, spec.base_fingerprint)
    assert manifest.base_fingerprint == spec.base_fingerprint
    assert manifest.bytes == sum(map(len, files.values()))
    assert (manifest.method, manifest.virtual_tokens, manifest.parameters) == ("prefix_tuning", 5, 5 * 3 * 2 * 16)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "adapter_model.bin",
        "../adapter_config.json",
        "/etc/passwd",
        "adapter_config.json\x00",
        "ADAPTER_CONFIG.JSON",
        "",
        "adapter_model.lora.bin",
        "x" * 10000,
    ],
)
def test_other_files_are_refused(saved: Saved, name: str) -> None:
    with pytest.raises(InvalidAdapter, match="does not belong") as refused:
        read_adapter(saved("gqa", "prompt") | {name: b""}, make_spec())
    assert refused.value.param is not None
    assert len(refused.value.param) < 100


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files_are_named(saved: Saved, name: str) -> None:
    files = saved("gqa", "prompt")
    del files[name]
    with pytest.raises(InvalidAdapter, match=f"lacks {name}") as refused:
        read_adapter(files, make_spec())
    assert refused.value.param == name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("config", ["prompt", "prefix"])
def test_values_must_be_finite(saved: Saved, config: str, value: float) -> None:
    files = saved("gqa", config)
    values = safetensors.numpy.load(files["adapter_model.safetensors"])["prompt_embeddings"]
    values[3, 7] = value
    with pytest.raises(InvalidAdapter, match="NaN or infinite") as refused:
        read_adapter(with_tensor(files, values), make_spec())
    assert refused.value.param == "adapter_model.safetensors: prompt_embeddings"


def test_values_must_be_finite_in_the_servers_dtype(saved: Saved) -> None:
    files = with_tensor(saved("gqa", "prompt"), np.full((5, 32), 70000, dtype=np.float32))
    with pytest.raises(InvalidAdapter, match="infinite in float16"):
        read_adapter(files, make_spec(dtype="float16"))
    assert read_adapter(files, make_spec(dtype="bfloat16")).warnings


def test_an_encoder_that_overflows_is_refused(saved: Saved) -> None:
    shapes = {"embedding.weight": (5, 32), "mlp_head.0.weight": (24, 32), "mlp_head.2.weight": (24, 24)}
    shapes |= {
        "mlp_head.4.weight": (32, 24),
        "mlp_head.0.bias": (24,),
        "mlp_head.2.bias": (24,),
        "mlp_head.4.bias": (32,),
    }
    weights = {name: np.full(shape, 1e30, dtype=np.float32) for name, shape in shapes.items()}
    files = saved("gqa", "mlp") | {"adapter_model.safetensors": safetensors.numpy.save(weights)}
    with pytest.raises(InvalidAdapter, match="NaN or infinite"):
        read_adapter(files, make_spec())


def test_a_projection_that_unfolds_beyond_reason_is_refused() -> None:
    k, width = 16000, 80 * 2 * 128
    weights = {
        "embedding.weight": np.zeros((k, 128), dtype=np.float16),
        "transform.0.weight": np.zeros((1, 128), dtype=np.float16),
        "transform.0.bias": np.zeros(1, dtype=np.float16),
        "transform.2.weight": np.zeros((width, 1), dtype=np.float16),
        "transform.2.bias": np.zeros(width, dtype=np.float16),
    }
    spec = make_spec(context_length=1 << 20, layers=(LayerKV(1, 128),) * 80)
    config = b'{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": %d, "prefix_projection": true, ' % k
    files = {
        "adapter_config.json": config + b'"encoder_hidden_size": 1}',
        "adapter_model.safetensors": safetensors.numpy.save(weights),
    }
    with pytest.raises(TooLarge, match="fewer virtual tokens"):
        read_adapter(files, spec)


@pytest.mark.parametrize(
    ("scale", "said"), [(0.0, "zero"), (1e-6, "unusual norms"), (1e5, "unusual norms"), (1e36, "unusual")]
)
def test_odd_norms_are_told(saved: Saved, scale: float, said: str) -> None:
    values = np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32) * np.float32(scale)
    (warning,) = read_adapter(with_tensor(saved("gqa", "prompt"), values), make_spec(embedding_norm=5.0)).warnings
    assert said in warning


@pytest.mark.parametrize(("scale", "count"), [(1.0, 0), (0.0, 2), (1e6, 2)])
def test_odd_prefixes_are_told(saved: Saved, scale: float, count: int) -> None:
    values = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float32) * np.float32(scale)
    assert len(read_adapter(with_tensor(saved("gqa", "prefix"), values), make_spec()).warnings) == count


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_folder_is_read_and_other_files_left(saved: Saved, tmp_path: Path) -> None:
    files = saved("gqa", "prompt") | {"softmux.json": b"{}"}
    write(tmp_path, files | {"README.md": b"#", "recipe.toml": b""})
    assert load_folder(tmp_path) == files


def test_links_inside_are_followed_and_links_outside_refused(saved: Saved, tmp_path: Path) -> None:
    files = saved("gqa", "prompt")
    folder = tmp_path / "adapter"
    folder.mkdir()
    write(folder, files)
    (folder / "adapter_config.json").rename(folder / "config.json")
    (folder / "adapter_config.json").symlink_to("config.json")
    assert load_folder(folder) == files
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("../config.json")
    with pytest.raises(InvalidAdapter, match="leads out"):
        load_folder(folder)


def test_folder_trouble_is_said(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match="no folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(InvalidAdapter, match=r"lacks adapter_config\.json"):
        load_folder(tmp_path)
    write(tmp_path, saved("gqa", "prompt"))
    with pytest.raises(TooLarge, match="holds more than"):
        load_folder(tmp_path, max_bytes=100)
    (tmp_path / "softmux.json").mkdir()
    with pytest.raises(InvalidAdapter, match="not a regular file"):
        load_folder(tmp_path)
    (tmp_path / "softmux.json").rmdir()
    os.mkfifo(tmp_path / "softmux.json")
    with pytest.raises(InvalidAdapter, match="not a regular file"):
        load_folder(tmp_path)


def test_bin_comes_with_a_way_to_convert_that_works(saved: Saved, tmp_path: Path) -> None:
    files = saved("gqa", "prompt")
    tensors = safetensors.torch.load(files.pop("adapter_model.safetensors"))
    write(tmp_path, files)
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match="never opened") as refused:
        load_folder(tmp_path)
    command = refused.value.message.split("convert them: ")[1].rstrip(".")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=environment)
    assert read_adapter(load_folder(tmp_path), make_spec()).manifest.virtual_tokens == 5


def test_formats_import_no_torch() -> None:
    code = (
        "import sys, softmux.formats.folder, softmux.formats.layout; print({'torch', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
