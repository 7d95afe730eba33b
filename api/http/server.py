"""The HTTP server: uvicorn, with limits so that no connection can block it or fill its memory.

Every limit is for one connection, and is checked before data is stored. Timeouts run only while the
client has to do something: send the rest of a head or of a dropped body, or read an answer. They do
not run while a job is waited for, while there are no events, or while an upload makes progress
(`api/http/middleware.py` has the timeouts of bodies).
"""

import asyncio
import math
import re
import resource
from types import FrameType
from typing import Any, Literal, cast

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.deps import Parts
from api.http.errors import refusal
from api.http.middleware import CLOSE, DROP_REST, TARGET_HOST
from shared.config import HttpSettings
from shared.errors import Unavailable

WHOLE_URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
FRAME_BYTES = 4
"""The bytes of a header on the wire besides its name and value."""
LINGER_S = 10.0
"""How long unwanted bytes are read and dropped, so that no reset destroys the answer."""
HEAD_LINGER_BYTES = 4 * 2**20
BODY_LINGER_BYTES = 256 * 2**20
SPARE = 2
"""Connections above the limit get an error; above this multiple of the limit they are closed."""


REVIEW_TICKS = 5
"""Connections are reviewed twice a second: uvicorn ticks ten times a second."""
OTHER_FILES = 256
"""How many files a process may open besides its connections."""


class ApiServer(uvicorn.Server):
    """Serves an application; `should_exit` ends it."""

    def __init__(self, app: FastAPI, settings: HttpSettings, *, host: str, port: int) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            # uvicorn's type says a class, but it only calls it.
            http=cast("type[asyncio.Protocol]", self._connection),
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=math.ceil(settings.api_keep_alive_s),
            timeout_graceful_shutdown=settings.api_shutdown_s,
        )
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._unwanted = Rate(settings.api_unwanted_bytes_per_s)

    def _connection(self, **options: Any) -> "Connection":
        return Connection(self._settings, self._unwanted, **options)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let streams and waiting answers end, so that they do not delay the end of the server."""
        parts = getattr(self._app.state, "parts", None)
        if isinstance(parts, Parts):
            parts.stopping.set()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        _allow_files(SPARE * self._settings.api_limit_connections + OTHER_FILES)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % REVIEW_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.review(now)
        return await super().on_tick(counter)


def _allow_files(limit: int) -> None:
    """Raise the limit of open files if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class Rate:
    """A limit of bytes per second for all connections together."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._left = float(bytes_per_s)
        self._at: float | None = None

    def take(self, size: int, now: float) -> float:
        """How many seconds to wait after `size` bytes to keep the rate. At most one second's bytes
        can be saved up."""
        passed_s = now - (now if self._at is None else self._at)
        self._at = now
        self._left = min(self._left + passed_s * self._bytes_per_s, self._bytes_per_s) - size
        return max(0.0, -self._left / self._bytes_per_s)


class _RequestRefused(Exception):
    """Raised in the parser's callbacks to end the parsing of a request that was refused."""


