"""Batches: the lines of an uploaded file as jobs. `shared/kinds/batch.py` says what lines are."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.deps import (
    Cursor,
    FairKey,
    IdempotencyKey,
    PageLimit,
    Parts,
    PartsDep,
    as_id,
)
from api.http import answers
from api.http.answers import answer
from api.http.body import StrictRoute
from api.jobs import submission
from api.openapi import documented
from api.routes.files import content_response
from api.schemas import REQUESTS, ErrorView, Page, ProgressView, Webhook
from shared import files
from shared.bounds import FreeMetadata, as_object
from shared.errors import NotFound
from shared.jobs import batches, jobs
from shared.jobs.batches import WITHOUT_RESULT, Status
from shared.jobs.queues import Estimate, estimate
from shared.jobs.submission import Submitted
from shared.kinds.batch import BATCH, BatchInput
from shared.tables import Batch, Job
from shared.vocabulary import OPEN, Lane, LaneRank, Shape, State

OUTPUT_TYPE = "application/jsonl"


class BatchSpec(BatchInput):
    """`max_attempts` is that of each line."""

    lane: Lane | None = None
    metadata: FreeMetadata = Field(default_factory=dict)
    webhook: Webhook | None = None
    max_attempts: Annotated[int, Field(ge=1, le=20)] | None = None

    def request(self) -> Any:
        """The request of the job that it asks for."""
        fields = set(BatchInput.model_fields)
        return REQUESTS[BATCH.name](
            kind=BATCH.name,
            input=BatchInput(**self.model_dump(include=fields)),
            **self.model_dump(exclude=fields, exclude_none=True),
        )


class RetriedLines(Shape):
    """Which lines are to run again: `failed` alone, or all that have no answer."""

    lines: Literal["failed", "unfinished"] = "failed"


class LineCounts(BaseModel):
    """How many lines are in which state. Those that are `waiting` have no job yet; the jobs of
    those that are `running` are queued or running."""

    total: int
    waiting: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int


class LineErrorView(BaseModel):
    """What is wrong with a line of the file. `line` counts from 1; null means the whole file."""

    line: int | None
    code: str
    message: str
    param: str | None


class BatchOut(BaseModel):
    """A batch, which is a job as well. `position` is that of its next line in the line's queue, and
    `waiting_for` says what that line waits for. `errors` are those of a file that cannot be run."""

    id: UUID
    state: State | str
    status: Status
    endpoint: str
    file_id: UUID
    lines: LineCounts
    progress: ProgressView
    position: int | None = None
    eta_s: float | None = None
    waiting_for: str | None = None
    errors: list[LineErrorView] = []
    error: ErrorView | None = None
    warnings: list[str] = []
    output_file_id: UUID | None = None
    error_file_id: UUID | None = None
    finish_by: datetime
    completion_window: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lane: Lane
    metadata: dict[str, Any]
    created_at: datetime
    validated_at: datetime | None = None
    finished_at: datetime | None = None
    closed_at: datetime | None = None
    expired_at: datetime | None = None


async def _batch_id(batch_id: str) -> UUID:
    return as_id(batch_id, "batch")


BatchId = Annotated[UUID, Depends(_batch_id)]

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=StrictRoute)

LINES_RESPONSES = documented({}, 404) | {
    200: {
        "description": "A line of JSON for each line of the batch",
        "content": {OUTPUT_TYPE: {"schema": {"type": "string"}}},
    }
}


@router.post(
    "",
    status_code=202,
    responses=documented({202: BatchOut}, 400, 404, 409, 413, 415, 422, 429),
)
async def create_batch(
    http: Request,
    parts: PartsDep,
    fair_key: FairKey,
    new: Annotated[BatchSpec, Body()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run the lines of an uploaded JSONL file, each as a job. It exists once this is answered."""
    body = await http.json() if idempotency_key else None
    return await run_in_threadpool(_create, parts, fair_key, new, idempotency_key, body)


def _create(
    parts: Parts, fair_key: str, new: BatchSpec, idempotency_key: str | None, body: Any
) -> Response:
    made = submit(parts, fair_key, new, idempotency_key, body)
    headers = {"Location": f"/v1/batches/{made.id}"}
    if not made.is_new:
        headers["Idempotent-Replayed"] = "true"
    return answer(view(parts, made.id), 202, headers)


def submit(
    parts: Parts, fair_key: str, new: BatchSpec, idempotency_key: str | None, body: Any
) -> Submitted:
    """Commit the job of a batch. `body` is compared where the idempotency key was used before.
    Raises what `submission.submit` raises."""
    job = submission.new_job(
        new.request(),
        parts.settings,
        fair_key=fair_key,
        idempotency_key=idempotency_key,
        body=body,
    )
    return submission.submit(parts.ledger, parts.admission, job)


