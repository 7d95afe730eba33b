"""The three ways of generating that `bench/generate.py` compares: each takes a load of jobs and
returns the seconds until the last one is done."""

import random
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from celery import Celery

from bench.support.plain_generate import TASK, make_app
from bench.support.stack import running_stack
from shared.config import Settings
from sluice import Client, State
from sluice.kinds import NewJob
from tests.servers import start_redis
from workers.models.load import load_generator

PATIENCE_S = 600.0
PROMPT_TOKENS = 50


@dataclass(frozen=True, kw_only=True)
class Job:
    prompt: str
    tokens: int


def jobs(chance: random.Random, lengths: Sequence[int]) -> list[Job]:
    """Prompts that have nothing in common: no side can reuse what it has computed."""
    letters = string.ascii_letters + " "
    return [
        Job(prompt="".join(chance.choices(letters, k=PROMPT_TOKENS)), tokens=length)
        for length in lengths
    ]


class PlainCelery:
    """One at a time, in a worker with the model in a pipeline."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def run(self, load: Sequence[Job]) -> float:
        started = time.perf_counter()
        sent = [self._app.send_task(TASK, (job.prompt, job.tokens)) for job in load]
        for result in sent:
            result.get(timeout=PATIENCE_S)
        return time.perf_counter() - started


@contextmanager
def plain_celery(folder: Path, model: Path, precision: str) -> Iterator[PlainCelery]:
    redis = start_redis(folder / f"redis-{precision}")
    argv = [sys.executable, "-W", "ignore", "-m", "bench.support.plain_generate"]
    with (folder / "plain.log").open("ab") as log:
        worker = subprocess.Popen([*argv, redis.url, str(model), precision], stdout=log, stderr=log)
    try:
        yield PlainCelery(make_app(redis.url))
    finally:
        worker.terminate()
        worker.wait(60)
        redis.stop()


class StaticBatch:
    """As many as `rows` at a time through `generate()`, which runs until the longest is done."""

    def __init__(self, model: Path, precision: str, rows: int) -> None:
        settings = Settings(_env_file=None, generation_precision=precision)
        self._loaded = load_generator(str(model), settings)
        self._model: Any = self._loaded.model
        self._rows = rows

    def run(self, load: Sequence[Job]) -> float:
        started = time.perf_counter()
        for first in range(0, len(load), self._rows):
            batch = load[first : first + self._rows]
            inputs = self._loaded.tokenizer(
                [job.prompt for job in batch], return_tensors="pt", padding=True
            )
            longest = max(job.tokens for job in batch)
            with torch.inference_mode():
                ids = self._model.generate(**inputs, max_new_tokens=longest, do_sample=False)
            texts = self._loaded.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
            if len(texts) != len(batch) or ids.shape[1] != PROMPT_TOKENS + longest:
                raise RuntimeError("generate() did not generate as many tokens as it should")
        return time.perf_counter() - started


class Sluice:
    """The whole system: HTTP, PostgreSQL, generation worker, results by HTTP."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def run(self, load: Sequence[Job]) -> float:
        bodies: list[NewJob] = [
            {
                "kind": "chat",
                "input": {
                    "messages": [{"role": "user", "content": job.prompt}],
                    "parameters": {"max_tokens": job.tokens},
                },
            }
            for job in load
        ]
        started = time.perf_counter()
        ids = self._client.submit_batch(bodies)
        # By the time that the last one has ended, so have most others.
        ended = [self._client.wait(job_id, timeout_s=PATIENCE_S) for job_id in reversed(ids)]
        seconds = time.perf_counter() - started
        for job, record in zip(reversed(load), ended, strict=True):
            count = (record.result or {}).get("usage", {}).get("completion_tokens")
            if record.state is not State.SUCCEEDED or count != job.tokens:
                raise RuntimeError(f"a job ended as {record.state}, with {count} tokens: {record}")
        return seconds


@contextmanager
def sluice(model: Path, precision: str, rows: int) -> Iterator[Sluice]:
    settings = {
        "SLUICE_GENERATION_MODEL": f"hf/{model}",
        "SLUICE_GENERATION_PRECISION": precision,
        "SLUICE_GENERATION_BATCH_REQUESTS": str(rows),
    }
    with running_stack(**settings) as (_, client):
        yield Sluice(client)
