"""Which IP addresses are globally routable.

Our own tables are used, not `ipaddress.is_global`, whose answers changed between Python 3.10 and 3.13 (mapped
addresses, 192.0.0.0/24, 64:ff9b:1::/48, documentation networks). Source: IANA's special-purpose address registries.
A network's own NAT64 prefix, if it is not the well-known one, looks like any other address and cannot be recognised.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_CLOSED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carriers' shared space
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, and the clouds' metadata servers
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # former 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo, which embeds IPv4, is one
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: embeds IPv4, given up in 2015
            "3fff::/20",  # documentation
        ),
    )
)
#: Embeds IPv4; on networks with IPv6 alone all IPv4 hosts resolve to it, so it is open where the embedded one is.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Say whether `address`, IPv4 or IPv6 as text, is globally routable unicast. Names and scoped ones are not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in network for network in _CLOSED_V4)
    if found.ipv4_mapped is not None:
        return is_public(str(found.ipv4_mapped))
    if found in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    # An IPv6Address with a scope ("fe80::1%eth0") is never global, whatever stands before the scope.
    return "%" not in address and found in _GLOBAL_V6 and not any(found in network for network in _CLOSED_V6)


@dataclass(frozen=True)
class AddressRule:
    """Which addresses may be connected to; a plain value, so that it travels to a child process.

    Attributes:
        allow_private: whether every address may be connected to.
        also_public: networks ("192.0.2.0/24") that count as public too; for tests, which have loopback only.
    """

    allow_private: bool = False
    also_public: tuple[str, ...] = ()

    def __call__(self, address: str) -> bool:
        """Say whether `address` may be connected to."""
        if self.allow_private or is_public(address):
            return True
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in self.also_public)
