"""Lists of networks, as settings write them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence


def parse_networks(text: str) -> Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """CIDR networks, separated by commas or spaces. Raises `ValueError` naming the one that is none."""
    return [ipaddress.ip_network(part, strict=False) for part in text.replace(",", " ").split()]
