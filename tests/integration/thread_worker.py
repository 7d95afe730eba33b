"""A worker beside the API: real steps of real models run in threads, for programs over a socket."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
from redis import Redis
from sqlalchemy import func, insert

from shared.config import Settings
from shared.redis.bell import list_of
from shared.tables import Worker
from shared.vocabulary import Queue
from tests.integration.job_runner import ROUTES, handlers, make_process
from workers.attempts.process import Process
from workers.attempts.runner import run_next

IDLE_S = 0.4
"""A thread that hears no ring looks for steps that have become due after so long."""
BELL_OF_END = "test:worker-ends"
CPU_QUEUES = [queue for queue in Queue if queue is not Queue.GENERATE]


@contextmanager
def running_worker(
    settings: Settings,
    *models: str,
    threads: int = 4,
    **changes: Any,
) -> Iterator[Process]:
    """A worker that serves these models, besides those of servers, until the end of the block:
    so many threads that generate, and one for all other queues."""
    table = handlers()  # what they import takes longer than what they do
    process = make_process(settings, **({"generation_flush_s": 0.01} | changes))
    process.routes = (*ROUTES, *models)
    with process.ledger.begin() as session:
        row = {
            "name": process.worker_name, "hostname": "here", "pid": 1, "concurrency": 1,
            "queues": [queue.value for queue in Queue], "routes": list(process.routes),
            "last_seen_at": func.now() + timedelta(days=1),  # nobody reports for it
        }  # fmt: skip
        session.execute(insert(Worker).values(row))
    over = threading.Event()
    faults: list[Exception] = []

    def work(queues: Sequence[Queue]) -> None:
        lists = [BELL_OF_END, *map(list_of, queues)]
        if Queue.GENERATE in queues:
            lists += [list_of(Queue.GENERATE, route) for route in process.routes]
        with Redis.from_url(settings.require_redis_url()) as redis:
            while not over.is_set():
                try:
                    has_run = sum(run_next(process, table, queue.value) for queue in queues)
                except Exception as error:  # whoever waits for an answer must not wait for ever
                    faults.append(error)
                    has_run = False
                if not has_run:
                    redis.blpop(lists, timeout=IDLE_S)

    running = [threading.Thread(target=work, args=(CPU_QUEUES,))]
    running += [threading.Thread(target=work, args=([Queue.GENERATE],)) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield process
    finally:
        over.set()
        with Redis.from_url(settings.require_redis_url()) as redis:
            redis.rpush(BELL_OF_END, *(thread.name for thread in running))
        for thread in running:
            thread.join()
        process.close()
    if faults:
        raise ExceptionGroup("steps that could not be run", faults)


def ingest_texts(api_url: str, name: str, texts: Mapping[str, str]) -> str:
    """A collection of these documents, which the worker makes; returns its name."""
    sources = [{"type": "text", "text": text, "name": name} for name, text in texts.items()]
    with httpx.Client(base_url=api_url, timeout=60, trust_env=False) as client:
        client.put(f"/v1/collections/{name}").raise_for_status()
        body = {"kind": "ingest", "input": {"collection": name, "sources": sources}}
        job = client.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
    assert job["state"] == "succeeded", job
    return name
