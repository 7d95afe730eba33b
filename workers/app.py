"""The Celery applications of the workers. Built by `workers/__main__.py`.

Celery carries rings and nothing else: a task takes the best step from Postgres and runs it.
Its own retries, results and late acknowledgements are off.
"""

import logging
from collections.abc import Sequence

from celery import Celery, signals

from shared.config import Settings
from shared.queue import RING, Queue, list_of, make_celery
from workers.presence import Presence
from workers.process import Process
from workers.runner import Handlers, run_next

log = logging.getLogger(__name__)

CPU_QUEUES = [Queue.CONTROL, Queue.QUERY, Queue.EMBED, Queue.HF, Queue.INGEST]
HF_QUEUES = [Queue.HF]
GENERATE_QUEUES = [Queue.GENERATE]
WEBHOOK_QUEUES = [Queue.WEBHOOK]

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
    doors: Sequence[str] = (),
    process: Process | None = None,
) -> Celery:
    """A Celery application whose worker runs the steps of these queues.

    `process` is what all threads of a worker share; the children of a forking one make their own.
    """
    lists = [list_of(queue, door) for queue in queues for door in doors]
    app = make_celery(settings, lists)
    app.conf.update(
        worker_pool=pool,
        worker_concurrency=concurrency,
        task_soft_time_limit=settings.step_soft_limit_s if pool == PREFORK else None,
        task_time_limit=settings.step_hard_limit_s if pool == PREFORK else None,
        worker_max_memory_per_child=(
            _memory_mib(settings, queues) * 1024 if pool == PREFORK else None
        ),
    )
    own: list[Process] = [] if process is None else [process]

    def mine() -> Process:
        if not own:  # after the fork; a child runs one task at a time
            own.append(Process(settings, name))
        return own[0]

    def ring(queue: str) -> None:
        run_next(mine(), handlers, queue)

    app.task(ring, name=RING)
    presence = Presence(settings, name, [queue.value for queue in queues], concurrency, doors)
    # weak=False: the connections live as long as the process.
    signals.worker_ready.connect(lambda **_: presence.start(), weak=False)
    signals.worker_shutdown.connect(lambda **_: presence.stop(), weak=False)
    return app


def _memory_mib(settings: Settings, queues: list[Queue]) -> int:
    """What a child may take before it is replaced: models that are kept are no leak."""
    kept = settings.hf_cache_mib if Queue.HF in queues else 0
    return settings.worker_max_memory_mib + kept
