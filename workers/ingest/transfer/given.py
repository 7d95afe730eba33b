"""Writes documents whose chunks and vectors are given: an import of what was embedded elsewhere.

A job (of any kind) writes a whole collection, which nobody sees until all is there
(`shared/documents/imports.py`):

1. `begin(context, name, spec)` makes the collection, or finds the one that this job has made.
   Raises Conflict if there is another one of that name.
2. `write_documents(context, documents)` writes documents by numbers of your choice, each with the
   number of its chunks, at least 1.
3. `write_chunks(context, chunks, vectors)` writes chunks of these documents. Returns the `record`
   for the step's `Done`, which makes those documents live that have all their chunks.
4. `imports.publish(session, job_id)`, in `finish` of the handler, makes the collection visible.

Each of these may run again, and the calls of 3 in any order, so steps may be as small as one
likes. If the job fails or is cancelled, the sweeper erases what it has written.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import numpy as np
from sqlalchemy.exc import IntegrityError

from shared.bounds import shown
from shared.database.sqlstates import first_line
from shared.database.transaction import Transaction
from shared.documents import collections, imports, indexes, versions
from shared.documents.collections import Spec
from shared.documents.imports import ImportedChunk, ImportedDocument
from shared.documents.indexes import IndexPlace
from shared.documents.versions import ChunkRange
from shared.errors import Cancelled, Permanent
from shared.jobs import jobs, steps
from shared.jobs.steps import Record
from shared.tables import Chunk
from workers.attempts.context import Context
from workers.ingest.erasure import delete_orphans
from workers.ingest.indexing import NewPostings, merge_soon
from workers.ingest.steps import entry_of, make_in_store
from workers.models.devices import Vectors, lengths_of
from workers.retrieval.servers import store_of

_ROWS_AT_ONCE: Final = 1000
_LENGTH_ERROR: Final = 1e-3
"""Vectors whose lengths differ by more from 1 are scaled; others stay as they are, bit by bit."""


def begin(context: Context, name: str, spec: Spec, **fields: Any) -> UUID:
    """The id of the collection. `fields` are those of `imports.begin`."""
    with context.process.ledger.begin() as session:
        if not steps.hold(session, context.claim):
            raise Cancelled
        index = imports.begin(session, context.claim.job_id, name, spec, **fields)
    make_in_store(context.process, index)
    return index.collection_id


def write_documents(context: Context, documents: Mapping[int, ImportedDocument]) -> None:
    """Raises Permanent if a source comes twice."""
    numbers = list(documents)
    for first in range(0, len(numbers), _ROWS_AT_ONCE):
        context.check()
        some = {number: documents[number] for number in numbers[first : first + _ROWS_AT_ONCE]}
        with context.process.ledger.begin() as session:
            if not steps.hold(session, context.claim):
                raise Cancelled
            index = imports.hold(session, context.claim.job_id)
            try:
                imports.write_documents(session, index.collection_id, some)
            except IntegrityError as error:
                raise Permanent(
                    "Two of the documents have the same source, or the same source_id: "
                    f"{first_line(error)}"
                ) from error


def write_chunks(context: Context, chunks: Sequence[ImportedChunk], vectors: Vectors) -> Record:
    """Write chunks, sorted by document and ordinal, and the vector of each, of the shape (chunks,
    dimension). Raises Permanent for vectors that cannot be used."""
    process, job_id = context.process, context.claim.job_id
    with process.ledger.begin() as session:
        if not steps.hold(session, context.claim):
            raise Cancelled
        index = imports.hold(session, job_id)
        imports.write_chunks(session, index.collection_id, chunks)
    collection_id = index.collection_id
    dimension = index.dimension or vectors.shape[1]
    with process.ledger.begin() as session:
        dimension = indexes.fix_dimension(session, index.id, dimension)
    usable = usable_vectors(vectors, len(chunks), dimension)
    rows = [
        Chunk(
            version_id=imports.version_id(collection_id, chunk.document),
            ordinal=chunk.ordinal,
            start=chunk.start,
            text=chunk.text,
            meta=chunk.metadata,
        )
        for chunk in chunks
    ]
    with process.ledger.read() as reading:
        owners = versions.documents_of(reading, {row.version_id for row in rows})
    lacking = next((row for row in rows if row.version_id not in owners), None)
    if lacking is not None:
        raise Permanent("Some chunks are of a document that is not there.")
    parts = _ranges(rows)
    place = IndexPlace.of(index)
    context.on_lost.append(lambda: delete_orphans(process, place, parts))
    context.check()
    entries = [entry_of(row, owners[row.version_id]) for row in rows]
    store_of(process).upsert(place.stored_name, entries, usable)
    context.check()
    sizes = {version_id: owner.chunk_count for version_id, owner in owners.items()}
    postings = NewPostings(process, rows, sizes)

    def record(transaction: Transaction) -> None:
        collections.hold(transaction, collection_id)
        indexes.hold_active(transaction, collection_id, index.id)
        versions.lock_documents_of(transaction, [part.version_id for part in parts])
        postings.write_parts(transaction, collection_id)
        noted = versions.note_embedded(transaction, parts)
        ids = (part.version_id for part in parts)
        postings.write_whole(transaction, collection_id, zip(ids, noted, strict=True))
        jobs.advance(transaction, job_id, len(rows))
        transaction.after_commit(lambda: merge_soon(process, collection_id))

    return record


def usable_vectors(vectors: Vectors, count: int, dimension: int) -> Vectors:
    """The vectors as float32 of length 1. Raises Permanent, naming the first row that is wrong."""
    if vectors.shape != (count, dimension):
        raise Permanent(
            f"The vectors have the shape {shown(str(vectors.shape))}, and {count} of {dimension} "
            "dimensions are needed."
        )
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = lengths_of(vectors)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        raise Permanent(
            f"Vector {bad[0]} is not usable: it has values that are no numbers, or only zeros."
        )
    far = np.abs(lengths - 1) > _LENGTH_ERROR
    vectors = vectors.copy() if far.any() else vectors
    vectors[far] = vectors[far] / lengths[far, None]
    return vectors


def _ranges(rows: Sequence[Chunk]) -> list[ChunkRange]:
    """Consecutive ordinals of one version together."""
    parts: list[ChunkRange] = []
    for row in rows:
        last = parts[-1] if parts else None
        if last is not None and (last.version_id, last.end) == (row.version_id, row.ordinal):
            parts[-1] = ChunkRange(
                version_id=last.version_id, first=last.first, end=row.ordinal + 1
            )
        else:
            parts.append(
                ChunkRange(version_id=row.version_id, first=row.ordinal, end=row.ordinal + 1)
            )
    return parts
