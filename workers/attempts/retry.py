"""The retry policy for failed steps, the same for all kinds of jobs.

- `Retryable`, unknown errors and worker loss are tried again, with backoff and jitter, until the
  attempts are used up; then the job is a dead letter. `Unavailable` uses up no attempts for
  SLUICE_UNAVAILABLE_RETRY_FOR_S. `Permanent` fails at once. Errors of the database are classified
  by their SQLSTATE (`shared/database/sqlstates.py`).
- An attempt is counted when it is claimed, so a step that kills its worker ends as well.
"""

import logging
import random
from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from shared.bounds import cut
from shared.config import Settings
from shared.database.sqlstates import Meaning, first_line, trouble_of
from shared.database.transaction import Transaction
from shared.errors import (
    ConfigurationError,
    Conflict,
    InvalidInput,
    NotFound,
    Permanent,
    Retryable,
    SluiceError,
    Unavailable,
    WorkerLost,
    code_of,
)
from shared.jobs import steps
from shared.jobs.claims import Claim
from shared.jobs.steps import Record
from workers.attempts.context import Handler, finish_of

log = logging.getLogger(__name__)

FINAL = (Permanent, NotFound, InvalidInput, Conflict, ConfigurationError, ValidationError)
"""Errors that another attempt would only repeat."""

UNAVAILABLE_SINCE = "unavailable_since"


def settle_failure(
    transaction: Transaction,
    settings: Settings,
    handler: Handler | None,
    claim: Claim,
    error: Exception,
) -> bool:
    """Record a failure: the step runs again later, or has failed for good. Returns False if this
    worker has lost the step."""
    error = as_our_error(error)
    reason = {"type": code_of(error), "message": message_of(error)}
    is_free = False
    if isinstance(error, Unavailable):
        now = transaction.execute(select(func.now())).scalar_one()
        since = _unavailable_since(claim) or now
        is_free = (now - since).total_seconds() < settings.unavailable_retry_for_s
        reason |= {UNAVAILABLE_SINCE: since.isoformat()}
    final = isinstance(error, FINAL)
    if is_free or (not final and claim.attempt < claim.max_attempts):
        in_s = max(backoff_s(settings, claim.attempt), _requested_delay_s(error))
        return steps.retry(transaction, claim, reason, in_s=in_s, free=is_free)
    reason.pop(UNAVAILABLE_SINCE, None)
    log.warning("step %s (%s) failed for good: %s", claim.step_id, claim.name, reason["message"])
    return steps.fail(
        transaction,
        claim,
        reason,
        absorb=_absorb(handler, claim, reason["message"]),
        finish=finish_of(handler, settings),
        dead=not final,
    )


def as_our_error(error: Exception) -> Exception:
    """An error of the database as one of our errors; any other error unchanged."""
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


def _absorb(handler: Handler | None, claim: Claim, message: str) -> Record | None:
    if handler is None or handler.absorb is None:
        return None
    absorb = handler.absorb
    return lambda transaction: absorb(transaction, claim, message)


def _unavailable_since(claim: Claim) -> datetime | None:
    """When the present outage began, by the database's clock; None if the attempt before did not
    meet it. How long the step waited before its first attempt does not count.
    """
    before = (claim.error_before or {}).get(UNAVAILABLE_SINCE)
    try:
        return datetime.fromisoformat(before) if before else None
    except (TypeError, ValueError):
        return None


def backoff_s(settings: Settings, attempt: int) -> float:
    """Exponential backoff with full jitter on its upper half."""
    limit: float = min(settings.retry_cap_s, settings.retry_base_s * 2 ** min(attempt - 1, 30))
    return limit / 2 + random.uniform(0, limit / 2)


def _requested_delay_s(error: Exception) -> float:
    """The delay that an overloaded server asks for (`Retry-After`)."""
    delay_s = error.retry_after_s if isinstance(error, Unavailable) else None
    return delay_s or 0.0


def message_of(error: Exception) -> str:
    if isinstance(error, SluiceError):
        return error.message
    if isinstance(error, SQLAlchemyError):
        return first_line(error)
    if isinstance(error, ValidationError):
        return cut(f"The row of this job does not fit this version of Sluice: {error}")
    return cut(f"{type(error).__name__}: {error}")


def lost_worker(claim: Claim) -> WorkerLost:
    return WorkerLost(
        f"The worker that ran {claim.name} (attempt {claim.counted_attempt}) died or hung: its "
        "lease ended. Look at the worker's log; if it ran out of memory, make the input smaller."
    )
