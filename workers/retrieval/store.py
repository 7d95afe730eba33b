"""Vectors in Chroma: an index that can be rebuilt from Postgres, never the truth.

A Chroma collection has the name of the Sluice collection, and keeps text and metadata with each
vector, so that any LangChain program can open it. There `source`, `document_id` and `start_index`
are ours. A user's key of such a name, or of one that Chroma refuses, is kept with `sluice:` before
it, and filters find it under its own name.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import chromadb
import httpx
from chromadb.api import ClientAPI
from chromadb.api.collection_configuration import (
    CreateCollectionConfiguration,
    CreateHNSWConfiguration,
)
from chromadb.api.types import Space
from chromadb.config import Settings as ChromaSettings
from chromadb.errors import ChromaError, NotFoundError

from shared.config import Settings
from shared.errors import Permanent, Unavailable
from shared.normal import nfc
from shared.payloads import Metadata

if TYPE_CHECKING:
    from workers.retrieval.embed import Vectors  # which imports torch; the sweeper needs none

Scalar = str | int | float | bool

BATCH = 500
OWN_KEYS = frozenset({"source", "document_id", "start_index"})
PREFIX = "sluice:"
_PREFIXED = re.compile(rf"$|[$#]|chroma:|{PREFIX}")
_SHADOWED = PREFIX + "shadowed:"
"""Marks a chunk whose user has a key of this name too, which then counts in filters."""
PAGE = 10_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A chunk as it is written; the vector goes beside it.

    `metadata` is the user's, `own` has values for keys of `OWN_KEYS`.
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


class Store:
    def __init__(self, settings: Settings) -> None:
        self._url = settings.require_chroma_url()

    @cached_property
    def _client(self) -> ClientAPI:
        url = urlsplit(self._url)
        secure = url.scheme == "https"
        return chromadb.HttpClient(
            host=url.hostname or "127.0.0.1",
            port=url.port or (443 if secure else 80),
            ssl=secure,
            settings=ChromaSettings(anonymized_telemetry=False),
        )

    def make(self, name: str, distance: str) -> None:
        """Make the collection unless it exists."""
        with self._translated(name):
            self._client.get_or_create_collection(
                name,
                configuration=CreateCollectionConfiguration(
                    hnsw=CreateHNSWConfiguration(space=cast(Space, distance))
                ),
                embedding_function=None,
            )

    def upsert(self, name: str, entries: Sequence[Entry], vectors: "Vectors") -> None:
        with self._translated(name):
            collection = self._client.get_collection(name, embedding_function=None)
            for first in range(0, len(entries), BATCH):
                batch = entries[first : first + BATCH]
                collection.upsert(
                    ids=[entry.id for entry in batch],
                    embeddings=vectors[first : first + BATCH],
                    documents=[entry.text for entry in batch],
                    metadatas=[_stored(entry) for entry in batch],
                )

    def query(
        self, name: str, vector: "Vectors", *, limit: int, where: Metadata | None
    ) -> list[Match]:
        """The nearest chunks by cosine similarity, best first."""
        with self._translated(name):
            collection = self._client.get_collection(name, embedding_function=None)
            found = collection.query(
                query_embeddings=vector.reshape(1, -1),
                n_results=limit,
                where=_where(where),
                include=["distances"],
            )
        space = str((collection.configuration_json or {}).get("hnsw", {}).get("space", "l2"))
        distances = (found["distances"] or [[]])[0]
        return [
            Match(id=id_, score=_similarity(space, distance))
            for id_, distance in zip(found["ids"][0], distances, strict=True)
        ]

    def delete(self, name: str, ids: Sequence[str]) -> int:
        """Delete vectors and make sure that they are gone; returns how many there were."""
        try:
            with self._translated(name):
                collection = self._client.get_collection(name, embedding_function=None)
                before = 0
                for first in range(0, len(ids), BATCH):
                    batch = list(ids[first : first + BATCH])
                    before += len(collection.get(ids=batch, include=[])["ids"])
                    collection.delete(ids=batch)
                    left = collection.get(ids=batch, include=[])["ids"]
                    if left:
                        raise Unavailable(f"Chroma still has {len(left)} vectors of {name!r}.")
                return before
        except Missing:
            return 0

    def drop(self, name: str) -> int:
        """Delete a whole collection; returns how many vectors it had."""
        try:
            with self._translated(name):
                count = self._client.get_collection(name, embedding_function=None).count()
                self._client.delete_collection(name)
        except Missing:
            return 0
        return count

    def ids(self, name: str) -> set[str]:
        """All ids of a collection."""
        found: set[str] = set()
        while page := self.id_page(name, limit=PAGE, offset=len(found)):
            found.update(page)
        return found

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        """Some of the ids of a collection, for comparison with the ledger; none if it is gone."""
        try:
            with self._translated(name):
                collection = self._client.get_collection(name, embedding_function=None)
                return list(collection.get(include=[], limit=limit, offset=offset)["ids"])
        except Missing:
            return []

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except NotFoundError as error:
            raise Missing(
                f"Chroma has no collection {name!r}: its data was lost or belongs to another "
                "server (SLUICE_CHROMA_URL). Delete the collection and ingest again."
            ) from error
        except (httpx.TransportError, httpx.HTTPStatusError, ConnectionError) as error:
            raise self._unavailable(error) from error
        except ValueError as error:
            # The client says so when it cannot reach the server at its first use.
            if "connect" in str(error).lower():
                raise self._unavailable(error) from error
            raise Permanent(f"Chroma refused: {error}") from error
        except ChromaError as error:
            if error.code() >= 500:
                raise self._unavailable(error) from error
            raise Permanent(f"Chroma refused: {error}") from error

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(f"Chroma at {self._url} (SLUICE_CHROMA_URL) failed: {error}")


class Missing(Permanent):
    """Chroma has no such collection."""


def _key(key: str) -> str:
    """The name of a user's key in Chroma."""
    key = nfc(key)
    return PREFIX + key if key in OWN_KEYS or _PREFIXED.match(key) else key


