"""Following jobs: one connection to Redis and one query to Postgres for all followed jobs.

Every open stream of events and every answer that waits for a job has a `Follower`. One task reads
the streams of all of them by one blocking call, on its own connection; another one reads every
`sse_poll_s` the rows of the jobs whose streams were silent, in one transaction. So idle clients
cost nearly nothing, however many they are, and none waits for a connection.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from shared.config import HttpSettings
from shared.database.transaction import Ledger
from shared.errors import Unavailable
from shared.redis.events import stream_key
from shared.vocabulary import State, known

log = logging.getLogger(__name__)

START = "0-0"
"""Before the first entry of a stream."""
READ_ENTRIES = 100
KEPT_ENTRIES = 1000
"""How many entries are kept for a client that does not read; later ones are read again once it
does."""
DOWN_POLL_S = 0.5
"""How often Postgres is read while Redis does not answer."""
WAKE_S = 0.01
"""How long the reader may take to start its next read."""
WAKE_FOLLOWER_S = 0.0001
"""The least time between two interruptions of the reader, for each follower."""
FULL_RETRY_AFTER_S = 5

ROWS = text("""
    SELECT j.id, j.state, j.progress_done, j.progress_total, j.progress_unit, (
        SELECT sum(pg_column_size(t.shown)) FROM steps s
        JOIN transcripts t ON t.step_id = s.id WHERE s.job_id = j.id
    ) AS shown_bytes
    FROM jobs j WHERE j.id = ANY(:ids)
