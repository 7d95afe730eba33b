"""Generation for many jobs at once, end to end, against the ways that people generate.

    python -m bench.generate [--precision bfloat16,nf4] [--rounds 3] [--tokens 128] [--shape 90m]
    python -m bench.generate --only mixed --mixed-jobs 320

One model (Llama's architecture, random weights) in one run, on this machine's processor. In turns:
this system (local stack, real API and workers, all jobs submitted at once, timed until the client
has the last result), a pipeline in a Celery task that takes the same jobs one at a time
(`bench/support/plain_generate.py`), and `model.generate()` on static batches of the same size as
this system's limit, in this process, with no queue at all. Then how long a new request waits for
its first token while the batch is busy, measured at the engine. Prints medians over the rounds.
"""

import argparse
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import psutil
import torch

from bench.support.generate_sides import Job, StaticBatch, jobs, plain_celery, sluice
from bench.support.random_model import SHAPES, save_random_model
from shared.config import Settings
from workers.generation.backends.interface import Generation, Request, Sampling
from workers.generation.backends.rolling.generator import RollingBackend, RollingGenerator

ROWS = 32
COUNTS = (1, 8, ROWS)
MIXED_JOBS = 5 * ROWS
MIXED_TOKENS = (8, 256)
NEWCOMERS = 12


class Side(Protocol):
    def run(self, load: Sequence[Job]) -> float: ...


