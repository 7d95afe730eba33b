"""Schedules: jobs that are submitted again and again."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Response

from api.deps import Cursor, FairKey, PageLimit, PartsDep
from api.http import answers
from api.http.answers import answer
from api.http.body import StrictRoute
from api.http.key_scopes import require_for_kind
from api.jobs import submission
from api.openapi import documented
from api.schemas import NewSchedule, Page, ScheduledRun, ScheduleView
from shared.errors import InvalidInput
from shared.jobs import schedules
from shared.jobs.schedules import SCHEDULE_NAME

router = APIRouter(prefix="/v1/schedules", tags=["schedules"], route_class=StrictRoute)

Name = Annotated[
    str, Path(pattern=SCHEDULE_NAME, description="Up to 63 letters, digits, `.`, `_`, `-`.")
]

_OUT_OF_PLACE = {
    "conversation_id": "its jobs continue nothing",
    "previous_job_id": "its jobs continue nothing",
    "finish_by": "it is one moment; give completion_window",
}
"""Fields of inputs that a schedule cannot have -> why."""


@router.put(
    "/{name}",
    responses=documented({200: ScheduleView, 201: ScheduleView}, 400, 404, 409, 413, 415, 422),
)
def put_schedule(parts: PartsDep, fair_key: FairKey, name: Name, spec: NewSchedule) -> Response:
    """Make a schedule (201), or replace the one with this name (200). The next job is due at the
    first moment after now; a paused schedule stays paused."""
    if spec.job.run_after is not None:
        raise InvalidInput("job.run_after has no place in a schedule: `cron` says when.")
    for field, reason in _OUT_OF_PLACE.items():
        if getattr(spec.job.input, field, None) is not None:
            raise InvalidInput(f"job.input.{field} has no place in a schedule: {reason}.")
    new = submission.new_job(spec.job, parts.settings, fair_key=fair_key)
    # The input as it was sent, because defaults are filled in when a job is submitted.
    job = replace(new, input=spec.job.input.model_dump(mode="json", exclude_unset=True))
    schedule_spec = schedules.ScheduleSpec(cron=spec.cron, timezone=spec.timezone, job=job)
    with parts.ledger.begin() as session:
        schedules.require(session, new)
        if (existing := schedules.find(session, name)) is not None:
            require_for_kind(parts.settings, fair_key, existing.kind)
        schedule, is_new = schedules.put(session, name, schedule_spec)
        view = ScheduleView.of(schedule, with_job=True)
    headers = {"Location": f"/v1/schedules/{name}"}
    return answer(view, 201 if is_new else 200, headers)


@router.get("", responses=documented({200: Page[ScheduleView]}, 400, 422))
def list_schedules(parts: PartsDep, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Schedules by name."""
    after = answers.decode("schedules", cursor)
    with parts.ledger.read() as session:
        rows = schedules.page(session, limit=limit + 1, after=after)
        items = [ScheduleView.of(schedule) for schedule in rows[:limit]]
    more = answers.encode("schedules", items[-1].name) if len(rows) > limit else None
    return answer(Page[ScheduleView](items=items, next_cursor=more))


@router.get("/{name}", responses=documented({200: ScheduleView}, 404, 422))
def get_schedule(parts: PartsDep, name: Name) -> Response:
    """A schedule: its job, when the next job is due, and the last job."""
    with parts.ledger.read() as session:
        view = ScheduleView.of(schedules.get(session, name), with_job=True)
    return answer(view)


@router.delete("/{name}", status_code=204, responses=documented({}, 404, 422))
def delete_schedule(parts: PartsDep, fair_key: FairKey, name: Name) -> Response:
    """Delete a schedule. Jobs that it has submitted stay."""
    with parts.ledger.begin() as session:
        require_for_kind(parts.settings, fair_key, schedules.get(session, name).kind)
        schedules.remove(session, name)
    return Response(status_code=204)


@router.post("/{name}/pause", responses=documented({200: ScheduleView}, 404, 422))
def pause_schedule(parts: PartsDep, fair_key: FairKey, name: Name) -> Response:
    """Submit no jobs of this schedule until it is resumed."""
    with parts.ledger.begin() as session:
        require_for_kind(parts.settings, fair_key, schedules.get(session, name).kind)
        view = ScheduleView.of(schedules.pause(session, name))
    return answer(view)


@router.post("/{name}/resume", responses=documented({200: ScheduleView}, 404, 422))
def resume_schedule(parts: PartsDep, fair_key: FairKey, name: Name) -> Response:
    """Resume a schedule from now on. Jobs that were due during the pause are not submitted."""
    with parts.ledger.begin() as session:
        require_for_kind(parts.settings, fair_key, schedules.get(session, name).kind)
        view = ScheduleView.of(schedules.resume(session, name))
    return answer(view)


@router.post("/{name}/run", responses=documented({200: ScheduledRun}, 404, 409, 422))
def run_schedule(parts: PartsDep, fair_key: FairKey, name: Name) -> Response:
    """Submit the job now; 409 while the last one is open. The time of the next job does not
    change."""
    with parts.ledger.begin() as session:
        require_for_kind(parts.settings, fair_key, schedules.get(session, name).kind)
        job_id = schedules.fire(session, name, parts.settings, is_due=False)
    assert job_id is not None
    return answer(ScheduledRun(job_id=job_id))