""")


@dataclass(frozen=True, kw_only=True)
class StreamEntry:
    """An entry of a stream; `data` is JSON as it was written."""

    id: str
    type: str
    data: str

    @staticmethod
    def of(id_: str, fields: Mapping[str, str]) -> "StreamEntry":
        """An entry that Sluice has not written gets no type, and readers ignore it."""
        return StreamEntry(id=id_, type=fields.get("type", ""), data=fields.get("data", "null"))


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """The row of a job; `shown_bytes` changes with the text that it has generated."""

    state: State
    progress: dict[str, Any]
    shown_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Update:
    """News of a job: entries of the stream, or the row if the stream was silent.

    `is_gone`: the job does not exist any more.
    """

    entries: Sequence[StreamEntry] = ()
    row: JobSnapshot | None = None
    is_gone: bool = False


class Follower:
    """Follows one job, after an entry of its stream."""

    def __init__(self, job_id: UUID, after: str) -> None:
        self.job_id = job_id
        self.key = stream_key(job_id)
        self.after = after
        """The last entry that was kept for it, or that it has taken."""
        self._taken = after
        self._entries: deque[StreamEntry] = deque()
        self._update: Update | None = None
        self._is_updated = asyncio.Event()
        self.is_silent = True
        """Whether its stream had no entries since its row was last read."""

    def take_entries(self, entries: Sequence[StreamEntry]) -> None:
        new = [entry for entry in entries if _sort_key(entry.id) > _sort_key(self.after)]
        if not new:
            return
        self.is_silent = False
        if len(self._entries) + len(new) > KEPT_ENTRIES:
            self._entries.clear()
            self.after = self._taken
            return
        self._entries.extend(new)
        self.after = new[-1].id
        self._is_updated.set()

    def take_update(self, update: Update) -> None:
        self._update = update
        self._is_updated.set()

    async def next(self, wait_s: float) -> Update | None:
        """The next update; None if there is none within `wait_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._is_updated.wait()
        self._is_updated.clear()
        if self._entries:
            entries = list(self._entries)
            self._entries.clear()
            self._taken = entries[-1].id
            self._update = None  # the row may be older than these entries
            return Update(entries=entries)
        update, self._update = self._update, None
        return update


class Followers:
    """All followers of this process. `run` has to run in a task."""

    def __init__(
        self, settings: HttpSettings, ledger: Ledger, connection: redis.asyncio.Redis
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._redis = connection
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._count = 0
        self._version = 0
        """Increases with each new follower."""
        self._read_version = 0
        """The version of the followers for which the present read was started."""
        self._reader_id: int | None = None
        """The id of the connection that reads the streams; None while there is none."""
        self._has_followers = asyncio.Event()
        self._changed = asyncio.Event()
        """Both are set for a new follower: one for the reader, one for `_wake`."""
        self._has_begun = asyncio.Event()
        """Set whenever the reader starts a read."""
        self._is_down = False
        self._stopping = asyncio.Event()

    def check_room(self) -> None:
        """Raises Unavailable if too many clients follow jobs. To be called before a job is
        submitted for a client that will wait."""
        limit = self._settings.api_limit_streams
        if self._count >= limit:
            raise Unavailable(
                f"{self._count} clients follow jobs; this server takes {limit} "
                "(SLUICE_API_LIMIT_STREAMS). Try again later, or poll GET /v1/jobs/{id}.",
                retry_after_s=FULL_RETRY_AFTER_S,
            )

    @contextmanager
    def follow(self, job_id: UUID, after: str) -> Iterator[Follower]:
        follower = Follower(job_id, after)
        self._followers[follower.key].add(follower)
        self._count += 1
        self._version += 1
        self._has_followers.set()
        self._changed.set()
        try:
            yield follower
        finally:
            self._count -= 1
            others = self._followers[follower.key]
            others.discard(follower)
            if not others:
                del self._followers[follower.key]

    async def run(self) -> None:
        """Read updates for all followers, until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            for work in (self._read_some, self._wake, self._read_rows):
                tasks.create_task(self._repeat(work))

    async def stop(self) -> None:
        """Make `run` end, within one read of Redis.

        No task is cancelled: `wait_for` of Python 3.11, which redis-py uses to send, loses a
        cancellation that arrives when the bytes have just been sent; then the task would never end.
        """
        self._stopping.set()
        self._has_followers.set()
        self._changed.set()
        while self._reader_id is not None:
            await self._unblock(self._reader_id)

    @property
    def is_reading(self) -> bool:
        """Whether there is a connection to Redis on which streams are read."""
        return self._reader_id is not None

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` again and again, whatever it raises: otherwise followers would get no updates
        any more."""
        while not self._stopping.is_set():
            try:
                await work()
            except Exception:
                log.exception("following jobs was interrupted; it goes on")
                await asyncio.sleep(self._pause_s())

    # Redis

    async def _read_some(self) -> None:
        """Read streams while there are followers."""
        if not self._followers:
            await self._has_followers.wait()
            self._has_followers.clear()
            return
        try:
            # A connection of its own, which can be unblocked by its id.
            async with self._redis.client() as reader:
                self._reader_id = await reader.client_id()
                try:
                    while self._followers and not self._stopping.is_set():
                        await self._read(reader)
                finally:
                    self._reader_id = None
        except (RedisError, OSError) as error:
            if not self._is_down:
                log.warning("no events from Redis (updates come by the database): %s", error)
            self._is_down = True
            await asyncio.sleep(self._pause_s())

    async def _read(self, reader: redis.asyncio.Redis) -> None:
        version = self._version
        self._read_version = version
        positions: dict[Any, Any] = {
            key: min((follower.after for follower in followers), key=_sort_key)
            for key, followers in self._followers.items()
        }
        block_s = self._settings.sse_poll_s
        self._has_begun.set()
        answer: Any = await reader.xread(
            positions, count=READ_ENTRIES, block=max(1, int(block_s * 1000))
        )
        self._is_down = False
        for key, rows in answer or ():
            entries = [StreamEntry.of(id_, fields) for id_, fields in rows]
            for follower in tuple(self._followers.get(key, ())):
                follower.take_entries(entries)

    async def _wake(self) -> None:
        """Interrupt the reader if there are followers that its present read does not include."""
        if self._reader_id is None or self._read_version == self._version:
            await self._changed.wait()
            self._changed.clear()
        else:
            await self._unblock(self._reader_id)

    async def _unblock(self, reader_id: int) -> None:
        self._has_begun.clear()
        with suppress(RedisError, OSError):  # the reader notices it as well, at its timeout
            await self._redis.client_unblock(reader_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(WAKE_S):
                await self._has_begun.wait()
        await asyncio.sleep(min(WAKE_S, WAKE_FOLLOWER_S * self._count))

    # Postgres

    async def _read_rows(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(
                self._pause_s() if self._is_down else self._settings.sse_poll_s
            ):
                await self._stopping.wait()
                return
        silent: list[Follower] = []
        others: list[Follower] = []
        for followers in self._followers.values():
            for follower in followers:
                (silent if follower.is_silent else others).append(follower)
        for follower in others:
            follower.is_silent = True
        if not silent:
            return
        try:
            rows = await run_in_threadpool(self._rows, {follower.job_id for follower in silent})
        except SQLAlchemyError as error:
            log.warning("followed jobs are not seen: %s", str(error).partition("\n")[0])
            return
        for follower in silent:
            # Entries that came from its stream meanwhile are newer than the row.
            if follower.is_silent:
                row = rows.get(follower.job_id)
                follower.take_update(Update(row=row, is_gone=row is None))

    def _rows(self, ids: set[UUID]) -> dict[UUID, JobSnapshot]:
        with self._ledger.read() as session:
            return {
                row.id: JobSnapshot(
                    state=known(row.state),
                    progress={
                        "done": row.progress_done,
                        "total": row.progress_total,
                        "unit": row.progress_unit,
                    },
                    shown_bytes=row.shown_bytes,
                )
                for row in session.execute(ROWS, {"ids": list(ids)})
            }

    def _pause_s(self) -> float:
        return min(self._settings.sse_poll_s, DOWN_POLL_S)


def _sort_key(id_: str) -> tuple[int, int]:
    """Ids of entries are two numbers, by which they sort."""
    milliseconds, _, sequence = id_.partition("-")
    return int(milliseconds), int(sequence or 0)
