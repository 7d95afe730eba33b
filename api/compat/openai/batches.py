"""Batches: a file of requests, of which each line is a job (`shared/kinds/batch.py`).

Beside the fields of OpenAI's API, a batch has ours: `position`, `eta_s` and `finish_by`.
"""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field
from starlette.concurrency import run_in_threadpool

from api.compat.openai.dialect import OPENAI, uuid_of
from api.compat.openai.files import answer, file_id_of, seconds
from api.deps import FairKey, IdempotencyKey, PartsDep
from api.http.body import StrictRoute
from api.routes.batches import BatchOut, BatchSpec, submit, view, views_of
from shared.bounds import Line
from shared.jobs import batches, jobs
from shared.jobs.batches import Status
from shared.kinds.batch import EndpointName, Window
from shared.openai.items import FILE_PREFIX
from shared.openai.wire import id_of
from shared.vocabulary import WireShape

PREFIX = "batch_"
LIMIT = 100

router = APIRouter(route_class=StrictRoute)


class ExpiresAfter(WireShape):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class OpenAINewBatch(WireShape):
    """`completion_window` is `24h` or another time such as `90m` or `3d`; `endpoint` is that of the
    lines, or `mixed`. `finish_by`, a moment, is not part of OpenAI's API."""

    input_file_id: Line
    endpoint: EndpointName
    completion_window: Window
    metadata: Annotated[dict[Line, Line], Field(default_factory=dict, max_length=16)]
    output_expires_after: ExpiresAfter | None = None
    finish_by: AwareDatetime | None = None


class OpenAILineError(BaseModel):
    code: str
    message: str
    param: str | None
    line: int | None


class OpenAILineErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAILineError]


class OpenAIRequestCounts(BaseModel):
    """How many lines there are. Cancelled and expired ones are neither completed nor failed."""

    total: int
    completed: int
    failed: int


class OpenAIBatch(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: OpenAILineErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: OpenAIRequestCounts
    usage: dict[str, Any] | None = None
    metadata: dict[str, Any]
    position: int | None = None
    eta_s: float | None = None
    finish_by: datetime


class OpenAIBatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIBatch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


@router.post(
    "/batches",
    response_model=OpenAIBatch,
    responses=OPENAI.documented(400, 401, 404, 409, 413, 429, 503),
)
async def create_openai_batch(
    http: Request,
    parts: PartsDep,
    fair_key: FairKey,
    request: OpenAINewBatch,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run the lines of a file of the purpose `batch`, each as a job."""
    body = await http.json() if idempotency_key else None

    def create() -> OpenAIBatch:
        expires = request.output_expires_after
        new = BatchSpec(
            file_id=uuid_of(FILE_PREFIX, request.input_file_id, "file"),
            endpoint=request.endpoint,
            completion_window=None if request.finish_by else request.completion_window,
            finish_by=request.finish_by,
            output_expires_after_s=expires.seconds if expires else None,
            metadata=request.metadata,
        )
        made = submit(parts, fair_key, new, idempotency_key, body)
        return batch_of(view(parts, made.id))

    return answer(await run_in_threadpool(create))


@router.get(
    "/batches", response_model=OpenAIBatchList, responses=OPENAI.documented(400, 401, 404, 503)
)
def list_openai_batches(
    parts: PartsDep,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=LIMIT)] = 20,
) -> Response:
    """Batches, newest first, behind the one that `after` names."""
    before = None if after is None else uuid_of(PREFIX, after, "batch")
    with parts.ledger.read() as session:
        rows = batches.page(session, limit=limit + 1, before=before)
        data = [batch_of(one) for one in views_of(parts, session, rows[:limit])]
    return answer(
        OpenAIBatchList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(rows) > limit,
        )
    )


@router.get(
    "/batches/{batch_id}",
    response_model=OpenAIBatch,
    responses=OPENAI.documented(400, 401, 404, 503),
)
def get_openai_batch(parts: PartsDep, batch_id: str) -> Response:
    """How far a batch is."""
    return answer(batch_of(view(parts, uuid_of(PREFIX, batch_id, "batch"))))


@router.post(
    "/batches/{batch_id}/cancel",
    response_model=OpenAIBatch,
    responses=OPENAI.documented(400, 401, 404, 503),
)
def cancel_openai_batch(parts: PartsDep, batch_id: str) -> Response:
    """Cancel the lines that are not done, within 2 s. The answers of the others stay."""
    id_ = uuid_of(PREFIX, batch_id, "batch")
    with parts.ledger.begin() as session:
        batches.get(session, id_)
        jobs.cancel(session, id_)
    return answer(batch_of(view(parts, id_)))


def batch_of(batch: BatchOut) -> OpenAIBatch:
    """A batch in the shape of OpenAI's API."""
    ended, closed = _seconds(batch.finished_at), _seconds(batch.closed_at)
    moments = {
        Status.COMPLETED: {"finalizing_at": ended, "completed_at": closed or ended},
        Status.FINALIZING: {"finalizing_at": ended},
        Status.FAILED: {"failed_at": ended},
        Status.EXPIRED: {"expired_at": _seconds(batch.expired_at) or ended},
        Status.CANCELLING: {"cancelling_at": ended},
        Status.CANCELLED: {"cancelling_at": ended, "cancelled_at": closed or ended},
    }
    errors = [OpenAILineError(**entry.model_dump()) for entry in batch.errors]
    if batch.status == Status.FAILED and not errors and batch.error is not None:
        errors = [
            OpenAILineError(
                code=batch.error.type, message=batch.error.message, param=None, line=None
            )
        ]
    return OpenAIBatch(
        id=id_of(PREFIX, batch.id),
        endpoint=batch.endpoint,
        errors=OpenAILineErrors(data=errors) if errors else None,
        input_file_id=file_id_of(batch.file_id),
        completion_window=batch.completion_window or "24h",
        status=batch.status,
        output_file_id=_file(batch.output_file_id),
        error_file_id=_file(batch.error_file_id),
        created_at=seconds(batch.created_at),
        in_progress_at=_seconds(batch.validated_at),
        expires_at=_seconds(batch.finish_by),
        request_counts=OpenAIRequestCounts(
            total=batch.lines.total, completed=batch.lines.succeeded, failed=batch.lines.failed
        ),
        usage=_usage(batch),
        metadata=batch.metadata,
        position=batch.position,
        eta_s=batch.eta_s,
        finish_by=batch.finish_by,
        **moments.get(batch.status, {}),
    )


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else seconds(moment)


def _file(file_id: UUID | None) -> str | None:
    return None if file_id is None else file_id_of(file_id)


def _usage(batch: BatchOut) -> dict[str, Any] | None:
    if not batch.prompt_tokens:
        return None
    return {
        "input_tokens": batch.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": batch.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": batch.prompt_tokens + batch.completion_tokens,
    }
