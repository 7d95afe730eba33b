"""Transactions of the job ledger: commit first, then ring and publish.

Functions of `shared/jobs/jobs.py` and `shared/jobs/steps.py` take a session and note on it what is
to be announced; `Ledger.begin()` commits and only then announces. A ring that fails is logged: the
step is committed, and the sweeper rings for it.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.config import Settings
from shared.database.engine import make_engine, make_sessions
from shared.redis.bell import Bell, make_celery, make_redis, route_in
from shared.redis.events import Event, Events, EventType

# Remembers that a server does not answer, so that not every caller waits to find that out.


class Outage:
    """After a failure, one caller in `pause_s` tries again; the others are told not to."""

    def __init__(self, pause_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._lock = Lock()
        self._retry_at: float | None = None

    def passes(self) -> bool:
        """Whether the caller may try; one that may reports back with `over` or `begins`."""
        with self._lock:
            if self._retry_at is None:
                return True
            now = self._clock()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._pause_s
            return True

    def begins(self) -> None:
        with self._lock:
            self._retry_at = self._clock() + self._pause_s

    def over(self) -> None:
        self._retry_at = None


log = logging.getLogger(__name__)

EFFECTS = "sluice.effects"
HELD_LIMIT = 10_000
"""Transactions whose announcements may wait; Postgres knows what older ones had to say."""
ALIVE_FACTOR = 3
"""A worker counts as living for so many of its heartbeats."""
HEARTBEAT_S = 5.0
"""Unless a setting says otherwise (`worker_heartbeat_s`)."""


@dataclass
class Effects:
    """What is announced once the transaction has been committed."""

    rings: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)


def ring_after_commit(session: Session, queue: str, times: int = 1) -> None:
    _effects(session).rings[queue] += times


def tell_after_commit(
    session: Session, job_id: UUID, type_: EventType, data: dict[str, Any]
) -> None:
    _effects(session).events.append(Event(job_id=job_id, type=type_, data=data))


def _effects(session: Session) -> Effects:
    effects = session.info.setdefault(EFFECTS, Effects())
    assert isinstance(effects, Effects)
    return effects


class Ledger:
    """The database's sessions together with the doorbell and the event streams."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        bell: Bell,
        events: Events,
        *,
        worker_heartbeat_s: float,
    ) -> None:
        self._sessions = sessions
        self._worker_heartbeat_s = worker_heartbeat_s
        self._served_until: dict[str, float] = {}
        self._singles = make_sessions(self.engine.execution_options(isolation_level="AUTOCOMMIT"))
        self.bell = bell
        self.events = events
        self._outage = Outage()
        self._held: deque[Effects] | None = None

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One transaction; its announcements go out after the commit, or not at all."""
        with self._sessions.begin() as session:
            yield session
        self._announce(_effects(session))

    @contextmanager
    def begin_single(self) -> Iterator[Session]:
        """As `begin`, for what is written by one statement: that commits itself.

        It saves the trips to the server that begin and commit.
        """
        with self._singles() as session:
            yield session
        self._announce(_effects(session))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading alone; nothing is announced, nothing is kept."""
        with self._sessions() as session:
            yield session

    @property
    def engine(self) -> Engine:
        engine = self._sessions.kw["bind"]
        assert isinstance(engine, Engine)
        return engine

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.engine.dispose()
        self.bell.close()
        self.events.close()

    def hold_announcements(self) -> None:
        """From now on what is to be announced waits for `announce_held`, which another thread
        calls: for callers that must not wait for Redis."""
        self._held = deque(maxlen=HELD_LIMIT)

    def announce_held(self) -> None:
        held = self._held
        while held:
            self._send(held.popleft())

    def _announce(self, effects: Effects) -> None:
        if not (effects.rings or effects.events):
            return
        if self._held is None:
            self._send(effects)
        else:
            self._held.append(effects)

    def _send(self, effects: Effects) -> None:
        if not self._outage.passes():
            log.debug("Redis does not answer; the sweeper will ring")
            return
        try:
            for list_, times in effects.rings.items():
                if self._is_served(route_in(list_)):
                    self.bell.ring(list_, times)
        except (RedisError, OSError) as error:
            log.warning("could not ring; the sweeper will: %s", error)
            self._outage.begins()
            return
        if self.events.publish(effects.events):
            self._outage.over()
        else:
            self._outage.begins()

    def _is_served(self, route: str) -> bool:
        """Whether a living worker takes the route: one that nobody takes from gets no list.

        The sweeper rings once there is one.
        """
        if not route or time.monotonic() < self._served_until.get(route, 0.0):
            return True
        try:
            with self.read() as session:
                served = session.scalar(
                    SERVED, {"route": route, "alive_s": ALIVE_FACTOR * self._worker_heartbeat_s}
                )
        except SQLAlchemyError as error:
            log.warning("could not look who serves %s: %s", route, error)
            return True
        if served:  # so that few submits ask
            self._served_until[route] = time.monotonic() + self._worker_heartbeat_s
        return bool(served)


SERVED = text("""
    SELECT EXISTS (SELECT FROM workers WHERE routes @> ARRAY[CAST(:route AS text)]
        AND last_seen_at > now() - make_interval(secs => :alive_s))
""")


def make_ledger(settings: Settings) -> Ledger:
    """Build all connections; nothing connects before its first use."""
    redis = make_redis(settings)
    return Ledger(
        make_sessions(make_engine(settings)),
        Bell(
            make_celery(settings),
            redis,
            limit_messages=settings.rings_limit_messages,
            keep_s=settings.rings_keep_s,
        ),
        Events(
            redis,
            limit_entries=settings.events_limit_entries,
            keep_s=settings.events_keep_s,
            keep_after_end_s=settings.events_keep_after_end_s,
        ),
        worker_heartbeat_s=settings.worker_heartbeat_s,
    )
