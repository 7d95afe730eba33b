"""Which network addresses a tool may connect to: those of the public internet.

With `allow_private` also those of the local network and of this machine, but never link-local
addresses, multicast, or the ones where clouds hand out a machine's credentials.
"""

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress
from typing import Final

from shared.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Those that are neither link-local nor otherwise set apart: Azure's and, on IPv6, Amazon's.
_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"))
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


async def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """The addresses of a host. Raises InvalidInput if a single one of them is not allowed.

    A host with one public and one private name would otherwise be a way around.
    """
    found = list(dict.fromkeys(await _lookup(host, port)))
    for address in found:
        if not is_allowed(address, allow_private=allow_private):
            raise InvalidInput(
                f"{host} is at {address}, which is not an address of the public internet; it is "
                "not fetched."
            )
    return found


def is_allowed(address: str, *, allow_private: bool) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return all(_is_allowed(each, allow_private) for each in (parsed, *_embedded(parsed)))


def _is_allowed(address: Address, allow_private: bool) -> bool:
    if address in _METADATA or address.is_link_local or address.is_multicast:
        return False
    if address.is_unspecified:
        return False
    if address in _NAT64:
        return True  # as good as the address that it stands for
    if address.is_global:
        return not address.is_reserved
    return allow_private


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in inner if each is not None]


async def _lookup(host: str, port: int) -> list[str]:
    """In a thread that nobody waits for: a resolver may take longer than the caller has."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(InvalidInput(f"There is no host {host!r}: {found.strerror}."))
        else:
            answer.set_result(found)

    def look_up() -> None:
        found: list[str] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [str(info[4][0]) for info in infos]
        except UnicodeError:
            found = OSError(0, "the name is not valid")
        except OSError as error:
            found = error
        with suppress(RuntimeError):  # the loop is closed: the caller had no more time
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look_up, name="tool-resolver", daemon=True).start()
    return await answer
