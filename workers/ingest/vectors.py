"""The vectors of an embedding step: read texts, encode, write to the store."""

from collections.abc import Sequence

from shared import collections, versions
from shared.document_models import Chunk
from shared.documents import chunk_id
from shared.errors import Permanent
from shared.versions import Origin, Part
from workers.ingest.content import Order
from workers.retrieval.store import Entry
from workers.step import Context


def write_vectors(context: Context, order: Order, parts: Sequence[Part]) -> None:
    """Embed those chunks of the parts that still need it. No transaction is open meanwhile."""
    process = context.process
    with process.ledger.read() as session:
        chunks = versions.unembedded(session, parts)
        origins = versions.origins(session, {chunk.version_id for chunk in chunks})
    chunks = [chunk for chunk in chunks if chunk.version_id in origins]  # others just vanished
    if not chunks:
        return
    embedder = process.embedders.get(order.model, check=context.check)
    with process.ledger.begin() as session:
        dimension = collections.fix_dimension(session, order.collection_id, embedder.dimension)
    if dimension != embedder.dimension:
        raise Permanent(
            f"Collection {order.collection!r} has {dimension} dimensions, but {order.model!r} "
            f"gives {embedder.dimension}. Ingest into a new collection."
        )
    vectors = embedder.encode([chunk.text for chunk in chunks], between=context.check)
    context.check()
    entries = [_entry(chunk, origins[chunk.version_id]) for chunk in chunks]
    process.store.upsert(order.collection, entries, vectors)


def _entry(chunk: Chunk, origin: Origin) -> Entry:
    return Entry(
        id=chunk_id(chunk.version_id, chunk.ordinal),
        text=chunk.text,
        metadata=chunk.meta,
        own={
            "source": origin.source,
            "document_id": str(origin.document_id),
            "start_index": chunk.start,
        },
    )
