"""Adapters that are nearly right: structure-aware mutations of good ones, seeded, without end."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Files = dict[str, bytes]

CONFIG, WEIGHTS, SOFTMUX = "adapter_config.json", "adapter_model.safetensors", "softmux.json"
_DTYPES = ("F32", "F16", "BF16", "F64", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "I128", "", None)
_NUMBERS = (0, 1, -1, 2, 7, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 5e-324)
_STRINGS = ("", "x", "NaN", "null", "../..", "/etc/passwd", "{p:5}{x}", "{", "\x00", "\ud7ff", "é" * 50, "a" * 10000)
_NAMES = (
    "adapter_model.bin", "../adapter_config.json", "/tmp/x", "adapter_config.lora.json",
    "adapter_model.lora.safetensors", "config.json", "modeling.py", "", ".", "a" * 300, "adapter_config.json\x00",
    "ADAPTER_CONFIG.JSON", "softmux.JSON",
)  # fmt: skip


def mutant(files: Files, seed: int) -> tuple[str, Files]:
    """`files` with one to four things changed, and what was done. The same seed does the same. It may be valid still:
    a changed weight is another adapter."""
    dice = random.Random(seed)
    mutated = dict(files)
    done = []
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        change = dice.choice(_CHANGES)
        mutated = change(mutated, dice)
        done.append(change.__name__.strip("_"))
    return f"seed {seed}: {', '.join(done)}", mutated


def _some_bytes(files: Files, dice: random.Random) -> Files:
    """Flips, cuts, repeats or inserts bytes of any file."""
    if not files:
        return files
    name = dice.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = dice.randbytes(dice.choice((1, 8, 100)))
            case 3:
                data[at:at] = data[at : at + dice.randrange(1, 200)]
            case _:
                del data[at : at + dice.randrange(1, 20)]
    return {**files, name: bytes(data)}


def _json_values(files: Files, dice: random.Random) -> Files:
    """Changes a config, or what softmux is told, and leaves it JSON."""
    name = dice.choice((CONFIG, CONFIG, SOFTMUX))
    try:
        value = json.loads(files.get(name, b"{}"))
    except ValueError:
        return files
    return {**files, name: _dumped(_changed(value, dice), dice)}


def _header(files: Files, dice: random.Random) -> Files:
    """Changes the header of the weights, and leaves the file in order around it."""
    found = _opened(files)
    if found is None:
        return files
    header, body = found
    entries = [name for name, entry in header.items() if isinstance(entry, dict)]
    if not entries:
        return files
    name = dice.choice(entries)
    entry = dict(header[name])
    match dice.randrange(9):
        case 0:
            entry["dtype"] = dice.choice(_DTYPES)
        case 1:
            entry["shape"] = _changed(entry.get("shape"), dice)
        case 2:
            entry["data_offsets"] = _changed(entry.get("data_offsets"), dice)
        case 3:
            shape = entry.get("shape")
            if isinstance(shape, list) and shape:
                dice.shuffle(shape)
                entry["shape"] = [*shape, dice.choice((0, 1, 2, 2**32))][dice.randrange(2) :]
        case 4:
            header[dice.choice((*_STRINGS, name + "2"))] = entry
        case 5:
            header["__metadata__"] = dice.choice(({}, {"format": "pt"}, {"format": 1}, [], "x", {"a": "b" * 1000}))
        case 6:
            return {**files, WEIGHTS: _file(_changed(header, dice), body, dice)}
        case 7:
            header[dice.choice(_STRINGS)] = header.pop(name)
            return {**files, WEIGHTS: _file(header, body, dice)}
        case _:
            header.pop(name)
            return {**files, WEIGHTS: _file(header, body, dice)}
    return {**files, WEIGHTS: _file({**header, name: entry}, body, dice)}


def _length(files: Files, dice: random.Random) -> Files:
    """Lies about how long the header is."""
    data = files.get(WEIGHTS, b"")
    true = int.from_bytes(data[:8], "little")
    said = dice.choice((true + 1, true - 1, true // 2, 0, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8))
    return {**files, WEIGHTS: struct.pack("<Q", said % 2**64) + data[8:]}


def _values(files: Files, dice: random.Random) -> Files:
    """Puts numbers that are none, or huge ones, among the weights."""
    found = _opened(files)
    if found is None:
        return files
    header, body = found
    changed = bytearray(body)
    for _ in range(dice.choice((1, 3, 50))):
        if len(changed) >= 4:
            at = 4 * dice.randrange(len(changed) // 4)
            changed[at : at + 4] = dice.choice(
                (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\0\0\0")
            )
    return {**files, WEIGHTS: _file(header, bytes(changed), dice)}


def _whole_files(files: Files, dice: random.Random) -> Files:
    """Drops, renames, doubles, swaps or adds files."""
    names = sorted(files)
    if not names:
        return files
    one, other = dice.choice(names), dice.choice(names)
    match dice.randrange(5):
        case 0:
            return {name: data for name, data in files.items() if name != one}
        case 1:
            return {(dice.choice(_NAMES) if name == one else name): data for name, data in files.items()}
        case 2:
            return {**files, dice.choice(_NAMES): files[one]}
        case 3:
            return {**files, one: files[other], other: files[one]}
        case _:
            return {**files, one: b""}


_CHANGES: tuple[Callable[[Files, random.Random], Files], ...] = (
    _some_bytes, _json_values, _json_values, _header, _header, _length, _values, _whole_files,
)  # fmt: skip


def _changed(value: Any, dice: random.Random) -> Any:
    """`value` with something in it changed: as far down as chance goes."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        match dice.randrange(4):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, dice.choice((*_STRINGS, "auto_map", "surprise", "__class__")): _odd(dice)}
            case _:
                return {**value, key: _changed(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        match dice.randrange(4):
            case 0:
                return value[:at]
            case 1:
                return [*value, _odd(dice)]
            case _:
                return [*value[:at], _changed(value[at], dice), *value[at + 1 :]]
    if isinstance(value, bool | type(None)) or dice.random() < 0.5:
        return _odd(dice)
    if isinstance(value, int):
        return value + dice.choice((-1, 1, 2**31, -(2**40)))
    return value[: dice.randrange(len(value))] if isinstance(value, str) and value else _odd(dice)


def _odd(dice: random.Random) -> Any:
    plain = dice.choice((*_NUMBERS, *_STRINGS, None, True, False, [], {}, "nan", "deep"))
    if plain == "nan":
        return float(dice.choice(("nan", "inf", "-inf")))
    if plain == "deep":
        for _ in range(dice.choice((10, 200))):
            plain = [plain]
    return plain


def _dumped(value: Any, dice: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=dice.random() < 0.5)
    if dice.random() < 0.1 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ", " + text[1:]  # every key twice
    return text.encode("utf-8", errors="surrogatepass")


def _opened(files: Files) -> tuple[dict[str, Any], bytes] | None:
    data = files.get(WEIGHTS, b"")
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return None
    return (header, data[8 + length :]) if isinstance(header, dict) else None


def _file(header: Any, body: bytes, dice: random.Random) -> bytes:
    written = _dumped(header, dice)
    return len(written).to_bytes(8, "little") + written + body
