"""Claim, run, record: the life of one attempt, and the one retry policy for all kinds.

- Success is recorded in one transaction with whatever the handler asks to be written.
- `Retryable`, unknown errors and worker loss are tried again with backoff and jitter until the
  step's attempts are used up; then it is a dead letter. `Unavailable` does not use up attempts
  for as long as a setting says. `Permanent` fails at once. What an error of the database is, its
  SQLSTATE says (`shared/database/sqlstates.py`).
- The attempt was counted when it was claimed, so a step that kills its worker ends here too.
"""

import io
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from billiard.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared.bounds import EncodedJson, cut, to_json
from shared.config import Settings
from shared.database.sqlstates import Meaning, first_line, is_outage, trouble_of
from shared.errors import (
    Cancelled,
    ConfigurationError,
    Conflict,
    InvalidInput,
    NotFound,
    Permanent,
    Retryable,
    SluiceError,
    Unavailable,
    WorkerLost,
)
from shared.files import make_storage
from shared.jobs import claims, jobs, steps
from shared.jobs.claims import Claim
from shared.jobs.steps import Finish
from workers.attempts import batches
from workers.attempts.context import Context, Done, Handler
from workers.attempts.heartbeat import Heartbeat
from workers.process import Process

# Where results go: into the rows of their step and job, or into the storage where they are
# large.
#
# The row of a job is read whole, so it holds no more than SLUICE_RESULT_INLINE_BYTES of
# result, whatever the kind of the job. What an attempt stores that is then not recorded is
# deleted again; all of a job's folder goes when the job is erased or retention forgets it.


def placed(context: Context, done: Done) -> Done:
    """The success of a step, its result stored where it is the job's and too large for its row.

    Raises Permanent for a result that is no JSON, Unavailable where the storage does not take it.
    """
    if done.result is None or done.children or isinstance(done.result, EncodedJson):
        return done
    encoded = EncodedJson(done.result, to_json(done.result))
    data = encoded.text.encode()
    path = stored(context, data)
    if path is None:
        return replace(done, result=encoded)
    return replace(done, result=None, record=_with_place(context, done.record, path, len(data)))


def _with_place(
    context: Context, record: Callable[[Session], None] | None, path: str, size_bytes: int
) -> Callable[[Session], None]:
    def both(session: Session) -> None:
        if record is not None:
            record(session)
        jobs.note_place(session, context.claim.job_id, path=path, size_bytes=size_bytes)

    return both


def stored(context: Context, data: bytes) -> str | None:
    """The path of what is too large for a row. An attempt that loses its step deletes it again."""
    process, claim = context.process, context.claim
    if len(data) <= process.settings.result_inline_bytes:
        return None
    path = f"{jobs.result_folder(claim.job_id)}/{claim.step_id}-{claim.attempt}.json"
    process.storage.write(path, io.BytesIO(data))
    context.on_lost.append(lambda: process.storage.delete(path))
    return path


def finish_of(handler: Handler | None, settings: Settings) -> Finish | None:
    """What computes the job's result when its last step has ended, and stores it where it is too
    large for the row: under a fixed name, since whoever ends a job does so alone."""
    if handler is None or handler.finish is None:
        return None
    compute = handler.finish

    def finish(session: Session, job_id: UUID) -> Any:
        result = compute(session, job_id)
        if result is None:
            return None
        encoded = EncodedJson(result, to_json(result))
        data = encoded.text.encode()
        if len(data) <= settings.result_inline_bytes:
            return encoded
        path = f"{jobs.result_folder(job_id)}/result.json"
        make_storage(settings).write(path, io.BytesIO(data))
        jobs.note_place(session, job_id, path=path, size_bytes=len(data))
        return None

    return finish


log = logging.getLogger(__name__)

Handlers = Mapping[str, Handler]

FINAL = (Permanent, NotFound, InvalidInput, Conflict, ConfigurationError, ValidationError)
"""Errors that another attempt would only repeat."""

UNAVAILABLE_SINCE = "unavailable_since"


