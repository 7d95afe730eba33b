"""A batch of mixed lines, run in peace and run while its servers and workers are killed.

    python -m tests.e2e.batch_faults --lines 5000 --seeds 3

starts a stack of its own, runs the lines once undisturbed and once for each seed while the API, the
workers and Redis are killed at seeded moments, and compares the answers line by line. It prints a
line for each run, and ends with 1 where answers differ, are missing or come twice.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sluice import Batch, Client
from tests.e2e.generators import GenerationWorker
from tests.e2e.processes import until
from tests.e2e.stack import QUICK, LiveStack, temporary_stack
from tests.tiny import distilbert, mlm
from tests.tiny.zoo import place
from tests.tiny_models import Answerer, load_answerer

COLLECTION = "batch-faults"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
OF_A_RUN = ("id", "created", "created_at", "completed_at")
"""Fields of answers that tell runs apart."""
FACTS = {
    "opening.md": "The museum opens at ten in the morning and closes at six.",
    "cats.md": "Cats sleep for most of the day. A cat sleeps fifteen hours on average.",
    "trains.md": "The train to Busan leaves at nine. Trains run every thirty minutes.",
    "bread.md": "The bakery sells bread from five o'clock, and cakes from eight.",
}
QUESTIONS = (
    "When does the museum open?", "How long does a cat sleep?", "When does the train leave?",
    "When is there bread?",
)  # fmt: skip
FINISHED = ("completed", "failed", "expired", "cancelled")
WORKER_SETTINGS = {
    "SLUICE_GENERATION_THREADS": "1",
    "SLUICE_GENERATION_BATCH_REQUESTS": "32",
    "SLUICE_STEP_LEASE_S": "3",
    "SLUICE_RETRY_BASE_S": "0.2",
}
ATTEMPTS = 10
"""Of each line: each kill costs those an attempt that run."""
TOLERANCE = 1e-3
"""Numbers depend a little on what shares a batch with a text."""


def lines(
    count: int, *, model: str, questions: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """Lines of all endpoints but one, `/v1/chat`, mixed."""
    rng = random.Random(seed)
    made = []
    for n in range(count):
        kind = rng.choices(("chat", "embed", "rag", "hf"), (4, 3, 1, 2))[0]
        made.append({"custom_id": f"{kind}-{n}"} | _request(kind, n, rng, model, questions))
    return made


def _request(
    kind: str, n: int, rng: random.Random, model: str, questions: Sequence[str]
) -> dict[str, Any]:
    if kind == "chat":
        return _generation(n, rng.choice(questions), model)
    if kind == "embed":
        words = rng.sample(("red", "green", "old", "new", "slow", "quick", "house", "river"), 4)
        text = f"{' '.join(words)} {n}"
        if rng.random() < 0.5:
            return {"url": "/v1/embed", "body": {"texts": [text]}}
        return {"url": "/v1/embeddings", "body": {"model": EMBEDDING_MODEL, "input": text}}
    if kind == "rag":
        question = f"{rng.choice(QUESTIONS)}"
        if n % 2:
            return {
                "url": "/v1/search",
                "body": {"collection": COLLECTION, "query": question, "k": 1},
            }
        return {
            "url": "/v1/rag",
            "body": {"collection": COLLECTION, "question": question, "model": "extractive"},
        }
    if rng.random() < 0.5:
        inputs = rng.choice(list(distilbert.SENTIMENTS))
        return {"url": "/v1/hf/text-classification", "body": {"inputs": inputs}}
    return {"url": "/v1/hf/fill-mask", "body": {"inputs": rng.choice(list(mlm.FILLED))}}


def _generation(n: int, question: str, model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    url, body = (
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 64}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 64}),
        ("/v1/completions", {"prompt": question, "max_tokens": 16, "temperature": 0}),
        ("/v1/responses", {"input": question, "max_output_tokens": 64, "temperature": 0}),
    )[n % 4]
    return {"url": url, "body": {"model": model, **body}}


class Faults:
    """Kills parts of a stack at moments that the seed says."""

    def __init__(self, stack: LiveStack, generator: GenerationWorker, seed: int) -> None:
        self._stack = stack
        self._generator = generator
        self._rng = random.Random(seed)
        self.done: list[str] = []

    def plan(self, count: int) -> list[tuple[float, str]]:
        """Moments, as parts of the batch that are done, and what dies at each; each part at
        least once, where there are enough."""
        parts = ["api", "cpu", "pool", "redis", "generator"]
        chosen = (parts * math.ceil(count / len(parts)))[:count]
        self._rng.shuffle(chosen)
        moments = sorted(self._rng.uniform(0.03, 0.9) for _ in chosen)
        return list(zip(moments, chosen, strict=True))

    def strike(self, part: str) -> None:
        self.done.append(part)
        if part == "api":
            self._stack.kill_and_await("api")
        elif part == "cpu":
            self._stack.kill_and_await("cpu-1", group=True)
        elif part == "pool":
            self._stack.kill_pool()
        elif part == "redis":
            self._stack.lose_redis()
        else:
            self._generator.kill()
            self._generator.start()


def run(
    stack: LiveStack,
    path: Path,
    *,
    disturb: Callable[[float], None] | None = None,
    deadline_s: float = 600,
) -> Batch:
    """The batch of a file, ended; `disturb` is called with the part of it that is done."""
    with stack.client() as client:
        batch = client.create_batch(path, max_attempts=ATTEMPTS)
        total = sum(1 for line in path.read_text().splitlines() if line.strip())
        count = "SELECT count(*) FROM jobs WHERE batch_id = %s AND state = 'succeeded'"

        def ended() -> bool:
            if disturb is not None:
                disturb(int(stack.value(count, batch.id)) / total)
            closed = "SELECT count(*) FROM batches WHERE id = %s AND closed_at IS NOT NULL"
            return bool(stack.value(closed, batch.id))

        until(ended, "the batch has ended", deadline_s)
        return client.batch(batch.id)


def answers(client: Client, batch: Batch) -> dict[str, Any]:
    """The bodies by custom_id, each of which comes once and in the order of the file."""
    bodies: dict[str, Any] = {}
    for line in client.batch_results(batch.id):
        assert line["custom_id"] not in bodies, f"{line['custom_id']} was answered twice"
        bodies[line["custom_id"]] = _of_any_run(line["response"]["body"])
    return bodies


def _of_any_run(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _of_any_run(v) for k, v in value.items() if k not in OF_A_RUN}
    return [_of_any_run(item) for item in value] if isinstance(value, list) else value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Which lines have different answers, or none."""
    if list(one) != list(other):
        return [f"{len(one)} and {len(other)} answers, or in another order"]
    return [name for name in one if not same(one[name], other[name])]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= TOLERANCE
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def prepare(stack: LiveStack) -> None:
    """Models and a collection."""
    place(stack.home / "models")
    with stack.client() as client:
        client.put_collection(COLLECTION)
        job = client.submit(
            "ingest",
            {
                "collection": COLLECTION,
                "sources": [
                    {"type": "text", "name": name, "text": text} for name, text in FACTS.items()
                ],
            },
        )
        job.wait().require_success()


