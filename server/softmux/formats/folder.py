"""An adapter's files, admitted: everything about them that can be checked without running the model."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softmux.errors import InvalidAdapter, TooLarge
from softmux.formats.config import CONFIG_FILE, PromptLearningConfig, read_config
from softmux.formats.digest import adapter_digest, file_entries
from softmux.formats.json_file import shown
from softmux.formats.methods import METHODS, MethodFormat
from softmux.formats.parts import Float32Array, Parts, PromptPart
from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson, read_softmux_json
from softmux.formats.template import Template
from softmux.formats.tensors import WEIGHTS_FILE, invalid_tensor, read_safetensors
from softmux.types import Manifest, ModelSpec

REQUIRED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
ALLOWED_FILES = (*REQUIRED_FILES, SOFTMUX_FILE)

_MAX_FINITE = {"float16": 65504.0, "bfloat16": 3.3895e38}
_ODD_NORM = 64.0
"""How many times larger or smaller than the mean embedding a learned vector is before a person is told."""

_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in '
    "torch.load('adapter_model.bin', weights_only=True).items()}, 'adapter_model.safetensors')\""
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An admitted adapter. `warnings` (odd, but served) and `checks` (what was done) are sentences for a person."""

    manifest: Manifest
    parts: Parts
    warnings: tuple[str, ...]
    checks: tuple[str, ...]


def read_adapter(files: Mapping[str, bytes], spec: ModelSpec) -> Adapter:
    """The adapter in `files` (by name), checked against the running model.

    Raises `InvalidAdapter` with `param` “file: field or tensor”, `BaseMismatch` where `softmux.json` names another
    base or tokenizer, `TooLarge` for JSON or folded weights beyond reason. Never executes or opens what a file names.
    """
    _check_names(files)
    said = read_softmux_json(files.get(SOFTMUX_FILE), spec)
    config = read_config(files[CONFIG_FILE], {name: row.config for name, row in METHODS.items()}, spec)
    row = METHODS[config.peft_type]
    parts = row.read(config, read_safetensors(files[WEIGHTS_FILE]), spec)
    _check_range(parts, spec)
    virtual_tokens = sum(part.virtual_tokens for part in parts)
    if said.template is not None:
        Template.parse(said.template).check(row.method, virtual_tokens)
    entries = file_entries(files)
    manifest = Manifest(
        digest=adapter_digest(entries, spec.base_fingerprint),
        method=row.method,
        base_fingerprint=spec.base_fingerprint,
        files=entries,
        virtual_tokens=virtual_tokens,
        parameters=sum(part.parameters for part in parts),
        template=said.template,
        labels=tuple(said.labels) if isinstance(said.labels, list) else said.labels,
        trained_lengths=(said.trained_lengths[0], said.trained_lengths[1]) if said.trained_lengths else None,
        notes=said.notes,
        base_label=config.base_model_name_or_path,
        tokenizer_label=getattr(config, "tokenizer_name_or_path", None),
        revision_label=config.revision,
        tokenizer_fingerprint=said.tokenizer_fingerprint,
        combines=said.combines,
    )
    return Adapter(manifest, parts, _warnings(parts, spec), _checks(row, config, said, manifest, spec))


def load_folder(path: Path, *, max_bytes: int = 256 << 20) -> dict[str, bytes]:
    """The files of a local adapter folder, by name; others in it (README.md, recipe.toml) are left alone.

    Raises `InvalidAdapter` where a file is missing or leads out of the folder, `TooLarge` beyond `max_bytes` in all.
    """
    root = path.resolve()
    if not root.is_dir():
        raise InvalidAdapter(f"{path} is no folder; give the folder that save_pretrained wrote.", param=str(path))
    present = [name for name in ALLOWED_FILES if (root / name).exists() or (root / name).is_symlink()]
    _require(present, others=[entry.name for entry in root.iterdir()])
    files: dict[str, bytes] = {}
    left = max_bytes
    for name in present:
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise InvalidAdapter(
                f"{name} is a link that leads out of {path}; copy the folder with its links followed (`cp -rL`).",
                param=name,
            )
        if not file.exists() or not stat.S_ISREG(file.stat().st_mode):
            raise InvalidAdapter(f"{name} in {path} is not a regular file; put the file itself there.", param=name)
        try:
            with file.open("rb") as stream:
                files[name] = stream.read(left + 1)
        except OSError as error:
            raise InvalidAdapter(f"{name} in {path} can't be read: {error.strerror}.", param=name) from None
        left -= len(files[name])
        if left < 0:
            raise TooLarge(f"The folder {path} holds more than {max_bytes:,} bytes of adapter.", param=name)
    return files


