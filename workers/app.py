"""The Celery applications of the workers, and which of them runs which steps.

Celery carries rings and nothing else: a task takes the best step from Postgres and runs it.
Its own retries, results and late acknowledgements are off.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any

from celery import Celery, signals
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.config import Settings
from shared.database.engine import make_engine
from shared.database.transaction import Transaction, make_sessions
from shared.kinds.kind import Kind, StepType
from shared.kinds.registry import KINDS, WEBHOOK
from shared.redis.bell import RING, list_of, make_celery
from shared.tables import Worker
from shared.vocabulary import Queue, Shape
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import Handlers, run_next

log = logging.getLogger(__name__)

# Which worker runs which steps: those of its queues, by the handlers that the kinds name.

CPU_QUEUES = [Queue.CONTROL, Queue.QUERY, Queue.EMBED, Queue.HF, Queue.INGEST]
HF_QUEUES = [Queue.HF]
GENERATE_QUEUES = [Queue.GENERATE]
WEBHOOK_QUEUES = [Queue.WEBHOOK]


def handlers_of(queues: Collection[Queue]) -> Handlers:
    """Imports what runs these steps, torch included, and so does it before any fork."""
    handlers = {
        step.name: _handler(kind, step)
        for kind in KINDS.values()
        for step in kind.steps
        if step.queue in queues
    }
    if WEBHOOK.queue in queues:
        handlers[WEBHOOK.name] = _imported(WEBHOOK)
    return handlers


def failure_handlers() -> Handlers:
    """How the failure of a step is booked in its job, for the sweeper, which runs none.

    Steps that are not here fail their jobs. Nothing is imported that loads models.
    """
    absorbed = [step for kind in KINDS.values() for step in kind.steps if step.is_absorbed]
    handlers = {step.name: _imported(step) for step in absorbed}
    return {
        name: Handler(absorb=handler.absorb, finish=handler.finish)
        for name, handler in handlers.items()
    }


def _handler(kind: Kind, step: StepType) -> Handler:
    run = _imported(step)
    return run if isinstance(run, Handler) else Handler(run=_computed(kind, run))


def _imported(step: StepType) -> Any:
    module, _, name = step.handler.partition(":")
    return getattr(import_module(module), name)


def _computed(kind: Kind, compute: Callable[[Any], Shape]) -> Callable[[Context], Done]:
    """A step that needs nothing but the job's input, and writes nothing but its result."""

    def run(context: Context) -> Done:
        return Done(result=compute(context.input(kind.input)).model_dump(mode="json"))

    return run


# Keeps a worker's row in the database fresh, so that users see who is alive.
#
# A thread of the main process, with a connection of its own; pool processes never touch it.


class Presence:
    def __init__(
        self,
        settings: Settings,
        name: str,
        queues: list[str],
        concurrency: int,
        routes: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._row = {
            "name": name,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "queues": queues,
            "routes": list(routes),
            "concurrency": concurrency,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and take the worker off the list."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        sessions = make_sessions(make_engine(self._settings))
        first = True
        while True:
            self._write(sessions, first=first)
            first = False
            if self._ended.wait(self._settings.worker_heartbeat_s):
                break
        try:
            with sessions.begin() as session:
                self._remove(session)
        except SQLAlchemyError as error:
            log.warning("worker not taken off the list: %s", error)

    def _write(self, sessions: sessionmaker[Transaction], *, first: bool) -> None:
        seen = {"last_seen_at": func.now()}
        row = insert(Worker).values(self._row)
        changes = {**self._row, **seen, "started_at": func.now()} if first else seen
        try:
            with sessions.begin() as session:
                session.execute(row.on_conflict_do_update(index_elements=["name"], set_=changes))
        except SQLAlchemyError as error:
            log.warning("worker not noted as alive: %s", error)

    def _remove(self, session: Session) -> None:
        row = session.get(Worker, self._row["name"])
        if row is not None and row.pid == os.getpid():
            session.delete(row)


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
    routes: Sequence[str] = (),
    announced: Sequence[Queue] | None = None,
    process: Process | None = None,
) -> Celery:
    """A Celery application whose worker runs the steps of these queues.

    `announced` are the queues that its row in the database names, where they are others; without
    any, it has no row. `process` is what all threads of a worker share; the children of a forking
    one make their own.
    """
    lists = [list_of(queue, route) for queue in queues for route in routes]
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
    named = [queue.value for queue in (queues if announced is None else announced)]
    if not named:
        return app
    presence = Presence(settings, name, named, concurrency, routes)
    # weak=False: the connections live as long as the process.
    signals.worker_ready.connect(lambda **_: presence.start(), weak=False)
    signals.worker_shutdown.connect(lambda **_: presence.stop(), weak=False)
    return app


def _memory_mib(settings: Settings, queues: list[Queue]) -> int:
    """What a child may take before it is replaced: models that are kept are no leak."""
    kept = settings.hf_cache_mib if Queue.HF in queues else 0
    return settings.worker_max_memory_mib + kept
