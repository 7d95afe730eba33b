"""How much batching wins: short texts through one model, together against one at a time.

Two stacks run side by side on this machine, alike but for SLUICE_HF_BATCH_STEPS (the default, and
1: each job by itself, as a task queue without batching runs them); rounds alternate between them.
Measured is from the submission of all jobs until the last one has ended. The models are a
DistilBERT of the size of the one of SST-2 (67M parameters, random weights) and the true
all-MiniLM-L6-v2. Below, the same texts through the bare model in this process, which is the most
that batching can win here: `python -m bench.hf --texts 64 --rounds 5`.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)
from transformers.utils.logging import disable_progress_bar

from bench.support.stack import running_stack
from shared.config import Settings
from shared.kinds.hf import Task, parse_parameters
from sluice import Client
from sluice.kinds import NewJob
from workers.hf.steps import Budget, batches, run_rows
from workers.hf.task import UNWATCHED, Models

WORDS = [
    "the", "service", "was", "friendly", "and", "quick", "food", "arrived", "cold", "nobody",
    "answered", "our", "letters", "room", "quiet", "clean", "view", "over", "river", "lovely",
    "staff", "helped", "us", "find", "train", "late", "refund", "never", "came", "would", "gladly",
    "come", "again", "battery", "lasts", "two", "days", "screen", "broke", "after", "week", "works",
]  # fmt: skip
DISTILBERT = "bench/distilbert"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MODELS = {
    "DistilBERT, text-classification": (Task("text-classification"), DISTILBERT),
    "MiniLM, feature-extraction": (Task("feature-extraction"), MINILM),
}
WAIT_S = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    texts = _texts(options.texts)
    with ExitStack() as exits:
        stacks = {
            "together": exits.enter_context(running_stack()),
            "one at a time": exits.enter_context(running_stack(SLUICE_HF_BATCH_STEPS="1")),
        }
        for stack, _ in stacks.values():
            save_distilbert(stack.home / "models" / DISTILBERT)
        clients = {name: client for name, (_, client) in stacks.items()}
        print(f"{options.texts} jobs of one text each, medians of {options.rounds} rounds")
        for title, (task, model) in MODELS.items():
            _compare(title, clients, task, model, texts, options.rounds)
        home = stacks["together"][0].home
        for title, (task, model) in MODELS.items():
            _compare_bare(title, home, task, model, texts, options.rounds)
    return 0


def _texts(count: int) -> list[str]:
    """Reviews of 3 to 10 words, always the same."""
    dice = random.Random(4)
    return [" ".join(dice.choices(WORDS, k=dice.randint(3, 10))) for _ in range(count)]


def save_distilbert(folder: Path) -> None:
    """The size of distilbert-base-uncased; its vocabulary is padded to that size as well."""
    disable_progress_bar()
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(DistilBertConfig())
    model.save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: n for n, word in enumerate(dict.fromkeys([*special, *WORDS]))}
    BertTokenizer(vocab=words, model_max_length=512).save_pretrained(folder)


def _compare(
    title: str, clients: dict[str, Client], task: Task, model: str, texts: list[str], rounds: int
) -> None:
    for client in clients.values():
        for _ in range(2):  # so that each process of the pool has the model
            _run(client, task, model, texts)
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, client in clients.items():
            seconds[name].append(_run(client, task, model, texts))
    _report(title, seconds, len(texts))


def _run(client: Client, task: Task, model: str, texts: list[str]) -> float:
    """Seconds from the submission until the last job has ended, by the ledger's own clock; raises
    if one did not succeed."""
    jobs: list[NewJob] = [
        {"kind": "hf", "input": {"task": cast("Any", task.value), "model": model, "inputs": text}}
        for text in texts
    ]
    ids = client.submit_batch(jobs)
    ended = [client.wait(job_id, timeout_s=WAIT_S).require_success() for job_id in reversed(ids)]
    last = max(job.finished_at for job in ended if job.finished_at is not None)
    first = min(job.created_at for job in ended if job.created_at is not None)
    return (last - first).total_seconds()


def _compare_bare(
    title: str, home: Path, task: Task, model: str, texts: list[str], rounds: int
) -> None:
    models = Models(Settings(_env_file=None, home=home, hf_device="cpu"))
    folder = models.folder(model, task, check=lambda: None, on_known=lambda: None)
    loaded = models.load(model, task, folder)
    parameters = parse_parameters(task, {})
    rows = [row for text in texts for row in loaded.prepare(text, parameters).rows]
    budget = Budget(Settings(_env_file=None).hf_batch_tokens)

    def together() -> None:
        for batch in batches(rows, budget, loaded.row_limit):
            run_rows(loaded, [rows[n] for n in batch], UNWATCHED, budget)

    def alone() -> None:
        for row in rows:
            run_rows(loaded, [row], UNWATCHED, budget)

    ways: dict[str, Callable[[], Any]] = {"together": together, "one at a time": alone}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    warm = {name: times[1:] for name, times in seconds.items()}
    _report(f"bare model, 1 thread: {title}", warm, len(texts))


def _report(title: str, seconds: dict[str, list[float]], count: int) -> None:
    rates = {name: count / statistics.median(times) for name, times in seconds.items()}
    ratio = rates["together"] / rates["one at a time"]
    summary = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    print(f"{title}: texts/s {summary}: ratio {ratio:.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
