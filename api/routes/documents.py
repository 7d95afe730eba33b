"""Documents and their chunks."""

from fastapi import APIRouter, Response

from api.deps import Cursor, DocumentId, FairKey, IdempotencyKey, PageLimit, PartsDep, Prefer
from api.http import answers
from api.http.answers import answer
from api.http.errors import BadCursor
from api.jobs import waiting
from api.openapi import documented
from api.schemas import ChunkOut, DocumentOut, JobView, Page
from shared.documents import documents, erasure
from shared.kinds.erase import EraseInput

router = APIRouter(prefix="/v1/documents", tags=["documents"])


@router.get("/{document_id}", responses=documented({200: DocumentOut}, 404))
def get_document(parts: PartsDep, document_id: DocumentId) -> Response:
    """A document: its live version."""
    with parts.ledger.read() as session:
        view = documents.get(session, document_id)
    return answer(DocumentOut.of(view))


@router.get("/{document_id}/chunks", responses=documented({200: Page[ChunkOut]}, 400, 404, 409))
def list_document_chunks(
    parts: PartsDep, document_id: DocumentId, limit: PageLimit = 50, cursor: Cursor = None
) -> Response:
    """The chunks of a document's text, in order; 409 if it was replaced between two pages."""
    after = answers.decode("chunks", cursor)
    if after is not None and documents.parse_chunk_id(after) is None:
        raise BadCursor
    with parts.ledger.read() as session:
        documents.get(session, document_id)
        views = documents.chunk_page(session, document_id, limit=limit + 1, after=after)
    shown = [ChunkOut.of(view) for view in views[:limit]]
    more = answers.encode("chunks", shown[-1].id) if len(views) > limit else None
    return answer(Page[ChunkOut](items=shown, next_cursor=more))


@router.delete("/{document_id}", responses=documented({200: JobView, 202: JobView}, 404, 409, 422))
async def delete_document(
    parts: PartsDep,
    fair_key: FairKey,
    document_id: DocumentId,
    preferences: Prefer,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Erase a document with its text and vectors; waits up to 30 s, or `Prefer: wait=N`. With an
    `Idempotency-Key`, the same request sent again gets the same job, and not 404."""
    return await waiting.erase(
        parts,
        EraseInput(document_ids=[str(document_id)]),
        fair_key=fair_key,
        preferences=preferences,
        idempotency_key=idempotency_key,
        require=lambda session: erasure.require_document(session, document_id),
        hide=lambda session: erasure.hide_documents(session, [document_id]),
    )
