"""`python -m softmux.api.tokenizer_export MODEL`: writes what the API needs of the model's tokenizer, as JSON.

The tokenizer is the one transformers builds for the model, so that what is served is tokenized as what was trained.
transformers imports torch wherever it is installed; in a process of its own, the API stays free of both. And there
torch is hidden from transformers, without which the export takes a third of the time (1.8 s of a core instead of 5.0,
with transformers 5.17 and torch 2.13). A tokenizer that can't be made so is tried again with torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

import msgspec

from softmux.errors import InternalError

_WITH_TORCH = "--with-torch"


class ExportedTokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """`tokenizer` is the `tokenizers` library's own JSON; None where the model has no tokenizer that it can run."""

    tokenizer: str | None
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}
    """As chat templates name them: `bos_token`, `eos_token`…"""
    why_none: str = ""


def export(model: str) -> ExportedTokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # whatever its files do to the library, the model itself can be served by token ids
        return ExportedTokenizer(tokenizer=None, why_none=str(error).strip().split("\n")[0][:500])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ExportedTokenizer(tokenizer=None, why_none=f"{type(tokenizer).__name__} has no `tokenizers` form")
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return ExportedTokenizer(
        tokenizer=backend.to_str(),
        chat_template=template,
        special_tokens={
            name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
        },
    )


@contextlib.contextmanager
def torch_hidden() -> Iterator[None]:
    """transformers looks for torch by `importlib.util.find_spec`, and does without what that does not find."""
    find = importlib.util.find_spec

    def find_all_but_torch(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else find(name, package)

    importlib.util.find_spec = find_all_but_torch
    try:
        yield
    finally:
        importlib.util.find_spec = find


async def export_aside(model: str) -> bytes:
    """This module run on `model`, a folder or hub id, in a process of its own: an `ExportedTokenizer` as JSON.

    Raises `InternalError` where that process dies.
    """
    exported = await _run(model)
    if msgspec.json.decode(exported, type=ExportedTokenizer).tokenizer is None:
        exported = await _run(model, _WITH_TORCH)
    return exported


async def _run(model: str, *options: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "softmux.api.tokenizer_export",
        model,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise InternalError(f"the tokenizer of {model} can't be loaded: {lines[-1] if lines else 'no reason given'}")
    return output


def main() -> int:
    with contextlib.nullcontext() if _WITH_TORCH in sys.argv else torch_hidden():
        from transformers.utils import logging

        logging.set_verbosity_error()
        exported = export(sys.argv[1])
    sys.stdout.buffer.write(msgspec.json.encode(exported))
    return 0


if __name__ == "__main__":
    sys.exit(main())
