"""Middleware: checks of a request before its route, by sender, size and method.

Pure ASGI, one class for each check: `Hosts`, `Keys`, `BodyLimit`, `Methods`, in this order. They
refuse requests in the dialect of the path, before the body is read.

A body that is too large is answered with 413 while it is still being sent. Then a part of the rest
is read and dropped, because closing a connection with unread bytes resets it, and the client may
lose the answer. A body that stops or is very slow is answered with 408; only the time in which the
application waits for it counts.

A larger body is written to disk while it arrives, and passed on when it is complete and there is
room: the bytes of bodies that are processed at the same time are limited, because a parsed body
takes many times its size. Uploads, audio and images are passed on directly, because they are never
read as a whole.
"""

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.compat.dialect import dialect_of, requires_key, takes_uploads
from api.http.body import MalformedBody, ValueCount, too_many
from api.http.errors import refusal
from api.http.key_scopes import require_for_request
from shared.config import HttpSettings
from shared.errors import Forbidden, TooLarge, Unauthorized, Unavailable

# An API without keys may be called by programs on this machine, and by pages that it serves.
#
# A browser sends requests to 127.0.0.1 for any page that it shows. If an attacker lets a name point
# there (DNS rebinding), such a page can even read the answers. So without keys, the `Host` has to
# be one of the API's names (else 421), and a request of a page has to come from the API's own pages
# or from an allowed origin (else 403), in all dialects. With keys neither is checked, because a
# page of another origin does not have the key. `/healthz` answers to any name, because load
# balancers use addresses.

LIVENESS = "/healthz"
TARGET_HOST = "target_host"
"""Key in the state of a request: the host and port of the URL in its request line, if that has
one."""
SAFE = {"GET", "HEAD"}
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:@/\\?#\[\]]+)(?::(\d{0,5}))?")
ANY_ADDRESS = {"", "0.0.0.0", "::"}
DEFAULT_PORTS = {"http": "80", "https": "443"}


class Hosts:
    """Refuses foreign hosts and origins if no keys are set."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._checks = not settings.api_keys
        self._origins = {origin.lower() for origin in settings.api_cors_origins}
        bound = settings.api_host.strip("[]").lower()
        self._any_address = bound in ANY_ADDRESS
        self._names = {"localhost", bound, *map(str.lower, settings.api_allowed_hosts)}
        if self._any_address:
            # The name of this machine is safe: an attacker cannot let it point elsewhere.
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._checks and scope["path"] != LIVENESS:
            refused = self._refused(scope)
            if refused is not None:
                return await refusal(scope["path"], refused)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> HTTPException | None:
        hosts = _values(scope, b"host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
            return HTTPException(400, "Send one header Host.")
        # A request line with a whole URL has a host, too, which takes precedence (RFC 9112, 3.2.2).
        foreign = [host for host in (*hosts, *_target_host(scope)) if not self._is_own(host)]
        if foreign:
            return HTTPException(
                421,
                f"{foreign[0][:255]!r} is no name of this server. It asks for no key and so "
                "answers to localhost and its own address alone; set SLUICE_API_ALLOWED_HOSTS to "
                "the names that it is to answer to, or SLUICE_API_KEYS.",
            )
        if self._is_foreign(scope, hosts[0] if hosts else ""):
            return HTTPException(
                403,
                "A web page of another origin sent this. The server asks for no key and so takes "
                "nothing from such pages; set SLUICE_API_CORS_ORIGINS to the origins that may "
                "call it, or SLUICE_API_KEYS.",
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
        # Following a link is allowed: the page with the link cannot read the answer.
        is_visit = (
            scope["method"] in SAFE
            and _values(scope, b"sec-fetch-mode") == ["navigate"]
            and _values(scope, b"sec-fetch-dest") == ["document"]
        )
        return not is_visit


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an `Origin` is the server in `Host`. The scheme may differ, as a proxy may end
    TLS."""
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
    """The host in the request line, which `Connection` in `api/http/server.py` stores."""
    host = scope.get("state", {}).get(TARGET_HOST)
    return [] if host is None else [host]


