"""The life of an attempt: claim, run, record.

A success (`Done`) is recorded in one transaction, with all that its handler writes. A failure is
tried again or final (`retry.py`). Steps that share a batch are claimed, run and recorded together,
but each has its own attempt.
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
from workers.attempts.context import Context, Done, Handler, RunBatch, encode_result, finish_of
from workers.attempts.heartbeat import Heartbeat, heartbeats_of
from workers.attempts.process import Process
from workers.attempts.retry import message_of, settle_failure

log = logging.getLogger(__name__)

Handlers = Mapping[str, Handler]
"""Name of a step -> its handler."""

Conclude = Callable[[Sequence[tuple[Heartbeat, Done | Exception]]], None]

FIRST_STEPS = 32
LEFT_MESSAGES = 256
"""How many messages are taken at once after a message for which there was no step."""
KEYS_KEPT = 1000
"""For how many batch keys a process remembers the size of batches."""


def run_next(process: Process, handlers: Handlers, queue: str) -> bool:
    """Run the best runnable step, and the steps that share its batch. Returns False if there is
    none.

    It is called for one message of the queue, and takes the messages of the other steps itself.
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
    """Run a claimed step and record its outcome, whatever happens."""
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
    """Record the outcome of an attempt. If this worker has lost the step, undo what the attempt
    wrote elsewhere."""
    claim = heartbeat.context.claim
    try:
        recorded = _record_outcome(process, handler, heartbeat, outcome)
        if not recorded and isinstance(outcome, Done):
            # It may have been recorded although the answer to the commit was lost. Then nothing
            # that it has written may be deleted.
            recorded = _write_until_lost(
                process, heartbeat, lambda own: steps.was_recorded(own, claim)
            )
            if recorded and heartbeat.unanswered is not None:
                process.ledger.complete(heartbeat.unanswered)
    except SQLAlchemyError as error:
        # Whether it was recorded is not known, so nothing is deleted. If the step still counts as
        # running, the sweeper takes it back.
        log.warning(
            "step %s (%s) was not recorded: %s", claim.step_id, claim.name, message_of(error)
        )
        return
    if not recorded:
        _undo(heartbeat.context)


