"""Bulk ingestion, end to end, against the script that people write themselves.

    python -m bench.ingest [--documents 200] [--rounds 2] [--memory]

In one run, on one corpus (pages of PostgreSQL's documentation), in turns: the plain script
(`bench/support/plain_ingest.py`) and this system (local stack, real API and workers, timed from the
first upload to the end of the job). Prints chunks/s of both, their ratio, and peak memory. With
`--memory`, instead, ingests the pages once and ten copies of each, in new stacks, and compares the
peaks.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.support.corpus import NoCorpus, pages
from bench.support.stack import peaks_mib, running_stack
from shared.config import DEFAULT_EMBEDDING_MODEL

COPIES = 10


@dataclass(frozen=True, kw_only=True)
class Measured:
    chunks: int
    seconds: float
    peaks_mib: dict[str, float]

    @property
    def rate(self) -> float:
        return self.chunks / self.seconds


def plain(paths: list[Path]) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names"
        names.write_text("\n".join(map(str, paths)))
        command = [
            sys.executable, "-W", "ignore", "-m", "bench.support.plain_ingest",
            f"{folder}/chroma", DEFAULT_EMBEDDING_MODEL, str(names),
        ]  # fmt: skip
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    report = json.loads(done.stdout)
    return Measured(
        chunks=report["chunks"], seconds=report["seconds"], peaks_mib={"script": report["peak_mib"]}
    )


def sluice(paths: list[Path]) -> Measured:
    with running_stack() as (stack, client):
        # Both sides have their model loaded before the clock starts.
        for _ in range(8):
            client.embed(["warm"])
        started = time.perf_counter()
        report = client.ingest("bench", paths)
        seconds = time.perf_counter() - started
        if report.errors or report.documents.added != len(paths):
            raise RuntimeError(f"not everything was ingested: {report}")
        return Measured(chunks=report.chunks, seconds=seconds, peaks_mib=peaks_mib(stack))


def compare_speed(paths: list[Path], rounds: int) -> None:
    ratios = []
    for number in range(1, rounds + 1):
        theirs, ours = plain(paths), sluice(paths)
        ratios.append(ours.rate / theirs.rate)
        print(f"round {number}, {len(paths)} pages")
        for name, measured in (("plain script", theirs), ("sluice", ours)):
            peaks = ", ".join(f"{part} {mib:.0f}" for part, mib in measured.peaks_mib.items())
            print(
                f"  {name:13}{measured.chunks:6} chunks in {measured.seconds:6.1f} s = "
                f"{measured.rate:6.1f} chunks/s; peak MiB: {peaks}"
            )
        print(f"  ratio        {ratios[-1]:6.2f}", flush=True)
    print(f"median ratio sluice / plain script: {statistics.median(ratios):.2f}")


def compare_memory(paths: list[Path]) -> None:
    """Ten copies of each page against one: the same sizes, ten times as many documents."""
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for path in paths:
            for number in range(COPIES):
                copies.append(Path(folder) / f"{path.stem}-{number}.html")
                shutil.copy(path, copies[-1])
        few, many = sluice(copies[::COPIES]), sluice(copies)
    print(f"peak MiB of the largest process of each part: {len(paths)} and {len(copies)} documents")
    for part, mib in many.peaks_mib.items():
        before = few.peaks_mib[part]
        print(f"  {part:12}{before:8.0f}{mib:8.0f}  x {mib / before:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    try:
        paths = pages(arguments.documents)
    except NoCorpus as error:
        sys.exit(str(error))
    if arguments.memory:
        compare_memory(paths)
    else:
        compare_speed(paths, arguments.rounds)


if __name__ == "__main__":
    main()
