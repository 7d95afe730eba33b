"""The `erase` step: documents or a whole collection, out of both stores, verified.

Readers stop seeing the text in the first transaction. Rows go last, in the transaction that
records the step, so that an interrupted erasure is taken up again with nothing forgotten.
Documents that do not exist are not counted: they are as gone as they should be.
"""

from collections.abc import Callable
from uuid import UUID

from sqlalchemy.orm import Session

from shared import erasure, jobs, remains
from shared.errors import Permanent
from shared.payloads import EraseInput, EraseResult
from workers.ingest.collect import drop_unless_wanted
from workers.step import Context, Done, Handler


def erase(context: Context) -> Done:
    with context.process.ledger.read() as session:
        wanted = EraseInput.model_validate(jobs.get(session, context.claim.job_id).input)
    if wanted.collection is not None:
        return _erase_collection(context, wanted.collection)
    return _erase_documents(context, wanted.document_ids or [])


def _erase_documents(context: Context, ids: list[str]) -> Done:
    process = context.process
    try:
        document_ids = [UUID(id_) for id_ in ids]
    except ValueError as error:
        raise Permanent("document_ids must be the ids that the document list gives.") from error
    with process.ledger.begin() as session:
        found = erasure.hide_documents(session, document_ids)
        extent = erasure.extent_of_documents(session, found)
        retired = remains.remains_of_documents(session, found)
    vectors = 0
    for each in retired:
        context.check()
        vectors += process.store.delete(each.collection, each.chunk_ids())

    def record(session: Session) -> None:
        erasure.delete_documents(session, found)

    def again() -> None:
        """What an embedding step wrote in between, whose rows are now gone."""
        for each in retired:
            process.store.delete(each.collection, each.chunk_ids())

    return _done(extent, vectors, record, again)


def _erase_collection(context: Context, name: str) -> Done:
    process = context.process
    with process.ledger.begin() as session:
        collection_id = erasure.hide_collection(session, name)
        extent = erasure.extent_of_collection(session, collection_id)
    vectors = process.store.drop(name)

    def record(session: Session) -> None:
        erasure.delete_collection(session, collection_id)

    def again() -> None:
        """What an ingest job has made in between."""
        drop_unless_wanted(process, name)

    return _done(extent, vectors, record, again)


def _done(
    extent: erasure.Extent,
    vectors: int,
    record: Callable[[Session], None],
    after: Callable[[], None] | None = None,
) -> Done:
    result = EraseResult(documents=extent.documents, chunks=extent.chunks, vectors=vectors)
    return Done(result=result.model_dump(), record=record, after=after)


ERASE = Handler(run=erase)