def _values(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


ENVELOPE_BYTES = 64 * 1024
"""How much multipart or JSON adds to a file."""
SMALL_BYTES = 64 * 1024
"""Bodies of up to this size are not written to disk."""
BLOCK_BYTES = 2**20
BODILESS = {"GET", "HEAD", "OPTIONS"}
MEDIA = (b"audio/", b"image/", b"video/")
ANONYMOUS = "anonymous"
CLOSE = {"Connection": "close"}
DROP_REST = "drop_rest"
"""Key in the state of a request, set by `api/http/server.py`: a function that drops the rest of the
body, and returns a future that is done at the body's end."""


class BodyRefused(Exception):
    """Raised by `receive` to end the reading of a body."""


class BodyTooLarge(BodyRefused):
    pass


class BodyTooSlow(BodyRefused):
    pass


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How many bytes a body may have, and the parts of the error about a larger one."""

    body_bytes: int
    what: str
    named_bytes: int
    remedy: str
    setting: str

    @property
    def refusal(self) -> str:
        return (
            f"The {self.what} is larger than {self.named_bytes / 2**20:g} MiB. {self.remedy}, "
            f"or raise {self.setting} on the server."
        )


class BodyLimit:
    """Refuses bodies above the limit: by Content-Length, and by counting while they arrive."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        file_bytes, body_bytes = settings.max_file_bytes, settings.max_body_bytes
        self._json = Limit(
            body_bytes=body_bytes,
            what="body",
            named_bytes=body_bytes,
            remedy="Send less at once (upload files with POST /v1/files)",
            setting="SLUICE_MAX_BODY_BYTES",
        )
        self._file = Limit(
            body_bytes=file_bytes + ENVELOPE_BYTES,
            what="file",
            named_bytes=file_bytes,
            remedy="Split it",
            setting="SLUICE_MAX_FILE_BYTES",
        )
        # Files are sent raw or in base64; the rest of the JSON is limited where it is parsed.
        in_base64 = (file_bytes + 2) // 3 * 4
        self._inference = Limit(
            body_bytes=max(in_base64, body_bytes) + ENVELOPE_BYTES,
            what="body",
            named_bytes=file_bytes,
            remedy="Send less at once",
            setting="SLUICE_MAX_FILE_BYTES",
        )

        self._settings = settings
        self._memory = Memory(settings.api_body_memory_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS:
            return await self._app(scope, receive, send)
        limit = self._limit(scope["path"])
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > limit.body_bytes:
            return await _refuse(scope, TooLarge(limit.refusal), receive, send)
        body = Body(receive, limit.body_bytes, self._settings)
        is_small = declared.isdigit() and int(declared) <= SMALL_BYTES
        is_streamed = limit is self._file or _header(scope, b"content-type").startswith(MEDIA)
        if is_small or is_streamed:
            return await self._pass_on(limit, body, scope, receive, send)
        return await self._spool(limit, body, scope, receive, send)

    async def _pass_on(
        self, limit: "Limit", body: "Body", scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let the application read the body while it arrives."""

        async def unless_refused(message: Message) -> None:
            # The application's answer to the incomplete body is dropped for the refusal below.
            if body.refusal is None:
                await send(message)

        try:
            await self._app(scope, body.receive, unless_refused)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None:
            await self._answer(body.refusal, limit, scope, receive, send)

    async def _spool(
        self, limit: "Limit", body: "Body", scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Call the application once the body is complete, and there is room for it."""
        with SpooledTemporaryFile(max_size=SMALL_BYTES) as spool:
            count = ValueCount() if is_json(_header(scope, b"content-type")) else None
            try:
                while not body.is_complete:
                    message = await body.receive()
                    if message["type"] != "http.request":  # the client has disconnected
                        return None
                    block = message.get("body", b"")
                    spool.write(block)
                    if count is not None:
                        count.feed(block)
                        if count.values > self._settings.max_body_values:
                            return await self._refuse_values(scope, receive, send)
            except BodyRefused as refused:
                return await self._answer(refused, limit, scope, receive, send)
            spool.seek(0)
            try:
                async with asyncio.timeout(self._settings.api_body_timeout_s):
                    release = await self._memory.take(body.size)
            except TimeoutError:
                error = Unavailable(
                    "Other large bodies are being worked on (SLUICE_API_BODY_MEMORY_BYTES). Try "
                    "again shortly.",
                    retry_after_s=1,
                )
                return await refusal(scope["path"], error)(scope, receive, send)
            token = _release.set(release)
            try:
                await self._app(scope, _replay(spool, body.size, receive), send)
            finally:
                _release.reset(token)
                release()

    async def _refuse_values(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a body with too many values before the rest arrives, as the parser would."""
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self._json.body_bytes:
            return await _refuse(scope, TooLarge(self._json.refusal), receive, send)
        error = MalformedBody(422, too_many(self._settings.max_body_values))
        return await _refuse(scope, error, receive, send)

    async def _answer(
        self, error: BodyRefused, limit: "Limit", scope: Scope, receive: Receive, send: Send
    ) -> None:
        if isinstance(error, BodyTooLarge):
            return await _refuse(scope, TooLarge(limit.refusal), receive, send)
        settings = self._settings
        detail = (
            f"The body did not come: nothing for {settings.api_body_timeout_s:g} s "
            "(SLUICE_API_BODY_TIMEOUT_S), or less than "
            f"{settings.api_body_min_bytes_per_s:,} bytes a second "
            "(SLUICE_API_BODY_MIN_BYTES_PER_S)."
        )
        answer = refusal(scope["path"], HTTPException(408, detail), CLOSE)
        return await answer(scope, receive, send)

    def _limit(self, path: str) -> Limit:
        if dialect_of(path).takes_files:
            return self._inference
        return self._file if takes_uploads(path) else self._json


class Body:
    """A body that arrives; `receive` raises BodyRefused if it is too large or too slow."""

    def __init__(self, receive: Receive, limit_bytes: int, settings: HttpSettings) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._timeout_s = settings.api_body_timeout_s
        self._bytes_per_s = settings.api_body_min_bytes_per_s
        self._waited_s = 0.0
        self.size = 0
        self.is_complete = False
        self.refusal: BodyRefused | None = None

    async def receive(self) -> Message:
        if self.is_complete:  # the next message is the disconnect
            return await self._receive()
        credit_s = self._timeout_s + self.size / self._bytes_per_s - self._waited_s
        begin = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(self._timeout_s, credit_s))):
                message = await self._receive()
        except TimeoutError:
            self.refusal = BodyTooSlow()
            raise self.refusal from None
        self._waited_s += time.monotonic() - begin
        if message["type"] != "http.request":
            return message
        self.size += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        if self.size > self._limit_bytes:
            self.refusal = BodyTooLarge()
            raise self.refusal
        return message


class Memory:
    """The bytes of bodies that may be processed at the same time; first come, first served."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._line = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, size: int) -> Callable[[], None]:
        """Wait for room; a body above the limit is processed alone. Returns a function that frees
        the room."""
        size = min(size, self._size)
        async with self._line:
            while self._free < size:
                self._freed.clear()
                await self._freed.wait()
            self._free -= size
        is_held = True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._free += size
                self._freed.set()

        return release


_release: ContextVar[Callable[[], None] | None] = ContextVar("release", default=None)


def release_body() -> None:
    """Free the room of the request's body: it is processed, and only its answer is waited for."""
    release = _release.get()
    if release is not None:
        release()


def _replay(spool: IO[bytes], size: int, receive: Receive) -> Receive:
    """A `receive` that returns the body from the disk, and then the server's messages."""
    left = size
    is_first = True

    async def read() -> Message:
        nonlocal left, is_first
        if left == 0 and not is_first:
            return await receive()
        is_first = False
        block = spool.read(BLOCK_BYTES)
        left -= len(block)
        return {"type": "http.request", "body": block, "more_body": left > 0}

    return read


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def is_json(content_type: bytes) -> bool:
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type == b"application/json" or media_type.endswith(b"+json")


async def _refuse(scope: Scope, error: Exception, receive: Receive, send: Send) -> None:
    answer = refusal(scope["path"], error, CLOSE)

    async def keep_open(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    await answer(scope, receive, keep_open)
    drop_rest = scope.get("state", {}).get(DROP_REST)
    if drop_rest is not None:  # another server than ours does not set it
        await drop_rest()
    await send({"type": "http.response.body", "body": b""})


class Keys:
    """Refuses requests without a valid key, under /v1 and on the paths of dialects. Stores the name
    of the key in the request's state."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._settings = settings
        # Keys are looked up by digest, so that the time reveals nothing about a key.
        self._names = {
            sha256(secret.get_secret_value().encode()).digest(): name
            for name, secret in settings.api_secrets
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and requires_key(scope["path"]):
            name = self._name(scope) if self._names else ANONYMOUS
            if name is None:
                error = Unauthorized(
                    "Send a valid API key as `Authorization: Bearer <key>`; the server's "
                    "SLUICE_API_KEYS lists them."
                )
                return await refusal(scope["path"], error)(scope, receive, send)
            try:
                require_for_request(self._settings, name, scope["method"], scope["path"])
            except Forbidden as error:
                return await refusal(scope["path"], error)(scope, receive, send)
            scope.setdefault("state", {})["fair_key"] = name
        return await self._app(scope, receive, send)

    def _name(self, scope: Scope) -> str | None:
        authorization = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._names.get(sha256(key.strip()).digest())


# HEAD for every GET, OPTIONS for every path, and a correct `Allow` with 405.

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def allowed(app: Starlette, path: str, root_path: str) -> str | None:
    """The methods of a path for the header `Allow`; None if there is no such path.

    Several routes may have the same path, and each knows only its own methods.
    """

    def taken(path: str) -> list[str]:
        return [
            method
            for method in METHODS
            if any(_takes(route, method, path, root_path) for route in app.routes)
        ]

    methods = taken(path)
    # A path without parameters goes first: `/v1/jobs/batch` must not match `/v1/jobs/{id}`, which
    # any other name matches, too.
    others = taken(f"{path}-")
    methods = [method for method in methods if method not in others] or methods
    if not methods:
        return None
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return ", ".join([*methods, "OPTIONS"])


def _takes(route: BaseRoute, method: str, path: str, root_path: str) -> bool:
    match, _ = route.matches(
        {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": []}
    )
    # Mounts match all methods, but ours serve files only.
    return match is Match.FULL and (method == "GET" or not isinstance(route, Mount))


class Methods:
    """Answers OPTIONS, and HEAD as GET without its body; the innermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["method"] == "OPTIONS":
            allow = _allowed(scope)
            if allow is not None:
                answer = Response(status_code=204, headers={"Allow": allow})
                return await answer(scope, receive, send)
        elif scope["method"] == "HEAD":
            return await self._head(scope, receive, send)
        return await self._app(scope, receive, _with_allow(scope, send))

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a GET up to its headers. The body is ended at once, because some bodies never
        end."""
        is_over = False

        async def start_only(message: Message) -> None:
            nonlocal is_over
            if is_over:
                return
            await send(message)
            if message["type"] == "http.response.start":
                is_over = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        # After the headers the application is told that the client has disconnected, so that
        # streams end.
        async def until_over() -> Message:
            return {"type": "http.disconnect"} if is_over else await receive()

        as_get = {**scope, "method": "GET"}
        await self._app(as_get, until_over, _with_allow(as_get, start_only))


def _with_allow(scope: Scope, send: Send) -> Send:
    # Routing changes the scope, so its values are read before.
    probe = {name: scope[name] for name in ("app", "path", "root_path")}

    async def send_with_allow(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            MutableHeaders(scope=message)["Allow"] = _allowed(probe) or ""
        await send(message)

    return send_with_allow


def _allowed(scope: Scope) -> str | None:
    return allowed(scope["app"], scope["path"], scope["root_path"])
