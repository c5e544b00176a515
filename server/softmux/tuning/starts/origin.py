"""What a task begins from: a published adapter of the same base, found, read, and held to what is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.folder import load_folder, parse_adapter
from softmux.formats.parts import LoraPart, Part, PrefixPart, PromptPart
from softmux.inspection.base import UNKNOWN, describe
from softmux.tuning.bases.base import Base
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, PrefixTuning, PromptTuning
from softmux.tuning.starts.library import Library, Published
from softmux.types import Family, ModelSpec

PARAM = "method.init_from"
Begun = PromptTuning | PrefixTuning | Lora | LoraPrefixTuning
"""The methods that can begin from an adapter."""

_TASK = re.compile(r"(?P<task>(?:[a-z0-9][a-z0-9._-]{0,63}/)?[a-z0-9][a-z0-9._-]{0,63})(?:@(?P<version>[1-9][0-9]*))?")
_LEARNS: dict[str, frozenset[str]] = {
    "prompt_tuning": frozenset({"prompt"}),
    "prefix_tuning": frozenset({"prefix"}),
    "lora": frozenset({"lora"}),
    "lora+prefix_tuning": frozenset({"lora", "prefix"}),
}
"""The kinds of parts that a method learns."""


@dataclass(frozen=True, slots=True)
class Origin:
    """An adapter of the base that is tuned over. `name` is `task@2`, or a folder's; `digest` names what it is;
    `family` is the base's."""

    name: str
    digest: str
    method: str
    parts: tuple[Part, ...]
    family: Family = "decoder"

    @property
    def vectors(self) -> PromptPart | None:
        return next((part for part in self.parts if isinstance(part, PromptPart)), None)

    @property
    def prefix(self) -> PrefixPart | None:
        return next((part for part in self.parts if isinstance(part, PrefixPart)), None)

    @property
    def lora(self) -> LoraPart | None:
        return next((part for part in self.parts if isinstance(part, LoraPart)), None)


class Origins:
    """Finds origins over one base; `library` is where tasks' names are looked up, None for nowhere."""

    def __init__(self, base: Base, library: Library | None) -> None:
        self.base = base
        self._library = library
        self._all: dict[str, list[Origin]] = {}

    @cached_property
    def spec(self) -> ModelSpec:
        """The base as a server would describe it. Raises `InvalidRequest` where nothing says what was loaded."""
        name = str(self.base.model.name_or_path)
        if not name:
            raise InvalidRequest(
                f"{self.base.label} was made in memory, so no adapter is known to be its own: open it by its folder.",
                param=PARAM,
            )
        return describe(_folder_of(name), fingerprints=True)

    def named(self, name: str, method: Begun, folder: Path) -> Origin:
        """The adapter that `init_from = name` means in a recipe in `folder`. Raises `InvalidRequest` where it is not
        there, of another base, or nothing that `method` can begin from."""
        if name.startswith((".", "/")):
            return self._of_folder(name, folder / name, method)
        match = _TASK.fullmatch(name)
        if match is None:
            raise InvalidRequest(
                f"init_from = {name!r} is neither a task (sentiment, sentiment@2, owner/sentiment) nor a folder, which "
                "begins with ./, ../ or /.",
                param=PARAM,
            )
        library = self._asked(name)
        version = int(match["version"]) if match["version"] else None
        try:
            one = library.find(match["task"], version, self.spec.base_fingerprint)
        except SoftmuxError as error:
            raise InvalidRequest(f"init_from = {name!r} was not found: {error.message}", param=PARAM) from error
        if UNKNOWN not in (one.base, self.spec.base_fingerprint) and one.base != self.spec.base_fingerprint:
            raise InvalidRequest(
                f"{one.name} was made for another base ({one.base}), and this recipe tunes over {self.base.label} "
                f"({self.spec.base_fingerprint}). Name a version made for this base, or tune over that one.",
                param=PARAM,
            )
        return self._read(one.name, library.files(one), method)

    def all(self, method: Begun) -> list[Origin]:
        """The active versions of the library's own tasks that `method` can begin from, by name."""
        library = self._asked("auto")
        if method.kind in self._all:
            return self._all[method.kind]
        found = self._all[method.kind] = []
        for one in sorted(library.active(self.spec.base_fingerprint), key=lambda one: one.task):
            if fits(one, method):
                try:
                    found.append(self._read(one.name, library.files(one), method))
                except InvalidRequest:  # vectors at the places of a template, say: nothing to begin from
                    continue
        return found

    def _asked(self, name: str) -> Library:
        if self._library is None:
            raise InvalidRequest(
                f"init_from = {name!r} is looked up in a registry, and none was given: give --url and --key, or "
                "--data.",
                param=PARAM,
            )
        return self._library

    def _of_folder(self, name: str, path: Path, method: Begun) -> Origin:
        try:
            files = load_folder(path)
        except SoftmuxError as error:
            raise InvalidRequest(f"init_from = {name!r} can't be read: {error.message}", param=PARAM) from error
        return self._read(path.resolve().name, files, method)

    def _read(self, name: str, files: Mapping[str, bytes], method: Begun) -> Origin:
        try:
            adapter = parse_adapter(files, self.spec)
        except SoftmuxError as error:
            raise InvalidRequest(
                f"{name} is no adapter of {self.base.label}, which is tuned over: {error.message}", param=PARAM
            ) from error
        manifest = adapter.manifest
        check(name, manifest.method, adapter.parts, method)
        if manifest.template is not None:
            raise InvalidRequest(
                f"{name} has its vectors at the places of a template, and {method.kind} learns vectors in front: name "
                "an adapter without a template.",
                param=PARAM,
            )
        return Origin(name, manifest.digest, manifest.method, adapter.parts, self.spec.family)


def fits(one: Published, method: Begun) -> bool:
    """Whether a version may have, by its method's name, what `method` learns: its files tell for certain."""
    acts = one.method.split("+")
    vectors = any(name in ("prompt_tuning", "p_tuning", "cpt") for name in acts)
    prefix = any(name in ("prefix_tuning", "cartridge") for name in acts)
    has = {"prompt": vectors, "prefix": prefix, "lora": "lora" in acts}
    return {kind for kind, there in has.items() if there} == _LEARNS[method.kind]


def check(name: str, is_a: str, parts: Sequence[Part], method: Begun) -> None:
    """Raises `InvalidRequest` unless the parts are of the kinds that `method` learns."""
    has = {part.kind for part in parts}
    if has == _LEARNS[method.kind]:
        return
    instead = next((kind for kind, learns in _LEARNS.items() if learns == has), None)
    advice = f'set kind = "{instead}", or name' if instead else "name"
    raise InvalidRequest(
        f"{name} is {is_a}, and this recipe learns {method.kind}, which acts elsewhere: {advice} an adapter that is "
        f"{method.kind}.",
        param=PARAM,
    )


def _folder_of(name: str) -> str:
    """Where a loaded base's files are: itself, or what the hub's cache has of it."""
    if Path(name).is_dir():
        return name
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return str(Path(config).parent) if isinstance(config, str) else name
