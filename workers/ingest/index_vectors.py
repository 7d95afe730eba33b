"""The vectors of a vector index, as the jobs that go through one compare and write them.

No transaction is open while the store or a model is asked. What an erasure deletes meanwhile is
neither a fault nor comes back.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.documents import indexes, versions
from shared.documents.documents import chunk_id
from shared.documents.indexes import IndexPlace, Position
from shared.documents.versions import ChunkRange
from shared.errors import Permanent
from shared.jobs import claims
from shared.tables import Chunk, VectorIndex
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.ingest.erasure import delete_orphans
from workers.ingest.steps import entry_of
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.servers import store_of

ChunkKey = tuple[UUID, int]
"""Version and ordinal."""


class StepTime:
    """How long one step of a job that goes through an index may go on: SLUICE_REBUILD_STEP_S, or
    until a step of a better lane waits."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ends = time.monotonic() + context.process.settings.rebuild_step_s

    @property
    def is_over(self) -> bool:
        if time.monotonic() > self._ends:
            return True
        with self._context.process.ledger.read_single() as session:
            return claims.is_behind(session, self._context.claim)


def embedder_of(context: Context, index: VectorIndex) -> Embedder:
    """The model of an index. Raises Permanent if its vectors do not have the index's dimension."""
    embedder = embedders_of(context.process).get(index.embedding_model, check=context.check)
    require_dimension(embedder, index, index.dimension)
    return embedder


def require_dimension(embedder: Embedder, index: VectorIndex, dimension: int | None) -> None:
    """Raises Permanent if a model does not give the dimension that is fixed for an index."""
    if dimension is not None and embedder.dimension != dimension:
        raise Permanent(
            f"The index has {dimension} dimensions, but {index.embedding_model!r} now gives "
            f"{embedder.dimension}. Put the model back, or rebuild with another one."
        )


def write_vectors(context: Context, index: VectorIndex, parts: Sequence[ChunkRange]) -> None:
    """Make the vectors of those of the chunks that there are, and write them to the index."""
    process, place = context.process, IndexPlace.of(index)
    context.check()
    with process.ledger.read() as session:
        chunks = versions.chunks_in(session, parts)
        owners = versions.documents_of(session, {part.version_id for part in parts})
    chunks = [chunk for chunk in chunks if chunk.version_id in owners]
    context.on_lost.append(lambda: delete_orphans(process, place, parts))
    if chunks:
        vectors = embedder_of(context, index).encode(
            [chunk.text for chunk in chunks], between=context.check
        )
        context.check()
        entries = [entry_of(chunk, owners[chunk.version_id]) for chunk in chunks]
        store_of(process).upsert(place.stored_name, entries, vectors)
    # Who erases a version that is in none of the indexes yet finds nothing there to delete.
    delete_orphans(process, place, parts)
    context.on_lost.pop()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the store has of some chunks of an index; without those that were erased meanwhile."""

    chunks: Sequence[Chunk]
    """All of them, in the order of the parts."""
    missing: frozenset[ChunkKey]
    stale: frozenset[ChunkKey]
    """Of which the store has another text, or other metadata."""


def compare(process: Process, index: VectorIndex, parts: Sequence[ChunkRange]) -> Comparison:
    """Raises MissingCollection."""
    with process.ledger.read() as session:
        chunks = versions.chunks_in(session, parts)
        owners = versions.documents_of(session, {part.version_id for part in parts})
    chunks = [chunk for chunk in chunks if chunk.version_id in owners]
    entries = [entry_of(chunk, owners[chunk.version_id]) for chunk in chunks]
    same = store_of(process).compare(index.stored_name, entries) if entries else {}
    states = {key_of(chunk): same.get(chunk_id(*key_of(chunk))) for chunk in chunks}
    differing = {key for key, is_same in states.items() if not is_same}
    if differing:
        # Vectors are deleted after the ledger has said so: what it still notes has to be there.
        with process.ledger.read() as session:
            differing = indexes.still_noted(session, index.id, differing)
    missing = frozenset(key for key in differing if states[key] is None)
    return Comparison(chunks=chunks, missing=missing, stale=frozenset(differing - missing))


def read_position(written: Any) -> Position | None:
    """Where a step's payload says that it goes on; from the beginning, if an older version wrote
    it."""
    if not isinstance(written, list):
        return None
    return UUID(written[0]), UUID(written[1]), int(written[2])


def written_position(position: Position | None) -> list[Any] | None:
    return None if position is None else [str(position[0]), str(position[1]), position[2]]


def key_of(chunk: Chunk) -> ChunkKey:
    return chunk.version_id, chunk.ordinal


def ranges_of(keys: Iterable[ChunkKey]) -> list[ChunkRange]:
    """The chunks as few ranges."""
    ranges: list[ChunkRange] = []
    for version_id, ordinal in sorted(keys):
        last = ranges[-1] if ranges else None
        if last is not None and (last.version_id, last.end) == (version_id, ordinal):
            ranges[-1] = ChunkRange(version_id=version_id, first=last.first, end=ordinal + 1)
        else:
            ranges.append(ChunkRange(version_id=version_id, first=ordinal, end=ordinal + 1))
    return ranges
