"""Vector stores side by side: recall against exact search, writing, queries, memory, disk.

Each store is measured in a process of its own, one after the other, on the same vectors of 384
dimensions; seeds are fixed. By default they lie near a space of 32 dimensions, as those of real
texts lie near one of few; `--random` takes directions at random, which is the worst case for every
index. Queries are chunks with noise. Chroma and PostgreSQL are started here, in a temporary folder;
for any other store give its URL (the folder of FAISS has to be there).
`python -m bench.stores chroma postgres qdrant://host:6333`.

The time of a query is that of one thread, without the ledger and without a model. Memory is that of
the server, and what this process has grown by; disk is what the folder of the store has grown by,
for stores that are started here.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from pydantic import SecretStr

from cli.stack.servers import BUFFERS_WITH_VECTORS
from shared.config import Settings
from shared.database.engine import upgrade
from shared.filters import MetadataFilter
from shared.vector_stores import require_store
from tests.servers import Server, start_chroma, start_postgres
from workers.models.devices import Vectors
from workers.retrieval.servers import import_store
from workers.retrieval.store import VectorEntry, VectorStore

DIMENSIONS, LATENT = 384, 32
NOISE = 0.3
"""Of the length of a vector."""
K = 10
PARTS = 20
"""Values of the key that the filter compares: it matches one chunk in so many."""
WRITTEN = 500
NAME = "bench"
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Run:
    chunks: int
    queries: int
    is_random: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a store. `disk_mib` is None where it was not started here."""

    store: str
    chunks_per_s: float
    recall: float
    recall_filtered: float
    p50_ms: float
    p99_ms: float
    memory_mib: float
    disk_mib: float | None


def make_vectors(run: Run) -> tuple[Vectors, Vectors]:
    """The vectors of the chunks and of the queries, of length 1."""
    draw = np.random.default_rng(14)

    def spread(rows: Vectors, noise: float) -> Vectors:
        around = draw.standard_normal(rows.shape, dtype=np.float32)
        return _unit(_unit(rows) + noise * _unit(around))

    if run.is_random:
        chunks = _unit(draw.standard_normal((run.chunks, DIMENSIONS), dtype=np.float32))
    else:
        places = draw.standard_normal((run.chunks, LATENT), dtype=np.float32)
        axes = draw.standard_normal((LATENT, DIMENSIONS), dtype=np.float32)
        chunks = spread(places @ axes, NOISE)
    return chunks, spread(chunks[draw.integers(0, run.chunks, run.queries)], 1.0)


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@contextmanager
def started(url: str, folder: Path) -> Iterator[tuple[Settings, Server | None]]:
    """The settings of a store, and its server if that is started here."""
    server: Server | None = None
    folder.parent.chmod(0o755)  # PostgreSQL runs as another user where this one is root
    if url == "chroma":
        server = start_chroma(folder)
        url = server.url.replace("http", "chroma", 1)
    elif url == "postgres":
        # As the local stack has it (cli/stack/servers.py).
        settings = {"shared_buffers": BUFFERS_WITH_VECTORS}
        server = start_postgres(folder, durable=True, settings=settings)
        upgrade(server.url)
    try:
        database = SecretStr(server.url) if server is not None and url == "postgres" else None
        yield (
            Settings(_env_file=None, vectors_url=SecretStr(url), database_url=database,
                     home=folder / "home"),
            server,
        )  # fmt: skip
    finally:
        if server is not None:
            server.stop()


def measure(url: str, run: Run) -> Row:
    chunks, queries = make_vectors(run)
    with (
        tempfile.TemporaryDirectory(prefix="sluice-stores-") as folder,
        started(url, Path(folder) / "store") as (settings, server),
    ):
        configured = require_store(settings)
        store = import_store(configured.type_)(settings, configured.text)
        own_mib, disk_mib = _memory_mib(None), _disk_mib(Path(folder))
        store.drop(NAME)
        begin = time.perf_counter()
        write(store, chunks)
        written_s = time.perf_counter() - begin
        where = MetadataFilter.read({"part": 3})
        filtered = np.arange(len(chunks)) % PARTS == 3
        recall, times_s = ask(store, chunks, queries, None, np.ones(len(chunks), dtype=bool))
        recall_filtered, _ = ask(store, chunks, queries[: len(queries) // 5], where, filtered)
        row = Row(
            store=str(configured.urls[0]) if server is None else configured.type_.name,
            chunks_per_s=len(chunks) / written_s,
            recall=recall,
            recall_filtered=recall_filtered,
            p50_ms=float(np.percentile(times_s, 50)) * 1000,
            p99_ms=float(np.percentile(times_s, 99)) * 1000,
            memory_mib=_memory_mib(None) - own_mib + (_memory_mib(server.pid) if server else 0),
            disk_mib=_disk_mib(Path(folder)) - disk_mib if server else None,
        )
        store.drop(NAME)
        store.close()
        return row


def write(store: VectorStore, chunks: Vectors) -> None:
    store.make(NAME, "cosine")
    for first in range(0, len(chunks), WRITTEN):
        numbers = range(first, min(first + WRITTEN, len(chunks)))
        entries = [
            VectorEntry(
                id=f"{n:012}", text=f"The text of chunk {n}. " * 30, metadata={"part": n % PARTS},
                own={"source": f"{n // 8}.txt", "document_id": str(n // 8), "start_index": n},
            )
            for n in numbers
        ]  # fmt: skip
        store.upsert(NAME, entries, chunks[first : first + len(entries)])


def ask(
    store: VectorStore,
    chunks: Vectors,
    queries: Vectors,
    where: MetadataFilter | None,
    matching: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
) -> tuple[float, list[float]]:
    """The mean share of the K nearest that are found, and the seconds of each query."""
    found, times_s = 0, []
    for query in queries:
        begin = time.perf_counter()
        (row,) = store.query(NAME, query[None], limit=K, where=where)
        times_s.append(time.perf_counter() - begin)
        exact = np.argsort(np.where(matching, -(chunks @ query), 2))[:K]
        found += len({int(match.id) for match in row} & set(exact.tolist()))
    return found / (K * len(queries)), times_s


def _memory_mib(pid: int | None) -> float:
    """Of a process and its children."""
    process = psutil.Process(pid)
    processes = [process, *process.children(recursive=True)] if pid else [process]
    return sum(one.memory_info().rss for one in processes) / MIB


def _disk_mib(folder: Path) -> float:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "urls", nargs="*", default=["chroma", "postgres"], metavar="STORE",
        help="chroma, postgres (both started here), or a value of SLUICE_VECTORS_URL",
    )  # fmt: skip
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--random", action="store_true", help="directions at random")
    arguments = parser.parse_args()
    run = Run(chunks=arguments.chunks, queries=arguments.queries, is_random=arguments.random)
    print(f"{run.chunks:,} chunks of {DIMENSIONS} dimensions, {run.queries:,} queries, k = {K}")
    print("| store | chunks/s | recall | with a filter | p50 ms | p99 ms | memory MiB | disk MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for url in arguments.urls:
        # A process for each, so that no store's library is in the memory of another.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            row = pool.submit(measure, url, run).result()
        disk = "" if row.disk_mib is None else f"{row.disk_mib:,.0f}"
        print(
            f"| {row.store} | {row.chunks_per_s:,.0f} | {row.recall:.4f} | "
            f"{row.recall_filtered:.4f} | {row.p50_ms:.1f} | {row.p99_ms:.1f} | "
            f"{row.memory_mib:,.0f} | {disk} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