@router.get("", responses=documented({200: Page[BatchOut]}, 400, 422))
def list_batches(parts: PartsDep, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Batches, newest first."""
    with parts.ledger.read() as session:
        rows = batches.page(session, limit=limit + 1, before=answers.decode_id("batches", cursor))
        views = views_of(parts, session, rows[:limit])
    return answer(
        Page[BatchOut].model_construct(
            items=views,
            next_cursor=answers.encode("batches", str(views[-1].id)) if len(rows) > limit else None,
        )
    )


@router.get("/{batch_id}", responses=documented({200: BatchOut}, 404))
def get_batch(parts: PartsDep, batch_id: BatchId) -> Response:
    """How far a batch is."""
    return answer(view(parts, batch_id))


@router.post("/{batch_id}/cancel", responses=documented({200: BatchOut}, 404))
def cancel_batch(parts: PartsDep, batch_id: BatchId) -> Response:
    """Cancel the lines that are not done, within 2 s. The answers of the others stay."""
    with parts.ledger.begin() as session:
        batches.get(session, batch_id)
        jobs.cancel(session, batch_id)
    return answer(view(parts, batch_id))


@router.post("/{batch_id}/retry", responses=documented({200: BatchOut}, 404, 409, 415, 422))
def retry_batch(
    parts: PartsDep, batch_id: BatchId, retried: RetriedLines | None = None
) -> Response:
    """Run the lines again that have failed, and nothing else."""
    is_all = retried is not None and retried.lines == "unfinished"
    with parts.ledger.begin() as session:
        batches.retry(
            session,
            batch_id,
            states=WITHOUT_RESULT if is_all else (State.FAILED.value,),
            finish_s=parts.settings.batch_finish_s,
        )
    return answer(view(parts, batch_id))


@router.get("/{batch_id}/results", response_class=Response, responses=LINES_RESPONSES)
def get_batch_results(parts: PartsDep, batch_id: BatchId) -> Response:
    """The answers so far: while it runs in the order in which lines ended, at last in the order of
    the file."""
    with parts.ledger.read() as session:
        _, batch = batches.get(session, batch_id)
        return _content(parts, session, batch_id, batch.output_file_id if batch else None)


@router.get("/{batch_id}/errors", response_class=Response, responses=LINES_RESPONSES)
def get_batch_errors(parts: PartsDep, batch_id: BatchId) -> Response:
    """The lines that have ended without an answer, and why."""
    with parts.ledger.read() as session:
        _, batch = batches.get(session, batch_id)
        return _content(parts, session, batch_id, batch.error_file_id if batch else None)


def _content(parts: Parts, session: Session, batch_id: UUID, file_id: UUID | None) -> Response:
    if file_id is None:
        return Response(b"", media_type=OUTPUT_TYPE)
    try:
        file = files.get(session, file_id)
    except NotFound as error:
        raise NotFound(
            f"File {file_id} of this batch was deleted, or has expired. Lines have their results "
            f"as jobs: `GET /v1/jobs?batch={batch_id}`."
        ) from error
    return content_response(parts, file)


def view(parts: Parts, batch_id: UUID) -> BatchOut:
    """One batch, with its position in the queue. Raises NotFound."""
    with parts.ledger.read() as session:
        job, batch = batches.get(session, batch_id)
        return views_of(parts, session, [(job, batch)], with_position=True)[0]


def views_of(
    parts: Parts,
    session: Session,
    rows: list[tuple[Job, Batch | None]],
    *,
    with_position: bool = False,
) -> list[BatchOut]:
    estimates = _estimates(parts, session, [job for job, _ in rows])
    return [
        _view(session, parts, job, batch, estimates.get(job.id, Estimate()), with_position)
        for job, batch in rows
    ]


def _estimates(parts: Parts, session: Session, rows: list[Job]) -> dict[UUID, Estimate]:
    return estimate(
        session, rows, worker_heartbeat_s=parts.settings.worker_heartbeat_s, depths=parts.depths
    )


def _next_line_estimate(
    parts: Parts, session: Session, job: Job, job_estimate: Estimate
) -> Estimate:
    """The position of the next line: that of the batch's own step means nothing, because it is put
    off again and again."""
    line = batches.next_line(session, job.id)
    if line is None:
        return Estimate(eta_s=job_estimate.eta_s, waiting_for=job_estimate.waiting_for)
    line_estimate = _estimates(parts, session, [line]).get(line.id, Estimate())
    reasons = filter(None, (job_estimate.waiting_for, line_estimate.waiting_for))
    return Estimate(
        position=line_estimate.position,
        eta_s=job_estimate.eta_s,
        waiting_for=" ".join(reasons) or None,
    )


def _view(
    session: Session,
    parts: Parts,
    job: Job,
    batch: Batch | None,
    job_estimate: Estimate,
    with_position: bool,
) -> BatchOut:
    job_input = as_object(job.input)
    counts = batches.counts(session, batch)
    place = job_estimate
    if with_position and batch is not None and batch.open and job.state in OPEN:
        place = _next_line_estimate(parts, session, job, job_estimate)
    elif batch is not None:
        place = Estimate(position=job_estimate.position, eta_s=job_estimate.eta_s)
    done = counts.total - counts.waiting - counts.running
    error = as_object(job.error)
    return BatchOut(
        id=job.id,
        state=State(job.state) if job.state in set(State) else job.state,
        status=batches.status_of(job, batch),
        endpoint=str(job_input.get("endpoint", "")),
        file_id=job_input["file_id"],
        lines=LineCounts(**vars(counts)),
        progress=ProgressView(done=done, total=counts.total, unit="lines"),
        position=place.position,
        eta_s=place.eta_s,
        waiting_for=place.waiting_for,
        errors=[LineErrorView(**entry) for entry in batch.errors] if batch else [],
        error=ErrorView(type=str(error.get("type", "")), message=str(error.get("message", "")))
        if error
        else None,
        warnings=list(job.warnings),
        output_file_id=batch.output_file_id if batch else None,
        error_file_id=batch.error_file_id if batch else None,
        finish_by=batch.finish_by if batch else job_input["finish_by"],
        completion_window=job_input.get("completion_window"),
        prompt_tokens=batch.prompt_tokens if batch else 0,
        completion_tokens=batch.completion_tokens if batch else 0,
        lane=LaneRank(job.lane).lane,
        metadata=as_object(job.meta),
        created_at=job.created_at,
        validated_at=batch.validated_at if batch else None,
        finished_at=job.finished_at,
        closed_at=batch.closed_at if batch else None,
        expired_at=batch.expired_at if batch else None,
    )
