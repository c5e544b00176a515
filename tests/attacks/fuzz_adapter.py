"""A coverage-guided fuzzer of the adapter reader: `python tests/attacks/fuzz_adapter.py CORPUS -runs=100000`.

libFuzzer's options count. Each input is three files in a row, their lengths in front; the corpus begins with good ones.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["softmux.formats", "safetensors", "json", "msgspec", "pydantic"]):
    from softmux.errors import SoftmuxError
    from softmux.formats.folder import read_adapter

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "formats")]
from formats_fixtures import make_peft, make_spec, read_files  # noqa: E402 - found by the path above

NAMES = ("adapter_config.json", "adapter_model.safetensors", "softmux.json")
SPEC = make_spec()


def packed(files: dict[str, bytes]) -> bytes:
    parts = [files.get(name, b"") for name in NAMES]
    return struct.pack("<3I", *map(len, parts)) + b"".join(parts)


def unpacked(data: bytes) -> dict[str, bytes]:
    if len(data) < 12:
        return {NAMES[0]: data}
    at, files = 12, {}
    for name, length in zip(NAMES, struct.unpack("<3I", data[:12]), strict=True):
        files[name] = data[at : at + length]
        at += length
    return {name: part for name, part in files.items() if part or name != NAMES[2]}


def attempt(data: bytes) -> None:
    """One input. Anything but an adapter or an error in words of the 4xx kind is a finding."""
    try:
        read_adapter(unpacked(data), SPEC)
    except SoftmuxError as error:
        if not 400 <= error.status < 500:
            raise


def main() -> None:
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for method in ("prompt", "mlp", "prefix"):
        tuned, folder = make_peft("gqa", method)[0], corpus.parent / f"good-{method}"
        tuned.save_pretrained(folder)
        told = {NAMES[2]: b'{"template": "{p:4}{text}", "labels": ["a", "b"], "trained_lengths": [1, 9]}'}
        for number, files in enumerate((read_files(folder), read_files(folder) | told)):
            (corpus / f"{method}-{number}").write_bytes(packed(files))
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
