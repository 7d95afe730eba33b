"""Which network addresses may be reached on a user's behalf: those of the public internet.

With `allow_private` also those of the local network and of this machine, but never link-local
addresses, multicast, or the ones where clouds hand out a machine's credentials. The API refuses
URLs that spell out such an address; workers (`workers/outbound.py`) look names up, and check
every address that they then connect to.
"""

import ipaddress
import socket
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Those that are neither link-local nor otherwise set apart: Azure's, Alibaba's, Oracle's and, on
# IPv6, Amazon's.
_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"))
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# Not of the public internet, though not every Python knows: site-local addresses (RFC 3879), NAT64
# within a network (RFC 8215), documentation (RFC 9637), segment routing (RFC 9602), IPv4-compatible
# addresses (RFC 4291), discard-only (RFC 6666).
_NOT_PUBLIC: Final = tuple(
    map(
        ipaddress.ip_network,
        ("fec0::/10", "64:ff9b:1::/48", "3fff::/20", "5f00::/16", "::/96", "100::/63",
         "192.88.99.0/24"),
    )
)  # fmt: skip
_SIX_TO_FOUR: Final = ipaddress.ip_network("2002::/16")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
_LOCAL_NAMES: Final = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


def is_allowed(address: str, *, allow_private: bool) -> bool:
    """Whether this address, and each that it leads to, may be connected to."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return all(_is_allowed(address, allow_private) for address in (parsed, *_embedded(parsed)))


def literal(host: str) -> str | None:
    """The address that a host of a URL spells out, in whatever form; None for a name to look up.

    `127.1`, `2130706433` and `0x7f000001` are 127.0.0.1 to every resolver. The names of this
    machine count as its address.
    """
    bare = host.strip("[]").rstrip(".").lower()
    if bare in _LOCAL_NAMES or bare.endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(bare))
    except (OSError, UnicodeError):
        return None


def _is_allowed(address: Address, allow_private: bool) -> bool:
    if address in _METADATA or address.is_link_local or address.is_multicast:
        return False
    if address.is_unspecified:
        return False
    if address in _NAT64 or address in _SIX_TO_FOUR:
        return True  # as good as the address that it stands for; Pythons differ about 6to4
    if address.is_global and not any(address in network for network in _NOT_PUBLIC):
        return not address.is_reserved
    return allow_private


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    is_compatible = int(address) >> 32 == 0 and int(address) > 1
    is_isatap = (int(address) >> 32 & 0xFFFFFFFF) in _ISATAP
    if address in _NAT64 or is_compatible or is_isatap:
        inner.append(low)
    return [address for address in inner if address is not None]


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine, by its name or address alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
