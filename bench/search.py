"""How long a search takes, end to end through the API and the queue, and how that grows.

    python -m bench.search [--chunks 10000 200000] [--clients 1 16] [--rounds 3] [--calls 100]
                           [--types hybrid lexical ...] [--busy] [--explain] [--parts]
                           [--home FOLDER] [--json FILE]

One stack runs with its defaults. Collections of so many chunks are filled as
`bench/support/filling.py` says, in 10 to 20 minutes for 200,000; with `--home` they are kept there,
with the whole stack, for further runs. Then clients send searches, each the next one when it has
the answer to the last (`Prefer: wait`), a new query each time: three to ten words of the corpus.
Prints the milliseconds from the request to the answer, p50 and p99 of all rounds, of each type,
size and number of clients; and p50 of the largest size divided by that of the smallest, beside
the square root of the ratio of their sizes.

`--parts` prints for one client what passes between the moments that the rows of jobs note.
`--busy` measures the largest collection with one client, idle and while an ingest job of many
documents keeps all CPU workers busy. `--explain` prints how PostgreSQL runs each statement of a
search, and fails where it reads a whole table.
"""

import argparse
import http.client
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import psycopg
from pydantic import SecretStr
from sqlalchemy import event, text

from bench.small_jobs import Call, parts_of
from bench.support.corpus import NoCorpus
from bench.support.filling import Corpus, Filling, make_corpus
from bench.support.stack import running_stack
from cli.stack.stackfile import Stack
from shared.config import Settings
from shared.documents import collections
from shared.errors import NotFound
from shared.kinds.search import SearchOptions
from sluice import Client
from workers.attempts.process import Process
from workers.retrieval.lexical import HEADS, PAGES, SNAPSHOT
from workers.retrieval.search import SearchRequest, search

