"""`/files` of OpenAI's API: uploads, and the answer files of batches."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from api.compat import calls
from api.compat.calls import NO_RETRY, CallerDep
from api.compat.dialect import Problem, ProblemError
from api.compat.openai.dialect import OPENAI, uuid_of
from api.deps import Parts, PartsDep
from api.http.body import StrictRoute
from api.routes.files import clean_name, content_response, forget, keep
from shared import files, tables
from shared.bounds import shown
from shared.documents import attachments, documents
from shared.documents.documents import DocumentView
from shared.errors import InvalidInput, NotFound
from shared.files import Purpose
from shared.jobs import jobs
from shared.kinds import registry as kinds
from shared.kinds.erase import EraseInput
from shared.openai.items import FILE_PREFIX
from shared.openai.wire import id_of

LIMIT_FILES = 10_000
LEAST_LIFETIME_S, LONGEST_LIFETIME_S = 3600, 2_592_000
BATCH_LIFETIME = timedelta(days=30)
"""The default for files of the purpose `batch`."""
UPLOAD_PURPOSES = (
    Purpose.ASSISTANTS,
    Purpose.BATCH,
    Purpose.FINE_TUNE,
    Purpose.VISION,
    Purpose.USER_DATA,
)
"""The purposes of uploads; files that Sluice writes have others."""
FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}

router = APIRouter(route_class=StrictRoute)


class OpenAIFile(BaseModel):
    """A file; `expires_at` is missing if it stays until it is deleted."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: int | None = None


class OpenAIFileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIFile]
    first_id: str
    last_id: str
    has_more: bool


class OpenAIFileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool


def file_id_of(id_: UUID) -> str:
    return id_of(FILE_PREFIX, id_)


def file_uuid(file_id: str, param: str = "file_id") -> UUID:
    """The UUID of a file id. Raises ProblemError, which names the parameter."""
    return wire_uuid(FILE_PREFIX, file_id, "file", param)


def wire_uuid(prefix: str, id_: str, what: str, param: str) -> UUID:
    """As `uuid_of`. Raises ProblemError, which names the parameter."""
    try:
        return uuid_of(prefix, id_, what)
    except NotFound as error:
        raise invalid(param, error.message, status=404) from None


def invalid(param: str, message: str, status: int = 400) -> ProblemError:
    """An error about a parameter; clients do not repeat the request."""
    return ProblemError(
        Problem(status=status, detail=message, fields={"param": param}, headers=NO_RETRY)
    )


def seconds(moment: datetime) -> int:
    """A time in this API: seconds since 1970."""
    return int(moment.timestamp())


def answer(view: BaseModel, headers: dict[str, str] | None = None) -> Response:
    """The value without its None fields: this API leaves most of them out."""
    return Response(
        view.model_dump_json(exclude_none=True), media_type="application/json", headers=headers
    )


def file_view(parts: Parts, file: tables.File) -> OpenAIFile:
    ends = file.created_at + timedelta(days=parts.settings.retention_days)
    if file.expires_at is not None:
        ends = min(ends, file.expires_at)
    return OpenAIFile(
        id=file_id_of(file.id),
        bytes=file.size_bytes,
        created_at=seconds(file.created_at),
        filename=file.name,
        purpose=file.purpose,
        expires_at=seconds(ends),
    )


@router.post(
    "/files",
    response_model=OpenAIFile,
    responses=OPENAI.documented(400, 401, 408, 413, 415, 503),
)
async def create_openai_file(
    http: Request,
    parts: PartsDep,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form(max_length=64)],
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]", max_length=64)] = None,
    lifetime_s: Annotated[str | None, Form(alias="expires_after[seconds]", max_length=32)] = None,
) -> Response:
    """Upload a file for a purpose: `assistants`, `batch`, `user_data`, `vision` or `fine-tune`."""
    form = await http.form()
    for name in sorted(form.keys()):
        if len(form.getlist(name)) > 1:
            raise invalid(name, f"{name} comes more than once; send one file in each request.")
    unknown = sorted(form.keys() - FIELDS)
    if unknown:
        raise invalid(
            unknown[0],
            f"There is no field {shown(unknown[0])}; there are {', '.join(sorted(FIELDS))}.",
        )
    if purpose not in UPLOAD_PURPOSES:
        raise invalid(
            "purpose",
            f"{shown(purpose)} is no purpose of uploads here; there are "
            f"{', '.join(UPLOAD_PURPOSES)}. Use user_data for anything else.",
        )
    expires_at = _expiry(anchor, lifetime_s)
    if expires_at is None and purpose == Purpose.BATCH:
        expires_at = datetime.now(UTC) + BATCH_LIFETIME
    try:
        row = await run_in_threadpool(
            keep,
            parts,
            file.file,
            name=clean_name(file.filename),
            content_type=file.content_type,
            purpose=Purpose(purpose),
            expires_at=expires_at,
        )
    except InvalidInput as error:
        raise invalid("file", error.message) from error
    return answer(file_view(parts, row))


def _expiry(anchor: str | None, lifetime_s: str | None) -> datetime | None:
    if anchor is None and lifetime_s is None:
        return None
    if anchor != "created_at":
        raise invalid(
            "expires_after.anchor", f"expires_after.anchor must be created_at, not {shown(anchor)}."
        )
    is_number = re.fullmatch(r"[0-9]{1,9}", lifetime_s or "") is not None
    if not is_number or not LEAST_LIFETIME_S <= int(lifetime_s or 0) <= LONGEST_LIFETIME_S:
        raise invalid(
            "expires_after.seconds",
            f"expires_after.seconds must be a whole number from {LEAST_LIFETIME_S} to "
            f"{LONGEST_LIFETIME_S}, not {shown(lifetime_s)}.",
        )
    return datetime.now(UTC) + timedelta(seconds=int(lifetime_s or 0))


