"""Malformed uploads, made deterministically from a good one."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors.numpy
import torch

CONFIG, WEIGHTS, SOFTMUX = "adapter_config.json", "adapter_model.safetensors", "softmux.json"

Files = dict[str, bytes]
Case = tuple[str, Files]

HUGE = (2**31, 2**63, 2**64 + 1, 10**40, -(2**63), 1e308)
ODD_VALUES: tuple[Any, ...] = (None, True, "x", "", [], {}, [[]], 0.5, -1, *HUGE)


def truncations(files: Files) -> Iterator[Case]:
    for name in (CONFIG, WEIGHTS):
        data = files[name]
        for cut in (0, 1, 7, 8, 9, 40, len(data) // 2, len(data) - 1):
            yield f"{name} cut at {cut}", files | {name: data[:cut]}
    yield "weights with a tail", files | {WEIGHTS: files[WEIGHTS] + b"\x00"}
    yield "weights without header", files | {WEIGHTS: files[WEIGHTS][8:]}


def header_lies(files: Files) -> Iterator[Case]:
    length = int.from_bytes(files[WEIGHTS][:8], "little")
    header = json.loads(files[WEIGHTS][8 : 8 + length])
    body = files[WEIGHTS][8 + length :]
    good = header["prompt_embeddings"]
    for claim in (0, 1, length - 1, length + 1, len(files[WEIGHTS]), 2**31, 2**60, 2**63, 2**64 - 1):
        yield f"header length {claim}", files | {WEIGHTS: claim.to_bytes(8, "little") + files[WEIGHTS][8:]}
    changes: list[dict[str, Any]] = [
        {"data_offsets": [0, 2**60]},
        {"data_offsets": [2**60, 2**60 + len(body)]},
        {"data_offsets": [-len(body), 0]},
        {"data_offsets": [len(body), 0]},
        {"data_offsets": [0, len(body) - 4]},
        {"data_offsets": [4, len(body)]},
        {"data_offsets": ["0", len(body)]},
        {"data_offsets": None},
        {"shape": [2**60]},
        {"shape": [2**32, 2**32]},
        {"shape": [*good["shape"], 1]},
        {"shape": list(reversed(good["shape"]))},
        {"shape": [good["shape"][0] * good["shape"][1]]},
        {"shape": [float(size) for size in good["shape"]]},
        {"shape": []},
        {"dtype": "F64"},
        {"dtype": "I32"},
        {"dtype": "U8"},
        {"dtype": "BF16"},
        {"dtype": "F8_E4M3"},
        {"dtype": "BOOL"},
        {"dtype": None},
        {"dtype": "object"},
        {"surprise": 1},
    ]
    for change in changes:
        lie = {"prompt_embeddings": good | change}
        yield f"header says {change}", files | {WEIGHTS: _bare_file(json.dumps(lie).encode(), body)}
    twin = {"prompt_embeddings": good, "twin": good}
    yield "overlapping tensors", files | {WEIGHTS: _bare_file(json.dumps(twin).encode(), body)}
    text = json.dumps(header["prompt_embeddings"])
    twice = '{"prompt_embeddings": %s, "prompt_embeddings": %s}' % (text, text)  # noqa: UP031
    yield "the tensor twice", files | {WEIGHTS: _bare_file(twice.encode(), body)}
    deep = b'{"prompt_embeddings": ' + b"[" * 50000 + b"]" * 50000 + b"}"
    yield "deep header", files | {WEIGHTS: _bare_file(deep, body)}
    yield "header of 2 MB", files | {WEIGHTS: _bare_file(b" " * (2 << 20) + b"{}", body)}


def other_tensors(files: Files) -> Iterator[Case]:
    values = safetensors.numpy.load(files[WEIGHTS])["prompt_embeddings"]
    k, width = values.shape

    def tensors(what: str, **named: np.ndarray) -> Case:
        return what, files | {WEIGHTS: safetensors.numpy.save(named)}

    for dtype in (np.float64, np.int32, np.int64, np.uint8, np.bool_):
        yield tensors(f"dtype {dtype.__name__}", prompt_embeddings=values.astype(dtype))
    for shape in ((k + 1, width), (k - 1, width), (k, width + 1), (0, width), (k, 0), (1, k, width), (k * width,)):
        yield tensors(f"shape {shape}", prompt_embeddings=np.zeros(shape, dtype=np.float32))
    for value in (np.nan, np.inf, -np.inf):
        bad = values.copy()
        bad[-1, -1] = value
        yield tensors(f"{value} among the values", prompt_embeddings=bad)
        yield tensors(f"{value} in float16", prompt_embeddings=bad.astype(np.float16))
    yield tensors("a tensor beside", prompt_embeddings=values, surprise=values)
    yield tensors("an empty tensor beside", prompt_embeddings=values, surprise=np.empty((0,), dtype=np.float32))
    yield tensors("another name", prompt_embedding=values)
    yield tensors("a module's name", **{"base_model.model.embedding.weight": values})
    yield tensors("half an encoder", **{"embedding.weight": values})
    yield tensors("LoRA tensors", **{"base_model.model.q_proj.lora_A.weight": values})
    yield tensors("no tensor")


def pickles(files: Files) -> Iterator[Case]:
    archive = io.BytesIO()
    torch.save({"prompt_embeddings": torch.zeros(5, 32)}, archive)
    bomb = b"cos\nsystem\n(S'touch pwned'\ntR."
    for name, data in (("torch archive", archive.getvalue()), ("bomb", bomb), ("pickle", pickle.dumps({"a": 1}))):
        yield f"{name} as weights", files | {WEIGHTS: data}
        yield f"{name} as config", files | {CONFIG: data}
        yield f"{name} as adapter_model.bin", files | {"adapter_model.bin": data}


def configs(files: Files) -> Iterator[Case]:
    good = json.loads(files[CONFIG])

    def config(what: str, **change: Any) -> Case:
        return what, files | {CONFIG: json.dumps(good | change).encode()}

    for value in ODD_VALUES:
        yield config(f"num_virtual_tokens {value!r}", num_virtual_tokens=value)
        yield config(f"peft_type {value!r}", peft_type=value)
    for field in ("token_dim", "num_layers", "num_attention_heads"):
        for value in (*HUGE, 0, -1, "32", [32], True):
            yield config(f"{field} {value!r}", **{field: value})
    for field in ("auto_mapping", "auto_map", "trust_remote_code"):
        for value in ({"base_model_class": "os", "parent_library": "os"}, True, False, "", [], 0):
            yield config(f"{field} {value!r}", **{field: value})
    for field in ("surprise", "target_modules", "__class__", "__init__", "model_config", "a" * 5000, "\n\x1b[31m"):
        yield config(f"field {field[:20]!r}", **{field: None})
    for kind in ("LORA", "IA3", "CPT", "MULTITASK_PROMPT_TUNING", "prompt_tuning", "PROMPT_TUNING ", "../../etc"):
        yield config(f"peft_type {kind}", peft_type=kind)
    for change in (
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": []},
        {"num_transformer_submodules": 2},
        {"num_transformer_submodules": 10**30},
        {"task_type": "SEQ_CLS"},
        {"task_type": []},
        {"inference_mode": "true"},
        {"base_model_name_or_path": {"url": "http://127.0.0.1"}},
        {"base_model_name_or_path": "x" * 5000},
        {"revision": 5},
    ):
        yield config(f"config {str(change)[:50]}", **change)


def broken_json(files: Files) -> Iterator[Case]:
    for name in (CONFIG, SOFTMUX):
        for what, data in {
            "empty": b"",
            "a list": b"[]",
            "a string": b'"x"',
            "null": b"null",
            "NaN": b'{"notes": NaN}',
            "infinity": b'{"notes": -Infinity}',
            "not UTF-8": b'{"notes": "\xff"}',
            "UTF-16": '{"notes": "x"}'.encode("utf-16"),
            "a byte order mark": b"\xef\xbb\xbf{}",
            "a lone surrogate": b'{"notes": "\\udc00"}',
            "key twice": b'{"notes": "a", "notes": "b"}',
            "deep": b'{"notes": ' + b"[" * 400000 + b"]" * 400000 + b"}",
            "nested a bit": b'{"notes": ' + b"[" * 60 + b"]" * 60 + b"}",
            "a huge number": b'{"notes": ' + b"1" * 10000 + b"}",
            "2 MB": b'{"notes": "' + b"a" * (2 << 20) + b'"}',
            "a tail": b"{} {}",
            "YAML": b"notes: !!python/object/apply:os.system [id]",
        }.items():
            yield f"{name}: {what}", files | {name: data}


def said(files: Files) -> Iterator[Case]:
    for field in (
        "template",
        "labels",
        "trained_lengths",
        "base_fingerprint",
        "tokenizer_fingerprint",
        "combines",
        "notes",
    ):
        for value in (3, "", [], {}, [[]], 1e308, [10**40, 1], "{p:", "{p:99999999999}"):
            if field == "notes" and isinstance(value, str):
                continue
            yield f"softmux.json {field} {value!r}", files | {SOFTMUX: json.dumps({field: value}).encode()}
    for field in ("surprise", "auto_map", "template "):
        yield f"softmux.json {field}", files | {SOFTMUX: json.dumps({field: None}).encode()}
    for template in ("{", "}", "{p:5", "{p:4}{x}", "{p:6}{x}", "{p:-5}{x}", "{x", "{x!r}", "{x.__class__}", "{0}"):
        yield f"template {template}", files | {SOFTMUX: json.dumps({"template": template}).encode()}


def names(files: Files) -> Iterator[Case]:
    for name in (
        "../adapter_config.json",
        "..\\adapter_config.json",
        "/etc/passwd",
        "./adapter_config.json",
        "adapter_config.json/",
        "adapter_config.json\x00.png",
        "adapter_config.json ",
        "Adapter_Config.json",
        "adapter_config\u200b.json",
        "adapter_config.lora.json",
        "config.json",
        "modeling.py",
        "tokenizer.json",
        "README.md",
        "",
        ".",
        "..",
        "~",
        "C:\\x",
        "x" * 100000,
        "\n",
        "\ud800",
        "%2e%2e%2f",
    ):
        yield f"beside: {name[:30]!r}", files | {name: b"{}"}
        yield f"instead: {name[:30]!r}", {name: files[CONFIG], WEIGHTS: files[WEIGHTS]}
    yield "nothing", {}
    yield "no weights", {CONFIG: files[CONFIG]}
    yield "no config", {WEIGHTS: files[WEIGHTS]}
    yield "swapped", {CONFIG: files[WEIGHTS], WEIGHTS: files[CONFIG]}


KINDS: tuple[Callable[[Files], Iterator[Case]], ...] = (
    truncations,
    header_lies,
    other_tensors,
    pickles,
    configs,
    broken_json,
    said,
    names,
)


def malformed(files: Files) -> Iterator[Case]:
    """Every way, with a name for each."""
    for kind in KINDS:
        for what, case in kind(files):
            yield f"{kind.__name__}: {what}", case


def _bare_file(header: bytes, body: bytes = b"") -> bytes:
    """A safetensors file of exactly this header and body, however wrong."""
    return len(header).to_bytes(8, "little") + header + body
