"""The life of one attempt: claim, run, record.

A success is recorded in one transaction with what the handler wants written (`Done`); a failure is
tried again or final (`retry.py`). Steps that share a batch are claimed, run and recorded together;
each keeps an attempt of its own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import SQLAlchemyError

from shared.config import Settings
from shared.database.sqlstates import is_outage
from shared.database.transaction import Transaction
from shared.errors import Cancelled, Permanent, Retryable, SluiceError
from shared.jobs import claims, jobs, steps
from shared.jobs.claims import Claim
from workers.attempts.context import Context, Done, Handler, RunBatch, finish_of, prepared
from workers.attempts.heartbeat import Heartbeat, heartbeats_of
from workers.attempts.process import Process
from workers.attempts.retry import message_of, settle_failure

log = logging.getLogger(__name__)

Handlers = Mapping[str, Handler]
"""By the names of steps."""

Conclude = Callable[[Sequence[tuple[Heartbeat, Done | Exception]]], None]

FIRST_STEPS = 32


def run_next(process: Process, handlers: Handlers, queue: str) -> bool:
    """Run the best runnable step, with what shares its batch; False if there is none."""
    with process.ledger.begin() as transaction:
        claim = claims.claim(
            transaction,
            queue,
            worker=process.worker_name,
            lease_s=process.settings.step_lease_s,
            routes=process.routes,
        )
        if claim is None:
            return False
        handler = handlers.get(claim.name)
        together = handler is not None and handler.run_batch is not None
        batch = claim_more(process, transaction, claim) if together else [claim]
    if handler is not None and handler.run_batch is not None:
        run_batch(process, handler.run_batch, batch, partial(conclude_all, process, handler))
    else:
        run(process, handlers, claim)
    return True


def run(process: Process, handlers: Handlers, claim: Claim) -> None:
    """Run a claimed step to its record, whatever happens in it."""
    context = Context(process, claim)
    handler = handlers.get(claim.name)
    with heartbeats_of(process).during(context) as heartbeat:
        outcome: Done | Exception
        try:
            if handler is None or handler.run is None:
                raise Permanent(
                    f"This worker does not know the step {claim.name!r}; API and workers must be "
                    "of one version."
                )
            outcome = handler.run(context)
        except Exception as error:
            outcome = error
        conclude(process, handler, heartbeat, outcome)


def conclude(
    process: Process, handler: Handler | None, heartbeat: Heartbeat, outcome: Done | Exception
) -> None:
    """Record what came of an attempt. One that runs no longer undoes what it wrote elsewhere."""
    claim = heartbeat.context.claim
    try:
        recorded = _recorded(process, handler, heartbeat, outcome)
        if not recorded and isinstance(outcome, Done):
            # It may have been recorded without an answer to the commit. What it has written must
            # not be deleted then.
            recorded = _persistently(process, heartbeat, lambda own: steps.was_recorded(own, claim))
            if recorded and heartbeat.unanswered is not None:
                process.ledger.complete(heartbeat.unanswered)
    except SQLAlchemyError as error:
        # Nothing is known of it, and so nothing is deleted; the sweeper finds it if it still runs.
        log.warning(
            "step %s (%s) was not recorded: %s", claim.step_id, claim.name, message_of(error)
        )
        return
    if not recorded:
        _undo(heartbeat.context)


def _recorded(
    process: Process, handler: Handler | None, heartbeat: Heartbeat, outcome: Done | Exception
) -> bool:
    """False if the attempt runs no longer."""
    claim = heartbeat.context.claim
    try:
        if isinstance(outcome, Exception):
            raise outcome
        done = prepared(heartbeat.context, outcome)
        return _persistently(
            process, heartbeat, lambda own: _succeed(own, process.settings, handler, claim, done)
        )
    except Cancelled as error:
        reason = error.message
        return not heartbeat.lost and _persistently(
            process, heartbeat, lambda own: _stopped(own, process.settings, handler, claim, reason)
        )
    except SoftTimeLimitExceeded:
        limit = process.settings.step_soft_limit_s
        failure: Exception = Retryable(
            f"The step took longer than {limit} s (SLUICE_STEP_SOFT_LIMIT_S)."
        )
    except Exception as error:
        if not isinstance(error, SluiceError):
            log.exception("step %s (%s) failed", claim.step_id, claim.name)
        failure = error
    return _persistently(
        process,
        heartbeat,
        lambda own: settle_failure(own, process.settings, handler, claim, failure),
    )


def _persistently(
    process: Process, heartbeat: Heartbeat, write: Callable[[Transaction], bool]
) -> bool:
    """A transaction that is run again where the database goes away, until the lease has ended."""
    while True:
        try:
            with process.ledger.begin() as transaction:
                return write(transaction)
        except SQLAlchemyError as error:
            if heartbeat.lost or not is_outage(error):
                raise
            heartbeat.unanswered = transaction
            log.warning("the database is away; recording is tried again: %s", message_of(error))
        heartbeat.gone.wait(process.settings.step_heartbeat_s)


def conclude_all(
    process: Process, handler: Handler, outcomes: Sequence[tuple[Heartbeat, Done | Exception]]
) -> None:
    """Record what came of several attempts: successes in one transaction, if that can be."""
    done: list[tuple[Heartbeat, Done]] = []
    others: list[tuple[Heartbeat, Exception]] = []
    for heartbeat, outcome in outcomes:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            done.append((heartbeat, prepared(heartbeat.context, outcome)))
        except Exception as error:
            others.append((heartbeat, error))
    # In the order of their ids, as by all that lock several jobs.
    done.sort(key=lambda pair: pair[0].context.claim.job_id)
    try:
        with process.ledger.begin() as transaction:
            recorded = [
                _succeed(transaction, process.settings, handler, heartbeat.context.claim, success)
                for heartbeat, success in done
            ]
    except Exception as error:
        log.warning("a batch is recorded step by step: %s", message_of(error))
        for heartbeat, success in done:
            heartbeat.unanswered = transaction
            conclude(process, handler, heartbeat, success)
    else:
        for (heartbeat, _), is_recorded in zip(done, recorded, strict=True):
            if not is_recorded:
                _undo(heartbeat.context)
    for heartbeat, failure in others:
        conclude(process, handler, heartbeat, failure)


def _succeed(
    transaction: Transaction,
    settings: Settings,
    handler: Handler | None,
    claim: Claim,
    done: Done,
) -> bool:
    def record(transaction: Transaction) -> None:
        if done.warnings:
            jobs.warn(transaction, claim.job_id, done.warnings)
        if done.record is not None:
            done.record(transaction)

    return steps.succeed(
        transaction,
        claim,
        result=done.result,
        children=done.children,
        record=record,
        finish=finish_of(handler, settings),
    )


def _stopped(
    transaction: Transaction,
    settings: Settings,
    handler: Handler | None,
    claim: Claim,
    reason: str,
) -> bool:
    """The heartbeat asked to stop: the job ends, or the time was up."""
    if steps.is_ending(transaction, claim):
        return steps.abandon(transaction, claim)
    return settle_failure(transaction, settings, handler, claim, Retryable(reason))


def _undo(context: Context) -> None:
    for undo in context.on_lost:
        try:
            undo()
        except (SluiceError, SQLAlchemyError) as error:
            # What stays behind is invisible to readers, and the sweeper looks for it.
            log.warning("could not tidy up after step %s: %s", context.claim.step_id, error)


# Steps that share a batch. How many are claimed is learnt from how many were through in time: steps
# that are not even begun go back to the queue.


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
            running[context] = stack.enter_context(heartbeats_of(process).during(context))
        settlement = _Settlement(running, conclude)
        try:
            run(list(running), settlement)
            settlement.flush()
            left = settlement.left()
        except Exception as error:
            settlement.flush()
            for context in settlement.left():
                settlement(context, error)
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
