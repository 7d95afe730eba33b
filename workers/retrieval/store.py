"""The protocol of vector stores: an index of chunks that can be rebuilt from Postgres.

A store has one collection of vectors for each collection of Sluice, with the text and the metadata
of each chunk, so that other programs can read it. `shared/vector_stores.py` lists the
implementations.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from shared.bounds import Metadata
from shared.errors import Permanent
from shared.filters import MetadataFilter
from workers.models.devices import Vectors


@dataclass(frozen=True, kw_only=True)
class VectorEntry:
    """A chunk to be written, without its vector.

    `metadata` is the user's; `own` has Sluice's values: `source`, `document_id`, `start_index`.
    """

    id: str
    text: str
    metadata: Metadata
    own: Metadata = field(default_factory=dict)


NUMBER_BYTES = 24
"""Of a number of a vector in JSON, at most."""


def batches(
    entries: Sequence[VectorEntry], vectors: Vectors, *, limit: int, limit_bytes: int
) -> Iterator[tuple[list[VectorEntry], Vectors]]:
    """Chunks for one request each: at most `limit`, and about `limit_bytes` in JSON unless it is a
    single one. Of a chunk that is there twice, only the last: servers differ in what they do."""
    last = {entry.id: n for n, entry in enumerate(entries)}
    batch: list[int] = []
    size = 0
    for n in last.values():
        entry = entries[n]
        content = [entry.text, entry.metadata, entry.own]  # a control character has 6 bytes
        size_bytes = len(json.dumps(content, ensure_ascii=False).encode())
        size_bytes += NUMBER_BYTES * vectors.shape[1]
        if batch and (len(batch) == limit or size + size_bytes > limit_bytes):
            yield [entries[one] for one in batch], vectors[batch]
            batch, size = [], 0
        batch.append(n)
        size += size_bytes
    if batch:
        yield [entries[one] for one in batch], vectors[batch]


COLLECTIONS_KEPT = 256
"""Of so many collections the end of the last page of ids is kept."""


class IdPages:
    """Pages of ids by their offset, of servers that list what follows a position: who reads one
    page after the other continues where the last one ended. Any other offset is reached from the
    beginning."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[int, str]] = {}
        """Name -> how many ids were read, and the position of the last."""

    def page(
        self,
        name: str,
        *,
        limit: int,
        offset: int,
        after: Callable[[str, int], Sequence[tuple[str, str]]],
    ) -> list[str]:
        """`after` has a position, "" at the beginning, and a number; it returns at most so many
        pairs of a position and an id that follow, none at the end only."""
        read, position = self._ends.pop(name, (0, ""))
        if read > offset:
            read, position = 0, ""
        ids: list[str] = []
        while read < offset + limit:
            goal = offset if read < offset else offset + limit
            pairs = after(position, goal - read)
            if not pairs:
                return ids
            if read >= offset:
                ids += [id_ for _, id_ in pairs]
            read, position = read + len(pairs), pairs[-1][0]
        if len(self._ends) >= COLLECTIONS_KEPT:
            del self._ends[next(iter(self._ends))]
        self._ends[name] = (read, position)
        return ids

    def forget(self, name: str) -> None:
        self._ends.pop(name, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A chunk's id and its cosine similarity to the query."""

    id: str
    score: float


REBUILD = "Build it anew from PostgreSQL: `sluice collections rebuild NAME`."
"""What to do about a collection that was lost or damaged."""


class MissingCollection(Permanent):
    """The store has no such collection."""


class MissingServer(Permanent):
    """The collection is on a server that SLUICE_VECTORS_URL does not name."""


class DamagedCollection(Permanent):
    """The store has the collection, and cannot read it."""


def is_same(stored: Any, written: Any) -> bool:
    """Whether a store gives back what was written: JSON with objects in any order, whose numbers
    may have lost a last digit on their way through a server."""
    if isinstance(stored, dict) and isinstance(written, dict):
        return stored.keys() == written.keys() and all(
            is_same(value, written[key]) for key, value in stored.items()
        )
    if isinstance(stored, list) and isinstance(written, list):
        return len(stored) == len(written) and all(map(is_same, stored, written))
    if isinstance(stored, bool) or isinstance(written, bool):
        return stored is written
    if isinstance(stored, float) or isinstance(written, float):
        numbers = isinstance(stored, int | float) and isinstance(written, int | float)
        return numbers and math.isclose(stored, written, rel_tol=1e-12)
    return bool(stored == written)


@runtime_checkable
class VectorStore(Protocol):
    """Vectors have the shape (n, dimension), are float32 and of length 1. All calls are idempotent:
    a chunk that is written twice is there once, and deleting what is gone deletes nothing.

    Every call raises `Unavailable` if the server does not answer within SLUICE_REQUEST_TIMEOUT_S,
    and `Permanent` if it refuses. Connections are made at first use, by one thread at a time.
    """

    def make(self, name: str, distance: str) -> None:
        """Make the collection unless it exists. `distance` is `cosine`, `ip` or `l2`. A store that
        lacks one may use another: for vectors of length 1 they all give the same order."""

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        """Write chunks, of any number; `vectors[n]` is that of `entries[n]`. Raises
        `MissingCollection`."""

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        """The `limit` nearest chunks to each vector, best first; with `ids`, of these chunks only.
        Raises `MissingCollection`.

        `where` compares `metadata` and `own` of the entries. No chunk that it matches is left out.
        If the store cannot express all of the filter (`is_exact`), chunks that do not match may be
        returned as well; the caller has to check them.
        """

    def is_exact(self, where: MetadataFilter) -> bool:
        """Whether `query` with this filter returns only chunks that match it."""

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """Id -> vector, of the shape (dimension,), for those chunks that the store has. Raises
        `MissingCollection`."""

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        """Id -> whether the store has what `upsert` writes of this entry, its vector aside; for
        those chunks that the store has. A store without texts compares the metadata alone. Raises
        `MissingCollection`."""

    def delete(self, name: str, ids: Sequence[str]) -> int:
        """Delete chunks and verify that they are gone. Returns how many there were, 0 if there is
        no such collection. Raises `Unavailable` if some are still there."""

    def drop(self, name: str) -> int:
        """Delete a whole collection. Returns how many chunks it had, 0 if there is none."""

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        """A page of the ids of a collection, in an order that is stable while nothing is written;
        empty after the last one, and if there is no such collection."""

    def close(self) -> None:
        """Close the connections; the store is not used again."""
