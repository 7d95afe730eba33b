"""The network addresses that requests on a user's behalf may reach: those of the public internet.

With `allow_private`, or for hosts that the deployer names (`SLUICE_OUTBOUND_ALLOWED_HOSTS`), also
addresses of the local network and of this machine. Never link-local addresses, multicast, or the
metadata services of clouds, which hand out credentials of a machine. The API refuses URLs with
such an address; workers (`workers/outbound.py`) resolve names, and check every address before they
connect to it.

Servers that the deployer has named are another matter: they may be anywhere, but requests for them
go nowhere else (`server_options`). What such a server is to fetch by itself at a user's word, such
as a model of another registry, has to be named by the deployer, too (`Guard.names`).
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypedDict
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Metadata services at addresses that are neither link-local nor reserved: of Azure, Alibaba, Oracle
# and, on IPv6, Amazon.
_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"))
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# Not public, though some versions of Python say so: site-local addresses (RFC 3879), NAT64
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


# The "bad ports" of WHATWG's Fetch standard, and ports of databases and container engines, which
# carry out commands in any text that they receive.
_BLOCKED_PORTS: Final = frozenset(
    {
        0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95,
        101, 102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179,
        389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601,
        636, 989, 990, 993, 995, 1433, 1521, 1719, 1720, 1723, 2049, 2375, 2376, 3306, 3659, 4045,
        4190, 5060, 5061, 5432, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
        11211, 27017,
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AllowedHost:
    """A host (name or address) or a network; at one port, or at all ports but blocked ones."""

    host: str | ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int | None = None

    def is_at(self, port: int) -> bool:
        return self.port == port or (self.port is None and port not in _BLOCKED_PORTS)

    def matches(self, host: str, address: Address, port: int) -> bool:
        if not self.is_at(port):
            return False
        if isinstance(self.host, str):
            return self.host == host
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return address in self.host or (mapped is not None and mapped in self.host)


def read_allowed_host(text: str) -> AllowedHost:
    """`wiki.example`, `wiki.example:8080`, `10.0.0.0/8`, `[::1]:8080`. Raises ValueError."""
    host, port = text.strip().lower(), None
    if host.startswith("[") or host.count(":") == 1:
        before, colon, after = host.rpartition(":")
        if colon and not after.endswith("]"):
            if not after.isascii() or not after.isdigit() or not 0 < int(after) < 65536:
                raise ValueError(f"{text!r} has no port behind its colon")
            host, port = before, int(after)
    bare = host.strip("[]")
    try:
        return AllowedHost(host=ipaddress.ip_network(bare), port=port)
    except ValueError:
        name = bare.rstrip(".")
        if not name or not all(char.isalnum() or char in "-._" for char in name):
            raise ValueError(
                f"{text!r} is no host; write a name, an address or a network, such as "
                "wiki.example:8080 or 10.0.0.0/8"
            ) from None
        return AllowedHost(host=_normal_host(name), port=port)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Decides which addresses requests on a user's behalf may connect to."""

    allow_private: bool = False
    allowed_hosts: Sequence[AllowedHost] = ()
    """Hosts that the deployer permits beside the public internet."""

    def allows(self, host: str, address: str, port: int) -> bool:
        """Whether a connection to this port of `address`, an address of `host`, is allowed."""
        if is_allowed(address, allow_private=self.allow_private) and port not in _BLOCKED_PORTS:
            return True
        return self._permits(host, address, port)

    def names(self, host: str, port: int) -> bool:
        """Whether the deployer has permitted this host as it is written. For what another server
        looks up and connects to: which address that will be, nobody here can know."""
        address = literal(host)
        if address is not None:
            return self._permits(host, address, port)
        name = _normal_host(host)
        return any(allowed.host == name and allowed.is_at(port) for allowed in self.allowed_hosts)

    def _permits(self, host: str, address: str, port: int) -> bool:
        if not is_allowed(address, allow_private=True):
            return False  # no setting can permit it
        parsed, name = ipaddress.ip_address(address), _normal_host(host)
        return any(allowed.matches(name, parsed, port) for allowed in self.allowed_hosts)


def _normal_host(host: str) -> str:
    """A host name in small letters and ASCII, for comparison."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def is_allowed(address: str, *, allow_private: bool) -> bool:
    """Whether this address, and each address embedded in it, may be connected to."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return all(_is_allowed(address, allow_private) for address in (parsed, *_embedded(parsed)))


def literal(host: str) -> str | None:
    """The address of a host of a URL that is an address in any form; None for other names.

    Every resolver reads `127.1`, `2130706433` and `0x7f000001` as 127.0.0.1. Names of this machine
    are read as its address.
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
        return True  # the embedded address decides; versions of Python differ about 6to4
    if address.is_global and not any(address in network for network in _NOT_PUBLIC):
        return not address.is_reserved
    return allow_private


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses that are embedded in an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    is_compatible = int(address) >> 32 == 0 and int(address) > 1
    is_isatap = (int(address) >> 32 & 0xFFFFFFFF) in _ISATAP
    if address in _NAT64 or is_compatible or is_isatap:
        inner.append(low)
    return [address for address in inner if address is not None]


class ServerOptions(TypedDict):
    """Options of a client of httpx."""

    follow_redirects: bool
    trust_env: bool


def server_options(url: str) -> ServerOptions:
    """For clients of a server that the deployer has named by this URL: a model server, a store, a
    server of tools.

    No redirect is followed: where that server points to is not what the deployer named, and
    requests carry prompts and keys. Proxies of the environment count, but not for this machine.
    """
    return {
        "follow_redirects": False,
        "trust_env": not is_loopback(urlsplit(url).hostname or ""),
    }


def is_loopback(host: str) -> bool:
    """Whether the host of a URL is this machine, without a look-up of the name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
