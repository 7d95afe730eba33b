"""`/vector_stores`: collections, their documents and searches, as OpenAI's API has them.

Every collection is a vector store. Its id is `vs_` and the digits of the collection's id; the name
of the collection is accepted as well. Its files are the uploads that were added to it, with the ids
of the uploads, and documents that were ingested otherwise, with their own ids
(`shared/documents/attachments.py`). Files are added by an `ingest` job, which is also the file
batch.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Body, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PlainValidator,
    StrictBool,
    model_validator,
)
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from api.compat import calls
from api.compat.calls import Caller, CallerDep
from api.compat.openai.dialect import OPENAI, uuid_of
from api.compat.openai.files import (
    answer,
    erase,
    file_id_of,
    file_uuid,
    invalid,
    seconds,
    texts_of,
    wire_uuid,
)
from api.compat.openai.lists import ListPart, ListPartDep
from api.deps import Parts, PartsDep
from api.http.body import StrictRoute
from api.jobs import submission, waiting
from shared import files
from shared.bounds import (
    COLLECTION_NAME,
    INT64_MAX,
    FullLine,
    Line,
    Text,
    is_storable_text,
    nfc,
    nfc_metadata,
    shown,
)
from shared.config import EXTRACTIVE
from shared.database.transaction import Transaction
from shared.documents import attachments, collections, erasure, ingest_items
from shared.documents.attachments import AttachedFile, AttachmentState, Counts, NewAttachment
from shared.documents.ingest_items import Outcome
from shared.errors import NotFound
from shared.jobs import jobs
from shared.kinds import registry as kinds
from shared.kinds.chat import ChatInput
from shared.kinds.erase import EraseInput
from shared.kinds.ingest import DocumentSource, FileSource, IngestInput, Splitter, SplitterType
from shared.kinds.search import Hit, SearchInput, SearchOptions
from shared.models import embedding_models
from shared.openai.file_search import (
    LIMIT_KEY_CHARS,
    LIMIT_PAIRS,
    LIMIT_VALUE_CHARS,
    RANKERS,
    SearchRanking,
    WireFilter,
    score_of,
    shown_attributes,
    translate_filter,
)
from shared.openai.wire import id_of
from shared.tables import Collection, File, IngestItem, Job
from shared.vocabulary import ENDED, Lane, Queue, Shape, State, WireShape

STORE_PREFIX = "vs_"
BATCH_PREFIX = "vsfb_"
LIMIT_STORE_FILES = 500
LIMIT_BATCH_FILES = 2000
POLL_AFTER_MS = {"openai-poll-after-ms": "250"}
"""How long clients that wait for a file should pause before they ask again."""

router = APIRouter(route_class=StrictRoute)


# What clients send.


def _pairs(value: Any, types: tuple[type, ...], kinds_: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    if len(value) > LIMIT_PAIRS:
        raise ValueError(f"has {len(value):,} keys; {LIMIT_PAIRS} are allowed")
    for key, item in value.items():
        if not isinstance(key, str) or not 1 <= len(key) <= LIMIT_KEY_CHARS:
            raise ValueError(f"{shown(key)}: a key has 1 to {LIMIT_KEY_CHARS} characters")
        if not isinstance(item, types):
            raise ValueError(f"{shown(key)} must be {kinds_}")
        if isinstance(item, str) and len(item) > LIMIT_VALUE_CHARS:
            raise ValueError(f"{shown(key)} is longer than {LIMIT_VALUE_CHARS} characters")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{shown(key)} is no finite number")
        if isinstance(item, int) and not -INT64_MAX - 1 <= item <= INT64_MAX:
            raise ValueError(f"{shown(key)} has more than 64 bits; send it as a string")
        if not all(is_storable_text(text) for text in (key, item) if isinstance(text, str)):
            raise ValueError(f"{shown(key)} holds a NUL character or half of a surrogate pair")
    read: dict[str, Any] = nfc_metadata(value)
    return read


Attributes = Annotated[
    dict[str, Any],
    PlainValidator(
        lambda value: _pairs(value, (str, int, float, bool), "a string, a number or a boolean"),
        json_schema_input_type=dict[str, str | float | bool],
    ),
]
StoreMetadata = Annotated[
    dict[str, Any],
    PlainValidator(
        lambda value: _pairs(value, (str,), "a string"), json_schema_input_type=dict[str, str]
    ),
]
StoreName = Annotated[Line, AfterValidator(nfc)]


class StoreExpiry(WireShape):
    anchor: Literal["last_active_at"]
    days: Annotated[int, Field(strict=True, ge=1, le=365)]


class StaticSizes(WireShape):
    max_chunk_size_tokens: Annotated[int, Field(strict=True, ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Field(strict=True, ge=0, le=2048)]

    @model_validator(mode="after")
    def _overlap_is_half_at_most(self) -> Self:
        if 2 * self.chunk_overlap_tokens > self.max_chunk_size_tokens:
            raise ValueError("chunk_overlap_tokens is at most half of max_chunk_size_tokens")
        return self


class AutoChunking(WireShape):
    """Chunks that fit the window of the collection's embedding model."""

    type: Literal["auto"]


