"""Who may call an API that asks for no key: programs of this machine, and pages that it serves.

A browser sends requests to 127.0.0.1 for any page that it shows, and by a name that an attacker
has pointed there (DNS rebinding) such a page can read the answers, too. So without keys the `Host`
has to be one of the API's own names (else 421), and a request of a page has to come from the API's
own pages or from an origin that is set (else 403), in all dialects. With keys neither is checked:
a page of another origin does not have the key. `/healthz` answers to any name, for load balancers
call by address.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.problems import refusal
from shared.config import Settings

LIVENESS = "/healthz"
TARGET_HOST = "target_host"
"""In the state of a request whose line has a whole URL: host and port of that URL, as sent."""
SAFE = {"GET", "HEAD"}
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:@/\\?#\[\]]+)(?::(\d{0,5}))?")
ANY_ADDRESS = {"", "0.0.0.0", "::"}
DEFAULT_PORTS = {"http": "80", "https": "443"}


class Hosts:
    """Refuses foreign hosts and origins where no keys are set. Pure ASGI."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._checks = not settings.api_keys
        self._origins = {origin.lower() for origin in settings.api_cors_origins}
        bound = settings.api_host.strip("[]").lower()
        self._any_address = bound in ANY_ADDRESS
        self._names = {"localhost", bound, *map(str.lower, settings.api_allowed_hosts)}
        if self._any_address:
            # A page cannot make an address mean another machine, as it can with a name of its own.
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._checks and scope["path"] != LIVENESS:
            refused = self._refused(scope)
            if refused is not None:
                status, detail = refused
                return await refusal(scope["path"], status, detail)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        hosts = _values(scope, b"host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
            return 400, "Send one header Host."
        # A request line with a whole URL names a host, too, and that one counts (RFC 9112, 3.2.2).
        foreign = [host for host in (*hosts, *_target_host(scope)) if not self._is_own(host)]
        if foreign:
            return 421, (
                f"{foreign[0][:255]!r} is no name of this server. It asks for no key and so "
                "answers to localhost and its own address alone; set SLUICE_API_ALLOWED_HOSTS to "
                "the names that it is to answer to, or SLUICE_API_KEYS."
            )
        if self._is_foreign(scope, hosts[0] if hosts else ""):
            return 403, (
                "A web page of another origin sent this. The server asks for no key and so takes "
                "nothing from such pages; set SLUICE_API_CORS_ORIGINS to the origins that may "
                "call it, or SLUICE_API_KEYS."
            )
        return None

    def _is_own(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower().removesuffix(".")
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return self._any_address or address.is_loopback

    def _is_foreign(self, scope: Scope, host: str) -> bool:
        origins = _values(scope, b"origin")
        if origins:
            return len(origins) > 1 or not (
                origins[0].lower() in self._origins or is_same_origin(origins[0], host)
            )
        if "cross-site" not in _values(scope, b"sec-fetch-site"):
            return False
        # Somebody followed a link to here: what is shown, the page with the link cannot read.
        is_visit = (
            scope["method"] in SAFE
            and _values(scope, b"sec-fetch-mode") == ["navigate"]
            and _values(scope, b"sec-fetch-dest") == ["document"]
        )
        return not is_visit


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an `Origin` is the server that the `Host` names; a proxy may have ended its TLS."""
    try:
        parts = urlsplit(origin.lower())
        port = str(parts.port or "")
    except ValueError:
        return False
    match = HOST.fullmatch(host.lower())
    if match is None or parts.scheme not in DEFAULT_PORTS or parts.hostname is None:
        return False
    default = DEFAULT_PORTS[parts.scheme]
    return parts.hostname.removesuffix(".") == match[1].strip("[]").removesuffix(".") and (
        port or default
    ) == (match[2] or default)


def _target_host(scope: Scope) -> list[str]:
    """What the request line names as the host; `Connection` of `api/http/server.py` notes it."""
    host = scope.get("state", {}).get(TARGET_HOST)
    return [] if host is None else [host]


def _values(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1").strip() for key, value in headers if key == name]
