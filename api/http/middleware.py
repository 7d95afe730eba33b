"""What is checked of a request before a route has it: who sends it, how much, by which method.

Pure ASGI, one class a check: `Hosts`, `Keys`, `BodyLimit`, `Methods`, in this order. What they
refuse is written in the dialect of the path, and before a body is read.

A body that is too large is answered with 413 while it is still being sent; then some of the rest
is read and dropped, since a connection closed on unread bytes is reset, and a reset may take the
answer away from the client. One that stands still, or creeps, is answered with 408; time runs only
while the application waits for it.

A larger body is put on disk while it comes, and handed on when it is complete and there is room:
what is worked on at the same time is limited in bytes, for all that is made of a body takes many
times its memory. Uploads and sound and images, which nothing reads as a whole, go past that.
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

from fastapi import FastAPI
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

# Who may call an API that asks for no key: programs of this machine, and pages that it
# serves.
#
# A browser sends requests to 127.0.0.1 for any page that it shows, and by a name that an
# attacker has pointed there (DNS rebinding) such a page can read the answers, too. So without
# keys the `Host` has to be one of the API's own names (else 421), and a request of a page has
# to come from the API's own pages or from an origin that is set (else 403), in all dialects.
# With keys neither is checked: a page of another origin does not have the key. `/healthz`
# answers to any name, for load balancers call by address.

LIVENESS = "/healthz"
TARGET_HOST = "target_host"
"""In the state of a request whose line has a whole URL: host and port of that URL, as sent."""
SAFE = {"GET", "HEAD"}
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:@/\\?#\[\]]+)(?::(\d{0,5}))?")
ANY_ADDRESS = {"", "0.0.0.0", "::"}
DEFAULT_PORTS = {"http": "80", "https": "443"}


class Hosts:
    """Refuses foreign hosts and origins where no keys are set. Pure ASGI."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
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
                return await refusal(scope["path"], refused)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> HTTPException | None:
        hosts = _values(scope, b"host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
            return HTTPException(400, "Send one header Host.")
        # A request line with a whole URL names a host, too, and that one counts (RFC 9112, 3.2.2).
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


ENVELOPE_BYTES = 64 * 1024
"""What multipart or JSON adds to a file."""
SMALL_BYTES = 64 * 1024
"""Bodies of up to this size are never put aside."""
BLOCK_BYTES = 2**20
BODILESS = {"GET", "HEAD", "OPTIONS"}
MEDIA = (b"audio/", b"image/", b"video/")
ANONYMOUS = "anonymous"
CLOSE = {"Connection": "close"}
DROP_REST = "drop_rest"
"""In the state of a request, by `api/http/server.py`: has what still comes of its body dropped, and
returns a future that is done when no more comes."""


class BodyRefused(Exception):
    """Ends the reading of a body from inside `receive`."""


class BodyTooLarge(BodyRefused):
    pass


class BodyTooSlow(BodyRefused):
    pass


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How many bytes a body may have, and what is said of one that has more."""

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
    """Refuses bodies above the limit, by Content-Length first and by counting anyway."""

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
        # Files come as they are or in base64; what else JSON may hold is limited where it is read.
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
        return await self._put_aside(limit, body, scope, receive, send)

    async def _pass_on(
        self, limit: "Limit", body: "Body", scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let the application read while the body comes."""

        async def unless_refused(message: Message) -> None:
            # Whatever the application makes of the broken body, the answer is the one below.
            if body.refusal is None:
                await send(message)

        try:
            await self._app(scope, body.receive, unless_refused)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None:
            await self._answer(body.refusal, limit, scope, receive, send)

    async def _put_aside(
        self, limit: "Limit", body: "Body", scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Call the application once the body is complete, and there is room for it."""
        with SpooledTemporaryFile(max_size=SMALL_BYTES) as spool:
            count = ValueCount() if is_json(_header(scope, b"content-type")) else None
            try:
                while not body.is_complete:
                    message = await body.receive()
                    if message["type"] != "http.request":  # the client has gone
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
        """Before the rest of it has come, as the parser would after."""
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
    """A body as it comes; `receive` raises BodyRefused where it is too large or too slow."""

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
        if self.is_complete:  # what comes now is that the client goes
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
    """Bytes of bodies that are worked on at the same time; who comes first is served first."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._line = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, size: int) -> Callable[[], None]:
        """Wait for room; what is larger than all of it has it alone. Call the result once done."""
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
    """The request's body is no longer worked on; its answer may be waited for."""
    release = _release.get()
    if release is not None:
        release()


def _replay(spool: IO[bytes], size: int, receive: Receive) -> Receive:
    """The body from the disk, then what the server has to say."""
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
    if drop_rest is not None:  # None under another server than ours
        await drop_rest()
    await send({"type": "http.response.body", "body": b""})


class Keys:
    """Lets requests through that carry a known key, and notes whose it is; under /v1 and on the
    paths of dialects."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._settings = settings
        # Looked up by digest, so that the time taken tells nothing about a key.
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


# HEAD wherever GET is answered, OPTIONS wherever there is something, and a true `Allow` on
# 405.

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def allowed(app: Starlette, path: str, root_path: str) -> str | None:
    """What a path takes, for the header `Allow`; None where there is nothing.

    Several routes may have one path, and a route knows only its own methods.
    """
    # `/v1/jobs/batch` is what it is, and not a job of that id.
    operations = app.openapi()["paths"].get(path) if isinstance(app, FastAPI) else None
    if operations is not None:
        methods = [method for method in METHODS if method.lower() in operations]
    else:
        methods = [
            method
            for method in METHODS
            if any(_takes(route, method, path, root_path) for route in app.routes)
        ]
    if not methods:
        return None
    if "GET" in methods:
        methods.insert(1, "HEAD")
    return ", ".join([*methods, "OPTIONS"])


def _takes(route: BaseRoute, method: str, path: str, root_path: str) -> bool:
    match, _ = route.matches(
        {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": []}
    )
    # A mount takes all methods; those here have files.
    return match is Match.FULL and (method == "GET" or not isinstance(route, Mount))


class Methods:
    """Answers HEAD as GET without its body, and OPTIONS. Pure ASGI, next to the application."""

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
        """The server drops the body; it is ended at its start, for some never end."""
        is_over = False

        async def start_only(message: Message) -> None:
            nonlocal is_over
            if is_over:
                return
            await send(message)
            if message["type"] == "http.response.start":
                is_over = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        # What is left of the request's body is of no interest, and streams end when it is over.
        async def until_over() -> Message:
            return {"type": "http.disconnect"} if is_over else await receive()

        as_get = {**scope, "method": "GET"}
        await self._app(as_get, until_over, _with_allow(as_get, start_only))


def _with_allow(scope: Scope, send: Send) -> Send:
    # Routing changes the scope, so what is needed of it is taken before.
    probe = {name: scope[name] for name in ("app", "path", "root_path")}

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            MutableHeaders(scope=message)["Allow"] = _allowed(probe) or ""
        await send(message)

    return sending


def _allowed(scope: Scope) -> str | None:
    return allowed(scope["app"], scope["path"], scope["root_path"])
