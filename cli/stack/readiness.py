"""Whether a server serves: None when it does, else why not, in words. Each check takes 5 s at most.

Checks ask for the real thing (a query, a PING, a heartbeat); an open port proves nothing.
"""

import random
import socket
from pathlib import Path
from typing import Any

from shared.errors import ConfigurationError
from shared.vector_stores import CHROMA

# Free TCP ports for the parts of the local stack. Nothing is reserved: a part binds soon
# after.
#
# Ports come from below the kernel's ephemeral range. Inside it, a client that keeps
# reconnecting to a server that is down may be given the server's own port as its source port,
# connect to itself and so keep the server from coming back.

EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_240
SPAN = 12_000


def free_ports(count: int) -> list[int]:
    """So many different ports on 127.0.0.1 that nothing listens on."""
    end = min(_ephemeral_start(), 65_536)
    candidates = list(range(max(LOWEST, end - SPAN), end))
    random.shuffle(candidates)
    ports: list[int] = []
    for port in candidates:
        if len(ports) == count:
            return ports
        if is_free("127.0.0.1", port):
            ports.append(port)
    # A machine whose ephemeral range leaves no room below it: take what the kernel gives.
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


def api_port(host: str, preferred: int, *, fixed: bool) -> int:
    """The preferred port, or the next free one unless the user fixed it."""
    if is_free(host, preferred):
        return preferred
    if not fixed:
        for port in range(preferred + 1, min(preferred + 200, 65_536)):
            if is_free(host, port):
                return port
    raise ConfigurationError(
        f"The API cannot listen on {host} port {preferred}: another program does, or the address "
        "is not this machine's. Set SLUICE_API_PORT (or SLUICE_API_HOST) to another."
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


TIMEOUT_S = 2.0


def database_ready(url: str) -> str | None:
    import psycopg

    # libpq does not know SQLAlchemy's `postgresql+driver://`.
    scheme, separator, rest = url.partition("://")
    url = scheme.partition("+")[0] + separator + rest
    try:
        with psycopg.connect(url, connect_timeout=int(TIMEOUT_S), autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return _words(error)
    return None


def redis_ready(url: str) -> str | None:
    from redis import Redis, RedisError

    try:
        with Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return _words(error)
    return None


def http_ready(url: str) -> str | None:
    """For Chroma's heartbeat and the API's /healthz: 200 is yes."""
    answer = fetch(url)
    return answer if isinstance(answer, str) else None


def chroma_ready(url: str) -> str | None:
    return http_ready(CHROMA.health_url(url))


def worker_ready(api_url: str, name: str, pid: int, key: str | None) -> str | None:
    """The API must know this very process as alive, not an earlier one of the same name."""
    answer = fetch(f"{api_url}/v1/workers", key)
    if isinstance(answer, str):
        return f"the API cannot say ({answer})"
    for worker in answer["items"]:
        if worker["name"] == name and worker["pid"] == pid and worker["alive"]:
            return None
    return "has not reported to the API yet"


def sweeper_ready(api_url: str, key: str | None) -> str | None:
    """Beat shows in what it causes: the sweeper runs."""
    answer = fetch(f"{api_url}/readyz", key, accept=(200, 503))
    if isinstance(answer, str):
        return f"the API cannot say ({answer})"
    sweeper = answer["checks"]["sweeper"]
    return None if sweeper["ok"] else str(sweeper["detail"])


def fetch(url: str, key: str | None = None, accept: tuple[int, ...] = (200,)) -> Any:
    """The decoded JSON of the answer; a string says why there is none."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        # No proxy from the environment stands between the parts of one machine.
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers=headers) as client:
            answer = client.get(url)
        if answer.status_code not in accept:
            return f"{url} answers {answer.status_code}"
        document = answer.json()
        # A text would be taken for the reason.
        return f"{url} answers with a text" if isinstance(document, str) else document
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{url}: {_words(error)}"
    except ValueError:
        return f"{url} does not answer with JSON"


def status_of(url: str) -> int | str:
    """The status of the answer to a call without a key, or why there is none."""
    import httpx

    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            return client.get(url).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _words(error)


def _words(error: Exception) -> str:
    """The last line of a message: libpq puts what it tried first and the reason last."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip(" .") if lines else type(error).__name__
