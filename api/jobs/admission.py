"""Admission to each queue: closed with 429 while too many steps are due, of all keys or of one.

Steps whose time has not come, and held turns, take nobody's place. The counts are read from
Postgres now and then and kept up in between by what this process lets in: for one API process they
are never too low. Steps that were done meanwhile are not subtracted, so before anybody is refused
the count is read again: a refusal holds for a moment at which the request was waiting.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from sqlalchemy.orm import Session

from shared.config import Settings
from shared.errors import QueueFull
from shared.jobs import queues
from shared.jobs.queues import KEEP_FACTOR
from shared.vocabulary import Queue

FRESH_S = 1.0


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """How many due steps there may be, and in whose words it is said."""

    steps: int
    subject: str
    setting: str
    remedy: str


class _Counter:
    """The due steps of a queue, or of one key in it. One thread at a time counts."""

    def __init__(self, limit: _Limit, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = Lock()
        self._steps = 0
        self._counts = 0
        """How often it was counted, or begun to."""
        self._fresh_until = float("-inf")

    def admit(self, read: Callable[[int], int], jobs: int) -> str | None:
        """Count the jobs in, or say why there is no room. `read` counts up to a limit."""
        before = self._counts
        with self._lock:
            if self._clock() >= self._fresh_until:
                self._count(read)
            # Who waited while another began to count need not count again.
            if self._steps + jobs > self._limit.steps and self._counts == before:
                self._count(read)
            if self._steps + jobs > self._limit.steps:
                return (
                    f"{self._limit.subject} {self._steps} due steps; {self._limit.steps} are "
                    f"allowed ({self._limit.setting}). {self._limit.remedy}"
                )
            self._steps += jobs
        return None

    def withdraw(self, jobs: int) -> None:
        """Undo an `admit`: the jobs found no room elsewhere."""
        with self._lock:
            self._steps -= jobs

    def _count(self, read: Callable[[int], int]) -> None:
        self._counts += 1
        begin = self._clock()
        self._steps = read(self._limit.steps)
        end = self._clock()
        self._fresh_until = end + max(FRESH_S, KEEP_FACTOR * (end - begin))


class QueueGate:
    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = settings.queue_limit_steps
        self._limit_per_key = settings.steps_per_key
        self._retry_after_s = settings.queue_full_retry_after_s
        self._clock = clock
        self._counters: dict[tuple[Queue, str | None], _Counter] = {}

    def admit(self, session: Session, queue: Queue, fair_key: str, jobs: int = 1) -> None:
        """Raises QueueFull. Call it before anything else of the transaction.

        A caller that had a connection already could wait here for one that waits for its own.
        """
        of_all, of_key = self._counter(queue, None), self._counter(queue, fair_key)
        refusal = of_all.admit(lambda limit: queues.count_due(session, queue, up_to=limit), jobs)
        if refusal is None and self._limit_per_key is not None:
            refusal = of_key.admit(
                lambda limit: queues.count_due(session, queue, up_to=limit, fair_key=fair_key),
                jobs,
            )
            if refusal is not None:
                of_all.withdraw(jobs)
        if refusal is not None:
            raise QueueFull(refusal, retry_after_s=self._retry_after_s)

    def _counter(self, queue: Queue, fair_key: str | None) -> _Counter:
        counter = self._counters.get((queue, fair_key))
        if counter is None:
            limit = self._limit_of(queue, fair_key)
            counter = self._counters.setdefault((queue, fair_key), _Counter(limit, self._clock))
        return counter

    def _limit_of(self, queue: Queue, fair_key: str | None) -> _Limit:
        if fair_key is None or self._limit_per_key is None:
            return _Limit(
                steps=self._limit,
                subject=f"Queue {queue.value} holds",
                setting="SLUICE_QUEUE_LIMIT_STEPS",
                remedy="Try again later, or add workers.",
            )
        return _Limit(
            steps=self._limit_per_key,
            subject=f"Your key has in queue {queue.value}",
            setting="SLUICE_QUEUE_LIMIT_STEPS_PER_KEY",
            remedy="Try again when some of them are done.",
        )