class StaticChunking(WireShape):
    type: Literal["static"]
    static: StaticSizes


Chunking = Annotated[AutoChunking | StaticChunking, Field(discriminator="type")]
FileIds = Annotated[list[FullLine], Field(fail_fast=True, max_length=LIMIT_STORE_FILES)]


class NewVectorStore(WireShape):
    name: StoreName | None = None
    description: Line | None = None
    """Accepted, and not stored."""
    file_ids: FileIds | None = None
    chunking_strategy: Chunking | None = None
    expires_after: StoreExpiry | None = None
    metadata: StoreMetadata | None = None


class VectorStoreChange(Shape):
    """Fields that are null or left out stay as they are; but `expires_after: null` means that the
    vector store does not expire any more."""

    name: StoreName | None = None
    expires_after: StoreExpiry | None = None
    metadata: StoreMetadata | None = None

    @property
    def never_expires(self) -> bool:
        return "expires_after" in self.model_fields_set and self.expires_after is None


class NewVectorStoreFile(WireShape):
    file_id: FullLine
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class NewFileBatch(WireShape):
    file_ids: (
        Annotated[list[FullLine], Field(fail_fast=True, min_length=1, max_length=LIMIT_BATCH_FILES)]
        | None
    ) = None
    files: (
        Annotated[
            list[NewVectorStoreFile],
            Field(fail_fast=True, min_length=1, max_length=LIMIT_BATCH_FILES),
        ]
        | None
    ) = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("send either file_ids or files")
        if self.files is not None and (self.attributes or self.chunking_strategy):
            raise ValueError(
                "attributes and chunking_strategy of `files` stand beside each file_id; leave them "
                "out here"
            )
        return self

    @property
    def entries(self) -> list[NewVectorStoreFile]:
        """The files, with the attributes and the chunking of each."""
        if self.files is not None:
            return list(self.files)
        return [
            NewVectorStoreFile(
                file_id=file_id,
                attributes=self.attributes,
                chunking_strategy=self.chunking_strategy,
            )
            for file_id in dict.fromkeys(self.file_ids or ())
        ]


