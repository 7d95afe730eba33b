"""The vector store Chroma.

A Chroma collection has the name of the Sluice collection, or where Chroma does not take that, one
made of it (`stored_name`); and it keeps text and metadata with each vector, so that any LangChain
program can open it. There `source`, `document_id` and `start_index`
are ours. A user's key of such a name, or of one that Chroma refuses, is kept with `sluice:` before
it, and filters find it under its own name. A list is kept as Chroma's arrays are: of integers only
where all of its numbers are integers. Empty lists are in PostgreSQL alone.
"""

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import numpy as np
from chromadb.api import ClientAPI
from chromadb.api.client import Client
from chromadb.api.collection_configuration import (
    CreateCollectionConfiguration,
    CreateHNSWConfiguration,
)
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Space
from chromadb.auth import UserIdentity
from chromadb.config import Settings as ChromaSettings
from chromadb.errors import ChromaError, NotFoundError

from shared.bounds import INT64_MAX, Scalar, nfc, nfc_value
from shared.config import Settings
from shared.errors import Permanent, Unavailable
from shared.filters import (
    ORDER,
    OWN_KEYS,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    MetadataFilter,
    Not,
    Operator,
    decimal,
)
from workers.models.devices import Vectors
from workers.retrieval.store import Entry, Match, Missing

T = TypeVar("T")

BATCH = 500
COLLECTIONS_KEPT = 256
PREFIX = "sluice:"
_PREFIXED = re.compile(rf"$|[$#]|chroma:|{PREFIX}")
_SHADOWED = PREFIX + "shadowed:"
"""Marks a chunk whose user has a key of this name too, which then counts in filters."""


# Chroma's own rule, less what it refuses besides: two dots in a row, and addresses.
_CHROMA_NAME = re.compile(
    r"(?!.*\.\.)(?![0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$)[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]"
)


def stored_name(name: str) -> str:
    """What Chroma calls a collection: as it is called, where that is a name in ASCII of 3 to 63
    characters; otherwise `sluice-` and the SHA-256 of the name in UTF-8, which is longer than any
    of those, so that no two are the same."""
    if _CHROMA_NAME.fullmatch(name):
        return name
    return f"sluice-{hashlib.sha256(name.encode()).hexdigest()}"