def _check_names(files: Mapping[str, bytes]) -> None:
    for name in files:
        if name not in ALLOWED_FILES:
            hint = ""
            if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")):
                hint = f" Pickled weights are never opened; convert them: {_CONVERT}"
            elif name.endswith((".lora.json", ".lora.safetensors")):
                hint = " A pair of a soft prompt and a LoRA is not served by this server yet."
            raise InvalidAdapter(
                f"A file named “{shown(name)}” does not belong to an adapter; send {', '.join(ALLOWED_FILES)}.{hint}",
                param=shown(name) or "(no name)",
            )
    _require(files, others=())


def _require(present: Iterable[str], others: Iterable[str]) -> None:
    for name in REQUIRED_FILES:
        if name not in present:
            convert = name == WEIGHTS_FILE and "adapter_model.bin" in others
            hint = f"; pickled weights are never opened, convert them: {_CONVERT}" if convert else ""
            raise InvalidAdapter(f"The adapter lacks {name}; PEFT's save_pretrained writes it{hint}.", param=name)


def _arrays(parts: Parts) -> list[tuple[str, Float32Array]]:
    arrays: list[tuple[str, Float32Array]] = []
    for part in parts:
        if isinstance(part, PromptPart):
            arrays.append(("vectors", part.vectors))
        else:
            arrays += [("keys", part.keys), ("values", part.values)]
    return arrays


def _check_range(parts: Parts, spec: ModelSpec) -> None:
    """Finite in the file is not yet finite in the model's dtype."""
    limit = _MAX_FINITE.get(spec.dtype)
    for name, array in _arrays(parts):
        if limit is not None and float(np.abs(array).max()) > limit:
            raise invalid_tensor(
                "prompt_embeddings",
                f"its {name} reach {float(np.abs(array).max()):.3g}, which is infinite in {spec.dtype}, "
                "the dtype this server runs; train with smaller values.",
            )


def _warnings(parts: Parts, spec: ModelSpec) -> tuple[str, ...]:
    warnings: list[str] = []
    for name, array in _arrays(parts):
        norms = np.linalg.norm(array.reshape(-1, array.shape[-1]).astype(np.float64), axis=1)
        if not norms.any():
            warnings.append(f"All learned {name} are zero: the adapter looks untrained.")
        elif name == "vectors" and spec.embedding_norm > 0:
            odd = np.count_nonzero(
                (norms > _ODD_NORM * spec.embedding_norm) | (norms * _ODD_NORM < spec.embedding_norm)
            )
            if odd:
                warnings.append(
                    f"{odd} of {len(norms)} vectors have unusual norms, {norms.min():.3g} to {norms.max():.3g}; "
                    f"the model's embeddings have {spec.embedding_norm:.3g} on average. Was it trained on this base, "
                    "and did training converge?"
                )
        elif name != "vectors" and norms.max() > 1e4:
            warnings.append(
                f"The learned {name} have unusual norms, up to {norms.max():.3g} a head. Was it trained on this base, "
                "and did training converge?"
            )
    return tuple(warnings)


def _checks(
    row: MethodFormat, config: PromptLearningConfig, said: SoftmuxJson, manifest: Manifest, spec: ModelSpec
) -> tuple[str, ...]:
    checks = [
        f"The files are exactly those of an adapter: {', '.join(file.name for file in manifest.files)}.",
        f"{CONFIG_FILE} is a {config.peft_type} config without unknown fields, and nothing in it asks for code to run.",
        f"Its numbers fit {spec.model_id}: {manifest.virtual_tokens} virtual tokens, "
        f"{manifest.parameters:,} learned numbers of the shapes that {row.method} needs.",
        f"{WEIGHTS_FILE} holds exactly the expected tensors, and every value is finite, in {spec.dtype} too.",
    ]
    if said.base_fingerprint or said.tokenizer_fingerprint:
        checks.append(f"The fingerprints in {SOFTMUX_FILE} are this server's.")
    if said.template is not None:
        checks.append("The template's learned tokens are the adapter's, and its slots have names.")
    return tuple(checks)
