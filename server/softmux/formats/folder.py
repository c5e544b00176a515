"""An adapter's files, admitted: everything about them that can be checked without running the model."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from softmux.errors import InvalidAdapter, TooLarge
from softmux.formats import review
from softmux.formats.config import CONFIG_FILE, AdapterConfig, invalid_field, read_config
from softmux.formats.digest import adapter_digest, file_entries
from softmux.formats.json_file import shown
from softmux.formats.methods import METHODS
from softmux.formats.methods.head import read_head, split_head
from softmux.formats.parts import HeadPart, LoraPart, Parts, parameters
from softmux.formats.serving import check_served
from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson, read_softmux_json
from softmux.formats.template import Template
from softmux.formats.tensors import WEIGHTS_FILE, read_safetensors
from softmux.types import Manifest, Method, ModelSpec

REQUIRED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
LORA_FILES = ("adapter_config.lora.json", "adapter_model.lora.safetensors")
"""The LoRA that was trained together with the soft prompt in `REQUIRED_FILES`."""
ALLOWED_FILES = (*REQUIRED_FILES, SOFTMUX_FILE, *LORA_FILES)

_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in '
    "torch.load('adapter_model.bin', weights_only=True).items()}, 'adapter_model.safetensors')\""
)


_PAIRS: Mapping[Method, Method] = MappingProxyType(
    {
        "prompt_tuning": "lora+prompt_tuning",
        "prefix_tuning": "lora+prefix_tuning",
        "p_tuning": "lora+p_tuning",
        "p_tuning_v2": "lora+p_tuning_v2",
        "cpt": "lora+cpt",
        "cartridge": "lora+cartridge",
    }
)
"""What a soft prompt is called with a LoRA beside it."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An admitted adapter. `warnings` (odd, but served) and `checks` (what was done) are sentences for a person."""

    manifest: Manifest
    parts: Parts
    warnings: tuple[str, ...]
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Half:
    """One config with its weights: an adapter, or the soft prompt or the LoRA of a pair."""

    config: AdapterConfig
    method: Method
    parts: Parts


def read_adapter(files: Mapping[str, bytes], spec: ModelSpec) -> Adapter:
    """The adapter in `files` (by name), checked against the running model and what its engine serves.

    Raises `InvalidAdapter` with `param` “file: field or tensor”, `BaseMismatch` where `softmux.json` names another
    base or tokenizer, `TooLarge` for JSON or folded weights beyond reason. Never executes or opens what a file names.
    """
    adapter = parse_adapter(files, spec)
    check_served(adapter.parts, spec)
    return adapter


def parse_adapter(files: Mapping[str, bytes], spec: ModelSpec) -> Adapter:
    """`read_adapter`, whether or not the engine serves such parts."""
    _check_names(files)
    said = read_softmux_json(files.get(SOFTMUX_FILE), spec)
    halves = [_read_half(files, said, spec)]
    if LORA_FILES[0] in files:
        halves.append(_read_lora_half(files, said, spec, halves[0].config.task_type))
        _check_pair(*halves)
    parts = tuple(part for half in halves for part in half.parts)
    review.check_range(parts, spec)
    virtual_tokens = sum(part.virtual_tokens for part in parts)
    method = _method(halves)
    if said.template is not None:
        Template.parse(said.template).check(method, virtual_tokens)
    manifest = _manifest(files, method, halves[0].config, said, parts, spec)
    peft_types = [half.config.peft_type for half in halves]
    warnings = review.warnings(parts, said, spec)
    return Adapter(manifest, parts, warnings, review.checks(peft_types, said, manifest, spec))


def _read_half(files: Mapping[str, bytes], said: SoftmuxJson, spec: ModelSpec, task: str | None = None) -> _Half:
    config = read_config(files[CONFIG_FILE], {name: row.config for name, row in METHODS.items()}, spec, task)
    row = METHODS[config.peft_type]
    tensors = read_safetensors(files[WEIGHTS_FILE])
    if not config.has_head:
        return _Half(config, row.method, row.read(config, tensors, spec))
    head, rest = split_head(tensors)
    parts = row.read(config, rest, spec)
    method: Method = "p_tuning_v2" if row.method == "prefix_tuning" else row.method
    return _Half(config, method, (*parts, read_head(config, head, said.labels, spec)))