class Rates:
    """Tokens per second by what was run, a value a round."""

    def __init__(self) -> None:
        self._rates: dict[str, list[float]] = {}

    def measure(self, name: str, side: Side, load: Sequence[Job]) -> None:
        rate = sum(job.tokens for job in load) / side.run(load)
        self._rates.setdefault(name, []).append(rate)

    def of(self, name: str) -> float:
        return statistics.median(self._rates[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over the rounds, each of which compares what ran at about the same time."""
        pairs = zip(self._rates[name], self._rates[other], strict=True)
        return statistics.median(one / two for one, two in pairs)


def compare(
    folder: Path,
    model: Path,
    precision: str,
    *,
    rounds: int,
    tokens: int,
    mixed_jobs: int,
    only_mixed: bool,
    seed: int,
) -> None:
    chance = random.Random(seed)
    rates = Rates()
    with ExitStack() as stack:
        plain = stack.enter_context(plain_celery(folder, model, precision))
        ours = stack.enter_context(sluice(model, precision, ROWS))
        static = StaticBatch(model, precision, ROWS)
        for side in (plain, ours, static):  # models are loaded, memory is taken
            side.run(jobs(chance, [16] * (1 if side is plain else ROWS)))
        for number in range(1, rounds + 1):
            for count in () if only_mixed else COUNTS:
                rates.measure(f"plain {count}", plain, jobs(chance, [tokens] * count))
                rates.measure(f"ours {count}", ours, jobs(chance, [tokens] * count))
            if not only_mixed:
                rates.measure("static", static, jobs(chance, [tokens] * ROWS))
            mixed = [chance.randint(*MIXED_TOKENS) for _ in range(mixed_jobs)]
            rates.measure("static mixed", static, jobs(chance, mixed))
            rates.measure("ours mixed", ours, jobs(chance, mixed))
            print(f"round {number} of {rounds} done", flush=True)
    _report(rates, precision, tokens, mixed_jobs, only_mixed)


def _report(rates: Rates, precision: str, tokens: int, mixed_jobs: int, only_mixed: bool) -> None:
    print(f"\n{precision}: tokens/s end to end, {tokens} tokens a job")
    print(f"{'':34}{'theirs':>9}{'sluice':>9}{'ratio':>8}")
    for count in () if only_mixed else COUNTS:
        _row(rates, f"one at a time, {count} jobs", f"plain {count}", f"ours {count}")
    if not only_mixed:
        _row(rates, f"static batch, {ROWS} jobs", "static", f"ours {ROWS}")
    least, most = MIXED_TOKENS
    label = f"static batches, {mixed_jobs} jobs of {least}..{most}"
    _row(rates, label, "static mixed", "ours mixed")


def _row(rates: Rates, label: str, theirs: str, ours: str) -> None:
    print(
        f"  {label:32}{rates.of(theirs):9.1f}{rates.of(ours):9.1f}{rates.ratio(ours, theirs):8.2f}",
        flush=True,
    )


# The first token of a newcomer


def measure_newcomers(model: Path, precision: str, seed: int) -> None:
    """Into a batch that is full but for one place. A step is what a running stream then takes."""
    settings = Settings(
        _env_file=None,
        generation_precision=precision,
        generation_batch_requests=ROWS,
    )
    generator = RollingBackend(settings, on_fatal=lambda: None).generator(str(model))
    prompts = _prompts(seed)
    try:
        _first_token_s(generator, next(prompts))
        alone = [_first_token_s(generator, next(prompts)) for _ in range(NEWCOMERS)]
        streams = [_start(generator, next(prompts), 4096) for _ in range(ROWS - 1)]
        for stream in streams:
            stream.read()  # it has begun
        pace = _Pace(streams[0])
        time.sleep(1)
        busy = [_first_token_s(generator, next(prompts)) for _ in range(NEWCOMERS)]
        step = pace.median_s()
        for stream in streams:
            stream.cancel()
        pace.join()
    finally:
        generator.close()
    prefill = statistics.median(alone)
    waits = [(wait - prefill) / step for wait in busy]
    print(
        f"first token of a new request while {ROWS - 1} others run: "
        f"{statistics.median(busy) * 1e3:.0f} ms; alone, which is its prefill, "
        f"{prefill * 1e3:.0f} ms; a decode step takes {step * 1e3:.0f} ms\n"
        f"  decode steps beyond its prefill: median {statistics.median(waits):.2f}, "
        f"worst of {NEWCOMERS} {max(waits):.2f}",
        flush=True,
    )


def _prompts(seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    while True:
        yield jobs(chance, [1])[0].prompt


def _start(generator: RollingGenerator, prompt: str, tokens: int) -> Generation:
    return generator.start(Request(prompt=prompt, sampling=Sampling(max_tokens=tokens)))


def _first_token_s(generator: RollingGenerator, prompt: str) -> float:
    started = time.perf_counter()
    generation = _start(generator, prompt, 2)
    generation.read()
    seconds = time.perf_counter() - started
    generation.result()
    return seconds


class _Pace:
    """Reads a stream, and notes when its tokens come."""

    def __init__(self, stream: Generation) -> None:
        self._stream = stream
        self._times: list[float] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.join = self._thread.join

    def _read(self) -> None:
        for _ in self._stream:
            self._times.append(time.perf_counter())

    def median_s(self) -> float:
        times = list(self._times)
        return statistics.median(later - earlier for earlier, later in pairwise(times))


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gib = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {psutil.cpu_count()} cores, {memory_gib:.0f} GiB; Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bfloat16,nf4", help="separated by commas")
    parser.add_argument("--shape", choices=SHAPES, default="90m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--mixed-jobs", type=int, default=MIXED_JOBS)
    parser.add_argument("--only", choices=["mixed"], help="leave the other rows out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        parameters = save_random_model(folder / "model", options.shape)
        print(f"{machine()}\nLlama of {parameters / 1e6:.0f}M parameters, batch of at most {ROWS}")
        for precision in options.precision.split(","):
            compare(
                folder,
                folder / "model",
                precision,
                rounds=options.rounds,
                tokens=options.tokens,
                mixed_jobs=options.mixed_jobs,
                only_mixed=options.only == "mixed",
                seed=options.seed,
            )
            if options.only is None:
                measure_newcomers(folder / "model", precision, options.seed + 1)


if __name__ == "__main__":
    main()
