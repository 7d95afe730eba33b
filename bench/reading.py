"""What reading costs as queues grow: each call at 1,000 and at 100,000 queued jobs, and the ratio.

The jobs are of several keys, lanes, kinds and models. No worker runs, but some are noted as
living, and steps have ended, so that there are ETAs. The servers are started here, in a temporary
folder, and stopped at the end: `python -m bench.reading --calls 200`.
"""

import argparse
import http.client
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psycopg

from bench.submit import BODY, start_api
from shared.config import Settings
from shared.database.transaction import Ledger, make_ledger
from shared.jobs import claims, queues, steps, submission
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.tables import Worker
from shared.vocabulary import Lane, Queue
from tests.servers import start_postgres, start_redis

KEYS = ("ann", "bob", "carol", "dave")
ROUTES = ("hf/a", "hf/b", "ollama", "extractive")
INPUTS = (
    (kinds.EMBED, {"texts": ["How do I restore a dump of one table?"]}),
    (kinds.EMBED, {"texts": ["How do I make one?"]}),
    (kinds.SEARCH, {"collection": "handbook", "query": "dump"}),
    (kinds.CHAT, {"messages": [{"role": "user", "content": "Hi"}], "model": "hf/a"}),
    (kinds.CHAT, {"messages": [{"role": "user", "content": "Hi"}], "model": "hf/b"}),
    (kinds.CHAT, {"messages": [{"role": "user", "content": "Hi"}], "model": "ollama/one"}),
)
LANES = (Lane.NORMAL, Lane.NORMAL, Lane.BULK, Lane.INTERACTIVE, Lane.NORMAL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200, help="of each kind")
    parser.add_argument("--sizes", default="1000,100000")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = start_postgres(folder / "postgres", durable=True)
        stack.callback(postgres.stop)
        redis = start_redis(folder / "redis")
        stack.callback(redis.stop)
        url = start_api(folder, postgres.url, redis.url, lambda server: stack.callback(server.stop))
        settings = Settings(
            _env_file=None, home=folder, database_url=postgres.url, redis_url=redis.url
        )
        ledger = make_ledger(settings)
        stack.callback(ledger.close)
        _prepare(ledger)
        sizes = [int(size) for size in options.sizes.split(",")]
        figures: dict[str, list[float]] = {}
        jobs: list[str] = []
        for size in sizes:
            jobs += _fill(ledger, size - len(jobs))
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            for name, call in _calls(url, ledger, settings, jobs).items():
                figures.setdefault(name, []).append(_p50_ms(call, options.calls))
        print(f"{'ms at p50':32}" + "".join(f"{size:>12,}" for size in sizes) + f"{'ratio':>8}")
        for name, times in figures.items():
            shown = "".join(f"{seconds:12.2f}" for seconds in times)
            print(f"{name:32}{shown}{times[-1] / times[0]:8.2f}")
    return 0


def _prepare(ledger: Ledger) -> None:
    """Living workers, and steps that have ended."""
    with ledger.begin() as session:
        for n, routes in enumerate(((), ROUTES)):
            session.add(
                Worker(
                    name=f"worker-{n}", hostname="bench", pid=1, routes=list(routes), concurrency=4,
                    queues=[Queue.GENERATE] if routes else [q for q in Queue if q != "generate"],
                )
            )  # fmt: skip
    for n in range(600):
        kind, input_ = INPUTS[n % len(INPUTS)]
        with ledger.begin() as session:
            submission.submit(session, NewJob(kind=kind, input=dict(input_), fair_key="ann"))
        for queue in Queue:
            with ledger.begin() as session:
                claim = claims.claim(session, queue, worker="w", lease_s=60, routes=ROUTES)
                if claim is not None:
                    steps.succeed(session, claim, result={})


def _fill(ledger: Ledger, count: int) -> list[str]:
    """The ids of so many more queued jobs."""
    ids: list[str] = []
    for begin in range(0, count, 1000):
        new = [
            NewJob(
                kind=INPUTS[n % len(INPUTS)][0],
                input=dict(INPUTS[n % len(INPUTS)][1]),
                fair_key=KEYS[n % len(KEYS)],
                lane=LANES[n % len(LANES)],
            )
            for n in range(begin, min(count, begin + 1000))
        ]
        with ledger.begin() as session:
            ids += map(str, submission.submit_batch(session, new))
    return ids


def _calls(
    url: str, ledger: Ledger, settings: Settings, jobs: list[str]
) -> dict[str, Callable[[], object]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)

    def get(path: str, body: bytes | None = None) -> None:
        connection.request(
            "POST" if body else "GET", path, body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 202, 503), answer.status

    def runnable() -> None:
        with ledger.read() as session:
            steps.runnable(session, worker_heartbeat_s=settings.worker_heartbeat_s)

    def count_due() -> None:
        with ledger.read() as session:
            queues.count_due(session, Queue.EMBED, up_to=settings.queue_limit_steps)

    def claim(queue: Queue) -> None:
        with ledger.begin() as session:
            assert claims.claim(session, queue, worker="w", lease_s=60, routes=ROUTES)
            session.rollback()

    return {
        "GET /v1/jobs?limit=50": partial(get, "/v1/jobs?limit=50"),
        "GET /v1/jobs?limit=50&kind=chat": partial(get, "/v1/jobs?limit=50&kind=chat"),
        "GET /v1/jobs?limit=200": partial(get, "/v1/jobs?limit=200"),
        "GET /v1/jobs/{id}, the newest": partial(get, f"/v1/jobs/{jobs[-2]}"),
        "GET /v1/jobs/{id}, in the middle": partial(get, f"/v1/jobs/{jobs[len(jobs) // 2]}"),
        "GET /v1/queues": partial(get, "/v1/queues"),
        "GET /metrics": partial(get, "/metrics"),
        "GET /readyz": partial(get, "/readyz"),
        "POST /v1/jobs": partial(get, "/v1/jobs", BODY),
        "sweeper: runnable": runnable,
        "admission: count of the due": count_due,
        "claim: embed": partial(claim, Queue.EMBED),
        "claim: generate": partial(claim, Queue.GENERATE),
    }


def _p50_ms(call: Callable[[], object], times: int) -> float:
    call()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