def _read_lora_half(files: Mapping[str, bytes], said: SoftmuxJson, spec: ModelSpec, task: str | None) -> _Half:
    """A pair's LoRA, read as an adapter of its own whose files have other names. `task` is the soft prompt's."""
    alone = {name: files[file] for name, file in zip(REQUIRED_FILES, LORA_FILES, strict=True)}
    try:
        return _read_half(alone, said, spec, task)
    except (InvalidAdapter, TooLarge) as error:
        message, param = error.message, error.param or ""
        for name, file in zip(REQUIRED_FILES, LORA_FILES, strict=True):
            message, param = message.replace(name, file), param.replace(name, file)
        raise type(error)(message, param=param) from None


def _check_pair(soft: _Half, lora: _Half) -> None:
    """Raises `InvalidAdapter` unless they are a soft prompt and a LoRA of one training."""
    if lora.config.peft_type != "LORA" or any(isinstance(part, LoraPart) for part in soft.parts):
        raise InvalidAdapter(
            f"A pair is a soft prompt in {CONFIG_FILE} and a LoRA in {LORA_FILES[0]}, and these are "
            f"{soft.config.peft_type} and {lora.config.peft_type}; send each in its own file, or each alone.",
            param=f"{LORA_FILES[0]}: peft_type",
        )
    for field in ("base_model_name_or_path", "revision", "task_type"):
        ours, theirs = getattr(soft.config, field), getattr(lora.config, field)
        if None not in (ours, theirs) and ours != theirs:
            raise InvalidAdapter(
                f"The pair was not trained together: “{field}” is “{shown(ours)}” in {CONFIG_FILE} and "
                f"“{shown(theirs)}” in {LORA_FILES[0]}. Only what was trained together is served together.",
                param=f"{LORA_FILES[0]}: {field}",
            )
    if sum(isinstance(part, HeadPart) for part in (*soft.parts, *lora.parts)) > 1:
        raise InvalidAdapter(
            f"Both files of the pair hold a head; save it in {WEIGHTS_FILE} alone, and leave task_type null in "
            f"{LORA_FILES[0]}.",
            param=f"{LORA_FILES[1]}: classifier",
        )
    if soft.method not in _PAIRS:
        raise invalid_field("peft_type", f"a LoRA is not served beside {soft.config.peft_type}; send each alone.")


def _method(halves: list[_Half]) -> Method:
    return halves[0].method if len(halves) == 1 else _PAIRS[halves[0].method]


def _manifest(
    files: Mapping[str, bytes],
    method: Method,
    config: AdapterConfig,
    said: SoftmuxJson,
    parts: Parts,
    spec: ModelSpec,
) -> Manifest:
    entries = file_entries(files)
    head = next((part for part in parts if isinstance(part, HeadPart)), None)
    labels = tuple(said.labels) if isinstance(said.labels, list) else said.labels
    return Manifest(
        digest=adapter_digest(entries, spec.base_fingerprint),
        method=method,
        base_fingerprint=spec.base_fingerprint,
        files=entries,
        virtual_tokens=sum(part.virtual_tokens for part in parts),
        parameters=parameters(parts),
        template=said.template,
        labels=head.labels if head is not None else labels,
        trained_lengths=(said.trained_lengths[0], said.trained_lengths[1]) if said.trained_lengths else None,
        notes=said.notes,
        base_label=config.base_model_name_or_path,
        tokenizer_label=getattr(config, "tokenizer_name_or_path", None),
        revision_label=config.revision,
        tokenizer_fingerprint=said.tokenizer_fingerprint,
        combines=said.combines,
        head=head.head if head is not None else None,
        problem_type=head.problem_type if head is not None else None,
    )


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
            raise InvalidAdapter(
                f"A file named “{shown(name)}” does not belong to an adapter; send {', '.join(ALLOWED_FILES)}.{hint}",
                param=shown(name) or "(no name)",
            )
    _require(files, others=())


def _require(present: Iterable[str], others: Iterable[str]) -> None:
    present = list(present)
    for name, other in (LORA_FILES, reversed(LORA_FILES)):
        if name in present and other not in present:
            raise InvalidAdapter(f"{name} comes with {other}, which is missing; send both, or neither.", param=other)
    for name in REQUIRED_FILES:
        if name not in present:
            convert = name == WEIGHTS_FILE and "adapter_model.bin" in others
            hint = f"; pickled weights are never opened, convert them: {_CONVERT}" if convert else ""
            raise InvalidAdapter(f"The adapter lacks {name}; PEFT's save_pretrained writes it{hint}.", param=name)
