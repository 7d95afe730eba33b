"""Live news in Redis, never the truth: events of jobs, and which models are being loaded.

Events are entries of one stream of bounded length for each job. One that cannot be written is
logged and forgotten; readers fall back to Postgres. Entry ids are Redis' own
(`milliseconds-sequence`), which is what `Last-Event-ID` carries.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import redis.asyncio
from redis import Redis
from redis.exceptions import RedisError

from shared.bounds import to_json
from shared.errors import Permanent

# Which models are being loaded at this moment, for callers who do not want to wait for one.
#
# A worker announces a model when it begins to load it, tells the jobs that wait for it (an
# event `state` with `Loading.event`), and takes the announcement back when the model is
# loaded. The API looks for one before it submits and at each update of a job. It is never the
# truth: what Redis does not take or return is as if no model were loading, and what a worker
# that died has announced ends by itself.

log = logging.getLogger(__name__)

KEEP_FACTOR = 2
KEEP_S = 30
"""An announcement ends this long after the estimate, times the factor: loading may be slower."""
LEAST_S = 1.0
"""What is left where the estimate is over and the model still loads."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A model that is being loaded, and how long that takes by estimate."""

    model: str
    estimated_s: float

    def event(self) -> dict[str, Any]:
        """The data of the event `state` that jobs get which wait for the model."""
        return {"state": "running", "loading_model": self.model, "estimated_s": self.estimated_s}


def key(model: str) -> str:
    return f"sluice:hf:loading:{model}"


def announce(redis: Redis, loading: Loading) -> None:
    """Called by a worker that begins to load."""
    keep_s = int(KEEP_FACTOR * loading.estimated_s) + KEEP_S
    # What has passed of it tells the age: clocks of different machines are not compared.
    value = {"estimated_s": loading.estimated_s, "keep_s": keep_s}
    try:
        redis.set(key(loading.model), json.dumps(value), ex=keep_s)
    except (RedisError, OSError) as error:
        log.warning("could not announce that %s is loading: %s", loading.model, error)


def done(redis: Redis, model: str) -> None:
    """Called when the model is loaded, or cannot be."""
    try:
        redis.delete(key(model))
    except (RedisError, OSError) as error:
        log.warning("could not announce that %s is loaded: %s", model, error)


async def of(redis: redis.asyncio.Redis, model: str) -> Loading | None:
    """Whether a worker is loading the model, with the seconds that are left by its estimate."""
    try:
        async with redis.pipeline() as pipe:
            pipe.get(key(model))
            pipe.pttl(key(model))
            value, left_ms = await pipe.execute()
    except (RedisError, OSError):
        return None
    if value is None:
        return None
    announced = json.loads(value)
    left_s = announced["estimated_s"] - (announced["keep_s"] - left_ms / 1000)
    return Loading(model=model, estimated_s=round(max(LEAST_S, left_s), 1))


class EventType(StrEnum):
    STATE = "state"
    PROGRESS = "progress"
    TOKEN = "token"
    TOOL = "tool"
    END = "end"


@dataclass(frozen=True, kw_only=True)
class Event:
    job_id: UUID
    type: EventType
    data: dict[str, Any]


def stream_key(job_id: UUID) -> str:
    return f"sluice:events:{job_id}"


class Events:
    """Writes events; the API reads the streams on its own asynchronous connection."""

    def __init__(
        self, redis: Redis, *, limit_entries: int, keep_s: int, keep_after_end_s: int
    ) -> None:
        self.redis = redis
        self._limit_entries = limit_entries
        self._keep_s = keep_s
        self._keep_after_end_s = keep_after_end_s

    def close(self) -> None:
        self.redis.close()

    def publish(self, events: Sequence[Event]) -> bool:
        """Append the events; False where Redis does not take them."""
        if not events:
            return True
        try:
            with self.redis.pipeline(transaction=False) as pipe:
                for event in events:
                    fields: dict[Any, Any] = {
                        "type": event.type.value,
                        "data": to_json(event.data),
                    }
                    key = stream_key(event.job_id)
                    pipe.xadd(key, fields, maxlen=self._limit_entries, approximate=True)
                # Of a job that has ended, Postgres has the same: result, text, state.
                ended = {event.job_id for event in events if event.type is EventType.END}
                for job_id in {event.job_id for event in events}:
                    keep_s = self._keep_after_end_s if job_id in ended else self._keep_s
                    pipe.expire(stream_key(job_id), keep_s)
                pipe.execute()
        except (RedisError, OSError, Permanent) as error:
            log.warning("events not published (readers fall back to the database): %s", error)
            return False
        return True
