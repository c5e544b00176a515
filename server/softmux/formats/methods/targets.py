"""Which modules a LoRA acts on: as its config says, and as the base has them. The two and the tensors must agree."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Protocol

from softmux.errors import InvalidAdapter
from softmux.formats.config import CONFIG_FILE, invalid_field
from softmux.formats.json_file import shown
from softmux.formats.patterns import Patterns
from softmux.formats.tensors import invalid_tensor
from softmux.types import LinearShape, ModelSpec

_ALL_LINEAR = "all-linear"
_BEFORE_HEAD = ("pooler.dense", "head.dense", "classifier.dense", "pre_classifier")
_IN_HEAD = (*_BEFORE_HEAD, "classifier.out_proj")
"""PEFT shortens what `all-linear` found, and may so name what it then left out: the last part of these."""
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")


class _Config(Protocol):
    """What PEFT's `check_target_module_exists` looks at."""

    @property
    def target_modules(self) -> list[str] | str | None: ...
    @property
    def exclude_modules(self) -> list[str] | str | None: ...
    @property
    def layers_to_transform(self) -> list[int] | int | None: ...
    @property
    def layers_pattern(self) -> list[str] | str | None: ...
    @property
    def modules_to_save(self) -> list[str] | None: ...
    @property
    def has_head(self) -> bool: ...


class Base:
    """The served model's linear modules under the names they had in training: a model with a head wraps the bare
    one under a name (`bert.encoder…`), and a base may be served with or without it."""

    def __init__(self, spec: ModelSpec, trained: Sequence[str]) -> None:
        """Raises `InvalidAdapter` for a module of `trained` that the base does not have."""
        self._spec = spec
        self._served = {linear.name: linear for linear in spec.linears}
        self._lead, self._cut = self._wrapped(trained)
        for module in trained:
            if self.served(module) in self._served:
                continue
            if _ends(module, _BEFORE_HEAD):
                raise invalid_tensor(
                    f"base_model.model.{module}.lora_A.weight",
                    "it acts between the last layer and the head, and a LoRA is served within the layers alone; train "
                    f"it with exclude_modules=['{module}'].",
                )
            else:
                raise invalid_tensor(
                    f"base_model.model.{module}.lora_A.weight",
                    f"{spec.model_id} has no linear module of that name; train the LoRA on this base.",
                )

    def _wrapped(self, trained: Sequence[str]) -> tuple[str, str]:
        """(what the training's names have in front of the served ones, what they lack)."""
        if any(module in self._served for module in trained):
            return "", ""
        for module in trained:
            wrapper, _, inner = module.partition(".")
            if inner in self._served:
                return f"{wrapper}.", ""
        leads = {name.partition(".")[0] for name in self._served}
        for lead in sorted(leads):
            if any(f"{lead}.{module}" in self._served for module in trained):
                return "", f"{lead}."
        return "", ""

    def served(self, module: str) -> str:
        """The served module's name for the training's."""
        if self._lead:
            return module.removeprefix(self._lead) if module.startswith(self._lead) else f"?{module}"
        return self._cut + module

    def shape(self, module: str) -> LinearShape:
        return self._served[self.served(module)]

    def names(self) -> list[str]:
        """All linear modules but the output projection, as the training called them."""
        output = self._spec.output_embedding
        inner = [name for name in self._served if name != output and name.startswith(self._cut)]
        return [self._lead + name.removeprefix(self._cut) for name in inner]


def _ends(module: str, names: Collection[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


class Targets:
    def __init__(self, config: _Config, base: Base, patterns: Patterns) -> None:
        self._config = config
        self._base = base
        self._patterns = patterns

    def check(self, trained: Collection[str]) -> None:
        """Raises `InvalidAdapter` unless `trained` are exactly the modules that the config targets in the base."""
        if not self._config.target_modules:
            raise InvalidAdapter(
                f"{CONFIG_FILE} names no target_modules; PEFT writes those that it trained.",
                param=f"{CONFIG_FILE}: target_modules",
            )
        for module in trained:
            if not self.hit(module):
                raise invalid_tensor(
                    f"base_model.model.{module}.lora_A.weight",
                    "target_modules in the config do not name that module; PEFT would leave it out.",
                )
        for module in self._base.names():
            if module not in trained and self.hit(module):
                raise invalid_tensor(
                    f"base_model.model.{module}.lora_A.weight",
                    "it is missing, though the config targets that module; save the trained adapter again.",
                )
        self._refuse_unknown(trained)

    def _refuse_unknown(self, trained: Collection[str]) -> None:
        targets = self._config.target_modules
        for target in targets if isinstance(targets, list) else ():
            saved = any(target == name or target.startswith(f"{name}.") for name in self._config.modules_to_save or ())
            left_out = self._among(self._config.exclude_modules, target, "exclude_modules")
            names = (*trained, *self._base.names(), *(_IN_HEAD if self._config.has_head else ()))
            if not (saved or left_out) and not any(name == target or name.endswith(f".{target}") for name in names):
                raise invalid_field(
                    "target_modules",
                    f"“{shown(target)}” is no linear module of this base; remove it, or train the LoRA on this base.",
                )

    def hit(self, module: str) -> bool:
        """Whether PEFT would put a LoRA on that module."""
        config = self._config
        if self._among(config.exclude_modules, module, "exclude_modules") or self._saved(module):
            return False
        if not self._among(config.target_modules, module, "target_modules"):
            return False
        indexes = config.layers_to_transform
        if isinstance(config.target_modules, str) or indexes is None or indexes == []:
            return True
        layer = self._layer(module)
        return layer is not None and layer in (indexes if isinstance(indexes, list) else [indexes])

    def _among(self, named: list[str] | str | None, module: str, field: str) -> bool:
        if not named:
            return False
        if isinstance(named, list):
            return any(module == name or module.endswith(f".{name}") for name in named)
        if field == "target_modules" and named.lower() == _ALL_LINEAR:
            return True
        return self._patterns.fullmatch(named, module, field)

    def _saved(self, module: str) -> bool:
        return any(
            re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in self._config.modules_to_save or ()
        )

    def _layer(self, module: str) -> int | None:
        patterns = self._config.layers_pattern
        if not patterns:
            found = _LAYER.match(module)
            return int(found[1]) if found else None
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            for index in re.finditer(r"(?<=\.)\d+(?=\.)", module):
                lead = module[: index.start() - 1]
                if self._patterns.ends(pattern, lead, "layers_pattern"):
                    return int(index[0])
        return None
