"""What a small job costs: how many a second, and how long one takes that is waited for.

    python -m bench.small_jobs [--jobs 2000] [--rounds 3] [--calls 300]

One stack runs with its defaults. In turns, so many jobs of one word each go through it: `embed`,
`hf` feature-extraction by the same model, and as many messages of a Celery task that does nothing,
over the same Redis, with as many processes. Jobs are submitted by batches of 1,000, and timed by
the ledger's own clock, from the first row until the last job has ended; the messages from the first
`apply_async` until the last has been taken.

Then one client sends one request after the other and waits for each (`Prefer: wait`): `embed` of a
word, and `search` in a collection of 1,000 chunks, by default and of the type `similarity`. Beside
it what encoding that word takes, in this process.
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from celery import Celery
from redis import Redis

from bench.support.noop import END, TASK, make_app
from bench.support.stack import running_stack
from shared.config import Settings
from sluice import Client
from sluice.kinds import NewJob, SearchInput
from workers.retrieval.embed import Embedders

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
COLLECTION = "bench"
CHUNKS = 1000
PATIENCE_S = 300.0
POLL_S = 0.1
WARM_JOBS = 200
WARM_CALLS = 20
PARTS = ("request to row", "row to claim", "claim to record", "record to answer")
WORDS = [
    "service",
    "friendly",
    "quick",
    "food",
    "arrived",
    "cold",
    "nobody",
    "answered",
    "letters",
    "room",
    "quiet",
    "clean",
    "view",
    "river",
    "lovely",
    "staff",
    "helped",
    "train",
    "late",
    "refund",
    "never",
    "gladly",
    "again",
    "battery",
    "lasts",
    "screen",
    "broke",
    "week",
    "works",
]
INPUTS: dict[str, NewJob] = {
    "embed": {"kind": "embed", "input": {"texts": ["word"]}},
    "hf feature-extraction": {
        "kind": "hf",
        "input": {"task": "feature-extraction", "model": MINILM, "inputs": "word"},
    },
}
SEARCH: SearchInput = {"collection": COLLECTION, "query": "a quiet room"}
CALLS: dict[str, NewJob] = {
    "embed": INPUTS["embed"],
    "search": {"kind": "search", "input": SEARCH},
    "search, similarity": {"kind": "search", "input": {**SEARCH, "search": {"type": "similarity"}}},
}
NOOP = "bare Celery no-op"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=300, help="of each kind, one after the other")
    options = parser.parse_args()
    processes = Settings(_env_file=None).worker_concurrency
    with running_stack() as (stack, client), noop_worker(stack.redis_url, processes) as app:
        ways: dict[str, Callable[[int], float]] = {
            name: jobs_through(client, stack.database_url, job) for name, job in INPUTS.items()
        }
        ways[NOOP] = messages_through(app, stack.redis_url)
        compare_rates(ways, options.jobs, options.rounds)
        make_collection(client)
        compare_latencies(stack.api_url, stack.database_url, options.calls)
    print_encoding(options.calls)
    return 0


def jobs_through(client: Client, database_url: str, job: NewJob) -> Callable[[int], float]:
    """A function that runs so many such jobs and returns the seconds that they took."""

    def run(count: int) -> float:
        ids: list[Any] = []
        while len(ids) < count:
            ids += client.submit_batch([job] * min(1000, count - len(ids)))
        with psycopg.connect(database_url, autocommit=True) as connection:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                [(ended, seconds)] = connection.execute(
                    "SELECT count(*) FILTER (WHERE state = 'succeeded'), "
                    "extract(epoch FROM max(finished_at) - min(created_at)) "
                    "FROM jobs WHERE id = ANY(%s::uuid[])",
                    (list(map(str, ids)),),
                ).fetchall()
                if ended == count:
                    return float(seconds)
                time.sleep(POLL_S)
        raise RuntimeError(f"{count - ended} of {count} jobs did not succeed")

    return run


@contextmanager
def noop_worker(redis_url: str, processes: int) -> Iterator[Celery]:
    url = redis_url.rpartition("/")[0] + "/1"
    argv = [sys.executable, "-W", "ignore", "-m", "bench.support.noop", url, str(processes)]
    worker = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield make_app(url)
    finally:
        worker.terminate()
        worker.wait(60)


def messages_through(app: Celery, redis_url: str) -> Callable[[int], float]:
    redis = Redis.from_url(redis_url.rpartition("/")[0] + "/1")

    def run(count: int) -> float:
        redis.delete(END)
        began = time.perf_counter()
        for number in range(count):
            app.send_task(TASK, (number,))
        app.send_task(END, (count,))
        while redis.get(END) is None:
            if time.perf_counter() - began > PATIENCE_S:
                raise RuntimeError("the Celery worker took no message")
            time.sleep(0.005)
        return time.perf_counter() - began

    return run


def compare_rates(ways: dict[str, Callable[[int], float]], count: int, rounds: int) -> None:
    for run in ways.values():  # so that each process has its model
        for _ in range(3):
            run(WARM_JOBS)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            seconds[name].append(run(count))
    bare = count / statistics.median(seconds[NOOP])
    print(f"{count} jobs, medians of {rounds} rounds; the ratio is to the {NOOP}")
    for name, times in seconds.items():
        rate = count / statistics.median(times)
        span = f"{count / max(times):.0f} to {count / min(times):.0f}"
        print(f"  {name:24} {rate:7.0f}/s ({span}), ratio {rate / bare:.2f}", flush=True)


def make_collection(client: Client) -> None:
    chance = random.Random(7)
    texts = {
        f"text {number}": " ".join(chance.choices(WORDS, k=chance.randint(20, 60)))
        for number in range(CHUNKS)
    }
    report = client.ingest(COLLECTION, texts=texts)
    if report.chunks != CHUNKS:
        raise RuntimeError(f"the collection has {report.chunks} chunks")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request that waited for its job; times are those of this machine's clock, in seconds."""

    job_id: str
    began_at: float
    ended_at: float

    @property
    def elapsed_ms(self) -> float:
        return (self.ended_at - self.began_at) * 1e3


