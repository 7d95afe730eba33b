"""Dependencies of routes: the open parts of the application, the caller, ids and common
parameters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Annotated
from uuid import UUID

import redis.asyncio
from fastapi import Depends, Header, Query, Request
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from api.jobs.following import Followers
from api.jobs.submission import Admission
from api.schemas import PRINTABLE
from shared.bounds import shown
from shared.config import Settings
from shared.database.transaction import Ledger, make_ledger
from shared.errors import NotFound
from shared.files import Storage, make_storage
from shared.jobs.queues import Depths, Routes

REDIS_CONNECTIONS = 10
"""All are used for short times, except the one that waits for events."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is opened when the application starts, and closed when it stops."""

    settings: Settings
    ledger: Ledger
    storage: Storage
    redis: redis.asyncio.Redis
    admission: Admission
    depths: Depths
    routes: Routes
    followers: Followers
    stopping: Event = field(default_factory=Event)
    """Set when the server begins to stop, so that streams and waiting answers end."""


@asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Open the parts without connecting: the API starts without its servers, and reports what is
    missing."""
    ledger, connections = make_ledger(settings), _async_redis(settings)
    parts = Parts(
        settings=settings,
        ledger=ledger,
        storage=make_storage(settings),
        redis=connections,
        admission=Admission(settings),
        depths=Depths(keep_s=settings.queue_count_keep_s),
        routes=Routes(keep_s=settings.queue_count_keep_s),
        followers=Followers(settings, ledger, connections),
    )
    following = asyncio.create_task(parts.followers.run())
    try:
        yield parts
    finally:
        await parts.followers.stop()
        await asyncio.gather(following, return_exceptions=True)
        await parts.redis.aclose(close_connection_pool=True)
        parts.ledger.close()


def _async_redis(settings: Settings) -> redis.asyncio.Redis:
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        settings.require_redis_url(),
        max_connections=REDIS_CONNECTIONS,
        timeout=settings.connect_timeout_s,
        # Reads block for `sse_poll_s` at most; if it takes much longer, the server hangs.
        socket_timeout=settings.sse_poll_s + settings.connect_timeout_s,
        socket_connect_timeout=settings.connect_timeout_s,
        decode_responses=True,
        encoding_errors="replace",
        protocol=2,  # the shape of answers must not depend on the version of redis-py
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    return redis.asyncio.Redis(connection_pool=pool)


async def _parts(request: Request) -> Parts:
    parts = request.app.state.parts
    assert isinstance(parts, Parts)
    return parts


async def _fair_key(request: Request) -> str:
    """The name of the caller's API key, from `Keys` in `api/http/middleware.py`."""
    return str(request.state.fair_key)


async def _job_id(job_id: str) -> UUID:
    return as_id(job_id, "job")


async def _document_id(document_id: str) -> UUID:
    return as_id(document_id, "document")


async def _file_id(file_id: str) -> UUID:
    return as_id(file_id, "file")


def as_id(value: str, what: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise NotFound(f"There is no {what} {shown(value)}; ids are UUIDs.") from None


PartsDep = Annotated[Parts, Depends(_parts)]
FairKey = Annotated[str, Depends(_fair_key)]
JobId = Annotated[UUID, Depends(_job_id)]
DocumentId = Annotated[UUID, Depends(_document_id)]
FileId = Annotated[UUID, Depends(_file_id)]
PageLimit = Annotated[int, Query(ge=1, le=200, description="How many items a page has.")]
Cursor = Annotated[str | None, Query(max_length=2048, description="`next_cursor` of a page.")]


async def _preferences(
    request: Request,
    prefer: Annotated[  # noqa: ARG001  (for OpenAPI; the header may be sent several times)
        str | None,
        Header(
            alias="Prefer",
            max_length=1024,
            description="`wait=N`: answer 200 with the finished job if it ends in N seconds.",
        ),
    ] = None,
) -> list[str]:
    return request.headers.getlist("prefer")


Prefer = Annotated[list[str], Depends(_preferences)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        pattern=PRINTABLE,
        description="The same key and body return the same job; another body is 409.",
    ),
]