TYPES: Final[dict[str, dict[str, Any]]] = {
    "hybrid": {},
    "lexical": {"type": "lexical"},
    "similarity": {"type": "similarity"},
    "mmr": {"type": "mmr"},
    "similarity_score_threshold": {"type": "similarity_score_threshold", "score_threshold": 0.2},
}
WARM_CALLS = 30
BULK_DOCUMENTS = 1500
BULK_CHARS = 6000
BULK_STARTS_S = 60.0
SCANNED_ROWS = 1000
"""Tables with fewer rows are rightly read as a whole."""
_ROWS = re.compile(r"rows=([\d.]+) loops=(\d+)")
_REMOVED = re.compile(r"Rows Removed by Filter: (\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=100, help="of each client in a round, at most")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--explain", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--home", type=Path, help="keeps the stack and its collections")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    options = parser.parse_args()
    figures: list[dict[str, Any]] = []
    try:
        with ExitStack() as entered:
            home = options.home or Path(entered.enter_context(tempfile.TemporaryDirectory()))
            stack, client = entered.enter_context(running_stack(home))
            process = entered.enter_context(process_of(stack))
            corpus = make_corpus(process, kept=home)
            sizes = sorted(options.chunks)
            for size in sizes:
                fill(process, corpus, size)
            bench = Bench(stack, corpus, calls=options.calls, rounds=options.rounds)
            for clients in options.clients:
                figures += bench.compare(sizes, clients, options.types)
            if options.parts:
                bench.print_parts(sizes[-1], options.types)
            if options.busy:
                figures += bench.beside_ingest(client, sizes[-1], options.types)
            if options.explain and not explain(process, corpus, sizes[-1]):
                return 1
    except NoCorpus as error:
        sys.exit(str(error))
    finally:
        if options.json is not None:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def name_of(size: int) -> str:
    return f"bench-{size}"


@contextmanager
def process_of(stack: Stack) -> Iterator[Process]:
    """A process of this program that does what a worker does, on the servers of the stack."""
    settings = Settings(
        _env_file=None,
        home=stack.home,
        database_url=SecretStr(stack.database_url),
        redis_url=SecretStr(stack.redis_url),
        vectors_url=SecretStr(stack.vectors_url),
    )
    process = Process(settings, "bench")
    try:
        yield process
    finally:
        process.close()


def fill(process: Process, corpus: Corpus, size: int) -> None:
    """Make the collection unless it is there."""
    name = name_of(size)
    try:
        with process.ledger.read() as session:
            there = collections.summary(session, collections.get(session, name)).chunks
    except NotFound:
        there = 0
    if there == size:
        return
    if there:
        raise RuntimeError(f"{name} has {there:,} chunks: an earlier run broke off; remove --home")
    began = time.perf_counter()
    Filling(process, corpus, name).write(size)
    with process.ledger.begin() as session:
        session.execute(text("ANALYZE"))
    print(f"{size:,} chunks written in {time.perf_counter() - began:.0f} s", flush=True)


class Bench:
    """Sends searches to a stack, and measures how long they take."""

    def __init__(self, stack: Stack, corpus: Corpus, *, calls: int, rounds: int) -> None:
        self._stack = stack
        self._corpus = corpus
        self._calls = calls
        self._rounds = rounds
        self._queries = iter(corpus.queries(10**6, seed=3))

    def compare(
        self, sizes: Sequence[int], clients: int, types: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Of each type and size, in turns."""
        times: dict[tuple[str, int], list[float]] = {}
        rates: dict[tuple[str, int], list[float]] = {}
        ways = [(type_, size) for type_ in types for size in sizes]
        for type_, size in ways:
            self.run(type_, size, clients, WARM_CALLS)
        for _ in range(self._rounds):
            for way in ways:
                began = time.perf_counter()
                calls = self.run(*way, clients, self._calls)
                rates.setdefault(way, []).append(len(calls) / (time.perf_counter() - began))
                times.setdefault(way, []).extend(call.elapsed_ms for call in calls)
        noun = "client" if clients == 1 else "clients"
        print(f"{clients} {noun}; ms at p50 and p99, and searches a second")
        figures = []
        for type_, size in ways:
            figure = _figure(times[type_, size]) | {
                "type": type_, "chunks": size, "clients": clients,
                "per_s": round(float(np.median(rates[type_, size])), 1),
            }  # fmt: skip
            figures.append(figure)
            growth = figure["p50_ms"] / np.percentile(times[type_, sizes[0]], 50)
            root = math.sqrt(size / sizes[0])
            behind = f", {growth:.2f} times (square root: {root:.2f})" if size > sizes[0] else ""
            print(
                f"  {type_:26} {size:9,} {figure['p50_ms']:7.1f} {figure['p99_ms']:7.1f} "
                f"{figure['per_s']:6.1f}/s{behind}",
                flush=True,
            )
        return figures

    def run(self, type_: str, size: int, clients: int, calls: int) -> list[Call]:
        """So many calls of each client, all clients at once; fewer of each where they are many."""
        each = calls if clients == 1 else max(5, calls // 4)
        queries = [[next(self._queries) for _ in range(each)] for _ in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            done = pool.map(lambda own: list(self._call(type_, size, own)), queries)
            return [call for calls_ in done for call in calls_]

    def _call(self, type_: str, size: int, queries: Sequence[str]) -> Iterator[Call]:
        connection = http.client.HTTPConnection(
            self._stack.api_url.removeprefix("http://"), timeout=120
        )
        headers = {"Content-Type": "application/json", "Prefer": "wait=60"}
        for query in queries:
            job = {
                "kind": "search",
                "input": {"collection": name_of(size), "query": query, "search": TYPES[type_]},
            }
            body = json.dumps(job)
            began_at = time.time()
            connection.request("POST", "/v1/jobs", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            ended_at = time.time()
            view = json.loads(content)
            if answer.status != 200 or view["state"] != "succeeded":
                raise RuntimeError(content.decode()[:1000])
            if not view["result"]["hits"] and type_ == "hybrid":
                raise RuntimeError(f"nothing was found for {query!r}")
            yield Call(job_id=view["id"], began_at=began_at, ended_at=ended_at)
        connection.close()

    def print_parts(self, size: int, types: Sequence[str]) -> None:
        for type_ in types:
            calls = self.run(type_, size, 1, self._calls)
            print(f"{type_}, {size:,} chunks, one client; ms at p50 and p99")
            for part, times_ms in parts_of(calls, self._stack.database_url).items():
                print(
                    f"    {part:22} {np.percentile(times_ms, 50):6.1f} "
                    f"{np.percentile(times_ms, 99):6.1f}",
                    flush=True,
                )

    def beside_ingest(
        self, client: Client, size: int, types: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The same idle, and while documents are ingested into another collection."""
        figures = []
        print("one client, idle and beside a bulk ingest; ms at p50 and p99")
        for type_ in types:
            idle = [
                call.elapsed_ms
                for _ in range(self._rounds)
                for call in self.run(type_, size, 1, self._calls)
            ]
            with bulk_ingest(client, self._stack, self._corpus):
                calls = [
                    call
                    for _ in range(self._rounds)
                    for call in self.run(type_, size, 1, self._calls)
                ]
            busy = [call.elapsed_ms for call in calls]
            pairs = _figure(idle), _figure(busy)
            figures += [
                pair | {"type": type_, "chunks": size, "clients": 1, "beside": beside}
                for pair, beside in zip(pairs, ("nothing", "ingest"), strict=True)
            ]
            ratio = pairs[1]["p99_ms"] / pairs[0]["p99_ms"]
            print(
                f"  {type_:26} {size:9,} idle {pairs[0]['p50_ms']:.1f} {pairs[0]['p99_ms']:.1f}, "
                f"beside {pairs[1]['p50_ms']:.1f} {pairs[1]['p99_ms']:.1f}: p99 {ratio:.1f} times",
                flush=True,
            )
        return figures


def _figure(times_ms: Sequence[float]) -> dict[str, Any]:
    p50, p99 = np.percentile(times_ms, (50, 99)).tolist()
    return {"calls": len(times_ms), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}


@contextmanager
def bulk_ingest(client: Client, stack: Stack, corpus: Corpus) -> Iterator[None]:
    """A job that embeds all the while; cancelled in the end. Raises RuntimeError where it was
    through before."""
    name = f"bulk-{uuid4().hex[:8]}"
    text_ = " ".join(corpus.sentences)
    step = max(1, (len(text_) - BULK_CHARS) // BULK_DOCUMENTS)
    sources = [
        {"type": "text", "name": f"{n}.txt", "text": text_[n * step : n * step + BULK_CHARS]}
        for n in range(BULK_DOCUMENTS)
    ]
    client.put_collection(name)
    job_id = client.submit_untyped("ingest", {"collection": name, "sources": sources}).id
    running = (
        "SELECT count(*) FROM steps WHERE job_id = %s AND name = 'ingest.embed' "
        "AND state = 'running'"
    )
    with psycopg.connect(stack.database_url, autocommit=True) as connection:

        def count() -> int:
            return int(connection.execute(running, (str(job_id),)).fetchall()[0][0])

        deadline = time.monotonic() + BULK_STARTS_S
        while count() < Settings(_env_file=None).worker_concurrency:
            if time.monotonic() > deadline:
                raise RuntimeError("the ingest job does not keep the workers busy")
            time.sleep(0.2)
        yield
        if not count():
            raise RuntimeError("the ingest job was through too early; make BULK_DOCUMENTS larger")
    client.cancel(job_id)
    client.wait(job_id, timeout_s=120)
    client.delete_collection(name)


def explain(process: Process, corpus: Corpus, size: int) -> bool:
    """Print the plans; whether none of them reads a whole table."""
    made: list[tuple[str, Any]] = []
    engine = process.ledger.engine

    @event.listens_for(engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        made.append((statement, values))

    for type_, query in zip(TYPES, corpus.queries(len(TYPES), seed=5), strict=True):
        options = SearchOptions.model_validate(TYPES[type_])
        request = SearchRequest(collections=[name_of(size)], queries=[query], k=6, options=options)
        search(process, request)
    event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        (collection_id,) = connection.exec_driver_sql(
            "SELECT id FROM collections WHERE name = %s", (name_of(size),)
        ).one()
        rows = connection.exec_driver_sql(
            "SELECT segment_id, last_term FROM lexical_pages ORDER BY random() LIMIT 20"
        ).all()
        ids, ends = zip(*rows, strict=True)
        values = {"id": collection_id, "unindexed": 1000, "ids": list(ids), "ends": list(ends)}
        made += [(SNAPSHOT, values), (HEADS, values), (PAGES, values)]
        is_good = True
        for statement, parameters in {statement: (statement, p) for statement, p in made}.values():
            if not statement.lstrip().upper().startswith("SELECT"):
                continue
            plan = [
                row[0]
                for row in connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}", parameters
                )
            ]
            print(f"-- {' '.join(statement.split())[:400]}")
            print("\n".join(plan), flush=True)
            if any(rows > SCANNED_ROWS for rows in scanned(plan)):
                is_good = False
                print("-- THIS READS A WHOLE TABLE")
    return is_good


def scanned(plan: Sequence[str]) -> Iterator[float]:
    """The rows that each scan of a whole table has read."""
    for n, line in enumerate(plan):
        if "Seq Scan on " in line and (own := _ROWS.search(line)):
            removed = _REMOVED.search("\n".join(plan[n : n + 3]))
            yield (float(own[1]) + (int(removed[1]) if removed else 0)) * int(own[2])


if __name__ == "__main__":
    sys.exit(main())
