"""The vectors of an embedding step: read texts, encode, write to the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from shared import collections, versions
from shared.document_models import Chunk
from shared.documents import chunk_id
from shared.errors import Permanent
from shared.payloads import SplitterType
from shared.versions import Origin, Part
from workers.ingest.content import Order
from workers.retrieval.store import Entry
from workers.step import Context

_SAFE_SHARE = 0.9
"""Other parts of a document have more tokens in as many characters."""


@dataclass(kw_only=True)
class Cut:
    """The chunks of a version that are longer than the model's window."""

    chunks: int
    chunk_size: int
    """Which the splitter should have had, going by the chunk of which the least was read."""


def write_vectors(context: Context, order: Order, parts: Sequence[Part]) -> dict[UUID, Cut]:
    """Embed those chunks of the parts that still need it. No transaction is open meanwhile.

    Returns what the model did not read, by version.
    """
    process = context.process
    with process.ledger.read() as session:
        chunks = versions.unembedded(session, parts)
        origins = versions.origins(session, {chunk.version_id for chunk in chunks})
    chunks = [chunk for chunk in chunks if chunk.version_id in origins]  # others just vanished
    if not chunks:
        return {}
    embedder = process.embedders.get(order.model, check=context.check)
    with process.ledger.begin() as session:
        dimension = collections.fix_dimension(session, order.collection_id, embedder.dimension)
    if dimension != embedder.dimension:
        raise Permanent(
            f"Collection {order.collection!r} has {dimension} dimensions, but {order.model!r} "
            f"gives {embedder.dimension}. Ingest into a new collection."
        )
    texts = [chunk.text for chunk in chunks]
    cuts: dict[UUID, Cut] = {}
    for n, tokens in embedder.overlong(texts, between=context.check).items():
        fitting = embedder.readable or tokens
        if order.splitter.type is not SplitterType.TOKEN:
            fitting = int(_SAFE_SHARE * len(texts[n]) * fitting / tokens)
        cut = cuts.setdefault(chunks[n].version_id, Cut(chunks=0, chunk_size=fitting))
        cut.chunks += 1
        cut.chunk_size = min(cut.chunk_size, fitting)
    vectors = embedder.encode(texts, between=context.check)
    context.check()
    entries = [_entry(chunk, origins[chunk.version_id]) for chunk in chunks]
    process.store.upsert(order.collection, entries, vectors)
    return cuts


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
