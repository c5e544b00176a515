"""Lists of networks, as settings write them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


def parse_networks(text: str) -> Networks:
    """CIDR networks, separated by commas or spaces. Raises `ValueError` naming the one that is none."""
    return [ipaddress.ip_network(part, strict=False) for part in text.replace(",", " ").split()]


def is_loopback(host: str) -> bool:
    """Whether every address that `host` stands for is a loopback one."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)