class Connection(HttpToolsProtocol):
    """A connection of an `ApiServer`, with its limits. `review` has to be called regularly."""

    def __init__(self, settings: HttpSettings, unwanted: Rate, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings
        self._unwanted = unwanted
        self._has_room = True
        self._head_bytes = 0
        self._head_fields = 0
        self._kept_bytes = 0
        """How many bytes the parser has got since it last returned a body or a whole head."""
        self._in_head = False
        self._quiet_since: float | None = self.loop.time()
        """Since when the connection has been waiting for a request; None during one."""
        self._head_since: float | None = None
        self._refused_at: float | None = None
        self._unwanted_since: float | None = None
        self._dropped_bytes = 0
        self._rest_dropped: asyncio.Future[None] | None = None
        """Done at the end of the body that is being dropped."""
        self._unread: tuple[float, int] | None = None
        """Since when the client has not read, and how many bytes wait for it."""

    # Callbacks of asyncio

    def connection_made(
        self,
        transport: asyncio.Transport,  # type: ignore[override]  # as in uvicorn's own class
    ) -> None:
        super().connection_made(transport)
        limit = self._settings.api_limit_connections
        if len(self.connections) <= limit:
            return
        idle = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and other.is_idle
        ]
        if idle:
            min(idle, key=lambda other: other._quiet_since or 0.0).transport.close()
            return
        self._has_room = False
        if len(self.connections) > SPARE * limit:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused_at is not None:
            self._drop(len(data))
            return
        if self._quiet_since is not None:
            self._quiet_since, self._head_since = None, self.loop.time()
        self._kept_bytes += len(data)
        super().data_received(data)
        if self._is_refused() or self.transport.is_closing():
            return
        if self._kept_bytes > self._settings.api_limit_header_bytes:
            self._refuse_head()
        elif self._unwanted_since is not None:
            self._drop(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_dropping()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = (self.loop.time(), self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = None

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._head_fields = True, 0, 0
        self._head_since = self._head_since or self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also called for trailers after a body."""
        self._head_fields += 1
        if self._head_fields > self._settings.api_limit_header_fields:
            limit = self._settings.api_limit_header_fields
            self._refuse(
                431,
                f"The request's head has more than {limit:,} fields "
                "(SLUICE_API_LIMIT_HEADER_FIELDS).",
            )
            raise _RequestRefused
        self._count(len(name) + len(value) + FRAME_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_since, self._kept_bytes = False, None, 0
        if len(self.pipeline) >= self._settings.api_limit_pipeline_requests:
            self._refuse(400, "Too many requests were sent without waiting for an answer.")
            raise _RequestRefused
        target = WHOLE_URL.match(self.url)
        if target is not None:
            self.scope["state"][TARGET_HOST] = target[1].decode("latin-1")
        self.scope["state"][DROP_REST] = self._drop_rest
        served = self.app
        if not self._has_room:
            self.app = _full
        try:
            super().on_headers_complete()
        finally:
            self.app = served

    def on_body(self, body: bytes) -> None:
        self._kept_bytes = 0
        if self._rest_dropped is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._kept_bytes, self._dropped_bytes, self._unwanted_since = 0, 0, None
        self._end_dropping()
        super().on_message_complete()
        if self.cycle is not None:
            # uvicorn sets this only if the request is not answered yet.
            self.cycle.more_body = False
            self._rest()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._rest()

    def send_400_response(self, msg: str) -> None:
        """Called for requests that the parser cannot read, or that were refused in a callback."""
        if self._refused_at is None:
            self._refuse(400, f"{msg.rstrip('.')}: it is not HTTP/1.1.")

    # Limits

    @property
    def is_idle(self) -> bool:
        return self._quiet_since is not None

    def review(self, now: float) -> None:
        """End the connection if the client has exceeded a timeout."""
        settings = self._settings
        if self.transport.is_closing():
            # It waits until the client has read the answer.
            self._unread = self._unread or (now, self.transport.get_write_buffer_size())
            if self._is_stuck(now):
                self.transport.abort()
            return
        if (
            _is_over(now, self._refused_at, LINGER_S)
            or _is_over(now, self._unwanted_since, LINGER_S)
            or self._is_stuck(now)
        ):
            self.transport.abort()
        elif _is_over(now, self._head_since, settings.api_header_timeout_s):
            self._refuse(
                408,
                f"The request's head did not come within {settings.api_header_timeout_s:g} s "
                "(SLUICE_API_HEADER_TIMEOUT_S).",
            )
        elif _is_over(now, self._quiet_since, settings.api_keep_alive_s):
            self.transport.close()

    def _is_refused(self) -> bool:
        return self._refused_at is not None

    def _is_stuck(self, now: float) -> bool:
        if self._unread is None:
            return False
        since, waiting = self._unread
        left = self.transport.get_write_buffer_size()
        if left < waiting:
            self._unread = (now, left)
            return False
        return _is_over(now, since, self._settings.api_send_timeout_s)

    def _rest(self) -> None:
        """After an answer: wait for the next request, or for the end of this one's body."""
        cycle = self.cycle
        if self.pipeline or not cycle.response_complete:
            return
        if cycle.more_body:
            self._unwanted_since = self._unwanted_since or self.loop.time()
        elif not self._in_head:
            self._quiet_since = self.loop.time()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._settings.api_limit_header_bytes:
            self._refuse_head()
            raise _RequestRefused

    def _refuse_head(self) -> None:
        limit = self._settings.api_limit_header_bytes
        status: Literal[414, 431] = 431
        if self._in_head and len(self.url) > limit // 2:
            status = 414
        what = "address" if status == 414 else "head"
        self._refuse(
            status,
            f"The request's {what} is larger than {limit:,} bytes (SLUICE_API_LIMIT_HEADER_BYTES).",
        )

    def _refuse(self, status: int, detail: str) -> None:
        """Answer with an error, and stop reading from this connection. A running answer is cut
        off."""
        self._refused_at, self._head_since, self._quiet_since = self.loop.time(), None, None
        self._kept_bytes = 0
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self.pipeline or cycle.response_started:
                # The client would read this answer as a part of another one.
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        path = self.url.partition(b"?")[0].decode("latin-1") if self.url else ""
        answer = refusal(path, HTTPException(status, detail), CLOSE)
        lines = [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
        self.transport.write(
            b"".join([STATUS_LINE[answer.status_code], *lines, b"\r\n", bytes(answer.body)])
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _drop_rest(self) -> asyncio.Future[None]:
        """Drop the rest of the body of the present request; the result is done at its end."""
        self._rest_dropped = self.loop.create_future()
        if self.transport.is_closing() or not self.cycle.more_body:
            self._end_dropping()
        else:
            self._unwanted_since = self.loop.time()
            self.flow.resume_reading()
        return self._rest_dropped

    def _end_dropping(self) -> None:
        if self._rest_dropped is not None and not self._rest_dropped.done():
            self._rest_dropped.set_result(None)

    def _drop(self, size: int) -> None:
        """Count dropped bytes, and pause reading to keep the rate."""
        self._dropped_bytes += size
        limit = BODY_LINGER_BYTES if self._refused_at is None else HEAD_LINGER_BYTES
        if self._dropped_bytes > limit:
            self.transport.abort()
            return
        wait_s = self._unwanted.take(size, self.loop.time())
        if wait_s > 0:
            self.flow.pause_reading()
            self.loop.call_later(wait_s, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """The application for connections above the limit."""
    error = Unavailable(
        "Too many connections (SLUICE_API_LIMIT_CONNECTIONS). Try again shortly.",
        retry_after_s=1,
    )
    await refusal(scope["path"], error, CLOSE)(scope, receive, send)


def _is_over(now: float, since: float | None, limit_s: float) -> bool:
    return since is not None and now - since > limit_s