class Chroma:
    def __init__(self, settings: Settings) -> None:
        self._url = settings.require_chroma_url()
        self._timeout_s = settings.request_timeout_s
        self._connect_timeout_s = settings.connect_timeout_s
        self._collections: dict[str, Collection] = {}

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
                stored_name(name),
                configuration=CreateCollectionConfiguration(
                    hnsw=CreateHNSWConfiguration(space=cast(Space, distance))
                ),
                embedding_function=None,
            )

    def close(self) -> None:
        client = self.__dict__.get("_client")
        if client is not None:
            client.close_sessions()

    def upsert(self, name: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        with self._translated(name):
            collection = self._client.get_collection(stored_name(name), embedding_function=None)
            for first in range(0, len(entries), BATCH):
                batch = entries[first : first + BATCH]
                collection.upsert(
                    ids=[entry.id for entry in batch],
                    embeddings=vectors[first : first + BATCH],
                    documents=[entry.text for entry in batch],
                    metadatas=[_stored(entry) for entry in batch],
                )

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        kept = _ALL if where is None else _kept(where.root)

        def read(collection: Collection) -> list[list[Match]]:
            if kept.is_nothing or (ids is not None and not ids):
                return [[] for _ in vectors]
            query = partial(
                collection.query,
                query_embeddings=vectors,
                n_results=limit,
                where=kept.where,
                include=["distances"],
            )
            try:
                result = query(ids=None if ids is None else list(ids))
            except ChromaError:
                # It fails where one of the ids has gone.
                there = [] if ids is None else collection.get(ids=list(ids), include=[])["ids"]
                if ids is None or len(there) == len(ids):
                    raise
                if not there:
                    return [[] for _ in vectors]
                result = query(ids=there)
            space = str((collection.configuration_json or {}).get("hnsw", {}).get("space", "l2"))
            return [
                [
                    Match(id=id_, score=_similarity(space, distance))
                    for id_, distance in zip(row, distances, strict=True)
                ]
                for row, distances in zip(result["ids"], result["distances"] or (), strict=True)
            ]

        return self._read(name, read)

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        def read(collection: Collection) -> dict[str, Vectors]:
            vectors: dict[str, Vectors] = {}
            for first in range(0, len(ids), BATCH):
                batch = list(ids[first : first + BATCH])
                result = collection.get(ids=batch, include=["embeddings"])
                if result["embeddings"] is not None:
                    rows = np.asarray(result["embeddings"], dtype=np.float32)
                    vectors |= zip(result["ids"], rows, strict=True)
            return vectors

        return self._read(name, read)

    def _read(self, name: str, read: Callable[[Collection], T]) -> T:
        """What `read` has of the collection. That is kept, so that it is not asked for each time;
        if it was made anew since, its id is another one."""
        with self._translated(name):
            kept = self._collections.get(name)
            if kept is not None:
                try:
                    return read(kept)
                except NotFoundError:
                    del self._collections[name]
            collection = self._client.get_collection(stored_name(name), embedding_function=None)
            self._collections[name] = collection
            if len(self._collections) > COLLECTIONS_KEPT:
                del self._collections[next(iter(self._collections))]
            return read(collection)

    def is_exact(self, where: MetadataFilter) -> bool:
        return _kept(where.root).is_exact

    def delete(self, name: str, ids: Sequence[str]) -> int:
        try:
            with self._translated(name):
                collection = self._client.get_collection(stored_name(name), embedding_function=None)
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
                count = self._client.get_collection(
                    stored_name(name), embedding_function=None
                ).count()
                self._client.delete_collection(stored_name(name))
        except Missing:
            return 0
        return count

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        try:
            with self._translated(name):
                collection = self._client.get_collection(stored_name(name), embedding_function=None)
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
            self.close_sessions()
            raise

    def close_sessions(self) -> None:
        for session in self._sessions:
            session.close()

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


def _stored(entry: Entry) -> dict[str, Any]:
    return {
        **{_key(key): _value(value) for key, value in entry.metadata.items() if value != []},
        **{_SHADOWED + key: True for key in OWN_KEYS & entry.metadata.keys()},
        **entry.own,
    }


def _value(value: Any) -> Any:
    """Chroma's arrays have one type, and integers are another one than decimal numbers."""
    if isinstance(value, list) and any(isinstance(item, float) for item in value):
        return [float(item) for item in value]
    return nfc_value(value)


# Filters -> Chroma's conditions.
#
# Negations are moved to the comparisons, for Chroma has `$ne`, `$nin` and `$not_contains`, which
# hold of missing keys as ours do, and no others. What Chroma cannot say is left out: orders of
# texts, and opposites of orders. Its numbers are integers of 64 bits or doubles. Comparing one with
# the other, it takes an integer for the nearest double, and a fraction for the integer that is left
# when it is cut off. So that nothing is missed, and little too much kept:
#
# - whole numbers are compared as integers; less strictly where doubles do not have them all, or
#   where they are no integers of 64 bits;
# - with a fraction, the integer that it is cut to is put right.

_DOUBLES_END = 2**53
"""Below it doubles have every integer, and none that is rounded to it."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A condition that holds for all chunks that a filter matches; if exact, for no others.

    Without `where` it holds for all chunks, or for none.
    """

    where: dict[str, Any] | None = None
    is_nothing: bool = False
    is_exact: bool = True


_ALL = _Kept()
_NOTHING = _Kept(is_nothing=True)
_UNKNOWN = _Kept(is_exact=False)


def _kept(condition: Condition, *, negated: bool = False) -> _Kept:
    match condition:
        case Not():
            return _kept(condition.condition, negated=not negated)
        case AllOf() | AnyOf():
            parts = (_kept(part, negated=negated) for part in condition.conditions)
            return _all_of(parts) if isinstance(condition, AllOf) != negated else _any_of(parts)
        case Comparison():
            return _kept_by(condition, negated=negated)


def _all_of(parts: Iterable[_Kept]) -> _Kept:
    parts = list(parts)
    if any(part.is_nothing for part in parts):
        return _NOTHING
    return _joined("$and", [part for part in parts if part != _ALL]) or _ALL


def _any_of(parts: Iterable[_Kept]) -> _Kept:
    parts = [part for part in parts if not part.is_nothing]
    if any(part == _ALL for part in parts):
        return _ALL
    if any(part.where is None for part in parts):
        return _UNKNOWN
    return _joined("$or", parts) or _NOTHING


def _joined(sign: str, parts: Sequence[_Kept]) -> _Kept | None:
    if not parts:
        return None
    conditions = [part.where for part in parts if part.where is not None]
    where: dict[str, Any] | None = {sign: conditions}
    if len(conditions) < 2:
        where = conditions[0] if conditions else None
    return _Kept(where=where, is_exact=all(part.is_exact for part in parts))


def _kept_by(comparison: Comparison, *, negated: bool) -> _Kept:
    users = _compared(comparison, _key(comparison.key), negated=negated)
    if comparison.key not in OWN_KEYS:
        return users
    ours = _compared(comparison, comparison.key, negated=negated)
    shadowed = _SHADOWED + comparison.key
    # Where the user has no such key, a negated comparison with it holds.
    if negated:
        return _all_of([users, _any_of([ours, _Kept(where={shadowed: True})])])
    return _any_of([users, _all_of([ours, _Kept(where={shadowed: {"$ne": True}})])])


def _compared(comparison: Comparison, key: str, *, negated: bool) -> _Kept:
    if comparison.operator is Operator.CONTAINS:
        return _contained(key, comparison.value, negated=negated)
    if comparison.operator is Operator.IN:
        parts = list(_listed(key, comparison.values, negated=negated))
        return _all_of(parts) if negated else _any_of(parts)
    value = comparison.value
    if negated or isinstance(value, str):
        return _UNKNOWN
    whole = _whole(value)
    if whole is None:
        return _beside_fraction(key, comparison.operator, value)
    if abs(whole) < _DOUBLES_END:
        return _Kept(where={key: {comparison.operator.value: whole}})
    is_lower_bound = comparison.operator in (Operator.GT, Operator.GTE)
    loose = Operator.GTE if is_lower_bound else Operator.LTE
    operand = whole if _is_int64(whole) else float(value)
    return _Kept(where={key: {loose.value: operand}}, is_exact=False)


def _listed(key: str, values: Sequence[Scalar], *, negated: bool) -> Iterator[_Kept]:
    """`$in`, or `$nin`: a condition for each type."""
    sign = "$nin" if negated else "$in"
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    fractions = [float(value) for value in numbers if _whole(value) is None]
    wholes = [(value, whole) for value in numbers if (whole := _whole(value)) is not None]
    for type_ in (str, bool):
        if same := [value for value in values if isinstance(value, type_)]:
            yield _Kept(where={key: {sign: same}})
    if exact := [whole for _, whole in wholes if abs(whole) < _DOUBLES_END]:
        yield _Kept(where={key: {sign: exact}})
    large = [pair for pair in wholes if abs(pair[1]) >= _DOUBLES_END]
    if large and negated:
        yield _UNKNOWN  # for Chroma would leave out their neighbours, too
    elif large:
        integers = [whole for _, whole in large if _is_int64(whole)]
        doubles = [float(value) for value, whole in large if not _is_int64(whole)]
        for some in (integers, doubles):
            if some:
                yield _Kept(where={key: {"$in": some}}, is_exact=False)
    if fractions:
        cut = [math.trunc(fraction) for fraction in fractions]
        with_cut = {key: {sign: fractions}}
        if negated:
            yield _Kept(where={"$or": [with_cut, {key: {"$in": cut}}]})
        else:
            yield _Kept(where={"$and": [with_cut, {key: {"$nin": cut}}]})


def _beside_fraction(key: str, compared: Operator, fraction: float) -> _Kept:
    cut = math.trunc(fraction)
    holds = ORDER[compared](cut, fraction)
    where = {key: {compared.value: fraction}}
    # Chroma compares integers with `cut`, and of equal ones a strict comparison does not hold.
    if holds and compared in (Operator.GT, Operator.LT):
        return _Kept(where={"$or": [where, {key: cut}]})
    if not holds and compared in (Operator.GTE, Operator.LTE):
        return _Kept(where={"$and": [where, {key: {"$ne": cut}}]})
    return _Kept(where=where)


def _contained(key: str, value: Scalar, *, negated: bool) -> _Kept:
    """Arrays of integers have integers, and those of decimal numbers these."""
    sign = "$not_contains" if negated else "$contains"
    if isinstance(value, str | bool):
        return _Kept(where={key: {sign: value}})
    whole = _whole(value)
    operands: list[int | float] = [float(value)]
    is_exact = whole is None or abs(whole) < _DOUBLES_END
    if whole is not None and _is_int64(whole):
        operands.append(whole)
    if negated and not is_exact:
        return _UNKNOWN
    parts = [_Kept(where={key: {sign: operand}}, is_exact=is_exact) for operand in operands]
    return _all_of(parts) if negated else _any_of(parts)


def _whole(value: float) -> int | None:
    """The integer that a number is, in the notation that it is stored in."""
    number = decimal(value)
    return int(number) if number == number.to_integral_value() else None


def _is_int64(number: int) -> bool:
    return -INT64_MAX - 1 <= number <= INT64_MAX


def _similarity(space: str, distance: float) -> float:
    """Cosine similarity of unit vectors, from Chroma's distance in the given space.

    Chroma's distances: 1 - cos for `cosine`, 1 - dot for `ip`, the squared length of the
    difference for `l2`, which for unit vectors is 2 - 2 cos.
    """
    return 1 - distance / 2 if space == "l2" else 1 - distance
