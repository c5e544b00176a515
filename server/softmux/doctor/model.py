"""The base model: config, weights, tokenizer, and whether it has room."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softmux.doctor.check import Check, fail, ok, size, warn
from softmux.doctor.hardware import device_memory, device_of
from softmux.settings import Settings

_LARGEST_HEADER = 100 << 20
_ROOM = 1.2
"""What a base takes beside its weights, at least: activations, and keys and values of a few requests."""
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}


def model(settings: Settings) -> Iterator[Check]:
    folder = Path(settings.model)
    if not settings.model:
        yield warn("model", "none was named", "give --model: a folder, or a hub id")
        return
    if not folder.is_dir():
        yield _of_the_hub(settings.model)
        return
    try:
        config = json.loads((folder / "config.json").read_bytes())
        architecture = (config.get("architectures") or [config.get("model_type")])[0]
    except FileNotFoundError:
        yield fail("model", f"{folder} has no config.json", "give the folder that save_pretrained wrote")
        return
    except (OSError, ValueError) as error:
        yield fail("model", f"{folder}/config.json can't be read: {error}", "fetch the model again")
        return
    yield ok("model", f"{architecture} in {folder}")
    yield from _weights(settings, folder)
    yield _tokenizer(settings.model)


def _of_the_hub(name: str) -> Check:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return fail("model", f"there is no folder {name}", "check --model: a folder with config.json, or a hub id")
    if isinstance(found, str):
        return ok("model", f"{name}, of the hub, is in the cache")
    return warn(
        "model", f"{name} is no folder here", "it is fetched from the hub at start; `hf download` does so before"
    )


def _weights(settings: Settings, folder: Path) -> Iterator[Check]:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        other = next((path.name for path in folder.glob("*.bin")), None)
        what = f"only {other}, and pickles are not opened" if other else "none"
        yield fail("weights", f"{what} in {folder}", "fetch the model's safetensors, or convert it (save_pretrained)")
        return
    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else set()
    if missing := sorted(named - {shard.name for shard in shards}):
        yield fail("weights", f"{', '.join(missing)} of the index are missing", "fetch the model again")
        return
    numbers = stored = 0
    for shard in shards:
        try:
            shapes = _header(shard)
        except (OSError, ValueError, KeyError, struct.error) as error:
            yield fail("weights", f"{shard.name} is damaged: {error}", "fetch the model again")
            return
        for count, size_of in shapes:
            numbers += count
            stored += int(count * size_of)
    device = device_of(settings)
    width: float = {"float32": 4, "float16": 2, "bfloat16": 2}.get(settings.dtype, 2 if device == "cuda" else 4)
    width = {"fp8": 1.0, "int8": 1.0, "nf4": 0.55}.get(settings.quantization or "", width)
    needs, has = numbers * width * _ROOM, device_memory(device)
    shown = (
        f"{numbers:,} numbers, {size(stored)} on disk; some {size(needs)} on the {device}, which has {size(has)} free"
    )
    if needs > has:
        yield fail("weights", shown, "free memory, take --dtype bfloat16 or --quantization, or a smaller base")
    elif needs > 0.8 * has:
        yield warn("weights", shown, "little is left for keys and values: --dtype bfloat16, or --quantization")
    else:
        yield ok("weights", shown)


def _header(path: Path) -> list[tuple[int, float]]:
    """How many numbers each tensor has, of how many bytes. Raises ValueError where the file is not whole."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError("it has no safetensors header")
        header: dict[str, Any] = json.loads(stream.read(length))
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    if path.stat().st_size != end:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, and says {end:,}")
    found: list[tuple[int, float]] = []
    for entry in tensors:
        count = 1
        for dimension in entry["shape"]:
            count *= dimension
        found.append((count, _WIDTHS.get(entry["dtype"], 1)))
    return found


def _tokenizer(name: str) -> Check:
    from softmux.api.tokenizer_export import export

    exported = export(name)
    if exported.tokenizer is None:
        return warn("tokenizer", f"none that can be run: {exported.why_none}",
                    "texts need one: put tokenizer.json beside the model; token ids are served without")  # fmt: skip
    chat = "with a chat template" if exported.chat_template else "without a chat template: `messages` are refused"
    return ok("tokenizer", f"read, {chat}")
