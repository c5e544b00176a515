"""Variables that nothing reads are told with the setting they resemble; what is read is documented, and never told."""

from __future__ import annotations

from pathlib import Path

import pytest

from softmux.settings import Settings
from softmux.variables import BESIDE, known, unread

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SOFTMUX_MODLE", "SOFTMUX_MODEL"),
        ("SOFTMUX_KV_TOKEN", "SOFTMUX_KV_TOKENS"),
        ("softmux_max_row", "SOFTMUX_MAX_ROWS"),
        ("SOFTMUX_ADMINKEY", "SOFTMUX_ADMIN_KEY"),
        ("SOFTMUX_REPLICA", "SOFTMUX_REPLICAS"),
        ("SOFTMUX_ADDAPTERS", "SOFTMUX_ADAPTERS"),
        ("SOFTMUX_XYZZY", None),
        ("SOFTMUX_", None),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest(name: str, nearest: str | None) -> None:
    (found,) = unread({name: "1", "PATH": "/bin", "SOFTMUX_MODEL": "x", "OTHER_MODLE": "x"})
    assert (found.name, found.nearest) == (name, nearest)
    assert (nearest or "docs/settings.md") in found.advice


def test_all_that_is_read_is_known() -> None:
    settings = {f"SOFTMUX_{name.upper()}" for name in Settings.model_fields}
    assert known() == settings | BESIDE
    assert unread(dict.fromkeys([*known(), *(name.lower() for name in known()), "_SOFTMUX_COMPLETE"], "1")) == []


def test_what_kubernetes_sets_for_a_service_is_nobodys_mistake() -> None:
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR",
             "PORT_80_TCP_PORT", "PORT_80_TCP_PROTO", "REDIS_SERVICE_HOST", "REDIS_PORT"]  # fmt: skip
    assert unread({f"SOFTMUX_{name}": "tcp://10.0.0.7:80" for name in names}) == []


def test_a_port_that_is_a_number_is_no_services() -> None:
    assert [one.name for one in unread({"SOFTMUX_LISTEN_PORT": "8000"})] == ["SOFTMUX_LISTEN_PORT"]


def test_those_beside_the_settings_are_on_their_page() -> None:
    beside = PAGE.read_text(encoding="utf-8").partition("## Beside the settings\n")[2].partition("\n## ")[0]
    assert {name for name in BESIDE if f"`{name}`" in beside} == BESIDE
