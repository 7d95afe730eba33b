"""Free TCP ports for the parts of the local stack.

Ports are chosen below the kernel's ephemeral range. Inside that range, a client that keeps
reconnecting to a stopped server may get the server's own port as its source port: it connects to
itself, and the server cannot start again. Nothing is reserved, but for the port of the API: a part
binds its port soon after.
"""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shared.errors import ConfigurationError

EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_240
SPAN = 12_000
PORTS_TRIED = 200


def free_ports(count: int) -> list[int]:
    """Different ports on 127.0.0.1 that nothing listens on."""
    end = min(_ephemeral_start(), 65_536)
    candidates = list(range(max(LOWEST, end - SPAN), end))
    random.shuffle(candidates)
    ports: list[int] = []
    for port in candidates:
        if len(ports) == count:
            return ports
        if is_free("127.0.0.1", port):
            ports.append(port)
    # The ephemeral range of this machine leaves too few ports below it.
    return ports + _kernel_ports(count - len(ports))


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


@contextmanager
def hold_api_port(host: str, preferred: int, *, fixed: bool) -> Iterator[int]:
    """The preferred port, or unless it is `fixed` the next free one.

    The API binds it only seconds later, so it is reserved until the block ends: no other stack of
    this machine gets it. Raises ConfigurationError if there is none.
    """
    ports = [preferred] if fixed else range(preferred, min(preferred + PORTS_TRIED, 65_536))
    with ExitStack() as held:
        for port in ports:
            if is_free(host, port) and _reserve(held, port):
                yield port
                return
    raise ConfigurationError(
        f"The API cannot listen on {host} port {preferred}: another program does, or is about to, "
        "or the address is not this machine's. Set SLUICE_API_PORT (or SLUICE_API_HOST) to another."
    )


def _reserve(held: ExitStack, port: int) -> bool:
    """Bind an abstract Unix socket of this name: Linux lets one process have it, until it ends."""
    name = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        name.bind(f"\0sluice-api-port-{port}")
    except OSError:
        return False
    return True


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
