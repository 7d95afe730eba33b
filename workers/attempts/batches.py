"""Several steps at once: claimed together, run by one call of their handler, recorded together.

Each step keeps its own attempt, lease, heartbeat and cancellation. How many are claimed is learnt
from how many were through in time: steps that are not even begun go back to the queue.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from shared.database.transaction import Transaction
from shared.jobs import claims, steps
from shared.jobs.claims import Claim
from workers.attempts.context import Context, Done, RunBatch
from workers.attempts.heartbeat import Heartbeat
from workers.attempts.process import Process

log = logging.getLogger(__name__)

Conclude = Callable[[Sequence[tuple[Heartbeat, Done | Exception]]], None]

FIRST_STEPS = 32


class BatchSizes:
    """How many steps of each batch key a process claims at once, in the light of the last time."""

    def __init__(self, limit_steps: int) -> None:
        self._limit = limit_steps
        self._steps: dict[str, int] = {}

    def of(self, batch_key: str) -> int:
        return self._steps.get(batch_key, min(FIRST_STEPS, self._limit))

    def learn(self, batch_key: str, *, claimed: int, through: int) -> None:
        """Twice as many next time if all were through, else as many as were."""
        size = 2 * self.of(batch_key) if through == claimed else max(1, through)
        self._steps[batch_key] = min(self._limit, size)


def claim_more(process: Process, transaction: Transaction, first: Claim) -> list[Claim]:
    """The steps that are to run together with this one, which was just claimed."""
    if first.batch_key is None:
        return [first]
    more = claims.claim_companions(
        transaction,
        first,
        worker=process.worker_name,
        lease_s=process.settings.step_lease_s,
        limit=batch_sizes_of(process).of(first.batch_key) - 1,
        shared_by=process.settings.worker_concurrency,
        routes=process.routes,
    )
    return [first, *more]


def run_batch(process: Process, run: RunBatch, batch: Sequence[Claim], conclude: Conclude) -> None:
    """Run claimed steps to their records, whatever happens in them."""
    with ExitStack() as stack:
        running = {}
        for claim in batch:
            context = Context(process, claim)
            running[context] = stack.enter_context(process.heartbeats.during(context))
        ledger = _Settlement(running, conclude)
        try:
            run(list(running), ledger)
            ledger.flush()
            left = ledger.left()
        except Exception as error:
            ledger.flush()
            for context in ledger.left():
                ledger(context, error)
            return
        if batch[0].batch_key is not None:
            batch_sizes_of(process).learn(
                batch[0].batch_key, claimed=len(batch), through=len(batch) - len(left)
            )
        _give_back(process, left)


class _Settlement:
    """What has come of each step of a batch. Successes are kept until `flush`, which records them
    in one transaction; anything else is recorded at once."""

    def __init__(self, running: Mapping[Context, Heartbeat], conclude: Conclude) -> None:
        self._open = dict(running)
        self._done: list[tuple[Heartbeat, Done | Exception]] = []
        self._conclude = conclude

    def __call__(self, context: Context, outcome: Done | Exception) -> None:
        heartbeat = self._open.pop(context)
        if isinstance(outcome, Done):
            self._done.append((heartbeat, outcome))
        else:
            self._conclude([(heartbeat, outcome)])

    def flush(self) -> None:
        done, self._done = self._done, []
        if done:
            self._conclude(done)

    def left(self) -> list[Context]:
        return list(self._open)


def _give_back(process: Process, contexts: Sequence[Context]) -> None:
    """Queue steps again that were not begun; those of jobs that are ending end."""
    if not contexts:
        return
    log.info("%s steps of a batch are given back to the queue", len(contexts))
    for context in contexts:
        with process.ledger.begin() as transaction:
            if steps.retry(transaction, context.claim, None, in_s=0, free=True):
                transaction.ring(context.claim.queue)


def batch_sizes_of(process: Process) -> BatchSizes:
    return process.held(_batch_sizes)


def _batch_sizes(process: Process) -> BatchSizes:
    return BatchSizes(process.settings.hf_batch_steps)
