"""The vector store Chroma.

A Chroma collection has the name of the Sluice collection, or a name made of it if Chroma does not
accept that (`stored_name`). It has the text and the metadata of each vector, so that any LangChain
program can open it. The keys `source`, `document_id` and `start_index` are ours: a user's key of
one of these names, or of a name that Chroma refuses, is stored with the prefix `sluice:`, and
filters know that. Chroma's arrays have one type: a list of numbers is stored as integers only if
all are integers. Empty lists are in PostgreSQL only.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar, cast

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
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT
from chromadb.config import Settings as ChromaSettings
from chromadb.errors import ChromaError, NotFoundError, error_types

from shared.bounds import INT64_MAX, Scalar, nfc, nfc_value, shown
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
from shared.vector_stores import VECTORS_URL, StoreUrl
from workers.models.devices import Vectors
from workers.retrieval.store import (
    NUMBER_BYTES,
    REBUILD,
    Match,
    MissingCollection,
    VectorEntry,
    batches,
    is_same,
)
from workers.retrieval.stores.timed_transport import TimedTransport

T = TypeVar("T")

BATCH = 500
BATCH_BYTES = 16 * 2**20
"""Of one request. A server takes 40 MiB unless it is told otherwise."""
QUERIES_AT_ONCE = 100
"""So many queries have one request, which has to be answered within SLUICE_REQUEST_TIMEOUT_S."""
COLLECTIONS_KEPT = 256
NEIGHBORS, EF_CONSTRUCTION, EF_SEARCH = 32, 200, 400
"""Of the index (HNSW). With Chroma's own values (16, 100, 100) it finds 7 of the 10 nearest among
5,000 random vectors of 384 dimensions, with these all."""
PREFIX = "sluice:"
_BASIC = "chromadb.auth.basic_authn.BasicAuthClientProvider"
_PREFIXED = re.compile(rf"$|[$#]|chroma:|{PREFIX}")
_SHADOWED = PREFIX + "shadowed:"
"""The prefix of a mark on a chunk whose user has a key with one of our names: filters then compare
the user's value."""


# Chroma's rule for names, and its exceptions: two dots in a row, and IP addresses.
_CHROMA_NAME = re.compile(
    r"(?!.*\.\.)(?![0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$)[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]"
)


def stored_name(name: str) -> str:
    """The name of a collection in Chroma: the same if Chroma accepts it (3 to 63 ASCII characters),
    otherwise `sluice-` and the SHA-256 of the name in UTF-8. That has 71 characters, so it is never
    the name of another collection."""
    if _CHROMA_NAME.fullmatch(name):
        return name
    return f"sluice-{hashlib.sha256(name.encode()).hexdigest()}"


