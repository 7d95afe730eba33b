"""Collections and their documents."""

import re
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from api.deps import Cursor, FairKey, PageLimit, PartsDep, Prefer
from api.http import answers
from api.http.answers import answer
from api.http.body import StrictRoute
from api.http.errors import BadCursor
from api.jobs import waiting
from api.openapi import documented
from api.schemas import ChunkOut, CollectionSpec, CollectionView, DocumentOut, JobView, Page
from shared.bounds import COLLECTION_NAME, CollectionName, SourceName, nfc, shown
from shared.documents import collections, documents, erasure
from shared.errors import InvalidInput, NotFound
from shared.kinds.erase import EraseInput
from shared.models import embedding_models

router = APIRouter(prefix="/v1/collections", tags=["collections"], route_class=StrictRoute)

NewName = Annotated[
    CollectionName,
    Path(description="Up to 128 letters of any script, digits, `.`, `_`, `-` or spaces."),
]


async def _name(name: str) -> str:
    if re.fullmatch(COLLECTION_NAME, name) is None:
        raise NotFound(f"There is no collection {shown(name)}; that is not a name of one.")
    return nfc(name)


Name = Annotated[str, Depends(_name)]
Names = Annotated[list[SourceName], Query(default_factory=list, max_length=100, fail_fast=True)]


@router.put(
    "/{name}",
    responses=documented({200: CollectionView, 201: CollectionView}, 400, 409, 415, 422),
)
def put_collection(
    parts: PartsDep, name: NewName, spec: Annotated[CollectionSpec | None, Body()] = None
) -> Response:
    """Make a collection: 201, or 200 if the same collection exists already. 400 if its embedding
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


@router.get("/{name}", responses=documented({200: CollectionView}, 404))
def get_collection(parts: PartsDep, name: Name) -> Response:
    """A collection, with the numbers of its documents and chunks."""
    with parts.ledger.read() as session:
        summary = collections.summary(session, collections.get(session, name))
    return answer(CollectionView.of(summary, parts.settings))


@router.get("", responses=documented({200: Page[CollectionView]}, 400, 422))
def list_collections(parts: PartsDep, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Collections by name."""
    after = answers.decode("collections", cursor)
    with parts.ledger.read() as session:
        summaries = collections.page(session, limit=limit + 1, after=after)
    shown = [CollectionView.of(summary, parts.settings) for summary in summaries[:limit]]
    more = answers.encode("collections", shown[-1].name) if len(summaries) > limit else None
    return answer(Page[CollectionView](items=shown, next_cursor=more))


@router.delete("/{name}", responses=documented({200: JobView, 202: JobView}, 404))
async def delete_collection(
    parts: PartsDep, fair_key: FairKey, name: Name, preferences: Prefer
) -> Response:
    """Erase a collection with all its text and vectors; waits up to 30 s, or `Prefer: wait=N`."""
    return await waiting.erase(
        parts,
        EraseInput(collection=name),
        fair_key=fair_key,
        preferences=preferences,
        require=lambda session: erasure.require_collection(session, name),
        hide=lambda session: erasure.hide_collection(session, name),
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
