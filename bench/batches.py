"""A batch of very many lines: what it costs in memory, in every process, and how fast it is.

    python -m bench.batches [--lines 50000] [--mixed]

A stack of its own with its defaults, and the `openai` package as its client. First plain jobs, and
a batch of 2,000 lines, so that all is warm; then one of short lines, which is uploaded, read, run,
listed and looked at, and whose answers are read as a stream at its end. Meanwhile the memory of
every process of the stack, and of this one, is sampled. Prints for each part its process that grew
most: resident memory before the batch and at its peak, and how much of that the process has for
itself (what PostgreSQL's processes share counts for each that has touched it). It fails where an
answer is missing, comes twice or is out of order.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
from openai import OpenAI

from bench.small_jobs import jobs_through
from bench.support.stack import running_stack
from cli.stack.stackfile import Stack, find_stack
from sluice import Client
from sluice.kinds import NewJob

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
COLLECTION = "bench"
PLAIN: NewJob = {"kind": "embed", "input": {"texts": ["word"]}}
WARM_LINES = 2000
SAMPLE_S = 0.5
LOOK_S = 2.0
FINISHED = ("completed", "failed", "expired", "cancelled")
OWN = "this client"


def lines(count: int, *, is_mixed: bool) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"custom_id": f"line-{number}", "method": "POST"} | _request(number, is_mixed)


def _request(number: int, is_mixed: bool) -> dict[str, Any]:
    text = f"text number {number}"
    embedding = {"url": "/v1/embeddings", "body": {"model": MINILM, "input": text}}
    if not is_mixed:
        return embedding
    question = {"collection": COLLECTION, "question": text, "k": 1, "model": "extractive"}
    return (
        embedding,
        {"url": "/v1/embed", "body": {"texts": [text]}},
        {"url": "/v1/search", "body": {"collection": COLLECTION, "query": text, "k": 1}},
        {"url": "/v1/rag", "body": question},
        {"url": "/v1/hf/feature-extraction", "body": {"model": MINILM, "inputs": text}},
    )[number % 5]


@dataclass
class Memory:
    """Of one process, in KiB: resident, and of that its own; before, and at the peak of each."""

    part: str
    start: tuple[int, int]
    peak: tuple[int, int]

    @property
    def growth(self) -> int:
        """Of its own memory."""
        return self.peak[1] - self.start[1]


class Memories(threading.Thread):
    """Samples every process of a stack, and this one, until it is ended."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self._end = threading.Event()
        self.of: dict[int, Memory] = {}

    def run(self) -> None:
        while not self._end.is_set():
            self.sample()
            self._end.wait(SAMPLE_S)

    def end(self) -> None:
        self._end.set()
        self.join()

    def sample(self) -> None:
        for pid, part in self._processes().items():
            with suppress(OSError):  # it has ended
                now = _memory_kib(pid)
                known = self.of.setdefault(pid, Memory(part, now, now))
                known.peak = (max(known.peak[0], now[0]), max(known.peak[1], now[1]))

    def _processes(self) -> dict[int, str]:
        """By id, the part that each belongs to."""
        named = {os.getpid(): OWN}
        stack = find_stack(self._stack.home) or self._stack
        tops = [(stack.pid, "supervisor")]
        tops += [(part.pid, part.name) for part in stack.parts if part.pid is not None]
        for pid, name in tops:  # parts lie below the supervisor, and take their names from it
            with suppress(psutil.NoSuchProcess):
                top = psutil.Process(pid)
                named |= {one.pid: name for one in (top, *top.children(recursive=True))}
        return named

    def report(self) -> None:
        print(f"  {'MiB':12}{'processes':>10}{'before':>9}{'peak':>8}{'own before':>12}{'peak':>8}")
        parts = {memory.part: None for memory in self.of.values()}
        for part in parts:
            own = [memory for memory in self.of.values() if memory.part == part]
            most = max(own, key=lambda memory: memory.growth)
            mib = [kib / 1024 for kib in (*_pairs(most.start, most.peak),)]
            print(
                f"  {part:12}{len(own):10}{mib[0]:9.0f}{mib[1]:8.0f}{mib[2]:12.0f}{mib[3]:8.0f}",
                flush=True,
            )


def _pairs(start: tuple[int, int], peak: tuple[int, int]) -> tuple[int, int, int, int]:
    return start[0], peak[0], start[1], peak[1]


