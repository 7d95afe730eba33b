"""Collections and their documents."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from api.deps import Cursor, FairKey, IdempotencyKey, PageLimit, Parts, PartsDep, Prefer
from api.http import answers
from api.http.answers import answer
from api.http.body import StrictRoute
from api.http.errors import BadCursor
from api.jobs import waiting
from api.openapi import documented
from api.schemas import (
    REQUESTS,
    ChunkOut,
    CollectionDetails,
    CollectionSpec,
    CollectionView,
    DocumentOut,
    IndexView,
    JobRequest,
    JobView,
    Page,
)
from shared.bounds import (
    COLLECTION_NAME,
    CollectionName,
    SourceName,
    is_storable_text,
    nfc,
    shown,
)
from shared.documents import collections, documents, erasure, indexes
from shared.errors import Conflict, InvalidInput, NotFound
from shared.kinds.erase import EraseInput
from shared.kinds.rebuild import REBUILD, RebuildInput, RebuildOptions, RollbackOptions
from shared.models import embedding_models
from shared.tables import VectorIndex
from shared.vector_stores import VECTORS_URL, configured_store

router = APIRouter(prefix="/v1/collections", tags=["collections"], route_class=StrictRoute)

SUBMITTED: Final = {202: JobView, 200: JobView}
NOT_SUBMITTED: Final = (400, 404, 409, 413, 415, 422, 429)
INDEX_NAME_LIMIT_CHARS: Final = 160
"""That of a collection, a dot and a number."""

NewName = Annotated[
    CollectionName,
    Path(description="Up to 128 letters of any script, digits, `.`, `_`, `-` or spaces."),
]


async def _name(name: str) -> str:
    if re.fullmatch(COLLECTION_NAME, name) is None:
        raise NotFound(f"There is no collection {shown(name)}; that is not a name of one.")
    return nfc(name)


async def _index_name(index: str) -> str:
    if not is_storable_text(index) or len(index) > INDEX_NAME_LIMIT_CHARS:
        raise NotFound(f"There is no index {shown(index)}; that is not a name of one.")
    return nfc(index)


Name = Annotated[str, Depends(_name)]
IndexName = Annotated[str, Depends(_index_name)]
Names = Annotated[list[SourceName], Query(default_factory=list, max_length=100, fail_fast=True)]


@router.put(
    "/{name}",
    responses=documented({200: CollectionView, 201: CollectionView}, 400, 409, 415, 422),
)
def put_collection(
    parts: PartsDep, name: NewName, spec: Annotated[CollectionSpec | None, Body()] = None
) -> Response:
    """Make a collection: 201, or 200 if the same collection exists already. 422 if its embedding
    model is one of a server that is not set, or of a package that is not installed."""
    spec = spec or CollectionSpec()
    model = spec.embedding_model or parts.settings.embedding_model
    where = "embedding_model" if spec.embedding_model else "SLUICE_EMBEDDING_MODEL"
    embedding_models.check(model, parts.settings, where=where)
    with parts.ledger.begin() as session:
        is_new = collections.put(
            session,
            name,
            collections.Spec(
                embedding_model=model,
                dimension=spec.dimension,
                distance=spec.distance,
            ),
        )
        summary = collections.summary(session, collections.get(session, name))
    return answer(CollectionView.of(summary, parts.settings), 201 if is_new else 200)


@router.get("/{name}", responses=documented({200: CollectionDetails}, 404))
def get_collection(parts: PartsDep, name: Name) -> Response:
    """A collection, with the numbers of its documents and chunks, and its vector indexes: the
    active one, which searches read, then others, the newest first."""
    with parts.ledger.read() as session:
        collection = collections.get(session, name)
        summary = collections.summary(session, collection)
        summaries = indexes.summaries(session, collection.id)
    return answer(CollectionDetails.with_indexes(summary, summaries, parts.settings))


@router.get("", responses=documented({200: Page[CollectionView]}, 400, 422))
def list_collections(parts: PartsDep, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Collections by name."""
    after = answers.decode("collections", cursor)
    with parts.ledger.read() as session:
        summaries = collections.page(session, limit=limit + 1, after=after)
    shown = [CollectionView.of(summary, parts.settings) for summary in summaries[:limit]]
    more = answers.encode("collections", shown[-1].name) if len(summaries) > limit else None
    return answer(Page[CollectionView](items=shown, next_cursor=more))


