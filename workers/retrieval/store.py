"""The protocol of vector stores: an index of chunks that can be rebuilt from Postgres.

A store has one collection of vectors for each collection of Sluice, with the text and the metadata
of each chunk, so that other programs can read it. `shared/vector_stores.py` lists the
implementations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Protocol, runtime_checkable

from shared.bounds import Metadata
from shared.config import Settings
from shared.documents import indexes
from shared.errors import ConfigurationError, Permanent
from shared.filters import MetadataFilter
from shared.vector_stores import StoreType, require_store
from workers.attempts.process import Process
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


@dataclass(frozen=True, kw_only=True)
class Match:
    """A chunk's id and its cosine similarity to the query."""

    id: str
    score: float


class MissingCollection(Permanent):
    """The store has no such collection."""


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


def import_store(type_: StoreType) -> Callable[[Settings, str], VectorStore]:
    """The class of a type of store. The parent of worker processes calls this before it forks, so
    that they share the memory of its library. Raises ConfigurationError if that is missing."""
    try:
        store: Callable[[Settings, str], VectorStore] = resolve_name(type_.store)
    except ModuleNotFoundError as error:
        if type_.extra is None or (error.name or "").partition(".")[0] in ("shared", "workers"):
            raise
        raise ConfigurationError(
            f"The vector store {type_.name} needs the package {error.name}, which is not "
            f"installed. Install the extra {type_.extra} (in the folder of Sluice: pip install "
            f"./client '.[{type_.extra}]')."
        ) from error
    return store


def store_of(process: Process) -> VectorStore:
    return process.held(_store, lambda store: store.close())


def _store(process: Process) -> VectorStore:
    """Raises ConfigurationError if the settings name no store."""
    from workers.retrieval.servers import Servers

    configured = require_store(process.settings)
    make = import_store(configured.type_)
    stores = {str(url): make(process.settings, url.text) for url in configured.urls}
    with process.ledger.read_single() as session:
        noted = indexes.count_servers(session).keys()
    if len(stores) == 1 and noted <= stores.keys():
        return next(iter(stores.values()))
    return Servers(process.ledger, stores)
