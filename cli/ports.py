"""Free TCP ports for the parts of the local stack. Nothing is reserved: a part binds soon after.

Ports come from below the kernel's ephemeral range. Inside it, a client that keeps reconnecting to
a server that is down may be given the server's own port as its source port, connect to itself and
so keep the server from coming back.
"""

import random
import socket
from pathlib import Path

from shared.errors import ConfigurationError

EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_240
SPAN = 12_000


def free_ports(count: int) -> list[int]:
    """So many different ports on 127.0.0.1 that nothing listens on."""
    end = min(_ephemeral_start(), 65_536)
    candidates = list(range(max(LOWEST, end - SPAN), end))
    random.shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            return found
        if is_free("127.0.0.1", port):
            found.append(port)
    # A machine whose ephemeral range leaves no room below it: take what the kernel gives.
    return found + _kernel_ports(count - len(found))


def is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do, so that connections in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError:
        return False
    return True


def api_port(host: str, wanted: int, *, fixed: bool) -> int:
    """The wanted port, or the next free one unless the user fixed it."""
    if is_free(host, wanted):
        return wanted
    if not fixed:
        for port in range(wanted + 1, min(wanted + 200, 65_536)):
            if is_free(host, port):
                return port
    raise ConfigurationError(
        f"The API cannot listen on {host} port {wanted}: another program does, or the address is "
        "not this machine's. Set SLUICE_API_PORT (or SLUICE_API_HOST) to another."
    )


def _ephemeral_start() -> int:
    try:
        return int(EPHEMERAL_RANGE.read_text().split()[0])
    except OSError:
        return 32_768


def _kernel_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
