"""Body sizes and API keys, checked before anything reads a body. Pure ASGI, no buffering.

A body that is too large is answered with 413 while it is still being sent; then some of the rest
is read and dropped, since a connection closed on unread bytes is reset, and a reset may take the
answer away from the client.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.compat.dialect import is_hugging_face, refusal
from shared.config import Settings

FILES = "/v1/files"
ENVELOPE_BYTES = 64 * 1024
"""What multipart or JSON adds to a file."""
LINGER_BYTES = 256 * 2**20
LINGER_S = 10.0
ANONYMOUS = "anonymous"


class BodyTooLarge(Exception):
    """Ends the reading of a body from inside `receive`."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How many bytes a body may have, and what is said of one that has more."""

    body_bytes: int
    what: str
    told_bytes: int
    remedy: str
    setting: str

    @property
    def refusal(self) -> str:
        return (
            f"The {self.what} is larger than {self.told_bytes / 2**20:g} MiB. {self.remedy}, "
            f"or raise {self.setting} on the server."
        )


class BodyLimit:
    """Refuses bodies above the limit, by Content-Length first and by counting anyway."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        file_bytes, body_bytes = settings.max_file_bytes, settings.max_body_bytes
        self._json = Limit(
            body_bytes=body_bytes,
            what="body",
            told_bytes=body_bytes,
            remedy="Send less at once (upload files with POST /v1/files)",
            setting="SLUICE_MAX_BODY_BYTES",
        )
        self._file = Limit(
            body_bytes=file_bytes + ENVELOPE_BYTES,
            what="file",
            told_bytes=file_bytes,
            remedy="Split it",
            setting="SLUICE_MAX_FILE_BYTES",
        )
        # Files come as they are or in base64; what else JSON may hold is limited where it is read.
        in_base64 = (file_bytes + 2) // 3 * 4
        self._inference = Limit(
            body_bytes=max(in_base64, body_bytes) + ENVELOPE_BYTES,
            what="body",
            told_bytes=file_bytes,
            remedy="Send less at once",
            setting="SLUICE_MAX_FILE_BYTES",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            return await self._app(scope, receive, send)
        limit = self._limit(scope["path"])
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if declared.isdigit() and int(declared) > limit.body_bytes:
            return await _refuse(limit, scope, receive, send)

        counted, refused = 0, False

        async def counting() -> Message:
            nonlocal counted, refused
            message = await receive()
            if message["type"] == "http.request":
                counted += len(message.get("body", b""))
                if counted > limit.body_bytes:
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
            await _refuse(limit, scope, receive, send)
        return None

    def _limit(self, path: str) -> Limit:
        if is_hugging_face(path):
            return self._inference
        return self._file if path.rstrip("/") == FILES else self._json


async def _refuse(limit: Limit, scope: Scope, receive: Receive, send: Send) -> None:
    answer = refusal(scope["path"], 413, limit.refusal, headers={"Connection": "close"})

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
    """Lets requests through that carry a known key, and notes whose it is; under /v1 and where
    programs know the API of others."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        # Looked up by digest, so that the time taken tells nothing about a key.
        self._names = {
            sha256(secret.get_secret_value().encode()).digest(): name
            for name, secret in settings.api_keys.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _asks_for_key(scope["path"]):
            name = self._name(scope) if self._names else ANONYMOUS
            if name is None:
                answer = refusal(
                    scope["path"],
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


def _asks_for_key(path: str) -> bool:
    return path.startswith("/v1/") or is_hugging_face(path)
