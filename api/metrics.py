"""Numbers for Prometheus, in its text format, read from Postgres when they are asked for.

What counts all jobs is kept for a while, longer where counting takes long. What operators act on
(backlog, age, workers) is fresh, or some seconds old where a queue is long (`shared/estimates.py`).
"""

import time
from collections.abc import Iterable, Mapping
from threading import Lock

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import queues
from shared.estimates import KEEP_FACTOR, Depths
from shared.queue import Queue

KEEP_S = 15.0

JOBS = text("SELECT kind, state, count(*) FROM jobs GROUP BY kind, state ORDER BY kind, state")

Sample = tuple[Mapping[str, str], float]


class Metrics:
    def __init__(self, *, worker_heartbeat_s: float, depths: Depths) -> None:
        self._worker_heartbeat_s = worker_heartbeat_s
        self._depths = depths
        self._jobs: list[Sample] = []
        self._jobs_until = 0.0
        self._lock = Lock()

    def text(self, session: Session) -> str:
        steps: list[Sample] = []
        ages: list[Sample] = []
        waiting = self._depths.totals(session)
        running = queues.running_steps(session)
        for queue in Queue:
            total = waiting[queue.value]
            for state, count in (("queued", total.steps), ("running", running[queue.value])):
                steps.append(({"queue": queue.value, "state": state}, float(count)))
            ages.append(({"queue": queue.value}, total.oldest_due_s))
        workers = queues.workers(session, worker_heartbeat_s=self._worker_heartbeat_s)
        serving = [
            (
                {"queue": queue.value},
                float(sum(w.alive and queue.value in w.queues for w in workers)),
            )
            for queue in Queue
        ]
        return "".join(
            [
                _metric("sluice_jobs", "Jobs by kind and state.", self._jobs_now(session)),
                _metric("sluice_steps", "Open steps by queue and state.", steps),
                _metric("sluice_queue_oldest_seconds", "Age of the oldest due step.", ages),
                _metric("sluice_workers_alive", "Living workers by queue.", serving),
            ]
        )

    def _jobs_now(self, session: Session) -> list[Sample]:
        with self._lock:
            begin = time.monotonic()
            if begin >= self._jobs_until:
                self._jobs = [
                    ({"kind": kind, "state": state}, float(count))
                    for kind, state, count in session.execute(JOBS)
                ]
                end = time.monotonic()
                self._jobs_until = end + max(KEEP_S, KEEP_FACTOR * (end - begin))
            return self._jobs


def _metric(name: str, help_: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {help_}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        shown = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{name}{{{shown}}} {value:g}")
    return "\n".join(lines) + "\n"
