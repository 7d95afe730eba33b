"""What a vector store is: an index of chunks that can be rebuilt from Postgres, never the truth.

A store keeps one collection of vectors for each collection of Sluice, under its name, with the text
and the metadata of each chunk, so that other programs can read it. `shared/vector_stores.py` lists
the implementations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Protocol, runtime_checkable

from shared.bounds import Metadata
from shared.config import Settings
from shared.errors import Permanent
from shared.filters import MetadataFilter
from shared.vector_stores import store_type
from workers.attempts.process import Process
from workers.models.devices import Vectors


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A chunk as it is written; the vector goes beside it.

    `metadata` is the user's, `own` has Sluice's values: `source`, `document_id`, `start_index`.
    """

    id: str
    text: str
    metadata: Metadata
    own: Metadata = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Match:
    """A chunk's id and its cosine similarity to the query."""

    id: str
    score: float


class Missing(Permanent):
    """The store has no such collection."""


@runtime_checkable
class VectorStore(Protocol):
    """Vectors have the shape (n, dimension), are float32 and of length 1. All calls may be made
    again: writing a chunk twice is writing it once, deleting what is gone deletes nothing.

    Every call raises `Unavailable` where the server does not answer within
    SLUICE_REQUEST_TIMEOUT_S, `Permanent` where it refuses. Connections are made at first use,
    and by one thread at a time.
    """

    def make(self, name: str, distance: str) -> None:
        """Make the collection unless it exists. `distance` is `cosine`, `ip` or `l2`; a store
        without one of them may take another, for the vectors have length 1."""

    def upsert(self, name: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Write chunks, of any number; `vectors[n]` is that of `entries[n]`. Raises `Missing`."""

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        """The nearest chunks to each of some vectors, best first, at most `limit` each; of those
        with these ids, where ids are named. Raises `Missing`.

        All chunks that `where` matches are candidates, going by `metadata` and `own` of their
        entries. Others may be, too, where the store cannot say what the filter says (`is_exact`):
        who asks has to look at the hits again.
        """

    def is_exact(self, where: MetadataFilter) -> bool:
        """Whether all chunks that `query` finds with this filter match it."""

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of those of the chunks that are there, of the shape (dimension,). Raises
        `Missing`."""

    def delete(self, name: str, ids: Sequence[str]) -> int:
        """Delete chunks and make sure that they are gone; returns how many there were, 0 where
        there is no such collection. Raises `Unavailable` where some are still there."""

    def drop(self, name: str) -> int:
        """Delete a whole collection; returns how many chunks it had, 0 where there is none."""

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        """Some of the ids of a collection, in an order that lasts while nothing is written; none
        behind the last one, and none where there is no such collection."""

    def close(self) -> None:
        """End its connections; it is not used again."""


def import_store(settings: Settings) -> Callable[[Settings], VectorStore]:
    """The class of the store that the settings name; imported with its library by the parent of
    workers, so that they share it."""
    store: Callable[[Settings], VectorStore] = resolve_name(store_type(settings).store)
    return store


def make_store(settings: Settings) -> VectorStore:
    """The store that the settings name. Raises ConfigurationError where they name none."""
    return import_store(settings)(settings)


def store_of(process: Process) -> VectorStore:
    return process.held(_store, lambda store: store.close())


def _store(process: Process) -> VectorStore:
    return make_store(process.settings)
