"""A worker that answers chats and searches in a thread of this process, for programs of others."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.config import Settings
from shared.vocabulary import Queue
from tests.integration.workbench import handlers, make_process
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.generation.answers.structured import schemas_of
from workers.generation.backends.interface import generators_of

QUEUES = (Queue.QUERY, Queue.GENERATE)
PAUSE_S = 0.005


@contextmanager
def answering(settings: Settings, *, threads: int = 2, **changes: Any) -> Iterator[Process]:
    """The process whose steps are run in the background until the end of the block."""
    process = make_process(settings, **({"generation_flush_s": 0.01} | changes))
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            if not any(run_next(process, handlers(), queue.value) for queue in QUEUES):
                stopping.wait(PAUSE_S)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield process
    finally:
        stopping.set()
        for worker in workers:
            worker.join()
        generators_of(process).close()
        schemas_of(process).close()
        process.ledger.close()
