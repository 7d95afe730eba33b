"""The door of each queue: closed with 429 while too many steps wait.

The count is read from Postgres about once a second and kept up in between by what this process
lets in, so the limit is exact for one API process and nearly so for several.
"""

import time
from dataclasses import dataclass
from threading import Lock

from sqlalchemy.orm import Session

from shared import queues
from shared.config import Settings
from shared.errors import QueueFull
from shared.queue import Queue

FRESH_S = 1.0


@dataclass
class _Count:
    steps: int
    read_at: float


class QueueGate:
    def __init__(self, settings: Settings) -> None:
        self._limit = settings.queue_limit_steps
        self._retry_after_s = settings.queue_full_retry_after_s
        self._counts: dict[Queue, _Count] = {}
        self._lock = Lock()

    def admit(self, session: Session, queue: Queue, jobs: int = 1) -> None:
        """Raises QueueFull. Call it before anything else of the transaction.

        A caller that had a connection already could wait here for one that waits for its own.
        """
        with self._lock:
            now = time.monotonic()
            count = self._counts.get(queue)
            if count is None or now - count.read_at > FRESH_S:
                steps = queues.count_queued(session, queue, up_to=self._limit)
                count = self._counts[queue] = _Count(steps, now)
            if count.steps + jobs > self._limit:
                raise QueueFull(
                    f"Queue {queue.value} holds {count.steps} steps; it takes {self._limit} "
                    "(SLUICE_QUEUE_LIMIT_STEPS). Try again later, or add workers.",
                    retry_after_s=self._retry_after_s,
                )
            count.steps += jobs