class Chroma:
    """A `VectorStore` on a Chroma server. The user and the password of its URL are for a proxy in
    front of it, by HTTP's Basic authentication."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._url = StoreUrl.read(url)
        self._timeout_s = settings.request_timeout_s
        self._connect_timeout_s = settings.connect_timeout_s
        self._collections: dict[str, Collection] = {}

    @cached_property
    def _client(self) -> ClientAPI:
        url = self._url
        settings = server_settings(url.host, url.port, is_secure=url.is_secure)
        if url.user:
            settings.chroma_client_auth_provider = _BASIC
            settings.chroma_client_auth_credentials = f"{url.user}:{url.password}"
        return TimedClient(settings, self._timeout_s, self._connect_timeout_s)

    def make(self, name: str, distance: str) -> None:
        with self._translated(name):
            self._client.get_or_create_collection(
                stored_name(name),
                configuration=CreateCollectionConfiguration(
                    hnsw=CreateHNSWConfiguration(
                        space=cast(Space, distance),
                        max_neighbors=NEIGHBORS,
                        ef_construction=EF_CONSTRUCTION,
                        ef_search=EF_SEARCH,
                    )
                ),
                embedding_function=None,
            )

    def close(self) -> None:
        client = self.__dict__.get("_client")
        if client is not None:
            client.close_sessions()

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        with self._translated(name):
            collection = self._client.get_collection(stored_name(name), embedding_function=None)
            limits = {"limit": BATCH, "limit_bytes": BATCH_BYTES}
            for batch, batch_vectors in batches(entries, vectors, **limits):
                stored = {entry.id: _stored(entry) for entry in batch}
                collection.upsert(
                    ids=list(stored),
                    embeddings=batch_vectors,
                    documents=[entry.text for entry in batch],
                    metadatas=list(stored.values()),
                )
                _remove_remains(collection, stored)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        chroma_filter = _ALL if where is None else _translate(where.root)

        def read(collection: Collection) -> list[list[Match]]:
            space = str((collection.configuration_json or {}).get("hnsw", {}).get("space", "l2"))
            left = None if ids is None else list(ids)
            rows: list[list[Match]] = []
            size = min(QUERIES_AT_ONCE, max(1, BATCH_BYTES // (NUMBER_BYTES * vectors.shape[1])))
            for first in range(0, len(vectors), size):
                if chroma_filter.is_nothing or left == []:
                    return [[] for _ in vectors]
                query = partial(
                    collection.query,
                    query_embeddings=vectors[first : first + size],
                    n_results=limit,
                    where=chroma_filter.where,
                    include=["distances"],
                )
                try:
                    result = query(ids=left)
                except ChromaError:
                    # Chroma fails if one of the ids does not exist any more.
                    existing = [] if left is None else collection.get(ids=left, include=[])["ids"]
                    if left is None or len(existing) == len(left):
                        raise
                    left = existing
                    if not left:
                        return [[] for _ in vectors]
                    result = query(ids=left)
                rows += (
                    [
                        Match(id=id_, score=_similarity(space, distance))
                        for id_, distance in zip(row, distances, strict=True)
                    ]
                    for row, distances in zip(result["ids"], result["distances"] or (), strict=True)
                )
            return rows

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

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        def read(collection: Collection) -> dict[str, bool]:
            same: dict[str, bool] = {}
            for first in range(0, len(entries), BATCH):
                batch = {entry.id: entry for entry in entries[first : first + BATCH]}
                result = collection.get(ids=list(batch), include=["documents", "metadatas"])
                texts, metadatas = result["documents"] or (), result["metadatas"] or ()
                for id_, text, metadata in zip(result["ids"], texts, metadatas, strict=True):
                    entry = batch[id_]
                    same[id_] = text == entry.text and is_same(dict(metadata or {}), _stored(entry))
            return same

        return self._read(name, read)

    def _read(self, name: str, read: Callable[[Collection], T]) -> T:
        """Call `read` with the collection, which is cached to save a request. If it was deleted and
        made again, it has another id, and is asked for again."""
        with self._translated(name):
            cached = self._collections.get(name)
            if cached is not None:
                try:
                    return read(cached)
                except NotFoundError:
                    self._collections.pop(name, None)
            collection = self._client.get_collection(stored_name(name), embedding_function=None)
            self._collections[name] = collection
            if len(self._collections) > COLLECTIONS_KEPT:
                del self._collections[next(iter(self._collections))]
            return read(collection)

    def is_exact(self, where: MetadataFilter) -> bool:
        return _translate(where.root).is_exact

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
        except MissingCollection:
            return 0

    def drop(self, name: str) -> int:
        try:
            with self._translated(name):
                collection = self._client.get_collection(stored_name(name), embedding_function=None)
                count = collection.count()
                _delete_lists(collection, count)
                self._client.delete_collection(stored_name(name))
        except MissingCollection:
            return 0
        return count

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        try:
            with self._translated(name):
                collection = self._client.get_collection(stored_name(name), embedding_function=None)
                return list(collection.get(include=[], limit=limit, offset=offset)["ids"])
        except MissingCollection:
            return []

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turn the client's exceptions into ours."""
        try:
            yield
        except NotFoundError as error:
            raise MissingCollection(
                f"Chroma at {self._url} ({VECTORS_URL}) has no collection {name!r}: its data was "
                f"lost or belongs to another server. {REBUILD}"
            ) from error
        except httpx.HTTPStatusError as error:
            raise self._refusal(error) from error
        except (httpx.TransportError, ConnectionError) as error:
            raise self._unavailable(error) from error
        except ValueError as error:
            # The client raises ValueError if it cannot reach the server at its first use.
            if isinstance(error.__context__, httpx.HTTPStatusError):
                raise self._refusal(error.__context__) from error
            if "connect" in str(error).lower():
                raise self._unavailable(error) from error
            raise Permanent(f"Chroma refused: {error}") from error
        except ChromaError as error:
            if error.code() >= 500:
                raise self._unavailable(error) from error
            raise Permanent(f"Chroma refused: {error}") from error

    def _refusal(self, error: httpx.HTTPStatusError) -> Exception:
        """What an answer means that is not Chroma's own, as of a proxy before it."""
        status, said = error.response.status_code, shown(error.response.text.strip()[:200])
        if status in (401, 403):
            return Permanent(
                f"What answers at {self._url} refuses the user or the password of {VECTORS_URL} "
                f"({status}): {said}"
            )
        if status >= 500 or status in (408, 429):
            return self._unavailable(f"{status} {said}")
        return Permanent(
            f"What answers at {self._url} ({VECTORS_URL}) refused: {status} {said}. Is it Chroma?"
        )

    def _unavailable(self, error: object) -> Unavailable:
        return Unavailable(f"Chroma at {self._url} ({VECTORS_URL}) failed: {error}")


