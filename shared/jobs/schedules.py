"""Schedules: jobs of any kind that are submitted regularly, by a cron expression.

The sweeper (`workers/sweep.py`) fires a schedule that is due: one transaction, under the lock of
the schedule, submits a job and writes the next time. So several sweepers submit one job. Runs do
not overlap: while the last job is open, the schedule stays due, and it is fired once when that job
has ended. All times that were missed meanwhile, or while no sweeper ran, become one run. If the job
cannot be submitted, the schedule gets the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import ValidationError
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bounds import as_object
from shared.config import Settings
from shared.database.sqlstates import first_line
from shared.database.transaction import Transaction
from shared.errors import Conflict, InvalidInput, NotFound, SluiceError
from shared.jobs import submission
from shared.jobs.submission import NewJob
from shared.kinds.registry import KINDS
from shared.tables import Job, Schedule
from shared.vocabulary import OPEN, Lane, State

SCHEDULE_NAME: Final = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$"
SCHEDULES_LIMIT: Final = 1000
_MACROS: Final = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}  # fmt: skip


def next_time(cron: str, timezone: str, after: datetime) -> datetime | None:
    """The first time after `after` of the expression in the time zone; None if there is none.
    Raises InvalidInput.

    As in Debian's cron: a time that does not exist in spring becomes the next one that does, and of
    an hour that exists twice in autumn the first one counts.
    """
    expression = " ".join(_MACROS.get(cron.strip().lower(), cron).split())
    if len(expression.split(" ")) != 5:
        raise InvalidInput(
            f"cron is {cron!r}, which has not five fields: minute, hour, day of the month, month, "
            "day of the week, such as `0 6 * * MON-FRI`; or @hourly, @daily, @weekly, @monthly."
        )
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(
            f"timezone is {timezone!r}, which is none of the IANA database, such as Asia/Seoul."
        ) from None
    try:
        local_time: datetime = next(CronSim(expression, after.astimezone(zone)))
    except (CronSimError, ValueError, AssertionError, OverflowError) as error:
        reason = str(error) or "it cannot be read"
        raise InvalidInput(f"cron is {cron!r}, which is no cron expression: {reason}.") from None
    except StopIteration:
        return None
    return local_time.astimezone(UTC)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """A schedule as it is wished for; `job` is validated, and its input has no defaults noted."""

    cron: str
    timezone: str
    job: NewJob


def put(session: Transaction, name: str, spec: ScheduleSpec) -> tuple[Schedule, bool]:
    """Make or replace a schedule; True if it is new. A paused one stays paused. Raises
    InvalidInput, and Conflict if there are too many."""
    now = session.scalars(select(func.now())).one()
    next_at = next_time(spec.cron, spec.timezone, now)
    if next_at is None:
        raise InvalidInput(f"cron is {spec.cron!r}, which names no moment in the years to come.")
    job = spec.job
    values = {
        "cron": spec.cron,
        "timezone": spec.timezone,
        "kind": job.kind.name,
        "input": job.input,
        "options": {
            "lane": job.lane.value,
            "metadata": job.metadata,
            "webhook": job.webhook,
            "timeout_s": job.timeout_s,
            "max_attempts": job.max_attempts,
        },
        "fair_key": job.fair_key,
        "next_at": next_at,
        "error": None,
    }
    is_new = find(session, name) is None
    if is_new and (session.scalar(select(func.count()).select_from(Schedule)) or 0) >= (
        SCHEDULES_LIMIT
    ):
        raise Conflict(f"There are {SCHEDULES_LIMIT:,} schedules; delete some.")
    statement = insert(Schedule).values(name=name, **values)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_=values | {"updated_at": func.now()}
        )
    )
    session.expire_all()
    return get(session, name), is_new


def find(session: Session, name: str) -> Schedule | None:
    return session.get(Schedule, name)


def get(session: Session, name: str) -> Schedule:
    """Raises NotFound."""
    schedule = find(session, name)
    if schedule is None:
        raise NotFound(f"There is no schedule {name!r}.")
    return schedule


def page(session: Session, *, limit: int, after: str | None) -> Sequence[Schedule]:
    """Schedules ordered by name, behind the name `after`."""
    query = select(Schedule).order_by(Schedule.name).limit(limit)
    if after is not None:
        query = query.where(Schedule.name > after)
    return session.scalars(query).all()


def remove(session: Session, name: str) -> None:
    """Delete a schedule. Its jobs stay. Raises NotFound."""
    deleted = session.execute(
        delete(Schedule).where(Schedule.name == name).returning(Schedule.name)
    ).first()
    if deleted is None:
        raise NotFound(f"There is no schedule {name!r}.")


def pause(session: Session, name: str) -> Schedule:
    """Submit no jobs until the schedule is resumed. Raises NotFound."""
    schedule = get(session, name)
    schedule.paused_at = schedule.paused_at or session.scalars(select(func.now())).one()
    session.flush()
    return schedule


def resume(session: Session, name: str) -> Schedule:
    """Submit jobs again. Times that passed during the pause are skipped. Raises NotFound."""
    schedule = get(session, name)
    if schedule.paused_at is not None:
        now = session.scalars(select(func.now())).one()
        schedule.paused_at = None
        schedule.next_at = next_time(schedule.cron, schedule.timezone, now)
        session.flush()
    return schedule


def due(session: Session, *, limit: int) -> Sequence[str]:
    """The names of schedules whose time has come and whose last job has ended."""
    is_open = select(Job.id).where(Job.id == Schedule.last_job_id, Job.state.in_(OPEN)).exists()
    query = (
        select(Schedule.name)
        .where(Schedule.paused_at.is_(None), Schedule.next_at <= func.now(), ~is_open)
        .order_by(Schedule.next_at)
        .limit(limit)
    )
    return session.scalars(query).all()


def fire(
    session: Transaction, name: str, settings: Settings, *, is_due: bool = True
) -> UUID | None:
    """Submit the job of a schedule; returns its id.

    With `is_due` only if the schedule is due, and the next time is written. None, without an error,
    if another process has submitted it, if the last job is open, or if it cannot be submitted.
    Without `is_due` at once: raises NotFound, Conflict if the last job is open, and the errors of
    submitting.
    """
    schedule = session.scalars(
        select(Schedule).where(Schedule.name == name).with_for_update(skip_locked=is_due)
    ).first()
    now = session.scalars(select(func.now())).one()
    if schedule is None:
        if is_due:
            return None
        raise NotFound(f"There is no schedule {name!r}.")
    last = session.get(Job, schedule.last_job_id) if schedule.last_job_id else None
    is_running = last is not None and State(last.state) in OPEN
    if is_due:
        is_early = schedule.next_at is None or schedule.next_at > now
        if schedule.paused_at is not None or is_early or is_running:
            return None
        schedule.next_at = next_time(schedule.cron, schedule.timezone, now)
    elif is_running:
        raise Conflict(f"The last job of {name!r} is still open: {schedule.last_job_id}.")
    try:
        with session.begin_nested():
            job_id = _submit(session, schedule, settings)
    except SluiceError as error:
        if not is_due:
            raise
        schedule.error = error.message
        return None
    schedule.last_at, schedule.last_job_id, schedule.error = now, job_id, None
    session.flush()
    return job_id


def _submit(session: Transaction, schedule: Schedule, settings: Settings) -> UUID:
    kind = KINDS.get(schedule.kind)
    if kind is None:
        raise InvalidInput(f"There is no kind {schedule.kind!r} any more; delete the schedule.")
    try:
        request = kind.input.model_validate(as_object(schedule.input))
    except ValidationError as error:
        raise InvalidInput(
            f"The input is none that {kind.name} takes any more ({first_line(error)}); put the "
            "schedule anew."
        ) from error
    kind.check(request, settings)
    # Defaults are those of now: the model of the server, the time until a batch is to be finished.
    input_ = request.model_dump(mode="json") | kind.defaults(request, settings)
    options = as_object(schedule.options)
    new = NewJob(
        kind=kind,
        input=input_,
        fair_key=schedule.fair_key,
        lane=Lane(options["lane"]),
        metadata={**options["metadata"], "schedule": schedule.name},
        webhook=options["webhook"],
        timeout_s=options["timeout_s"],
        max_attempts=options["max_attempts"],
    )
    require(session, new)
    return submission.submit(session, new).id


def require(session: Session, new: NewJob) -> None:
    """Raises NotFound where something is not there that the job's input names."""
    collection = new.input.get("collection")
    if isinstance(collection, str):
        new.kind.find_collection(session, collection)
    new.kind.require(session, [new.input])
