"""The life of one attempt: claim, run, record.

A success is recorded in one transaction with what the handler wants written (`Done`); a failure is
tried again or final (`retry.py`). Steps that share a batch are claimed, run and recorded together;
each keeps an attempt of its own.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from billiard.exceptions import SoftTimeLimitExceeded
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from shared.bounds import EncodedJson
from shared.config import Settings
from shared.database.sqlstates import is_outage
from shared.database.transaction import Transaction
from shared.errors import Cancelled, Permanent, Retryable, SluiceError
from shared.jobs import claims, jobs, steps
from shared.jobs.claims import Claim
from shared.jobs.steps import Ending
from shared.redis.bell import Bell
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler, RunBatch, finish_of, prepared
from workers.attempts.heartbeat import Heartbeat, heartbeats_of
from workers.attempts.process import Process
from workers.attempts.retry import message_of, settle_failure

log = logging.getLogger(__name__)

Handlers = Mapping[str, Handler]
"""By the names of steps."""

Conclude = Callable[[Sequence[tuple[Heartbeat, Done | Exception]]], None]

FIRST_STEPS = 32
LEFT_MESSAGES = 256
"""So many are taken at once where the last one was for nothing."""
KEYS_KEPT = 1000
"""Of so many batch keys a process knows how many steps it claims at once."""


def run_next(process: Process, handlers: Handlers, queue: str) -> bool:
    """Run the best runnable step, with what shares its batch; False if there is none.

    It is called for a message of the queue's list, and answers for those that it takes itself.
    """
    rings = rings_of(process)
    taken = rings.take(queue)
    with process.ledger.begin_planned() as transaction:
        claim = claims.claim(
            transaction,
            queue,
            worker=process.worker_name,
            lease_s=process.settings.step_lease_s,
            routes=process.routes,
        )
    if claim is None:
        rings.settle(queue, taken, claimed=0)
        return False
    handler = handlers.get(claim.name)
    if handler is not None and handler.run_batch is not None:
        batch = _with_companions(process, claim)
        rings.settle(queue, taken, claimed=len(batch))
        run_batch(process, handler.run_batch, batch, partial(conclude_all, process, handler))
    else:
        rings.settle(queue, taken, claimed=1)
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
        conclude_all(process, handler or Handler(), [(heartbeat, outcome)])


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
        done = prepared(heartbeat.context, outcome, handler)
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
    """Record what came of several attempts: successes together, if that can be."""
    done: list[tuple[Heartbeat, Done]] = []
    others: list[tuple[Heartbeat, Done | Exception]] = []
    for heartbeat, outcome in outcomes:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            done.append((heartbeat, prepared(heartbeat.context, outcome, handler)))
        except Exception as error:
            others.append((heartbeat, error))
    # In the order of their ids, as by all that lock several jobs.
    done.sort(key=lambda pair: pair[0].context.claim.job_id)
    done = _end_jobs(process, handler, done)
    if len(done) > 1:
        done = _succeed_all(process, handler, done)
    others += done
    for heartbeat, outcome in others:
        conclude(process, handler, heartbeat, outcome)


Successes = Sequence[tuple[Heartbeat, Done]]


def _end_jobs(process: Process, handler: Handler, done: Successes) -> list[tuple[Heartbeat, Done]]:
    """Record those that are no more than the end of their jobs, by one statement; the others."""
    endings = [
        Ending(claim=heartbeat.context.claim, result=success.result)
        for heartbeat, success in done
        if handler.finish is None and isinstance(success.result, EncodedJson)
        and success.record is None and not (success.children or success.warnings)
    ]  # fmt: skip
    if not endings:
        return list(done)
    try:
        with process.ledger.begin_planned() as transaction:
            ended = steps.end_jobs(transaction, endings)
    except SQLAlchemyError as error:
        return _unanswered(done, transaction, error)
    return [pair for pair in done if pair[0].context.claim.step_id not in ended]


def _succeed_all(
    process: Process, handler: Handler, done: Successes
) -> list[tuple[Heartbeat, Done]]:
    """Record them in one transaction, whatever follows from them; all of them if that failed."""
    try:
        with process.ledger.begin() as transaction:
            recorded = [
                _succeed(transaction, process.settings, handler, heartbeat.context.claim, success)
                for heartbeat, success in done
            ]
    except Exception as error:
        return _unanswered(done, transaction, error)
    for (heartbeat, _), is_recorded in zip(done, recorded, strict=True):
        if not is_recorded:
            _undo(heartbeat.context)
    return []


def _unanswered(
    done: Successes, transaction: Transaction, error: Exception
) -> list[tuple[Heartbeat, Done]]:
    log.warning("%s steps are recorded one by one: %s", len(done), message_of(error))
    for heartbeat, _ in done:
        heartbeat.unanswered = transaction
    return list(done)


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

    if done.again_in_s is not None:
        return steps.put_off(transaction, claim, in_s=done.again_in_s, record=record)
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

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._steps: OrderedDict[str, int] = OrderedDict()

    def of(self, claim: Claim) -> int:
        limit = self._limit(claim)
        return min(self._steps.get(claim.batch_key or "", FIRST_STEPS), limit)

    def learn(self, claim: Claim, *, claimed: int, through: int) -> None:
        """Twice as many next time if all were through, else as many as were."""
        if claim.batch_key is None:
            return
        size = 2 * self.of(claim) if through == claimed else max(1, through)
        self._steps[claim.batch_key] = min(self._limit(claim), size)
        self._steps.move_to_end(claim.batch_key)
        if len(self._steps) > KEYS_KEPT:
            self._steps.popitem(last=False)

    def _limit(self, claim: Claim) -> int:
        """How many that may be; of the steps in `claim`'s queue."""
        if claim.queue == Queue.HF:
            return self._settings.hf_batch_steps
        return self._settings.embedding_batch_steps


