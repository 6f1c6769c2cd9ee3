"""Where the daemon may connect when a client names the address.

The address is resolved once and that very address is connected to: a name cannot answer differently between check and
use. The rules follow Smokescreen's `classifyAddr`: neither `is_global` nor `is_private` alone is enough.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PUBLIC, PRIVATE, LOOPBACK = "public", "private", "loopback"

# Private in the sense of "a machine of one's own network".
PRIVATE_NETWORKS: tuple[Network, ...] = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
# Never, whatever the settings say: link-local holds the metadata services of clouds, and some have theirs among private
# or public addresses; multicast is no host.
NEVER: tuple[Network, ...] = tuple(
    map(
        ip_network,
        (
            "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8", "0.0.0.0/8", "::/128", "255.255.255.255/32",
            "100.100.100.200/32",  # Alibaba Cloud
            "192.0.0.192/32", "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud
            "168.63.129.16/32",  # Azure
            "fd00:ec2::/32",  # AWS: metadata, credentials of pods, time, names
            "fd20:ce::254/128",  # Google Cloud
            "fd00:a9fe:a9fe::1/128",  # Akamai
            "fd00:42::42/128",  # Scaleway
        ),
    )
)  # fmt: skip
# Neither public nor private: only an explicit network in the settings lets these through.
SPECIAL: tuple[Network, ...] = tuple(
    map(
        ip_network,
        (
            "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "240.0.0.0/4", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
            "5f00::/16", "fec0::/10", "64:ff9b::/96", "64:ff9b:1::/48", "::/96",
        ),
    )
)  # fmt: skip
NAT64 = ip_network("64:ff9b::/96")
V4_COMPATIBLE = ip_network("::/96")


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """From a setting such as `public,private,10.1.0.0/16,hooks.example`."""

    kinds: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = field(default=frozenset())
    """Names whose addresses may be anything but NEVER."""

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """Raises ValueError naming the entry."""
        kinds: set[str] = set()
        networks: list[Network] = []
        hosts: set[str] = set()
        for entry in entries:
            if entry in (PUBLIC, PRIVATE, LOOPBACK):
                kinds.add(entry)
            elif "/" in entry or ":" in entry or entry.replace(".", "").isdigit():
                try:
                    networks.append(ip_network(entry))
                except ValueError as error:
                    raise ValueError(f"{entry!r} is not a network: {error}") from error
            elif entry.replace("-", "").replace(".", "").isalnum():
                hosts.add(entry.lower().rstrip("."))
            else:
                raise ValueError(f"{entry!r} is not public, private, loopback, a network or a host name")
        return cls(frozenset(kinds), tuple(networks), frozenset(hosts))

    def allows(self, address: Address, host: str) -> bool:
        """May `address`, which `host` resolved to, be connected to?"""
        seen = _unwrapped(address)
        if _in(seen, NEVER) or (_in(address, NEVER) and address != seen):
            return False
        if host.lower().rstrip(".") in self.hosts or _in(seen, self.networks):
            return True
        kind = _kind(address) if seen == address else _kind_of_wrapped(seen)
        return kind in self.kinds


def _kind(address: Address) -> str | None:
    if address.is_loopback:
        return LOOPBACK
    if _in(address, PRIVATE_NETWORKS):
        return PRIVATE
    if _in(address, SPECIAL) or not address.is_global or address.is_multicast or address.is_reserved:
        return None
    return PUBLIC


def _kind_of_wrapped(inner: Address) -> str | None:
    """An address inside another is a way round a check more often than anything else: never public."""
    kind = _kind(inner)
    return None if kind == PUBLIC else kind


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in NAT64 or (address in V4_COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def literal(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None