def run_next(process: Process, handlers: Handlers, queue: str) -> bool:
    """Run the best runnable step, with what shares its batch; False if there is none."""
    with process.ledger.begin() as session:
        claim = claims.claim(
            session,
            queue,
            worker=process.worker_name,
            lease_s=process.settings.step_lease_s,
            routes=process.routes,
        )
        if claim is None:
            return False
        handler = handlers.get(claim.name)
        together = handler is not None and handler.run_batch is not None
        batch = batches.claim_more(process, session, claim) if together else [claim]
    if handler is not None and handler.run_batch is not None:
        batches.run_batch(
            process, handler.run_batch, batch, partial(conclude_all, process, handler)
        )
    else:
        run(process, handlers, claim)
    return True


def run(process: Process, handlers: Handlers, claim: Claim) -> None:
    """Run a claimed step to its record, whatever happens in it."""
    context = Context(process, claim)
    handler = handlers.get(claim.name)
    with process.heartbeats.during(context) as heartbeat:
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
    """Record what came of an attempt, and tidy up behind it."""
    claim = heartbeat.context.claim
    try:
        recorded = _recorded(process, handler, heartbeat, outcome)
        if not recorded and isinstance(outcome, Done):
            # It may have been recorded without an answer to the commit. What it has written must
            # not be deleted then.
            recorded = _persistently(process, heartbeat, lambda own: steps.was_recorded(own, claim))
    except SQLAlchemyError as error:
        # Nothing is known of it, and so nothing is deleted; the sweeper finds it if it still runs.
        log.warning("step %s (%s) was not recorded: %s", claim.step_id, claim.name, _message(error))
        return
    if not recorded:
        _tidy(claim, heartbeat.context.on_lost)
    elif isinstance(outcome, Done) and outcome.after is not None:
        _tidy(claim, [outcome.after])


def _recorded(
    process: Process, handler: Handler | None, heartbeat: Heartbeat, outcome: Done | Exception
) -> bool:
    """False if the attempt runs no longer."""
    claim = heartbeat.context.claim
    try:
        if isinstance(outcome, Exception):
            raise outcome
        done = placed(heartbeat.context, outcome)
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


def _persistently(process: Process, heartbeat: Heartbeat, write: Callable[[Session], bool]) -> bool:
    """A transaction that is run again where the database goes away, until the lease has ended."""
    while True:
        try:
            with process.ledger.begin() as session:
                return write(session)
        except SQLAlchemyError as error:
            if heartbeat.lost or not is_outage(error):
                raise
            log.warning("the database is away; recording is tried again: %s", _message(error))
        heartbeat.gone.wait(process.settings.step_heartbeat_s)


def conclude_all(
    process: Process, handler: Handler, outcomes: Sequence[tuple[Heartbeat, Done | Exception]]
) -> None:
    """Record what came of several attempts: successes in one transaction, if that can be."""
    done = [(heartbeat, each) for heartbeat, each in outcomes if isinstance(each, Done)]
    # In the order of their ids, as by all that lock several jobs.
    done.sort(key=lambda pair: pair[0].context.claim.job_id)
    try:
        with process.ledger.begin() as session:
            recorded = [
                _succeed(session, process.settings, handler, heartbeat.context.claim, each)
                for heartbeat, each in done
            ]
    except Exception as error:
        log.warning("a batch is recorded step by step: %s", _message(error))
        recorded = None
    for n, (heartbeat, each) in enumerate(done):
        if recorded is None:
            conclude(process, handler, heartbeat, each)
        elif not recorded[n]:
            _tidy(heartbeat.context.claim, heartbeat.context.on_lost)
        elif each.after is not None:
            _tidy(heartbeat.context.claim, [each.after])
    for heartbeat, outcome in outcomes:
        if not isinstance(outcome, Done):
            conclude(process, handler, heartbeat, outcome)


def _succeed(
    session: Session, settings: Settings, handler: Handler | None, claim: Claim, done: Done
) -> bool:
    return steps.succeed(
        session,
        claim,
        result=done.result,
        children=done.children,
        record=done.record,
        finish=finish_of(handler, settings),
    )