def _record_outcome(
    process: Process, handler: Handler | None, heartbeat: Heartbeat, outcome: Done | Exception
) -> bool:
    """Returns False if this worker has lost the step."""
    claim = heartbeat.context.claim
    try:
        if isinstance(outcome, Exception):
            raise outcome
        done = encode_result(heartbeat.context, outcome, handler)
        return _write_until_lost(
            process, heartbeat, lambda own: _succeed(own, process.settings, handler, claim, done)
        )
    except Cancelled as error:
        reason = error.message
        return not heartbeat.is_lost and _write_until_lost(
            process, heartbeat, lambda own: _stop(own, process.settings, handler, claim, reason)
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
    return _write_until_lost(
        process,
        heartbeat,
        lambda own: settle_failure(own, process.settings, handler, claim, failure),
    )


def _write_until_lost(
    process: Process, heartbeat: Heartbeat, write: Callable[[Transaction], bool]
) -> bool:
    """Run a transaction; while the database is away, run it again until the lease has ended."""
    while True:
        try:
            with process.ledger.begin() as transaction:
                return write(transaction)
        except SQLAlchemyError as error:
            if heartbeat.is_lost or not is_outage(error):
                raise
            heartbeat.unanswered = transaction
            log.warning("the database is away; recording is tried again: %s", message_of(error))
        heartbeat.lost_event.wait(process.settings.step_heartbeat_s)


def conclude_all(
    process: Process, handler: Handler, outcomes: Sequence[tuple[Heartbeat, Done | Exception]]
) -> None:
    """Record the outcomes of several attempts: successes together if possible."""
    done: list[tuple[Heartbeat, Done]] = []
    others: list[tuple[Heartbeat, Done | Exception]] = []
    for heartbeat, outcome in outcomes:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            done.append((heartbeat, encode_result(heartbeat.context, outcome, handler)))
        except Exception as error:
            others.append((heartbeat, error))
    # Everything that locks several jobs does it in the order of their ids.
    done.sort(key=lambda pair: pair[0].context.claim.job_id)
    done = _end_jobs(process, handler, done)
    if len(done) > 1:
        done = _succeed_all(process, handler, done)
    others += done
    for heartbeat, outcome in others:
        conclude(process, handler, heartbeat, outcome)


Successes = Sequence[tuple[Heartbeat, Done]]


def _end_jobs(process: Process, handler: Handler, done: Successes) -> list[tuple[Heartbeat, Done]]:
    """Record by one statement the successes that only end their jobs. Returns the others."""
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
        return _without_answer(done, transaction, error)
    return [pair for pair in done if pair[0].context.claim.step_id not in ended]


def _succeed_all(
    process: Process, handler: Handler, done: Successes
) -> list[tuple[Heartbeat, Done]]:
    """Record successes in one transaction. Returns all of them if that fails, otherwise none."""
    try:
        with process.ledger.begin() as transaction:
            recorded = [
                _succeed(transaction, process.settings, handler, heartbeat.context.claim, success)
                for heartbeat, success in done
            ]
    except Exception as error:
        return _without_answer(done, transaction, error)
    for (heartbeat, _), is_recorded in zip(done, recorded, strict=True):
        if not is_recorded:
            _undo(heartbeat.context)
    return []


def _without_answer(
    done: Successes, transaction: Transaction, error: Exception
) -> list[tuple[Heartbeat, Done]]:
    """Note for each that the commit may have succeeded although there was an error. Returns all."""
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


def _stop(
    transaction: Transaction,
    settings: Settings,
    handler: Handler | None,
    claim: Claim,
    reason: str,
) -> bool:
    """Record an attempt that the heartbeat has stopped: the job is ending, or the time was up."""
    if steps.is_ending(transaction, claim):
        return steps.abandon(transaction, claim)
    return settle_failure(transaction, settings, handler, claim, Retryable(reason))


def _undo(context: Context) -> None:
    for undo in context.on_lost:
        try:
            undo()
        except (SluiceError, SQLAlchemyError) as error:
            # No reader sees what is left, and the sweeper deletes it.
            log.warning("could not tidy up after step %s: %s", context.claim.step_id, error)


# Steps that share a batch. How many are claimed depends on how many were done in time before: steps
# that were not begun go back to the queue.


class BatchSizes:
    """How many steps of each batch key a process claims at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._steps: OrderedDict[str, int] = OrderedDict()

    def of(self, claim: Claim) -> int:
        limit = self._limit(claim)
        return min(self._steps.get(claim.batch_key or "", FIRST_STEPS), limit)

    def learn(self, claim: Claim, *, claimed: int, done: int) -> None:
        """Claim twice as many next time if all were done, otherwise as many as were done."""
        if claim.batch_key is None:
            return
        size = 2 * self.of(claim) if done == claimed else max(1, done)
        self._steps[claim.batch_key] = min(self._limit(claim), size)
        self._steps.move_to_end(claim.batch_key)
        if len(self._steps) > KEYS_KEPT:
            self._steps.popitem(last=False)

    def _limit(self, claim: Claim) -> int:
        """The limit for the queue of a claim."""
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
    """The step that was just claimed, and those that are claimed to run together with it."""
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
    """Run claimed steps and record their outcomes, whatever happens."""
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
        batch_sizes_of(process).learn(batch[0], claimed=len(batch), done=len(batch) - len(left))
        _give_back(process, left)


class _Settlement:
    """The `Settle` of a batch. Successes are collected until `flush`, which records them in one
    transaction; other outcomes are recorded at once."""

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
    """Put steps that were not begun back into the queue; steps of jobs that are ending end."""
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


# Messages of steps that are claimed together


class Rings:
    """The messages that a process takes from a queue's list itself, besides the one that Celery
    delivered.

    There is a message for each runnable step. A process that claims several steps for one message
    takes the messages of the others, too: each would cost a delivery by Celery and an empty claim.
    They are taken before the claim, and those of steps that were not claimed are put back after it,
    so no step is ever without its message. After an empty claim none is put back: the claim has
    seen all steps that were committed before the messages were taken.
    """

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._steps: dict[str, int] = {}
        """How many steps the last claim from a queue had, if more than one."""

    def take(self, queue: str) -> int:
        """Take messages for as many steps as the next claim may have. Returns how many there
        were."""
        if queue not in self._steps:
            return 0
        try:
            return self._bell.take(queue, self._steps[queue])
        except (RedisError, OSError) as error:
            log.debug("no messages taken from %s: %s", queue, error)
            return 0

    def settle(self, queue: str, taken: int, *, claimed: int) -> None:
        """Put messages back after a claim of `claimed` steps; one of them is for the message that
        Celery delivered."""
        if claimed > 1:
            self._steps[queue] = claimed
        elif claimed == 1:
            self._steps.pop(queue, None)
        elif queue in self._steps:  # earlier batches have left messages without steps
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
