"""`SOFTMUX_…` variables that nothing reads: a misspelt one would leave its setting as it was, without a word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from softmux.settings import Settings

PREFIX = "SOFTMUX_"
BESIDE = frozenset({"SOFTMUX_CACHE", "SOFTMUX_KEY", "SOFTMUX_URL"})
"""Those that are no settings of the server: of its cache, and of the clients and commands that call one."""
_OF_A_SERVICE = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?$")
"""How Kubernetes (and Docker's old links) name the variables that tell a pod of each Service beside it; and `…_PORT`,
which is an address in `_ADDRESS`'s form then."""
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_LIKE = 0.6


@dataclass(frozen=True, slots=True)
class Unread:
    name: str
    nearest: str | None
    """The known one that it resembles most, if any does."""

    @property
    def advice(self) -> str:
        return f"did you mean {self.nearest}?" if self.nearest else "docs/settings.md lists those that are"


def known() -> frozenset[str]:
    return BESIDE | {PREFIX + name.upper() for name in Settings.model_fields}


def unread(environment: Mapping[str, str]) -> list[Unread]:
    """By name. As for settings, capitals do not matter; what Kubernetes sets for a Service is nobody's mistake."""
    names = known()
    strange = sorted(
        name
        for name in environment
        if name.upper().startswith(PREFIX) and name.upper() not in names and not _of_a_service(name, environment[name])
    )
    return [Unread(name, _nearest(name.upper(), names)) for name in strange]


def _of_a_service(name: str, value: str) -> bool:
    address = name.upper().endswith("_PORT") and _ADDRESS.match(value)
    return bool(address or _OF_A_SERVICE.search(name.upper()))


def _nearest(name: str, names: frozenset[str]) -> str | None:
    ends = sorted(each.removeprefix(PREFIX) for each in names)  # the prefix would make all of them alike
    found = difflib.get_close_matches(name.removeprefix(PREFIX), ends, n=1, cutoff=_LIKE)
    return PREFIX + found[0] if found else None