def _stopped(
    session: Session, settings: Settings, handler: Handler | None, claim: Claim, reason: str
) -> bool:
    """The heartbeat asked to stop: the job ends, or the time was up."""
    if steps.is_ending(session, claim):
        return steps.abandon(session, claim)
    return settle_failure(session, settings, handler, claim, Retryable(reason))


def settle_failure(
    session: Session,
    settings: Settings,
    handler: Handler | None,
    claim: Claim,
    error: Exception,
) -> bool:
    """The retry policy: again later, or for good. False if the attempt runs no longer."""
    error = translated(error)
    reason = {"type": type(error).__name__, "message": _message(error)}
    is_free = False
    if isinstance(error, Unavailable):
        now = session.execute(select(func.now())).scalar_one()
        since = _unavailable_since(claim) or now
        is_free = (now - since).total_seconds() < settings.unavailable_retry_for_s
        reason |= {UNAVAILABLE_SINCE: since.isoformat()}
    final = isinstance(error, FINAL)
    if is_free or (not final and claim.attempt < claim.max_attempts):
        in_s = max(_delay_s(settings, claim.attempt), _asked_delay_s(error))
        return steps.retry(session, claim, reason, in_s=in_s, free=is_free)
    reason.pop(UNAVAILABLE_SINCE, None)
    log.warning("step %s (%s) failed for good: %s", claim.step_id, claim.name, reason["message"])
    return steps.fail(
        session,
        claim,
        reason,
        absorb=_absorb(handler, claim, reason["message"]),
        finish=finish_of(handler, settings),
        dead=not final,
    )


def translated(error: Exception) -> Exception:
    """An error of the database as what it means for the step; any other as it is."""
    trouble = trouble_of(error)
    if trouble is None:
        return error
    return _TYPES[trouble.meaning](trouble.message)


_TYPES: dict[Meaning, type[SluiceError]] = {
    Meaning.AWAY: Unavailable,
    Meaning.BUSY: Retryable,
    Meaning.VALUE: Permanent,
    Meaning.CONFLICT: Permanent,
    Meaning.SCHEMA: Retryable,
    Meaning.FAULT: Retryable,
}


def _absorb(
    handler: Handler | None, claim: Claim, message: str
) -> Callable[[Session], None] | None:
    if handler is None or handler.absorb is None:
        return None
    absorb = handler.absorb
    return lambda session: absorb(session, claim, message)


def _unavailable_since(claim: Claim) -> datetime | None:
    """When the outage began that the step meets, by the database's clock; None at its first.

    An outage lasts for as long as each attempt meets it. How long the step waited before its
    first attempt is of no account.
    """
    before = (claim.error_before or {}).get(UNAVAILABLE_SINCE)
    try:
        return datetime.fromisoformat(before) if before else None
    except (TypeError, ValueError):
        return None


def _delay_s(settings: Settings, attempt: int) -> float:
    """Exponential backoff with full jitter on its upper half."""
    limit: float = min(settings.retry_cap_s, settings.retry_base_s * 2 ** min(attempt - 1, 30))
    return limit / 2 + random.uniform(0, limit / 2)


def _asked_delay_s(error: Exception) -> float:
    """What a server asked for that has too much to do."""
    delay_s = error.retry_after_s if isinstance(error, Unavailable) else None
    return delay_s or 0.0


def _message(error: Exception) -> str:
    if isinstance(error, SluiceError):
        return error.message
    if isinstance(error, SQLAlchemyError):
        return first_line(error)
    if isinstance(error, ValidationError):
        return cut(f"The row of this job does not fit this version of Sluice: {error}")
    return cut(f"{type(error).__name__}: {error}")


def _tidy(claim: Claim, callbacks: Iterable[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except (SluiceError, SQLAlchemyError) as error:
            # What stays behind is invisible to readers, and the sweeper looks for it.
            log.warning("could not tidy up after step %s: %s", claim.step_id, error)


def lost_worker(claim: Claim) -> WorkerLost:
    return WorkerLost(
        f"The worker that ran {claim.name} (attempt {claim.counted_attempt}) died or hung: its "
        "lease ended. Look at the worker's log; if it ran out of memory, make the input smaller."
    )
