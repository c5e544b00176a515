"""Several cartridges in one request, one after the other: only where each says that it was trained to be combined.

Prefixes that were trained apart do not compose; cartridges can be trained so that they do (2606.04557).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from softmux.errors import InvalidRequest
from softmux.formats.folder import Adapter
from softmux.formats.parts import PrefixPart
from softmux.formats.softmux_json import SOFTMUX_FILE
from softmux.types import Manifest

MOST = 8
"""Versions in one request."""


def check_combination(manifests: Sequence[Manifest]) -> None:
    """Raises `InvalidRequest` (param `task`) unless `manifests`, in that order, may lead one request together."""
    if len(manifests) == 1:
        return
    if len(manifests) > MOST:
        raise InvalidRequest(f"{len(manifests)} tasks are named; a request takes {MOST} at most.", param="task")
    for number, manifest in enumerate(manifests, start=1):
        if manifest.method != "cartridge":
            raise InvalidRequest(
                f"Only cartridges are combined, and number {number} is {manifest.method}; name one task.", param="task"
            )
        if not manifest.combines:
            raise InvalidRequest(
                f"Number {number} was not trained to be combined ({SOFTMUX_FILE} does not say “combines”: true), and "
                "cartridges that were trained apart spoil each other; name one task.",
                param="task",
            )
        if manifest.base_fingerprint != manifests[0].base_fingerprint:
            raise InvalidRequest(f"Number {number} was made for another base; name one task.", param="task")
        if manifest.template is not None:
            raise InvalidRequest(f"Number {number} has a template, and only one can lay out a prompt.", param="task")


def digests_of(digest: str) -> list[str]:
    """The digests of the versions behind one, in order: its own, or those of a combination."""
    return digest.split("+")


def combined_manifest(manifests: Sequence[Manifest]) -> Manifest:
    """Of the combination of `manifests` in that order. Its digest is theirs, joined by `+`: it names the exact weights,
    and caches tell it from each of them and from every other order. Raises `InvalidRequest` (param `task`)."""
    check_combination(manifests)
    if len(manifests) == 1:
        return manifests[0]
    return msgspec.structs.replace(
        manifests[0],
        digest="+".join(manifest.digest for manifest in manifests),
        files=tuple(file for manifest in manifests for file in manifest.files),
        virtual_tokens=sum(manifest.virtual_tokens for manifest in manifests),
        parameters=sum(manifest.parameters for manifest in manifests),
        labels=None,
        trained_lengths=None,
        notes=None,
    )


def combined(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter whose positions are those of `adapters` in order, as PEFT's `compose_cartridge_adapters` makes it.

    Raises as `combined_manifest` does.
    """
    manifest = combined_manifest([adapter.manifest for adapter in adapters])
    if len(adapters) == 1:
        return adapters[0]
    prefixes = [part for adapter in adapters for part in adapter.parts if isinstance(part, PrefixPart)]
    part = PrefixPart(
        np.concatenate([prefix.keys for prefix in prefixes], axis=1),
        np.concatenate([prefix.values for prefix in prefixes], axis=1),
    )
    return Adapter(
        manifest,
        (part,),
        tuple(warning for adapter in adapters for warning in adapter.warnings),
        tuple(check for adapter in adapters for check in adapter.checks),
    )