class AttributeChange(WireShape):
    """New attributes; null removes all of them."""

    attributes: Attributes | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_there(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "attributes" not in value:
            raise ValueError("attributes is required; null removes all of them")
        return value


class VectorStoreSearch(WireShape):
    query: Text | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=50)]
    max_num_results: Annotated[int, Field(strict=True, ge=1, le=50)] = 10
    filters: WireFilter | None = None
    ranking_options: SearchRanking = SearchRanking()
    rewrite_query: StrictBool = False

    @property
    def queries(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else list(self.query)


# What clients get.


class FileCounts(BaseModel):
    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int

    @classmethod
    def of(cls, counts: Counts) -> Self:
        return cls(
            in_progress=counts.in_progress,
            completed=counts.completed,
            failed=counts.failed,
            cancelled=counts.cancelled,
            total=counts.total,
        )


class ExpiryView(BaseModel):
    anchor: Literal["last_active_at"] = "last_active_at"
    days: int


class VectorStore(BaseModel):
    """A collection. `name` is the name of the collection unless another one was given."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: ExpiryView | None = None
    expires_at: int | None = None
    last_active_at: int
    metadata: dict[str, str]


class VectorStoreList(BaseModel):
    object: Literal["list"] = "list"
    data: list[VectorStore]
    first_id: str
    last_id: str
    has_more: bool


class VectorStoreDeleted(BaseModel):
    id: str
    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: bool


class LastError(BaseModel):
    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class VectorStoreFile(BaseModel):
    """A file of a vector store. `chunking_strategy` is `other` if the request did not fix the
    sizes."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    usage_bytes: int
    created_at: int
    vector_store_id: str
    status: AttachmentState
    last_error: LastError | None
    chunking_strategy: dict[str, Any]
    attributes: dict[str, str | int | float | bool] | None


class VectorStoreFileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[VectorStoreFile]
    first_id: str
    last_id: str
    has_more: bool


class VectorStoreFileDeleted(BaseModel):
    id: str
    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: bool


class VectorStoreFileBatch(BaseModel):
    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class PassageText(BaseModel):
    type: Literal["text"] = "text"
    text: str


class VectorStoreFileContent(BaseModel):
    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[PassageText]
    has_more: bool = False
    next_page: str | None = None


class VectorStoreHit(BaseModel):
    """A passage that a search has found, and its file."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | int | float | bool] | None
    content: list[PassageText]


class VectorStoreHits(BaseModel):
    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[VectorStoreHit]
    has_more: bool = False
    next_page: str | None = None


def _whole(view: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with its null fields."""
    return Response(
        view.model_dump_json(),
        media_type="application/json",
        headers=dict(headers) if headers else None,
    )


def store_id_of(id_: UUID) -> str:
    return id_of(STORE_PREFIX, id_)


def batch_id_of(job_id: UUID) -> str:
    return id_of(BATCH_PREFIX, job_id)


# Vector stores.


def find_store(
    session: Session, vector_store_id: str, param: str = "vector_store_id"
) -> Collection:
    """The collection with this vector store id, or this name. Raises ProblemError."""
    collection = None
    try:
        id_ = uuid_of(STORE_PREFIX, vector_store_id, "vector store")
    except NotFound:
        if re.fullmatch(COLLECTION_NAME, vector_store_id):
            query = select(Collection).where(
                Collection.name == nfc(vector_store_id), Collection.is_visible()
            )
            collection = session.scalars(query).first()
    else:
        collection = collections.find_store(session, id_)
    if collection is None:
        raise invalid(
            param,
            f"There is no vector store {shown(vector_store_id)}. GET /openai/v1/vector_stores "
            "lists them.",
            status=404,
        )
    return collection


def usable_store(
    session: Session, vector_store_id: str, param: str = "vector_store_id"
) -> Collection:
    """As `find_store`, for requests that count as use. Raises ProblemError if it has expired."""
    collection = find_store(session, vector_store_id, param)
    days = collection.expires_after_days
    if days is not None:
        used_at = collections.last_use(session, [collection])[collection.id]
        if used_at + timedelta(days=days) <= datetime.now(UTC):
            raise invalid(
                param,
                f"Vector store {vector_store_id} has expired, and is about to be erased. Make "
                "another one.",
            )
    return collection


def _views(session: Session, rows: Sequence[Collection]) -> list[VectorStore]:
    ids = [row.id for row in rows]
    if not ids:
        return []
    attachments.settle(session, ids)
    summaries = {summary.id: summary for summary in collections.summaries(session, rows)}
    numbers = {id_: summary.documents for id_, summary in summaries.items()}
    counts = attachments.counts(session, numbers)
    used = collections.last_use(session, rows)
    now = session.scalar(select(func.now())) or datetime.now(UTC)
    return [
        _view(row, summaries[row.id], counts[row.id], used[row.id], now)
        for row in rows
        if row.id in summaries  # others were erased at this moment
    ]


def _view(
    row: Collection,
    summary: collections.Summary,
    counts: Counts,
    used_at: datetime,
    now: datetime,
) -> VectorStore:
    days = row.expires_after_days
    ends = None if days is None else used_at + timedelta(days=days)
    status: Literal["expired", "in_progress", "completed"] = "completed"
    if ends is not None and ends <= now:
        status = "expired"
    elif counts.in_progress:
        status = "in_progress"
    return VectorStore(
        id=store_id_of(row.id),
        created_at=seconds(row.created_at),
        name=row.name if row.display_name is None else row.display_name,
        usage_bytes=summary.size_bytes,
        file_counts=FileCounts.of(counts),
        status=status,
        expires_after=None if days is None else ExpiryView(days=days),
        expires_at=None if ends is None else seconds(ends),
        last_active_at=seconds(used_at),
        metadata={key: str(value) for key, value in row.meta.items()},
    )


DOCUMENTED = OPENAI.documented(400, 401, 404, 503)
WITH_JOBS = OPENAI.documented(400, 401, 404, 409, 429, 500, 503, 504)


@router.post("/vector_stores", response_model=VectorStore, responses=WITH_JOBS)
def create_vector_store(
    parts: PartsDep, caller: CallerDep, request: Annotated[NewVectorStore | None, Body()] = None
) -> Response:
    """Make a vector store, which is a collection with the server's embedding model."""
    request = request or NewVectorStore()
    entries = [
        NewVectorStoreFile(file_id=file_id, chunking_strategy=request.chunking_strategy)
        for file_id in dict.fromkeys(request.file_ids or ())
    ]
    try:
        view = _make_store(parts, caller, request, entries)
    except _AlreadyMade as error:
        with parts.ledger.begin() as session:
            (view,) = _views(session, [find_store(session, error.collection)])
    return answer(view)


class _AlreadyMade(Exception):
    """The Idempotency-Key was used before, by the request that made this collection. It rolls the
    transaction back, so that no second collection is made."""

    def __init__(self, collection: str) -> None:
        super().__init__(collection)
        self.collection = collection


def _make_store(
    parts: Parts, caller: Caller, request: NewVectorStore, entries: Sequence[NewVectorStoreFile]
) -> VectorStore:
    model = parts.settings.embedding_model
    embedding_models.check(model, parts.settings, where="SLUICE_EMBEDDING_MODEL")
    with parts.ledger.begin() as session:
        if entries:
            parts.admission.admit(session, Queue.INGEST, caller.fair_key)
        collection = collections.make_store(
            session,
            collections.Spec(embedding_model=model),
            display_name=request.name,
            metadata=request.metadata or {},
            expires_after_days=request.expires_after.days if request.expires_after else None,
        )
        if entries:
            job = _attach(parts, caller, session, collection, entries, param="file_ids")
            if job.collection != collection.name:
                raise _AlreadyMade(str(job.collection))
        (view,) = _views(session, [collection])
    return view


@router.get("/vector_stores", response_model=VectorStoreList, responses=DOCUMENTED)
def list_vector_stores(
    parts: PartsDep,
    part: ListPartDep,
) -> Response:
    """All collections by age, newest first unless `order` says otherwise."""
    with parts.ledger.begin() as session:
        rows = collections.store_page(
            session,
            limit=part.limit + 1,
            newest_first=part.newest_first,
            behind=None if part.after is None else _cursor(part.after, "after"),
            before=None if part.before is None else _cursor(part.before, "before"),
        )
        views = _views(session, part.cut(rows))
    return answer(
        VectorStoreList(
            data=views,
            first_id=views[0].id if views else "",
            last_id=views[-1].id if views else "",
            has_more=len(rows) > part.limit,
        )
    )


def _cursor(store_id: str, param: str) -> UUID:
    return wire_uuid(STORE_PREFIX, store_id, "vector store", param)


@router.get("/vector_stores/{vector_store_id}", response_model=VectorStore, responses=DOCUMENTED)
def get_vector_store(parts: PartsDep, vector_store_id: str) -> Response:
    """A vector store, and how many files of it are in which state."""
    with parts.ledger.begin() as session:
        (view,) = _views(session, [find_store(session, vector_store_id)])
    return answer(view)


@router.post("/vector_stores/{vector_store_id}", response_model=VectorStore, responses=DOCUMENTED)
def change_vector_store(
    parts: PartsDep, vector_store_id: str, request: Annotated[VectorStoreChange, Body()]
) -> Response:
    """Change the name, the metadata or the expiry of a vector store."""
    with parts.ledger.begin() as session:
        collection = find_store(session, vector_store_id)
        if request.name is not None:
            collection.display_name = request.name
        if request.metadata is not None:
            collection.meta = request.metadata
        if request.never_expires:
            collection.expires_after_days = None
        elif request.expires_after is not None:
            collection.expires_after_days = request.expires_after.days
            collection.used_at = func.now()
        session.flush()
        session.refresh(collection)
        (view,) = _views(session, [collection])
    return answer(view)


@router.delete(
    "/vector_stores/{vector_store_id}", response_model=VectorStoreDeleted, responses=WITH_JOBS
)
async def delete_vector_store(parts: PartsDep, caller: CallerDep, vector_store_id: str) -> Response:
    """Erase a collection with all its text and vectors. The uploaded files stay."""

    def find() -> tuple[UUID, str]:
        with parts.ledger.read() as session:
            collection = find_store(session, vector_store_id)
            return collection.id, collection.name

    id_, name = await run_in_threadpool(find)
    await waiting.erase(
        parts,
        EraseInput(collection=name),
        fair_key=caller.fair_key,
        preferences=(),
        require=lambda session: erasure.require_collection(session, name),
        hide=lambda session: erasure.hide_collection(session, name),
    )
    return answer(VectorStoreDeleted(id=store_id_of(id_), deleted=True))


# Files of vector stores.


def _attach(
    parts: Parts,
    caller: Caller,
    session: Transaction,
    collection: Collection,
    entries: Sequence[NewVectorStoreFile],
    *,
    param: str,
) -> Job:
    """Submit the job that adds files to a collection, and record the files. The caller has asked
    the queue for admission. Raises ProblemError if a file does not exist."""
    # An exclusive lock: two files of one name that are added at the same time need different names.
    collections.hold(session, collection.id, alone=True)
    uploads = _uploads(session, [entry.file_id for entry in entries], param)
    names = attachments.sources_of(session, collection.id, uploads)
    splitters = [_splitter(entry.chunking_strategy) for entry in entries]
    # A splitter that all files have in common is stored once.
    common = splitters[0] if all(splitter == splitters[0] for splitter in splitters) else None
    job_input = IngestInput(
        collection=collection.name,
        sources=[
            FileSource(
                type="file",
                file_id=str(upload.id),
                name=names[upload.id],
                metadata=entry.attributes or None,
                splitter=None if common else splitter,
            )
            for entry, upload, splitter in zip(entries, uploads, splitters, strict=True)
        ],
        splitter=common or Splitter(),
    )
    identity = [entry.model_dump(mode="json") for entry in entries]
    new = calls.new_job(parts, caller, kinds.INGEST, job_input, identity=identity, lane=Lane.NORMAL)
    made = submission.add(session, new)
    if made.is_new:
        attachments.add(
            session,
            collection.id,
            made.id,
            [
                NewAttachment(
                    file_id=upload.id,
                    source=names[upload.id],
                    attributes=entry.attributes or {},
                    splitter=_strategy(entry.chunking_strategy),
                )
                for entry, upload in zip(entries, uploads, strict=True)
            ],
        )
    return jobs.get(session, made.id)


def _uploads(session: Session, file_ids: Sequence[str], param: str) -> list[File]:
    """The uploads in the order of `file_ids`. Raises ProblemError."""
    if len(set(file_ids)) < len(file_ids):
        raise invalid(param, f"{param} names a file twice; send each once.")
    ids = [file_uuid(file_id, param) for file_id in file_ids]
    rows = {row.id: row for row in files.get_all(session, ids)}
    for file_id, id_ in zip(file_ids, ids, strict=True):
        if id_ not in rows:
            raise invalid(
                param,
                f"There is no file {file_id}; upload it with POST /openai/v1/files.",
                status=404,
            )
    return [rows[id_] for id_ in ids]


def _splitter(chunking: AutoChunking | StaticChunking | None) -> Splitter:
    if not isinstance(chunking, StaticChunking):
        return Splitter()
    size = chunking.static.max_chunk_size_tokens
    return Splitter(
        type=SplitterType.TOKEN,
        chunk_size=size,
        # OpenAI's own default is half of the size, 400 of 800; ours is less than half.
        chunk_overlap=min(chunking.static.chunk_overlap_tokens, (size - 1) // 2),
    )


def _strategy(chunking: AutoChunking | StaticChunking | None) -> dict[str, Any]:
    """The chunking strategy as answers show it."""
    if isinstance(chunking, StaticChunking):
        return chunking.model_dump(mode="json")
    return {"type": "other"}


def _file_view(collection_id: UUID, file: AttachedFile) -> VectorStoreFile:
    error = None
    if file.state is AttachmentState.FAILED:
        message = file.message or "It could not be ingested."
        error = LastError(code=_error_code(file, message), message=message)
    return VectorStoreFile(
        id=file_id_of(file.id),
        usage_bytes=file.size_bytes,
        created_at=seconds(file.created_at),
        vector_store_id=store_id_of(collection_id),
        status=file.state,
        last_error=error,
        chunking_strategy=dict(file.splitter or {"type": "other"}),
        attributes=shown_attributes(file.attributes),
    )


_UNSUPPORTED = re.compile(r"(is|are) not supported|Supported are")


def _error_code(
    file: AttachedFile, message: str
) -> Literal["server_error", "unsupported_file", "invalid_file"]:
    """The error code for a message of an ingest job. Messages about a document begin with its name;
    others are not about the file."""
    if _UNSUPPORTED.search(message):
        return "unsupported_file"
    of_file = message.startswith((file.source, file.name, "There is no file"))
    return "invalid_file" if of_file else "server_error"


@router.post(
    "/vector_stores/{vector_store_id}/files", response_model=VectorStoreFile, responses=WITH_JOBS
)
def create_vector_store_file(
    parts: PartsDep,
    caller: CallerDep,
    vector_store_id: str,
    request: Annotated[NewVectorStoreFile, Body()],
) -> Response:
    """Add an uploaded file to a vector store, by an `ingest` job that runs after the answer."""
    with parts.ledger.begin() as session:
        parts.admission.admit(session, Queue.INGEST, caller.fair_key)
        collection = usable_store(session, vector_store_id)
        job = _attach(parts, caller, session, collection, [request], param="file_id")
        file = attachments.get(session, collection.id, file_uuid(request.file_id))
        assert file is not None  # it was just noted
        view = _file_view(collection.id, file)
    return _whole(view, POLL_AFTER_MS | {calls.JOB_ID: str(job.id)})


@router.get(
    "/vector_stores/{vector_store_id}/files",
    response_model=VectorStoreFileList,
    responses=DOCUMENTED,
)
def list_vector_store_files(
    parts: PartsDep,
    vector_store_id: str,
    part: ListPartDep,
    filter: AttachmentState | None = None,
) -> Response:
    """The files of a vector store by age, newest first unless `order` says otherwise."""
    with parts.ledger.begin() as session:
        collection = find_store(session, vector_store_id)
        view = _file_page(session, collection, part, filter)
    return _whole(view)


def _file_page(
    session: Session,
    collection: Collection,
    part: ListPart,
    state: AttachmentState | None,
    job_id: UUID | None = None,
) -> VectorStoreFileList:
    attachments.settle(session, [collection.id])
    rows = attachments.page(
        session,
        collection.id,
        limit=part.limit + 1,
        newest_first=part.newest_first,
        behind=_key(session, collection, part.after, "after"),
        before=_key(session, collection, part.before, "before"),
        state=state,
        job_id=job_id,
    )
    views = [_file_view(collection.id, row) for row in part.cut(rows)]
    return VectorStoreFileList(
        data=views,
        first_id=views[0].id if views else "",
        last_id=views[-1].id if views else "",
        has_more=len(rows) > part.limit,
    )


def _key(session: Session, collection: Collection, file_id: str | None, param: str) -> UUID | None:
    """The sort key of the file that a cursor names. Raises ProblemError."""
    if file_id is None:
        return None
    file = attachments.get(session, collection.id, file_uuid(file_id, param))
    if file is None:
        raise invalid(param, f"{param} is {shown(file_id)}, which is no file of this vector store.")
    return file.key


def _find_file(session: Session, collection: Collection, file_id: str) -> AttachedFile:
    """Raises ProblemError."""
    file = attachments.get(session, collection.id, file_uuid(file_id))
    if file is None:
        raise invalid(
            "file_id",
            f"Vector store {store_id_of(collection.id)} has no file {shown(file_id)}. GET "
            "/openai/v1/vector_stores/{id}/files lists them.",
            status=404,
        )
    return file


@router.get(
    "/vector_stores/{vector_store_id}/files/{file_id}",
    response_model=VectorStoreFile,
    responses=DOCUMENTED,
)
def get_vector_store_file(parts: PartsDep, vector_store_id: str, file_id: str) -> Response:
    """A file of a vector store, and whether searches find it yet."""
    with parts.ledger.begin() as session:
        collection = find_store(session, vector_store_id)
        attachments.settle(session, [collection.id])
        view = _file_view(collection.id, _find_file(session, collection, file_id))
    return _whole(view, POLL_AFTER_MS)


@router.post(
    "/vector_stores/{vector_store_id}/files/{file_id}",
    response_model=VectorStoreFile,
    responses=WITH_JOBS,
)
async def change_vector_store_file(
    parts: PartsDep,
    caller: CallerDep,
    vector_store_id: str,
    file_id: str,
    request: Annotated[AttributeChange, Body()],
) -> Response:
    """Change the attributes of a file. This waits for an `ingest` job."""
    attributes = request.attributes or {}

    def find() -> tuple[str, AttachedFile]:
        with parts.ledger.begin() as session:
            collection = usable_store(session, vector_store_id)
            attachments.settle(session, [collection.id])
            return collection.name, _find_file(session, collection, file_id)

    name, file = await run_in_threadpool(find)
    if file.document_id is None or file.state is AttachmentState.IN_PROGRESS:
        raise invalid(
            "file_id",
            f"{file_id} is {file.state}; its attributes can be changed once it is completed.",
        )
    source = DocumentSource(type="document", document_id=str(file.document_id), metadata=attributes)
    job_input = IngestInput(collection=name, sources=[source])
    new = calls.new_job(parts, caller, kinds.INGEST, job_input)
    made = await calls.submit(parts, new)
    outcome = await calls.outcome(parts, caller, made, keeps_on=True)
    errors = outcome.result.get("errors") if isinstance(outcome.result, dict) else None
    if errors:
        raise invalid("attributes", str(errors[0].get("message")), status=409)
    return await run_in_threadpool(get_vector_store_file, parts, vector_store_id, file_id)


@router.delete(
    "/vector_stores/{vector_store_id}/files/{file_id}",
    response_model=VectorStoreFileDeleted,
    responses=WITH_JOBS,
)
async def delete_vector_store_file(
    parts: PartsDep, caller: CallerDep, vector_store_id: str, file_id: str
) -> Response:
    """Remove a file from a vector store: its document is erased, the upload stays."""
    document_id = await run_in_threadpool(_detach, parts, vector_store_id, file_id)
    if document_id is not None:
        await erase(parts, caller, [document_id])
    return answer(VectorStoreFileDeleted(id=file_id, deleted=True))


def _detach(parts: Parts, vector_store_id: str, file_id: str) -> UUID | None:
    """Delete the record that a file is in a vector store, and stop its ingestion. Returns the id of
    its document."""
    with parts.ledger.begin() as session:
        collection = find_store(session, vector_store_id)
        attachments.settle(session, [collection.id])
        file = _find_file(session, collection, file_id)
        if file.state is AttachmentState.IN_PROGRESS and file.job_id is not None:
            job = session.get(Job, file.job_id)
            if job is not None and job.state not in ENDED:
                if len(job.input.get("sources", ())) == 1:
                    jobs.cancel(session, job.id)
                elif file.ordinal is not None:
                    ingest_items.settle(
                        session,
                        job.id,
                        [file.ordinal],
                        Outcome.FAILED,
                        "It was removed from the vector store meanwhile.",
                    )
        attachments.remove(session, file_id=file.id, collection_id=collection.id)
        return attachments.document_of(session, collection.id, file.source)


@router.get(
    "/vector_stores/{vector_store_id}/files/{file_id}/content",
    response_model=VectorStoreFileContent,
    responses=DOCUMENTED,
)
def get_vector_store_file_content(parts: PartsDep, vector_store_id: str, file_id: str) -> Response:
    """The text of a file in the chunks into which it was split, without their overlaps."""
    with parts.ledger.begin() as session:
        collection = find_store(session, vector_store_id)
        attachments.settle(session, [collection.id])
        file = _find_file(session, collection, file_id)
    if file.document_id is None or file.version_id is None:
        raise invalid(
            "file_id", f"{file_id} is {file.state}; it has no text before it is completed."
        )
    return StreamingResponse(
        _content(texts_of(parts, file.document_id)), media_type="application/json"
    )


def _content(texts: Iterator[str]) -> Iterator[bytes]:
    """The answer chunk by chunk, because a document may have 100,000 chunks."""
    yield b'{"object":"vector_store.file_content.page","data":['
    for number, text in enumerate(texts):
        part = json.dumps({"type": "text", "text": text}, ensure_ascii=False)
        yield (b"," if number else b"") + part.encode()
    yield b'],"has_more":false,"next_page":null}'


# File batches: ingest jobs.


@router.post(
    "/vector_stores/{vector_store_id}/file_batches",
    response_model=VectorStoreFileBatch,
    responses=WITH_JOBS,
)
def create_file_batch(
    parts: PartsDep,
    caller: CallerDep,
    vector_store_id: str,
    request: Annotated[NewFileBatch, Body()],
) -> Response:
    """Add several uploaded files to a vector store by one `ingest` job."""
    param = "file_ids" if request.files is None else "files"
    with parts.ledger.begin() as session:
        parts.admission.admit(session, Queue.INGEST, caller.fair_key)
        collection = usable_store(session, vector_store_id)
        job = _attach(parts, caller, session, collection, request.entries, param=param)
        view = _batch_view(session, collection, job)
    return _whole(view, POLL_AFTER_MS | {calls.JOB_ID: str(job.id)})


def _find_batch(session: Session, collection: Collection, batch_id: str) -> Job:
    """Raises ProblemError."""
    id_ = wire_uuid(BATCH_PREFIX, batch_id, "file batch", "batch_id")
    job = session.get(Job, id_)
    if job is None or job.kind != kinds.INGEST.name or job.collection != collection.name:
        raise invalid(
            "batch_id",
            f"Vector store {store_id_of(collection.id)} has no file batch {shown(batch_id)}; "
            "batches are forgotten SLUICE_RETENTION_DAYS after their end.",
            status=404,
        )
    return job


def _batch_view(session: Session, collection: Collection, job: Job) -> VectorStoreFileBatch:
    rows = session.execute(
        select(IngestItem.outcome, func.count())
        .where(IngestItem.job_id == job.id)
        .group_by(IngestItem.outcome)
    )
    by_outcome: dict[str | None, int] = dict(rows.all())
    total = len(job.input.get("sources", ()))
    failed = by_outcome.pop(Outcome.FAILED.value, 0)
    by_outcome.pop(None, None)
    completed = sum(by_outcome.values())
    left = max(0, total - failed - completed)
    counts = {"in_progress": 0, "failed": failed, "cancelled": 0}
    status: Literal["in_progress", "completed", "cancelled", "failed"] = "completed"
    if job.state not in ENDED and (left or not total):
        status, counts["in_progress"] = "in_progress", left
    elif job.state == State.CANCELLED:
        status, counts["cancelled"] = "cancelled", left
    else:
        counts["failed"] += left  # the job failed as a whole
        if job.state == State.FAILED or (total and counts["failed"] == total):
            status = "failed"
    return VectorStoreFileBatch(
        id=batch_id_of(job.id),
        created_at=seconds(job.created_at),
        vector_store_id=store_id_of(collection.id),
        status=status,
        file_counts=FileCounts(completed=completed, total=total, **counts),
    )


@router.get(
    "/vector_stores/{vector_store_id}/file_batches/{batch_id}",
    response_model=VectorStoreFileBatch,
    responses=DOCUMENTED,
)
def get_file_batch(parts: PartsDep, vector_store_id: str, batch_id: str) -> Response:
    """How far a batch of files is."""
    with parts.ledger.read() as session:
        collection = find_store(session, vector_store_id)
        view = _batch_view(session, collection, _find_batch(session, collection, batch_id))
    return _whole(view, POLL_AFTER_MS)


@router.post(
    "/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel",
    response_model=VectorStoreFileBatch,
    responses=DOCUMENTED,
)
def cancel_file_batch(parts: PartsDep, vector_store_id: str, batch_id: str) -> Response:
    """Cancel a batch of files; completed files stay."""
    with parts.ledger.begin() as session:
        collection = find_store(session, vector_store_id)
        job = _find_batch(session, collection, batch_id)
        if job.state not in ENDED:
            jobs.cancel(session, job.id)
            session.flush()
            session.refresh(job)
        view = _batch_view(session, collection, job)
    return _whole(view, POLL_AFTER_MS)


@router.get(
    "/vector_stores/{vector_store_id}/file_batches/{batch_id}/files",
    response_model=VectorStoreFileList,
    responses=DOCUMENTED,
)
def list_file_batch_files(
    parts: PartsDep,
    vector_store_id: str,
    batch_id: str,
    part: ListPartDep,
    filter: AttachmentState | None = None,
) -> Response:
    """The files of a batch, without those that a later batch has added again."""
    with parts.ledger.begin() as session:
        collection = find_store(session, vector_store_id)
        job = _find_batch(session, collection, batch_id)
        view = _file_page(session, collection, part, filter, job_id=job.id)
    return _whole(view)


# Searches.

REWRITING = (
    "Rewrite the user's message as one short query for a search engine. Keep names, numbers and "
    "the language. Answer with the query alone."
)
REWRITTEN_CHARS = 1000


@router.post(
    "/vector_stores/{vector_store_id}/search", response_model=VectorStoreHits, responses=WITH_JOBS
)
async def search_vector_store(
    parts: PartsDep,
    caller: CallerDep,
    vector_store_id: str,
    request: Annotated[VectorStoreSearch, Body()],
) -> Response:
    """The passages of a vector store that answer a query. This waits for a `search` job."""

    def find() -> str:
        with parts.ledger.read() as session:
            return usable_store(session, vector_store_id).name

    name = await run_in_threadpool(find)
    queries = request.queries
    if request.rewrite_query:
        queries = [await _rewrite_query(parts, caller, query) for query in queries]
    options = SearchOptions(
        type=RANKERS[request.ranking_options.ranker],
        filter=None if request.filters is None else translate_filter(request.filters),
    )
    single = len(queries) == 1
    job_input = calls.input_of(
        kinds.SEARCH,
        {
            "collection": name,
            "query": queries[0] if single else None,
            "queries": None if single else queries,
            "k": request.max_num_results,
            "search": options,
        },
    )
    assert isinstance(job_input, SearchInput)
    new = calls.new_job(parts, caller, kinds.SEARCH, job_input)
    outcome = await calls.run(parts, caller, new)
    hits = _best(outcome.result, request)
    data = await run_in_threadpool(hits_with_files, parts, hits)
    return _whole(VectorStoreHits(search_query=queries, data=data), outcome.headers)


async def _rewrite_query(parts: Parts, caller: Caller, query: str) -> str:
    """Let the server's model make a search query of a text. Raises ProblemError for
    `extractive`."""
    model = parts.settings.generation_model
    if model == EXTRACTIVE:
        raise invalid(
            "rewrite_query",
            "rewrite_query needs a language model, and this server has `extractive`, which writes "
            "nothing. Set SLUICE_GENERATION_MODEL, or send rewrite_query as false.",
        )
    job_input = calls.input_of(
        kinds.CHAT,
        {
            "messages": [
                {"role": "system", "content": REWRITING},
                {"role": "user", "content": query},
            ],
            "parameters": {"max_tokens": 64, "temperature": 0},
        },
    )
    assert isinstance(job_input, ChatInput)
    # Without the request's Idempotency-Key, which is for the search job.
    single = Caller(http=caller.http, fair_key=caller.fair_key)
    outcome = await calls.run(parts, single, calls.new_job(parts, single, kinds.CHAT, job_input))
    message = outcome.result.get("message", {}) if isinstance(outcome.result, dict) else {}
    words = " ".join(str(message.get("content") or "").split())[:REWRITTEN_CHARS]
    return words or query


def _best(result: Any, request: VectorStoreSearch) -> list[Hit]:
    """The best hits of all queries; each passage once, with its best score."""
    lists = [result.get("hits")] if result.get("hits") is not None else [
        entry["hits"] for entry in result.get("results") or ()
    ]  # fmt: skip
    best: dict[str, Hit] = {}
    for hits in lists:
        for value in hits:
            hit = Hit.model_validate(value)
            known = best.get(hit.chunk_id)
            if known is None or known.score < hit.score:
                best[hit.chunk_id] = hit
    ranked = sorted(best.values(), key=lambda hit: -hit.score)
    least = request.ranking_options.score_threshold
    return [hit for hit in ranked if score_of(hit) >= least][: request.max_num_results]


def hits_with_files(parts: Parts, hits: Sequence[Hit]) -> list[VectorStoreHit]:
    """The hits with their files, without those that were erased since."""
    ids = list({UUID(hit.document_id) for hit in hits})
    with parts.ledger.read() as session:
        owners = attachments.of_documents(session, ids) if ids else {}
    files: list[VectorStoreHit] = []
    for hit in hits:
        owner = owners.get(UUID(hit.document_id))
        if owner is None:
            continue
        file_id, name, attributes = owner
        files.append(
            VectorStoreHit(
                file_id=file_id_of(file_id),
                filename=name,
                score=score_of(hit),
                attributes=shown_attributes(attributes),
                content=[PassageText(text=hit.text)],
            )
        )
    return files
