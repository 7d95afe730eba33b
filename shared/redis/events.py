"""Job events in Redis streams of bounded length: live, never the truth.

An event that cannot be written is logged and forgotten; readers fall back to Postgres. Entry ids
are Redis' own (`milliseconds-sequence`), which is what `Last-Event-ID` carries.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from shared.bounds import to_json
from shared.errors import Permanent

log = logging.getLogger(__name__)


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
