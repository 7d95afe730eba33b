"""Jobs and their kinds: submit, find, cancel, redrive. Events are in `api/routes/events.py`."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response

from api.deps import Cursor, FairKey, IdempotencyKey, JobId, PageLimit, PartsDep, Prefer, as_id
from api.http import answers
from api.http.answers import answer, job_view, result_response
from api.http.body import StrictRoute
from api.http.key_scopes import require_for_job
from api.jobs import submission, waiting
from api.openapi import documented
from api.routes.files import forget_folder
from api.schemas import (
    EXAMPLES,
    HIDDEN,
    BatchRequest,
    BatchView,
    Items,
    JobRequest,
    JobView,
    KindName,
    KindView,
    Page,
)
from shared.bounds import CollectionName, Unreadable
from shared.errors import Conflict, InvalidInput, NotFound
from shared.jobs import batches, jobs
from shared.jobs.batches import WITHOUT_RESULT
from shared.jobs.jobs import Contents, Filter
from shared.jobs.queues import Estimate, estimate
from shared.kinds.registry import BATCH, KINDS
from shared.vocabulary import State

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=StrictRoute)

RESULT_RESPONSES = documented({}, 404, 409) | {
    200: {
        "description": "The result",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobResult"}}},
    }
}
JobBody = Annotated[JobRequest, Body(openapi_examples=EXAMPLES)]


@router.post(
    "/jobs",
    status_code=202,
    responses=documented({202: JobView, 200: JobView}, 400, 404, 409, 413, 415, 422, 429),
)
async def submit_job(
    http: Request,
    parts: PartsDep,
    fair_key: FairKey,
    request: JobBody,
    preferences: Prefer,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Submit a job. It exists once this is answered."""
    return await waiting.submit(
        parts,
        request,
        fair_key=fair_key,
        preferences=preferences,
        idempotency_key=idempotency_key,
        body=await http.json() if idempotency_key else None,
    )


@router.post(
    "/jobs/batch",
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
    new = [submission.new_job(job, parts.settings, fair_key=fair_key) for job in batch.jobs]
    return answer(BatchView(ids=submission.submit_batch(parts.ledger, parts.admission, new)), 202)


@router.get("/jobs", responses=documented({200: Page[JobView]}, 400, 404, 422))
def list_jobs(
    parts: PartsDep,
    fair_key: FairKey,
    state: State | None = None,
    kind: KindName | None = None,
    collection: Annotated[CollectionName | None, Query()] = None,
    dead: Annotated[
        bool | None, Query(description="`true`: dead letters, out of attempts.")
    ] = None,
    batch: Annotated[
        str | None, Query(description="The id of a batch: its lines, which are else left out.")
    ] = None,
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """Jobs, newest first. Large fields are left out, and listed in `truncated`.

    Lines of batches are left out unless `batch` names their batch, or `dead` is true.
    """
    batch_id = None if batch is None else as_id(batch, "batch")
    where = Filter(state=state, kind=kind, collection=collection, dead=dead, batch_id=batch_id)
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


@router.get("/jobs/{job_id}", responses=documented({200: JobView}, 404))
def get_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """A job at this moment."""
    return answer(job_view(parts, job_id, fair_key, is_whole=True))


@router.delete("/jobs/{job_id}", status_code=204, responses=documented({}, 404, 409))
def erase_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """Erase a job that has ended, with its input and its stored result; 409 while it is open.

    Documents and messages of conversations that it has made stay.
    """
    with parts.ledger.begin() as session:
        require_for_job(session, parts.settings, fair_key, job_id)
        if jobs.hides_text(jobs.without_contents(session, job_id), fair_key):
            raise NotFound(f"There is no job {job_id} that this key may erase. {HIDDEN}")
        folder = jobs.erase(session, job_id)
    forget_folder(parts, folder)
    return Response(status_code=204)


@router.get("/jobs/{job_id}/result", responses=RESULT_RESPONSES)
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


@router.post("/jobs/{job_id}/cancel", responses=documented({200: JobView}, 404))
def cancel_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """Cancel a job: at once while it is queued, within 2 s while it runs."""
    with parts.ledger.begin() as session:
        require_for_job(session, parts.settings, fair_key, job_id)
        jobs.cancel(session, job_id)
    return answer(job_view(parts, job_id, fair_key))


@router.post("/jobs/{job_id}/retry", responses=documented({200: JobView}, 404, 409))
def retry_job(parts: PartsDep, fair_key: FairKey, job_id: JobId) -> Response:
    """Run a failed or cancelled job again from its start; for a batch, all lines without an
    answer."""
    with parts.ledger.begin() as session:
        require_for_job(session, parts.settings, fair_key, job_id)
        if jobs.without_contents(session, job_id).kind == BATCH.name:
            finish_s = parts.settings.batch_finish_s
            batches.retry(session, job_id, states=WITHOUT_RESULT, finish_s=finish_s)
        else:
            jobs.redrive(session, job_id)
    return answer(job_view(parts, job_id, fair_key))


@router.get("/kinds", responses=documented({200: Items[KindView]}))
def list_kinds() -> Response:
    """The kinds of jobs, each with its queue, the JSON Schemas of its input and result, and an
    input that works on a new installation. A `result` of null means any JSON."""
    return answer(Items[KindView](items=[_kind_view(name) for name in KINDS]))


def _kind_view(name: str) -> KindView:
    kind = KINDS[name]
    result: dict[str, Any] | None = None
    if kind.result is not None:
        result = kind.result.model_json_schema(mode="serialization")
    return KindView(
        name=kind.name,
        summary=kind.summary,
        queue=kind.first_step.queue,
        input=kind.input.model_json_schema(),
        result=result,
        example=dict(kind.example),
    )