def _memory_kib(pid: int) -> tuple[int, int]:
    """Resident, and of that what is not shared with files or other processes."""
    status = Path(f"/proc/{pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())

    def kib(name: str) -> int:
        # A process that is ending has none any more.
        return int(values.get(name, "0 kB").split()[0])

    return kib("VmRSS"), kib("RssAnon")


class Lines:
    """One batch by the openai package, looked at as a program would that shows it."""

    def __init__(self, openai: OpenAI, client: Client) -> None:
        self._openai, self._client = openai, client
        self.call_ms: list[float] = []

    def run(self, path: Path) -> tuple[str, dict[str, float]]:
        """The id of a batch once it has ended, and the seconds of its parts."""
        began = time.monotonic()
        with path.open("rb") as stream:
            file = self._openai.files.create(file=stream, purpose="batch")
        uploaded = time.monotonic()
        # The package has no name for lines of several endpoints.
        made = self._openai.batches.create(
            input_file_id=file.id,
            endpoint=cast(Any, "mixed"),
            completion_window="24h",
        )
        read: float | None = None
        while True:
            time.sleep(LOOK_S)
            batch = self._openai.batches.retrieve(made.id)
            if read is None and batch.status != "validating":
                read = time.monotonic()
            if batch.status in FINISHED:
                break
            self._look(made.id, batch.output_file_id)
        ended = time.monotonic()
        if batch.status != "completed":
            raise RuntimeError(f"the batch is {batch.status}: {batch.errors}")
        times = {
            "upload": uploaded - began,
            "read": (read or ended) - uploaded,
            "run": ended - (read or ended),
        }
        return made.id, times

    def _look(self, batch_id: str, output_file_id: str | None) -> None:
        self._openai.batches.list(limit=20)
        self._client.batch(batch_id.removeprefix("batch_"))
        if output_file_id is not None:
            began = time.monotonic()
            self._openai.embeddings.create(model=MINILM, input="one of another program")
            self.call_ms.append((time.monotonic() - began) * 1e3)

    def check(self, batch_id: str, count: int) -> float:
        """Read the answers as they come; the seconds that it takes. Raises RuntimeError."""
        file_id = self._openai.batches.retrieve(batch_id).output_file_id
        if file_id is None:
            raise RuntimeError("the batch has no answers")
        began = time.monotonic()
        number = 0
        with self._openai.files.with_streaming_response.content(file_id) as content:
            for line in content.iter_lines():
                answer = json.loads(line)
                if answer["custom_id"] != f"line-{number}":
                    raise RuntimeError(f"{answer['custom_id']} stands in the place of {number}")
                if answer["response"]["status_code"] != 200:
                    raise RuntimeError(line[:1000])
                number += 1
        if number != count:
            raise RuntimeError(f"{number} of {count} answers")
        return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--mixed", action="store_true", help="lines of five endpoints, not of one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_stack() as (stack, client):
        if options.mixed:
            client.put_collection(COLLECTION)
            client.ingest(COLLECTION, texts={"hours": "We open at nine and close at five."})
        openai = OpenAI(base_url=f"{stack.api_url}/openai/v1", api_key="none", timeout=600)
        plain = jobs_through(client, stack.database_url, PLAIN)
        plain(WARM_LINES)
        seconds = plain(WARM_LINES)
        print(f"plain jobs: {WARM_LINES / seconds:.0f}/s", flush=True)
        warm, path = Path(folder) / "warm.jsonl", Path(folder) / "lines.jsonl"
        for file, count in ((warm, WARM_LINES), (path, options.lines)):
            with file.open("w") as stream:
                for line in lines(count, is_mixed=options.mixed):
                    stream.write(f"{json.dumps(line)}\n")
        looker = Lines(openai, client)
        looker.check(looker.run(warm)[0], WARM_LINES)
        looker.call_ms.clear()
        memories = Memories(stack)
        memories.sample()
        memories.start()
        try:
            batch_id, times = looker.run(path)
            download_s = looker.check(batch_id, options.lines)
            listed = sum(1 for _ in client.jobs(batch=batch_id.removeprefix("batch_")))
        finally:
            memories.end()
        print(
            f"{options.lines:,} lines of {path.stat().st_size / 2**20:.1f} MiB: "
            + ", ".join(f"{name} {value:.1f} s" for name, value in times.items())
            + f", download {download_s:.1f} s; {options.lines / times['run']:.0f} lines/s; "
            f"{listed:,} jobs listed"
        )
        if looker.call_ms:
            cost_ms = statistics.median(looker.call_ms)
            print(f"one embedding of another program meanwhile: {cost_ms:.0f} ms (median)")
        memories.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