def server_settings(host: str, port: int | None, *, is_secure: bool) -> ChromaSettings:
    """The same settings as `chromadb.HttpClient` makes."""
    return ChromaSettings(
        anonymized_telemetry=False,
        chroma_api_impl="chromadb.api.fastapi.FastAPI",
        chroma_server_host=host,
        chroma_server_http_port=port,
        chroma_server_ssl_enabled=is_secure,
    )


class TimedClient(Client):
    """Chroma's client with a timeout for each request; without one it would wait for ever.

    `make_transport` makes the transport of its requests from the time in seconds.
    """

    def __init__(
        self,
        settings: ChromaSettings,
        timeout_s: float,
        connect_timeout_s: float,
        *,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
        make_transport: Callable[[float], httpx.BaseTransport] = TimedTransport,
    ) -> None:
        self._timeout_s = timeout_s
        self._timeout = httpx.Timeout(timeout_s, connect=connect_timeout_s)
        self._make_transport = make_transport
        self._sessions: list[httpx.Client] = []
        try:
            super().__init__(tenant=tenant, database=database, settings=settings)
        except BaseException:
            self.close_sessions()
            raise

    def close_sessions(self) -> None:
        for session in self._sessions:
            session.close()

    # The client calls these two before its first requests, so they are where timeouts can be set.

    def get_user_identity(self) -> UserIdentity:
        self._limit(self._server)
        return self._server.get_user_identity()  # `super` would change the types of its errors

    def _validate_tenant_database(self, tenant: str, database: str) -> None:
        self._limit(cast(Any, self._admin_client)._server)
        super()._validate_tenant_database(tenant, database)

    def _limit(self, server: Any) -> None:
        session = server._session
        server._session = httpx.Client(
            headers=session.headers,
            timeout=self._timeout,
            transport=self._make_transport(self._timeout_s),
            event_hooks={"response": [_refuse]},
        )
        self._sessions.append(server._session)
        session.close()


def _refuse(response: httpx.Response) -> None:
    """Raises HTTPStatusError for an error that is not Chroma's own: the client would drop its
    status."""
    if response.is_success:
        return
    try:
        is_chromas = json.loads(response.read())["error"] in error_types
    except (ValueError, KeyError, TypeError):
        is_chromas = False
    if not is_chromas:
        response.raise_for_status()


def _key(key: str) -> str:
    """The name of a user's key in Chroma."""
    key = nfc(key)
    return PREFIX + key if key in OWN_KEYS or _PREFIXED.match(key) else key


def _stored(entry: VectorEntry) -> dict[str, Any]:
    return {
        **{_key(key): _value(value) for key, value in entry.metadata.items() if value != []},
        **{_SHADOWED + key: True for key in OWN_KEYS & entry.metadata.keys()},
        **entry.own,
    }


def _value(value: Any) -> Any:
    """A value as Chroma stores it, whose arrays have either integers or floats."""
    if isinstance(value, list) and any(isinstance(item, float) for item in value):
        return [float(item) for item in value]
    return nfc_value(value)


# Chroma 1.5 leaves the lists of a collection's metadata in its database when the collection goes,
# and gives them to the chunks of others that are written later. What is deleted chunk by chunk has
# no such remains.


