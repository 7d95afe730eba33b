"""The vector store Chroma.

A Chroma collection has the name of the Sluice collection, and keeps text and metadata with each
vector, so that any LangChain program can open it. There `source`, `document_id` and `start_index`
are ours. A user's key of such a name, or of one that Chroma refuses, is kept with `sluice:` before
it, and filters find it under its own name.
"""

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import numpy as np
from chromadb.api import ClientAPI
from chromadb.api.client import Client
from chromadb.api.collection_configuration import (
    CreateCollectionConfiguration,
    CreateHNSWConfiguration,
)
from chromadb.api.types import Space
from chromadb.auth import UserIdentity
from chromadb.config import Settings as ChromaSettings
from chromadb.errors import ChromaError, NotFoundError

from shared.bounds import Metadata, Scalar, nfc
from shared.config import Settings
from shared.errors import Permanent, Unavailable
from workers.models.devices import Vectors
from workers.retrieval.store import Entry, Match, Missing

BATCH = 500
OWN_KEYS = frozenset({"source", "document_id", "start_index"})
PREFIX = "sluice:"
_PREFIXED = re.compile(rf"$|[$#]|chroma:|{PREFIX}")
_SHADOWED = PREFIX + "shadowed:"
"""Marks a chunk whose user has a key of this name too, which then counts in filters."""


class Chroma:
    def __init__(self, settings: Settings) -> None:
        self._url = settings.require_chroma_url()
        self._timeout_s = settings.request_timeout_s
        self._connect_timeout_s = settings.connect_timeout_s

    @cached_property
    def _client(self) -> ClientAPI:
        url = urlsplit(self._url)
        secure = url.scheme == "https"
        # What `chromadb.HttpClient` sets.
        settings = ChromaSettings(
            anonymized_telemetry=False,
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=url.hostname or "127.0.0.1",
            chroma_server_http_port=url.port or (443 if secure else 80),
            chroma_server_ssl_enabled=secure,
        )
        return _Client(settings, self._timeout_s, self._connect_timeout_s)

    def make(self, name: str, distance: str) -> None:
        with self._translated(name):
            self._client.get_or_create_collection(
                name,
                configuration=CreateCollectionConfiguration(
                    hnsw=CreateHNSWConfiguration(space=cast(Space, distance))
                ),
                embedding_function=None,
            )

    def upsert(self, name: str, entries: Sequence[Entry], vectors: Vectors) -> None:
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
        self, name: str, vectors: Vectors, *, limit: int, where: Metadata | None
    ) -> list[list[Match]]:
        with self._translated(name):
            collection = self._client.get_collection(name, embedding_function=None)
            result = collection.query(
                query_embeddings=vectors,
                n_results=limit,
                where=_where(where),
                include=["distances"],
            )
        space = str((collection.configuration_json or {}).get("hnsw", {}).get("space", "l2"))
        return [
            [
                Match(id=id_, score=_similarity(space, distance))
                for id_, distance in zip(ids, distances, strict=True)
            ]
            for ids, distances in zip(result["ids"], result["distances"] or (), strict=True)
        ]

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        vectors: dict[str, Vectors] = {}
        with self._translated(name):
            collection = self._client.get_collection(name, embedding_function=None)
            for first in range(0, len(ids), BATCH):
                batch = list(ids[first : first + BATCH])
                result = collection.get(ids=batch, include=["embeddings"])
                if result["embeddings"] is not None:
                    rows = np.asarray(result["embeddings"], dtype=np.float32)
                    vectors |= zip(result["ids"], rows, strict=True)
        return vectors

    def delete(self, name: str, ids: Sequence[str]) -> int:
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
        try:
            with self._translated(name):
                count = self._client.get_collection(name, embedding_function=None).count()
                self._client.delete_collection(name)
        except Missing:
            return 0
        return count

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
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


class _Client(Client):
    """Chroma's client with a time for each request; its own waits for ever."""

    def __init__(
        self, settings: ChromaSettings, timeout_s: float, connect_timeout_s: float
    ) -> None:
        self._timeout_s = timeout_s
        self._timeout = httpx.Timeout(timeout_s, connect=connect_timeout_s)
        self._sessions: list[httpx.Client] = []
        try:
            super().__init__(settings=settings)
        except BaseException:
            for session in self._sessions:
                session.close()
            raise

    # Both are called before the first request of the servers that they give a time.

    def get_user_identity(self) -> UserIdentity:
        self._limit(self._server)
        return self._server.get_user_identity()  # whose errors `super` makes alike

    def _validate_tenant_database(self, tenant: str, database: str) -> None:
        self._limit(cast(Any, self._admin_client)._server)
        super()._validate_tenant_database(tenant, database)

    def _limit(self, server: Any) -> None:
        session = server._session
        server._session = httpx.Client(
            headers=session.headers,
            timeout=self._timeout,
            transport=_TimedTransport(self._timeout_s),
        )
        self._sessions.append(server._session)
        session.close()


class _TimedTransport(httpx.HTTPTransport):
    """Ends answers that come in drops: httpx has times for each read only, not for all of them."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        ends = time.monotonic() + self._timeout_s
        response = super().handle_request(request)
        stream = response.stream
        assert isinstance(stream, httpx.SyncByteStream)
        response.stream = _TimedStream(stream, ends, self._timeout_s)
        return response


class _TimedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, ends: float, timeout_s: float) -> None:
        self._stream = stream
        self._ends = ends
        self._timeout_s = timeout_s

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() > self._ends:
                raise httpx.ReadTimeout(
                    f"the answer was not there within {self._timeout_s:g} s "
                    "(SLUICE_REQUEST_TIMEOUT_S)"
                )
            yield piece

    def close(self) -> None:
        self._stream.close()


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
