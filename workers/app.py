"""The Celery applications of the workers and of beat. Built by `workers/__main__.py`.

Celery carries rings and nothing else: a task takes the best step from Postgres and runs it.
Its own retries, results and late acknowledgements are off.
"""

import logging
from typing import Any

from celery import Celery, signals

from shared.config import Settings
from shared.queue import RING, SWEEP, Queue, make_celery
from workers.presence import Presence
from workers.process import Process
from workers.runner import Handlers, run_next
from workers.sweep import Sweeper

log = logging.getLogger(__name__)

CPU_QUEUES = [Queue.CONTROL, Queue.QUERY, Queue.EMBED, Queue.INGEST]
GENERATE_QUEUES = [Queue.GENERATE]

PREFORK = "prefork"
THREADS = "threads"


def make_worker_app(
    settings: Settings,
    handlers: Handlers,
    *,
    name: str,
    queues: list[Queue],
    pool: str,
    concurrency: int,
) -> Celery:
    """A Celery application whose worker runs the steps of these queues."""
    app = make_celery(settings)
    order = {"queue_order_strategy": "workers.turns:ControlFirst"}
    app.conf.update(
        broker_transport_options={**app.conf.broker_transport_options, **order},
        worker_pool=pool,
        worker_concurrency=concurrency,
        task_soft_time_limit=settings.step_soft_limit_s if pool == PREFORK else None,
        task_time_limit=settings.step_hard_limit_s if pool == PREFORK else None,
        worker_max_memory_per_child=(
            settings.worker_max_memory_mib * 1024 if pool == PREFORK else None
        ),
    )
    # Each pool process makes its own when first used, after the fork.
    held: dict[str, Any] = {}

    def process() -> Process:
        if "process" not in held:
            held["process"] = Process(settings, name)
            held["sweeper"] = Sweeper(held["process"], handlers)
        found = held["process"]
        assert isinstance(found, Process)
        return found

    def ring(queue: str) -> None:
        run_next(process(), handlers, queue)

    def sweep() -> None:
        process()
        held["sweeper"].sweep()

    app.task(ring, name=RING)
    app.task(sweep, name=SWEEP)
    presence = Presence(settings, name, [queue.value for queue in queues], concurrency)
    # weak=False: the connections live as long as the process.
    signals.worker_ready.connect(lambda **_: presence.start(), weak=False)
    signals.worker_shutdown.connect(lambda **_: presence.stop(), weak=False)
    return app


def make_beat_app(settings: Settings) -> Celery:
    """Rings the sweeper. Rings that nobody answered in time are dropped, not piled up."""
    app = make_celery(settings)
    app.conf.update(
        beat_scheduler="celery.beat:Scheduler",
        beat_max_loop_interval=settings.sweep_interval_s,
        beat_schedule={
            "sweep": {
                "task": SWEEP,
                "schedule": settings.sweep_interval_s,
                "options": {
                    "queue": Queue.CONTROL.value,
                    "expires": max(10, settings.sweep_interval_s * 5),
                },
            }
        },
    )
    return app
