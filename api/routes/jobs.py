"""Jobs: submit, find, cancel, redrive. Their events are in `api/routes/events.py`."""

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.deps import Cursor, FairKey, JobId, Limit, Parts, PartsDep, Prefer
from api.http import answers
from api.http.answers import answer, documented, result_response
from api.http.body import StrictRoute
from api.jobs import streams, submission, uploads
from api.schemas import (
    EXAMPLES,
    HIDDEN,
    PRINTABLE,
    BatchRequest,
    BatchView,
    JobRequest,
    JobView,
    KindName,
    Page,
)
from shared.bounds import CollectionName, Unreadable
from shared.errors import Conflict, InvalidInput, NotFound
from shared.jobs import jobs
from shared.jobs.jobs import Contents, Filter
from shared.jobs.queues import Estimate, estimate
from shared.vocabulary import Lane, State

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        pattern=PRINTABLE,
        description="The same key and body return the same job; another body is 409.",
    ),
]
RESULT_RESPONSES = documented({}, 404, 409) | {
    200: {
        "description": "The result",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobResult"}}},
    }
}
JobBody = Annotated[JobRequest, Body(openapi_examples=EXAMPLES)]


@router.post(
    "",
    status_code=202,
    responses=documented({202: JobView, 200: JobView}, 400, 404, 409, 413, 415, 422, 429),
)
async def submit_job(
    http: Request,
    parts: PartsDep,
    fair_key: FairKey,
    request: JobBody,
    preferences: Prefer,
    idempotency_key: Key = None,
) -> Response:
    """Submit a job. It exists once this is answered."""
    wait_s = answers.wait_s(preferences, at_most=parts.settings.max_wait_s)
    if wait_s:
        parts.news.check_room()
    new = submission.new_job(
        request,
        parts.settings,
        fair_key=fair_key,
        lane=Lane.NORMAL if wait_s is None else Lane.INTERACTIVE,
        idempotency_key=idempotency_key,
        body=await http.json() if idempotency_key else None,
    )
    made = await run_in_threadpool(submission.submit, parts, new)
    headers = {"Location": f"/v1/jobs/{made.id}"} | answers.applied(wait_s)
    if not made.is_new:
        headers["Idempotent-Replayed"] = "true"
    if wait_s is not None:
        return await after_waiting(parts, made.id, fair_key, wait_s, headers)
    if made.is_new:
        return answer(submission.view_of_new(new, made), 202, headers)
    return answer(await run_in_threadpool(streams.view, parts, made.id, fair_key), 202, headers)


@router.post(
    "/batch",
    status_code=202,
    responses=documented({202: BatchView}, 400, 404, 413, 415, 422, 429),
)
def submit_jobs(parts: PartsDep, fair_key: FairKey, batch: BatchRequest) -> Response:
    """Submit up to 1,000 jobs in one transaction: all or nothing."""
    limit = parts.settings.batch_limit_jobs
    if len(batch.jobs) > limit:
        raise InvalidInput(
            f"jobs has {len(batch.jobs)} entries; a batch takes {limit} (SLUICE_BATCH_LIMIT_JOBS)."
        )
    new = [submission.new_job(each, parts.settings, fair_key=fair_key) for each in batch.jobs]
    return answer(BatchView(ids=submission.submit_batch(parts, new)), 202)


@router.get("", responses=documented({200: Page[JobView]}, 400, 422))
def list_jobs(
    parts: PartsDep,
    fair_key: FairKey,
    state: State | None = None,
    kind: KindName | None = None,
    collection: Annotated[CollectionName | None, Query()] = None,
    dead: Annotated[
        bool | None, Query(description="`true`: dead letters, out of attempts.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Jobs, newest first. What is large of them is left out, and named in `truncated`."""
    where = Filter(state=state, kind=kind, collection=collection, dead=dead)
    with parts.ledger.read() as session:
        rows = jobs.page(session, where, limit=limit + 1, before=answers.decode_id("jobs", cursor))
        shown = rows[:limit]
        estimates = estimate(
            session,
            shown,
            worker_heartbeat_s=parts.settings.worker_heartbeat_s,
            depths=parts.depths,
        )
        contents = jobs.contents(
            session, [job.id for job in shown], limit_bytes=parts.settings.list_inline_bytes
        )
    return answer(
        Page[JobView].model_construct(
            items=[
                JobView.of(
                    job,
                    estimates.get(job.id, Estimate()),
                    fair_key,
                    contents.get(job.id, Contents()),
                )
                for job in shown
            ],
            next_cursor=answers.encode("jobs", str(shown[-1].id)) if len(rows) > limit else None,
        )
    )


@router.get("/{job_id}", responses=documented({200: JobView}, 404))
def get_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """The job as it is now."""
    return answer(streams.view(parts, job_id, fair_key, is_whole=True))


@router.delete("/{job_id}", status_code=204, responses=documented({}, 404, 409))
def erase_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """Erase a job that has ended, with its input and its stored result; 409 while it is open.

    What it has made (documents, messages of a conversation) stays.
    """
    with parts.ledger.begin() as session:
        if jobs.hides_text(jobs.without_contents(session, job_id), fair_key):
            raise NotFound(f"There is no job {job_id} that this key may erase. {HIDDEN}")
        folder = jobs.erase(session, job_id)
    uploads.forget_folder(parts, folder)
    return Response(status_code=204)


@router.get("/{job_id}/result", responses=RESULT_RESPONSES)
def get_job_result(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """The bare result of a job that has succeeded, however large, as JSON."""
    with parts.ledger.read() as session:
        job = jobs.get(session, job_id)
    if jobs.hides_text(job, fair_key):
        raise NotFound(f"There is no result of job {job_id} for this key. {HIDDEN}")
    if isinstance(job.result, Unreadable):
        raise Conflict(f"The result of job {job_id} cannot be read: {job.result.reason}.")
    if job.state != State.SUCCEEDED:
        raise Conflict(f"Job {job_id} is {job.state}; only jobs that have succeeded have a result.")
    return result_response(parts, job)


@router.post("/{job_id}/cancel", responses=documented({200: JobView}, 404))
def cancel_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """Cancel a job: at once while it is queued, within 2 s while it runs."""
    with parts.ledger.begin() as session:
        jobs.cancel(session, job_id)
    return answer(streams.view(parts, job_id, fair_key))


@router.post("/{job_id}/retry", responses=documented({200: JobView}, 404, 409))
def retry_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """Run a failed or cancelled job again, from its start."""
    with parts.ledger.begin() as session:
        jobs.redrive(session, job_id)
    return answer(streams.view(parts, job_id, fair_key))


async def after_waiting(
    parts: Parts, job_id: UUID, fair_key: str, wait_s: float, headers: Mapping[str, str]
) -> Response:
    """200 with the finished job if it ends in time, else 202 with the job as it is."""
    ended = await streams.until_end(parts, job_id, wait_s=wait_s)
    view = await run_in_threadpool(streams.view, parts, job_id, fair_key)
    return answer(view, 200 if ended else 202, headers)
