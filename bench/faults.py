"""Bulk ingestion while its parts are killed: does all of it arrive, once?

    python -m bench.faults [--documents 1169]

Ingests the pages of PostgreSQL's documentation through the CLI into a new local stack. At each
fifth of the way a part is killed with SIGKILL: the CPU worker with all its processes (three
times), and redis-server, whose data are thrown away. Then compares the chunks in Postgres with
the ids in Chroma, and ingests the same pages again, which must skip them all.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chromadb
import psycopg

from bench.support.corpus import NoCorpus, pages
from bench.support.stack import peaks_mib, running_stack
from cli.stack.stackfile import Stack, find_stack
from shared.vector_stores import store_of_urls
from sluice import Client

LIVE_CHUNKS = """
    SELECT replace(c.version_id::text, '-', '') || '-' || lpad(c.ordinal::text, 6, '0')
    FROM chunks c JOIN documents d ON d.live_version_id = c.version_id
"""


def run(paths: list[Path]) -> bool:
    with running_stack() as (stack, client):
        folder = stack.home / "pages"
        folder.mkdir()
        for path in paths:
            shutil.copy(path, folder)
        started = time.perf_counter()
        ingestion = start_ingestion(stack)
        kill_at_each_fifth(stack, client, len(paths))
        first = finished(ingestion)
        print(f"first run: {first['documents']}, {first['chunks']} chunks, "
              f"{len(first['errors'])} errors, {time.perf_counter() - started:.0f} s")  # fmt: skip
        agree = compare(stack, first["chunks"])
        peaks = ", ".join(f"{part} {mib:.0f}" for part, mib in peaks_mib(stack).items())
        print(f"peak MiB of what runs now: {peaks}")
        started = time.perf_counter()
        second = finished(start_ingestion(stack))
        print(f"second run: {second['documents']}, {time.perf_counter() - started:.1f} s")
    arrived = first["documents"]["added"] == second["documents"]["skipped"] == len(paths)
    return agree and arrived and not first["errors"]


def start_ingestion(stack: Stack) -> "subprocess.Popen[str]":
    folder = stack.home / "pages"
    command = [sys.executable, "-m", "cli.main", "--url", stack.api_url, "ingest", str(folder),
               "--collection", "faults", "--json"]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finished(ingestion: "subprocess.Popen[str]") -> dict[str, Any]:
    result: dict[str, Any] = json.loads(ingestion.communicate()[0])
    return result


def kill_at_each_fifth(stack: Stack, client: Client, total: int) -> None:
    for number, part in enumerate(("cpu-1", "redis", "cpu-1", "cpu-1"), start=1):
        while (done := progress(client)) < total * number / 5:
            time.sleep(0.2)
        now = find_stack(stack.home)
        pid = next(process.pid for process in now.parts if process.name == part) if now else None
        if pid is None:
            raise RuntimeError(f"{part} does not run")
        if part == "redis":
            throw_away(stack.home / "redis")
        os.killpg(pid, signal.SIGKILL)
        print(f"killed {part} (process group {pid}) after {done} documents", flush=True)
        time.sleep(1)


def throw_away(folder: Path) -> None:
    """Before the kill, so that nothing is left for the restart to read."""
    for left in [*folder.glob("appendonly*"), *folder.glob("*.rdb")]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def progress(client: Client) -> int:
    job = next(iter(client.jobs(kind="ingest")), None)
    return job.progress.done if job is not None and job.progress is not None else 0


def compare(stack: Stack, expected: int) -> bool:
    """Whether both stores have exactly the same chunks, as many as the job reports."""
    (url,) = store_of_urls(stack.vectors_url).urls
    collection = chromadb.HttpClient(host=url.host, port=url.port or 8000).get_collection("faults")
    vectors = set(collection.get(include=[])["ids"])
    with psycopg.connect(stack.database_url) as connection:
        chunks = {row[0] for row in connection.execute(LIVE_CHUNKS)}
        documents = connection.execute("SELECT count(*) FROM documents").fetchone()
    print(f"documents {documents[0] if documents else 0}, chunks in Postgres {len(chunks)}, "
          f"vectors in Chroma {len(vectors)}, the same: {chunks == vectors}")  # fmt: skip
    return chunks == vectors and len(chunks) == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1169)
    try:
        paths = pages(parser.parse_args().documents)
    except NoCorpus as error:
        sys.exit(str(error))
    sys.exit(0 if run(paths) else 1)


if __name__ == "__main__":
    main()