def compare_latencies(api_url: str, database_url: str, count: int) -> None:
    print(f"one client, `Prefer: wait`, {count} calls of each kind, ms at p50 and p99")
    for name, job in CALLS.items():
        calls = list(wait_for_each(api_url, job, count + WARM_CALLS))[WARM_CALLS:]
        print(f"  {name:24} {_spread([call.elapsed_ms for call in calls])}", flush=True)
        for part, times_ms in parts_of(calls, database_url).items():
            print(f"    {part:22} {_spread(times_ms)}", flush=True)


def wait_for_each(api_url: str, job: NewJob, count: int) -> Iterator[Call]:
    connection = http.client.HTTPConnection(api_url.removeprefix("http://"), timeout=60)
    body = json.dumps(job)
    headers = {"Content-Type": "application/json", "Prefer": "wait=30"}
    for _ in range(count):
        began_at = time.time()
        connection.request("POST", "/v1/jobs", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        ended_at = time.time()
        view = json.loads(content)
        if answer.status != 200 or view["state"] != "succeeded":
            raise RuntimeError(content.decode()[:1000])
        yield Call(job_id=view["id"], began_at=began_at, ended_at=ended_at)
    connection.close()


def parts_of(calls: Sequence[Call], database_url: str) -> dict[str, list[float]]:
    """What passes of each call between the moments that its row notes, in ms. These are those at
    which the statements began that wrote them."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT id::text, extract(epoch FROM created_at)::float8, "
            "extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8 "
            "FROM jobs WHERE id = ANY(%s::uuid[])",
            ([call.job_id for call in calls],),
        ).fetchall()
    moments = {id_: times for id_, *times in rows}
    parts: dict[str, list[float]] = {}
    for call in calls:
        times = [call.began_at, *moments[call.job_id], call.ended_at]
        for name, (first, last) in zip(PARTS, pairwise(times), strict=True):
            parts.setdefault(name, []).append((last - first) * 1e3)
    return parts


def print_encoding(calls: int) -> None:
    """One word, alone, by the embedder of the workers."""
    settings = Settings(_env_file=None, home=Path("/nonexistent"))
    embedder = Embedders(settings).get()
    times_ms = []
    for _ in range(calls + WARM_CALLS):
        began = time.perf_counter()
        embedder.encode(["word"], between=lambda: None)
        times_ms.append((time.perf_counter() - began) * 1e3)
    print(f"  {'encoding alone':24} {_spread(times_ms[WARM_CALLS:])}")


def _spread(times_ms: list[float]) -> str:
    cuts = statistics.quantiles(times_ms, n=100)
    return f"{cuts[49]:6.1f} {cuts[98]:6.1f}"


if __name__ == "__main__":
    sys.exit(main())