def _stored(entry: Entry) -> dict[str, Scalar]:
    return {
        **{_key(key): _value(value) for key, value in entry.metadata.items()},
        **{_SHADOWED + key: True for key in OWN_KEYS & entry.metadata.keys()},
        **entry.own,
    }


def _where(where: Metadata | None) -> Any:
    """All of the conditions; of the three keys that are ours, the user's own go before."""
    conditions: list[Any] = []
    for key, value in (where or {}).items():
        users = _equals(_key(key), value)
        if key in OWN_KEYS:
            ours = {"$and": [_equals(key, value), {_SHADOWED + key: {"$ne": True}}]}
            users = {"$or": [users, ours]}
        conditions.append(users)
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else {"$and": conditions}


def _equals(key: str, value: Scalar) -> Any:
    """Numbers are equal by value, whether they are written 2024 or 2024.0."""
    if isinstance(value, float) and math.isfinite(value):
        whole = min(max(math.trunc(value), -(2**63)), 2**63 - 1)
        if whole == value:
            return {key: whole}
        # Chroma looks for a fraction among the integers, too, cut to one: 0.5 would find 0.
        return {"$and": [{key: value}, {key: {"$ne": whole}}]}
    return {key: _value(value)}


def _value(value: Scalar) -> Scalar:
    return nfc(value) if isinstance(value, str) else value


def _similarity(space: str, distance: float) -> float:
    """Cosine similarity of unit vectors, from Chroma's distance in the given space.

    Chroma's distances: 1 - cos for `cosine`, 1 - dot for `ip`, the squared length of the
    difference for `l2`, which for unit vectors is 2 - 2 cos.
    """
    return 1 - distance / 2 if space == "l2" else 1 - distance