@router.get(
    "/files", response_model=OpenAIFileList, responses=OPENAI.documented(400, 401, 404, 503)
)
def list_openai_files(
    parts: PartsDep,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=LIMIT_FILES)] = LIMIT_FILES,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Files by age, newest first unless `order` says otherwise."""
    if purpose is not None and purpose not in set(Purpose):
        raise invalid("purpose", f"{shown(purpose)} is no purpose; there are {', '.join(Purpose)}.")
    with parts.ledger.read() as session:
        rows = files.page(
            session,
            limit=limit + 1,
            newest_first=order == "desc",
            behind=None if after is None else file_uuid(after, "after"),
            purpose=None if purpose is None else Purpose(purpose),
        )
    views = [file_view(parts, row) for row in rows[:limit]]
    return answer(
        OpenAIFileList(
            data=views,
            first_id=views[0].id if views else "",
            last_id=views[-1].id if views else "",
            has_more=len(rows) > limit,
        )
    )


@router.get(
    "/files/{file_id}", response_model=OpenAIFile, responses=OPENAI.documented(401, 404, 503)
)
def get_openai_file(parts: PartsDep, file_id: str) -> Response:
    """A file, or a document that was not made of an uploaded file."""
    file = _find(parts, file_id)
    if isinstance(file, DocumentView):
        return answer(
            OpenAIFile(
                id=file_id_of(file.id),
                bytes=file.size_bytes,
                created_at=seconds(file.created_at),
                filename=file.source,
                purpose=Purpose.USER_DATA,
            )
        )
    return answer(file_view(parts, file))


@router.get(
    "/files/{file_id}/content",
    response_class=Response,
    responses=OPENAI.documented(401, 404, 503)
    | {
        200: {
            "description": "The bytes that the file has now",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
def get_openai_file_content(parts: PartsDep, file_id: str) -> Response:
    """The bytes of a file; if a batch is still writing it, the bytes so far. For a document that
    was not made of an uploaded file, its text."""
    file = _find(parts, file_id)
    if isinstance(file, DocumentView):
        lines = (f"{text}\n".encode() for text in texts_of(parts, file.id))
        return StreamingResponse(lines, media_type="text/plain")
    return content_response(parts, file)


def _find(parts: Parts, file_id: str) -> tables.File | DocumentView:
    """The upload or the document with this id: answers cite documents without an upload by their
    own ids. Raises ProblemError."""
    id_ = file_uuid(file_id)
    with parts.ledger.read() as session:
        for upload_id in (id_, attachments.file_of_document(session, id_)):
            file = None if upload_id is None else session.get(tables.File, upload_id)
            if file is not None:
                return file
        try:
            return documents.get(session, id_)
        except NotFound:
            raise invalid(
                "file_id",
                f"There is no file {file_id}; upload it with POST /openai/v1/files.",
                status=404,
            ) from None


CONTENT_PAGE_CHUNKS = 500


def texts_of(parts: Parts, document_id: UUID) -> Iterator[str]:
    """The texts of a document's chunks, without their overlaps. Raises Conflict if the document is
    replaced meanwhile."""
    after: str | None = None
    end = 0
    while True:
        with parts.ledger.read() as session:
            chunks = documents.chunk_page(
                session, document_id, limit=CONTENT_PAGE_CHUNKS, after=after
            )
        for chunk in chunks:
            text = chunk.text[max(0, end - chunk.start) :] if chunk.start < end else chunk.text
            end = max(end, chunk.start + len(chunk.text))
            if text:
                yield text
        if len(chunks) < CONTENT_PAGE_CHUNKS:
            return
        after = chunks[-1].id


@router.delete(
    "/files/{file_id}",
    response_model=OpenAIFileDeleted,
    responses=OPENAI.documented(401, 404, 409, 503, 504),
)
async def delete_openai_file(parts: PartsDep, caller: CallerDep, file_id: str) -> Response:
    """Delete a file, and its documents in all vector stores."""
    id_ = file_uuid(file_id)
    documents = await run_in_threadpool(_delete, parts, id_, file_id)
    if documents:
        await erase(parts, caller, documents)
    return answer(OpenAIFileDeleted(id=file_id, deleted=True))


def _delete(parts: Parts, id_: UUID, file_id: str) -> list[UUID]:
    """Delete the file. Returns the ids of the documents that were made of it."""
    with parts.ledger.begin() as session:
        if str(id_) in jobs.files_in_use(session, [id_]):
            raise invalid(
                "file_id",
                f"A job that runs needs {file_id}. Wait for its end, or cancel it: batches at "
                "batches/{id}/cancel, vector stores at file_batches/{id}/cancel, others at "
                "POST /v1/jobs/{id}/cancel.",
                status=409,
            )
        try:
            stored = files.delete(session, id_)
        except NotFound:
            raise invalid("file_id", f"There is no file {file_id}.", status=404) from None
        documents = attachments.documents_of_file(session, id_)
        attachments.remove(session, file_id=id_)
    forget(parts, stored)
    return documents


async def erase(parts: Parts, caller: calls.Caller, documents: Sequence[UUID]) -> None:
    """Erase documents, and wait until they are gone. Raises ProblemError if that fails."""
    job_input = EraseInput(document_ids=[str(id_) for id_ in documents])
    new = calls.new_job(parts, caller, kinds.ERASE, job_input)
    made = await calls.submit(parts, new)
    await calls.outcome(parts, caller, made, keeps_on=True)
