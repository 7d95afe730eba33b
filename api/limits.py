"""Body sizes and API keys, checked before anything reads a body. Pure ASGI, no buffering.

A body that is too large is answered with 413 while it is still being sent; then some of the rest
is read and dropped, since a connection closed on unread bytes is reset, and a reset may take the
answer away from the client.
"""

import asyncio
from contextlib import suppress
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem
from shared.config import Settings

FILES = "/v1/files"
ENVELOPE_BYTES = 64 * 1024
"""What multipart adds to a file."""
LINGER_BYTES = 256 * 2**20
LINGER_S = 10.0
ANONYMOUS = "anonymous"


class BodyTooLarge(Exception):
    """Ends the reading of a body from inside `receive`."""


class BodyLimit:
    """Refuses bodies above the limit, by Content-Length first and by counting anyway."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._body_bytes = settings.max_body_bytes
        self._file_bytes = settings.max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            return await self._app(scope, receive, send)
        is_file = scope["path"].rstrip("/") == FILES
        limit = self._file_bytes + ENVELOPE_BYTES if is_file else self._body_bytes
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if declared.isdigit() and int(declared) > limit:
            return await self._refuse(is_file, scope, receive, send)

        counted, refused = 0, False

        async def counting() -> Message:
            nonlocal counted, refused
            message = await receive()
            if message["type"] == "http.request":
                counted += len(message.get("body", b""))
                if counted > limit:
                    refused = True
                    raise BodyTooLarge
            return message

        async def unless_refused(message: Message) -> None:
            # Whatever the application makes of the broken body, the answer is the one below.
            if not refused:
                await send(message)

        try:
            await self._app(scope, counting, unless_refused)
        except Exception:
            if not refused:
                raise
        if refused:
            await self._refuse(is_file, scope, receive, send)
        return None

    async def _refuse(self, is_file: bool, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._file_bytes if is_file else self._body_bytes
        setting = "SLUICE_MAX_FILE_BYTES" if is_file else "SLUICE_MAX_BODY_BYTES"
        remedy = "Split it" if is_file else "Send less at once (upload files with POST /v1/files)"
        answer = problem(
            413,
            f"The {'file' if is_file else 'body'} is larger than {limit / 2**20:g} MiB. {remedy}, "
            f"or raise {setting} on the server.",
            headers={"Connection": "close"},
        )

        async def keep_open(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "more_body": True}
            await send(message)

        await answer(scope, receive, keep_open)
        await _linger(receive)
        await send({"type": "http.response.body", "body": b""})


async def _linger(receive: Receive) -> None:
    """Read on for a bounded while; the client has its answer and may stop."""
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while dropped < LINGER_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


class Keys:
    """Lets requests under /v1 through that carry a known key; notes whose it is."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # Looked up by digest, so that the time taken tells nothing about a key.
        self._names = {
            sha256(secret.get_secret_value().encode()).digest(): name
            for name, secret in settings.api_keys.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            name = self._name(scope) if self._names else ANONYMOUS
            if name is None:
                answer = problem(
                    401,
                    "Send a valid API key as `Authorization: Bearer <key>`; the server's "
                    "SLUICE_API_KEYS lists them.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                return await answer(scope, receive, send)
            scope.setdefault("state", {})["fair_key"] = name
        return await self._app(scope, receive, send)

    def _name(self, scope: Scope) -> str | None:
        given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._names.get(sha256(key.strip()).digest())
