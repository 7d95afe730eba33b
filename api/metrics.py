"""Numbers for Prometheus, in its text format, read from Postgres when they are asked for.

What counts all jobs is kept for a while; what operators act on (backlog, age, workers) is fresh.
"""

import time
from collections.abc import Iterable, Mapping
from threading import Lock

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import queues
from shared.queue import Queue

KEEP_S = 15.0

JOBS = text("SELECT kind, state, count(*) FROM jobs GROUP BY kind, state ORDER BY kind, state")
STEPS = text("""
    SELECT queue, state, count(*) AS steps,
        extract(epoch FROM now() - min(run_after) FILTER (WHERE run_after <= now())) AS age_s
    FROM steps WHERE state IN ('queued', 'running') GROUP BY queue, state
""")

Sample = tuple[Mapping[str, str], float]


class Metrics:
    def __init__(self, *, worker_heartbeat_s: float) -> None:
        self._worker_heartbeat_s = worker_heartbeat_s
        self._jobs: list[Sample] = []
        self._jobs_until = 0.0
        self._lock = Lock()

    def text(self, session: Session) -> str:
        steps: list[Sample] = []
        ages: list[Sample] = []
        found = {(row.queue, row.state): row for row in session.execute(STEPS)}
        for queue in Queue:
            for state in ("queued", "running"):
                row = found.get((queue.value, state))
                steps.append(
                    ({"queue": queue.value, "state": state}, float(row.steps) if row else 0.0)
                )
            row = found.get((queue.value, "queued"))
            age = float(row.age_s) if row is not None and row.age_s is not None else 0.0
            ages.append(({"queue": queue.value}, max(0.0, age)))
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
            if time.monotonic() >= self._jobs_until:
                self._jobs = [
                    ({"kind": kind, "state": state}, float(count))
                    for kind, state, count in session.execute(JOBS)
                ]
                self._jobs_until = time.monotonic() + KEEP_S
            return self._jobs


def _metric(name: str, help_: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {help_}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        shown = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{name}{{{shown}}} {value:g}")
    return "\n".join(lines) + "\n"