@router.delete("/{name}", responses=documented({200: JobView, 202: JobView}, 404, 409, 422))
async def delete_collection(
    parts: PartsDep,
    fair_key: FairKey,
    name: Name,
    preferences: Prefer,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Erase a collection with all its text and vectors; waits up to 30 s, or `Prefer: wait=N`. With
    an `Idempotency-Key`, the same request sent again gets the same job, and not 404."""
    return await waiting.erase(
        parts,
        EraseInput(collection=name),
        fair_key=fair_key,
        preferences=preferences,
        idempotency_key=idempotency_key,
        require=lambda session: erasure.require_collection(session, name),
        hide=lambda session: erasure.hide_collection(session, name),
    )


@router.post("/{name}/rebuild", status_code=202, responses=documented(SUBMITTED, *NOT_SUBMITTED))
async def rebuild_collection(
    parts: PartsDep,
    fair_key: FairKey,
    name: Name,
    preferences: Prefer,
    options: Annotated[RebuildOptions | None, Body()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make the vectors of a collection anew while it is searched and filled, of another model or of
    its own: submits a job of the kind `rebuild`."""
    fields = {} if options is None else dict(options)
    request = _rebuild_job(RebuildInput(collection=name, **fields))
    return await waiting.submit(
        parts,
        request,
        fair_key=fair_key,
        preferences=preferences,
        idempotency_key=idempotency_key,
    )


@router.post("/{name}/rollback", status_code=202, responses=documented(SUBMITTED, *NOT_SUBMITTED))
async def roll_back_collection(
    parts: PartsDep,
    fair_key: FairKey,
    name: Name,
    preferences: Prefer,
    options: Annotated[RollbackOptions | None, Body()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Go back to the vector index that was active before, brought up to date: submits a job of the
    kind `rebuild`. 409 if there is none."""
    fields = {} if options is None else dict(options)
    request = _rebuild_job(RebuildInput(collection=name, rollback=True, **fields))
    return await waiting.submit(
        parts,
        request,
        fair_key=fair_key,
        preferences=preferences,
        idempotency_key=idempotency_key,
    )


def _rebuild_job(input_: RebuildInput) -> JobRequest:
    return REQUESTS[REBUILD.name](kind=REBUILD.name, input=input_)


@router.delete(
    "/{name}/indexes/{index}",
    status_code=202,
    responses=documented({202: IndexView}, 404, 409, 422),
)
def drop_collection_index(
    parts: PartsDep,
    name: Name,
    index: IndexName,
    forget: Annotated[
        bool,
        Query(
            description="The index is on a server that SLUICE_VECTORS_URL does not name any more: "
            "forget it; what the server has stays there."
        ),
    ] = False,
) -> Response:
    """Let an index go that is not in use; the sweeper drops its vectors soon after. 409 for the
    active one, and for one that a job builds."""
    with parts.ledger.begin() as session:
        collection = collections.get(session, name)
        collections.hold(session, collection.id)
        row = indexes.named(session, collection.id, index)
        _require_place(parts, row, is_forgotten=forget)
        summary = (indexes.forget if forget else indexes.drop)(session, row)
    return answer(IndexView.of(summary, parts.settings), 202)


def _require_place(parts: Parts, index: VectorIndex, *, is_forgotten: bool) -> None:
    """Raises Conflict if an index is to be forgotten and its server is there, or to be dropped and
    it is not."""
    store = configured_store(parts.settings)
    is_away = index.server is not None and (
        store is None or index.server not in map(str, store.urls)
    )
    if is_away and not is_forgotten:
        raise Conflict(
            f"The vectors of {index.stored_name!r} are on {index.server}, which {VECTORS_URL} does "
            "not name. Put it back; or forget the index with ?forget=true (`sluice collections "
            "drop-index --forget`), and what that server has stays there."
        )
    if is_forgotten and not is_away:
        raise Conflict(
            f"The server of {index.stored_name!r} is one of {VECTORS_URL}: drop the index, without "
            "forget."
        )


@router.get("/{name}/chunks", responses=documented({200: Page[ChunkOut]}, 400, 404, 422))
def find_collection_chunks(
    parts: PartsDep,
    name: Name,
    source: Names,
    id: Names,
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """The chunks with these ids, and those of the documents with these sources."""
    if not source and not id:
        raise InvalidInput("Name a source or an id, as in ?source=handbook.md or ?id=...")
    after = answers.decode("collection chunks", cursor)
    if after is not None and documents.parse_chunk_id(after) is None:
        raise BadCursor
    with parts.ledger.read() as session:
        collection = collections.get(session, name)
        views = documents.named_chunks(
            session, collection.id, sources=source, ids=id, limit=limit + 1, after=after
        )
    shown = [ChunkOut.of(view) for view in views[:limit]]
    more = answers.encode("collection chunks", shown[-1].id) if len(views) > limit else None
    return answer(Page[ChunkOut](items=shown, next_cursor=more))


@router.get("/{name}/documents", responses=documented({200: Page[DocumentOut]}, 400, 404, 422))
def list_collection_documents(
    parts: PartsDep, name: Name, limit: PageLimit = 50, cursor: Cursor = None
) -> Response:
    """The documents of a collection, oldest first."""
    after = answers.decode_id("documents", cursor)
    with parts.ledger.read() as session:
        collection = collections.get(session, name)
        views = documents.page(session, collection.id, limit=limit + 1, after=after)
    shown = [DocumentOut.of(view) for view in views[:limit]]
    more = answers.encode("documents", str(shown[-1].id)) if len(views) > limit else None
    return answer(Page[DocumentOut](items=shown, next_cursor=more))
