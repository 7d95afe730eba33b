"""A worker beside the API: real steps of real models run in threads, for programs over a socket."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import insert

from shared.config import Settings
from shared.tables import Worker
from shared.vocabulary import Queue
from tests.integration.workbench import ROUTES, handlers, make_process
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.generation.answers.structured import schemas_of
from workers.generation.backends.interface import generators_of

IDLE_S = 0.005
CPU_QUEUES = [queue.value for queue in Queue if queue is not Queue.GENERATE]


@contextmanager
def answering(
    settings: Settings, *models: str, threads: int = 4, **changes: Any
) -> Iterator[Process]:
    """A worker that serves these models, besides those of servers, until the end of the block:
    so many threads that generate, and one for all else."""
    table = handlers()  # what they import takes longer than what they do
    process = make_process(settings, **({"generation_flush_s": 0.01} | changes))
    process.routes = (*ROUTES, *models)
    with process.ledger.begin() as session:
        row = {
            "name": process.worker_name, "hostname": "here", "pid": 1, "concurrency": 1,
            "queues": [queue.value for queue in Queue], "routes": list(process.routes),
        }  # fmt: skip
        session.execute(insert(Worker).values(row))
    over = threading.Event()

    def work(queues: list[str]) -> None:
        while not over.is_set():
            if not sum(run_next(process, table, queue) for queue in queues):
                over.wait(IDLE_S)

    running = [threading.Thread(target=work, args=(CPU_QUEUES,))]
    running += [
        threading.Thread(target=work, args=([Queue.GENERATE.value],)) for _ in range(threads)
    ]
    for thread in running:
        thread.start()
    try:
        yield process
    finally:
        over.set()
        for thread in running:
            thread.join()
        generators_of(process).close()
        schemas_of(process).close()
        process.ledger.close()
