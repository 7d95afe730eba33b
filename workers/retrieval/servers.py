"""The vector store of this deployment. Several servers act as one store: each index is on one of
them, and the ledger notes on which."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pkgutil import resolve_name

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.documents import indexes
from shared.errors import ConfigurationError
from shared.filters import MetadataFilter
from shared.vector_stores import VECTORS_URL, StoreType, require_store
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval.store import (
    REBUILD,
    Match,
    MissingCollection,
    MissingServer,
    VectorEntry,
    VectorStore,
)


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
    configured = require_store(process.settings)
    make = import_store(configured.type_)
    stores = {str(url): make(process.settings, url.text) for url in configured.urls}
    with process.ledger.read_single() as session:
        noted = indexes.count_servers(session).keys()
    if len(stores) == 1 and noted <= stores.keys():
        return next(iter(stores.values()))
    return Servers(process.ledger, stores)


class Servers:
    """A `VectorStore` on several servers of one type, by their URLs without credentials.

    A new collection is made on the server that has the fewest. A collection without a note in the
    ledger, from a time when there was a single server, is looked up on all of them. Every call
    raises MissingServer if the noted server is not one of these.
    """

    def __init__(self, ledger: Ledger, stores: Mapping[str, VectorStore]) -> None:
        self._ledger = ledger
        self._stores = dict(stores)

    def make(self, name: str, distance: str) -> None:
        with self._ledger.read_single() as session:
            server = indexes.server_of(session, name)
            counts = indexes.count_servers(session)
        if server is None:
            new = self._holder(name) or min(self._stores, key=lambda one: counts.get(one, 0))
            server = self._note(name, new)
        self._store(server, name).make(name, distance)

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        self._store_of(name).upsert(name, entries, vectors)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        return self._store_of(name).query(name, vectors, limit=limit, where=where, ids=ids)

    def is_exact(self, where: MetadataFilter) -> bool:
        return all(store.is_exact(where) for store in self._stores.values())

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        return self._store_of(name).vectors(name, ids)

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        return self._store_of(name).compare(name, entries)

    def delete(self, name: str, ids: Sequence[str]) -> int:
        return sum(store.delete(name, ids) for store in self._possible(name))

    def drop(self, name: str) -> int:
        return sum(store.drop(name) for store in self._possible(name))

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        try:
            store = self._store_of(name)
        except MissingCollection:
            return []
        return store.id_page(name, limit=limit, offset=offset)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def _store_of(self, name: str) -> VectorStore:
        """The store that has the collection. Raises MissingCollection if no server has it."""
        with self._ledger.read_single() as session:
            server = indexes.server_of(session, name)
        if server is None:
            holder = self._holder(name)
            if holder is None:
                raise MissingCollection(
                    f"No server of {VECTORS_URL} has a collection {name!r}. {REBUILD}"
                )
            server = self._note(name, holder)
        return self._store(server, name)

    def _possible(self, name: str) -> Iterator[VectorStore]:
        """The server that has the collection; all of them if the ledger does not note one, as after
        an erasure."""
        with self._ledger.read_single() as session:
            server = indexes.server_of(session, name)
        if server is None:
            yield from self._stores.values()
        else:
            yield self._store(server, name)

    def _store(self, server: str, name: str) -> VectorStore:
        if server not in self._stores:
            raise MissingServer(
                f"The vectors of {name!r} are on {server}, which {VECTORS_URL} does not name. Put "
                "it back; or build them anew (`sluice collections rebuild NAME`), and forget those "
                f"of before (`sluice collections drop-index NAME {name} --forget`)."
            )
        return self._stores[server]

    def _holder(self, name: str) -> str | None:
        """The server that has the collection, by asking all of them; None if none has it."""
        for server, store in self._stores.items():
            try:
                store.vectors(name, ["none"])
            except MissingCollection:
                continue
            return server
        return None

    def _note(self, name: str, server: str) -> str:
        """Note the server unless another one is noted by then; returns the one that is noted."""
        with self._ledger.begin() as session:
            return indexes.note_server(session, name, server) or server