def write(path: Path, count: int, model: str, answerer: Answerer) -> list[str]:
    """The lines into a file; their ids."""
    short = [q for q, text in answerer.questions.items() if len(text) < 60]
    made = lines(count, model=model, questions=short)
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in made))
    return [line["custom_id"] for line in made]


def disturbed(
    stack: LiveStack, generator: GenerationWorker, path: Path, *, seed: int, faults: int
) -> tuple[Batch, list[str]]:
    """The batch, run while parts are killed; and what was."""
    killer = Faults(stack, generator, seed)
    plan = killer.plan(faults)

    def disturb(done: float) -> None:
        while plan and done >= plan[0][0]:
            killer.strike(plan.pop(0)[1])

    batch = run(stack, path, disturb=disturb, deadline_s=3600)
    return batch, killer.done


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--faults", type=int, default=10, help="how often something is killed")
    given = parser.parse_args()
    failed = 0
    with temporary_stack("sluice-batch-", QUICK) as stack:
        folder = stack.home.parent
        prepare(stack)
        answerer = load_answerer()
        generator = GenerationWorker(
            stack, f"hf/{answerer.path}", "tiny-1", folder / "log", **WORKER_SETTINGS
        )
        try:
            generator.until_ready()
            ids = write(folder / "lines.jsonl", given.lines, f"hf/{answerer.path}", answerer)
            began = time.monotonic()
            peaceful = run(stack, folder / "lines.jsonl", deadline_s=3600)
            with stack.client() as client:
                expected = answers(client, peaceful)
            took = time.monotonic() - began
            print(
                f"undisturbed: {peaceful.status}, {len(expected)} answers, {took:.0f} s", flush=True
            )
            failed += list(expected) != ids
            for seed in range(given.seeds):
                began = time.monotonic()
                batch, done = disturbed(
                    stack, generator, folder / "lines.jsonl", seed=seed, faults=given.faults
                )
                with stack.client() as client:
                    wrong = differences(expected, answers(client, batch))
                print(
                    f"seed {seed}: {batch.status}, {batch.lines.succeeded} of {batch.lines.total} "
                    f"answers, {len(wrong)} differ {wrong[:3]}, {time.monotonic() - began:.0f} s; "
                    f"killed: {', '.join(done)}",
                    flush=True,
                )
                failed += bool(wrong) or batch.status != "completed" or len(done) < given.faults
                stack.until_whole()
        finally:
            generator.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