def _with_companions(process: Process, first: Claim) -> list[Claim]:
    if not first.has_company:
        return [first]
    try:
        with process.ledger.begin_planned() as transaction:
            return claim_more(process, transaction, first)
    except SQLAlchemyError as error:
        log.warning("step %s runs alone: %s", first.step_id, message_of(error))
        return [first]


def claim_more(process: Process, transaction: Transaction, first: Claim) -> list[Claim]:
    """The steps that are to run together with this one, which was just claimed."""
    if first.batch_key is None:
        return [first]
    more = claims.claim_companions(
        transaction,
        first,
        worker=process.worker_name,
        lease_s=process.settings.step_lease_s,
        limit=batch_sizes_of(process).of(first) - 1,
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
        batch_sizes_of(process).learn(batch[0], claimed=len(batch), through=len(batch) - len(left))
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
    return BatchSizes(process.settings)


# Messages of steps that are claimed together.


class Rings:
    """The messages that a process takes off a queue's list by itself, beyond the one in hand.

    There is a message for each runnable step. Who claims several steps for one message takes the
    others' messages, too: each would cost a trip through Celery, and a claim that finds nothing.
    They are taken before the claim and handed back after it as far as it left their steps, so no
    step is ever without its message. Those of a claim that found nothing are nobody's: it saw all
    that was committed before they were taken.
    """

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._steps: dict[str, int] = {}
        """How many steps the last claim of a queue took, where these were several."""

    def take(self, queue: str) -> int:
        """Take as many messages as the next claim may have steps for; how many there were."""
        if queue not in self._steps:
            return 0
        try:
            return self._bell.take(queue, self._steps[queue])
        except (RedisError, OSError) as error:
            log.debug("no messages taken from %s: %s", queue, error)
            return 0

    def settle(self, queue: str, taken: int, *, claimed: int) -> None:
        """After a claim of so many steps, the first of which is that of the message in hand."""
        if claimed > 1:
            self._steps[queue] = claimed
        elif claimed == 1:
            self._steps.pop(queue, None)
        elif queue in self._steps:  # batches have left messages behind
            self._steps[queue] = LEFT_MESSAGES
        unused = taken - (claimed - 1)
        if claimed == 0 or unused <= 0:
            return
        try:
            self._bell.ring(queue, unused)
        except (RedisError, OSError) as error:
            log.warning("%s messages were not handed back; the sweeper rings: %s", unused, error)


def rings_of(process: Process) -> Rings:
    return process.held(_rings)


def _rings(process: Process) -> Rings:
    return Rings(process.ledger.bell)