def _delete_lists(collection: Collection, count: int) -> None:
    """Delete the chunks that have lists. From the end on, so that what is left keeps its offset."""
    for offset in range((count - 1) // BATCH * BATCH, -1, -BATCH):
        page = collection.get(limit=BATCH, offset=offset, include=["metadatas"])
        metadatas = zip(page["ids"], page["metadatas"] or (), strict=True)
        with_lists = [
            id_
            for id_, metadata in metadatas
            if any(isinstance(value, list) for value in (metadata or {}).values())
        ]
        if with_lists:
            collection.delete(ids=with_lists)


def _remove_remains(collection: Collection, stored: Mapping[str, dict[str, Any]]) -> None:
    """Remove the keys that chunks have beside those that were written now, and lists that are not
    as they were written: of a chunk that was there before Chroma keeps the keys."""
    page = collection.get(ids=list(stored), include=["metadatas"])
    remains: dict[str, dict[str, Any]] = {}
    for id_, metadata in zip(page["ids"], page["metadatas"] or (), strict=True):
        keys = [
            key
            for key, value in (metadata or {}).items()
            if key not in stored[id_] or (isinstance(value, list) and value != stored[id_][key])
        ]
        if keys:
            remains[id_] = dict.fromkeys(keys)
    if remains:
        collection.update(ids=list(remains), metadatas=list(remains.values()))
        again = {
            id_: {key: stored[id_][key] for key in keys if key in stored[id_]}
            for id_, keys in remains.items()
        }
        again = {id_: lists for id_, lists in again.items() if lists}
        if again:
            collection.update(ids=list(again), metadatas=list(again.values()))


# Filters -> Chroma's conditions.
#
# Negations are moved down to the comparisons: Chroma has only `$ne`, `$nin` and `$not_contains`,
# which match missing keys as ours do. Conditions that Chroma cannot express are left out: the order
# of texts, and negated orders. Chroma's numbers are integers of 64 bits or doubles. To compare
# both, it rounds an integer to the nearest double, and truncates a fraction to an integer. So that
# no chunk is missed, and few are returned that do not match:
#
# - whole numbers are compared as integers; less strictly if they are so large that doubles round
#   them, or that they are no integers of 64 bits;
# - comparisons with a fraction have another condition for the integer to which it is truncated.

_DOUBLES_END = 2**53
"""Below this, doubles represent every integer exactly."""


@dataclass(frozen=True, kw_only=True)
class _StoreFilter:
    """A condition of Chroma that holds for all chunks that a filter matches, and if `is_exact` for
    no others.

    If `where` is None, it holds for all chunks, or for none (`is_nothing`).
    """

    where: dict[str, Any] | None = None
    is_nothing: bool = False
    is_exact: bool = True


_ALL = _StoreFilter()
_NOTHING = _StoreFilter(is_nothing=True)
_UNKNOWN = _StoreFilter(is_exact=False)


def _translate(condition: Condition, *, negated: bool = False) -> _StoreFilter:
    match condition:
        case Not():
            return _translate(condition.condition, negated=not negated)
        case AllOf() | AnyOf():
            parts = (_translate(part, negated=negated) for part in condition.conditions)
            return _all_of(parts) if isinstance(condition, AllOf) != negated else _any_of(parts)
        case Comparison():
            return _comparison(condition, negated=negated)


def _all_of(parts: Iterable[_StoreFilter]) -> _StoreFilter:
    parts = list(parts)
    if any(part.is_nothing for part in parts):
        return _NOTHING
    return _join("$and", [part for part in parts if part != _ALL]) or _ALL


def _any_of(parts: Iterable[_StoreFilter]) -> _StoreFilter:
    parts = [part for part in parts if not part.is_nothing]
    if any(part == _ALL for part in parts):
        return _ALL
    if any(part.where is None for part in parts):
        return _UNKNOWN
    return _join("$or", parts) or _NOTHING


def _join(sign: str, parts: Sequence[_StoreFilter]) -> _StoreFilter | None:
    if not parts:
        return None
    conditions = [part.where for part in parts if part.where is not None]
    where: dict[str, Any] | None = {sign: conditions}
    if len(conditions) < 2:
        where = conditions[0] if conditions else None
    return _StoreFilter(where=where, is_exact=all(part.is_exact for part in parts))


def _comparison(comparison: Comparison, *, negated: bool) -> _StoreFilter:
    users = _compare(comparison, _key(comparison.key), negated=negated)
    if comparison.key not in OWN_KEYS:
        return users
    ours = _compare(comparison, comparison.key, negated=negated)
    shadowed = _SHADOWED + comparison.key
    # A negated comparison holds for a key that the user does not have, so both are needed.
    if negated:
        return _all_of([users, _any_of([ours, _StoreFilter(where={shadowed: True})])])
    return _any_of([users, _all_of([ours, _StoreFilter(where={shadowed: {"$ne": True}})])])


def _compare(comparison: Comparison, key: str, *, negated: bool) -> _StoreFilter:
    if comparison.operator is Operator.CONTAINS:
        return _contains(key, comparison.value, negated=negated)
    if comparison.operator is Operator.IN:
        parts = list(_one_of(key, comparison.values, negated=negated))
        return _all_of(parts) if negated else _any_of(parts)
    value = comparison.value
    if negated or isinstance(value, str):
        return _UNKNOWN
    whole = _whole(value)
    if whole is None:
        return _compare_fraction(key, comparison.operator, value)
    if abs(whole) < _DOUBLES_END:
        return _StoreFilter(where={key: {comparison.operator.value: whole}})
    is_lower_bound = comparison.operator in (Operator.GT, Operator.GTE)
    loose = Operator.GTE if is_lower_bound else Operator.LTE
    operand = whole if _is_int64(whole) else float(value)
    return _StoreFilter(where={key: {loose.value: operand}}, is_exact=False)


def _one_of(key: str, values: Sequence[Scalar], *, negated: bool) -> Iterator[_StoreFilter]:
    """`$in` or `$nin`: a condition for each type of the values."""
    sign = "$nin" if negated else "$in"
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    fractions = [float(value) for value in numbers if _whole(value) is None]
    wholes = [(value, whole) for value in numbers if (whole := _whole(value)) is not None]
    for type_ in (str, bool):
        if same := [value for value in values if isinstance(value, type_)]:
            yield _StoreFilter(where={key: {sign: same}})
    if exact := [whole for _, whole in wholes if abs(whole) < _DOUBLES_END]:
        yield _StoreFilter(where={key: {sign: exact}})
    large = [pair for pair in wholes if abs(pair[1]) >= _DOUBLES_END]
    if large and negated:
        yield _UNKNOWN  # because `$nin` would leave out the numbers that round to the same double
    elif large:
        integers = [whole for _, whole in large if _is_int64(whole)]
        doubles = [float(value) for value, whole in large if not _is_int64(whole)]
        for some in (integers, doubles):
            if some:
                yield _StoreFilter(where={key: {"$in": some}}, is_exact=False)
    if fractions:
        cut = [math.trunc(fraction) for fraction in fractions]
        with_cut = {key: {sign: fractions}}
        if negated:
            yield _StoreFilter(where={"$or": [with_cut, {key: {"$in": cut}}]})
        else:
            yield _StoreFilter(where={"$and": [with_cut, {key: {"$nin": cut}}]})


def _compare_fraction(key: str, comparator: Operator, fraction: float) -> _StoreFilter:
    cut = math.trunc(fraction)
    holds = ORDER[comparator](cut, fraction)
    where = {key: {comparator.value: fraction}}
    # Chroma compares integers with `cut`, so it is wrong about the integer `cut` itself.
    if holds and comparator in (Operator.GT, Operator.LT):
        return _StoreFilter(where={"$or": [where, {key: cut}]})
    if not holds and comparator in (Operator.GTE, Operator.LTE):
        return _StoreFilter(where={"$and": [where, {key: {"$ne": cut}}]})
    return _StoreFilter(where=where)


def _contains(key: str, value: Scalar, *, negated: bool) -> _StoreFilter:
    """`$contains` or `$not_contains`; a whole number is looked for as an integer and as a float,
    because an array has either."""
    sign = "$not_contains" if negated else "$contains"
    if isinstance(value, str | bool):
        return _StoreFilter(where={key: {sign: value}})
    whole = _whole(value)
    operands: list[int | float] = [float(value)]
    is_exact = whole is None or abs(whole) < _DOUBLES_END
    if whole is not None and _is_int64(whole):
        operands.append(whole)
    if negated and not is_exact:
        return _UNKNOWN
    parts = [_StoreFilter(where={key: {sign: operand}}, is_exact=is_exact) for operand in operands]
    return _all_of(parts) if negated else _any_of(parts)


def _whole(value: float) -> int | None:
    """The number as an integer, None if it is no whole number; by its decimal notation, in which it
    is stored."""
    number = decimal(value)
    return int(number) if number == number.to_integral_value() else None


def _is_int64(number: int) -> bool:
    return -INT64_MAX - 1 <= number <= INT64_MAX


def _similarity(space: str, distance: float) -> float:
    """The cosine similarity of vectors of length 1, from Chroma's distance in a space.

    Chroma's distances are 1 - cos for `cosine`, 1 - dot for `ip`, and for `l2` the squared length
    of the difference, which is 2 - 2 cos for vectors of length 1.
    """
    return 1 - distance / 2 if space == "l2" else 1 - distance
