"""The vector store Qdrant: a server (`qdrant://host:port`), or its local mode (`qdrant:///folder`).

A Qdrant collection has the name of the Sluice collection, or a name made of it if that has other
characters than ASCII letters, digits, `.`, `_` and `-` (`stored_name`). Each point has the payload
that `langchain-qdrant` reads, and what Sluice needs beside it:

- `page_content`: the text;
- `metadata`: `source`, `document_id` and `start_index`, and the user's metadata over them, in
  Unicode's normal form C. A key that no path of Qdrant can name has another name here (`_key`);
- `chunk_id`: the chunk's id, since ids of points are UUIDs (`_point_id`) or integers only;
- `lists`: the keys of `metadata` whose value is a list. To Qdrant, a list with the item 2024 equals
  2024; filters tell the two apart by this.

A Qdrant collection cannot be made without the dimension of its vectors, which Sluice knows when the
first ones are there. So `make` writes the name into the collection `CATALOG`, and the first
`upsert` makes the collection itself, and notes the dimension there: a collection that has one and
is not there was lost. Its distance is always Cosine, the default of
`langchain-qdrant`: vectors of length 1 have the same order in all three, and scores are cosine
similarities as they are.

Local mode is for tests and for one process: it locks its folder.
"""

import fcntl
import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid5

import httpx
import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from shared.bounds import Metadata, cut, nfc, nfc_value, shown
from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Unavailable
from shared.filters import (
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    MetadataFilter,
    Not,
    Operator,
)
from shared.vector_stores import VECTORS_URL, StoreUrl
from workers.models.devices import Vectors
from workers.retrieval.store import (
    NUMBER_BYTES,
    REBUILD,
    IdPages,
    Match,
    MissingCollection,
    VectorEntry,
    batches,
    is_same,
)
from workers.retrieval.stores.timed_transport import TimedTransport

T = TypeVar("T")

API_KEY = "SLUICE_QDRANT_API_KEY"
BATCH = 200
BATCH_BYTES = 16 * 2**20
"""Of one request. A server takes 32 MiB unless it is told otherwise."""
REQUEST_BYTES = 200
"""Of a query, beside its vector and its filter."""
IDS_AT_ONCE = 1000
CATALOG = "_sluice_collections"
"""No collection of Sluice has a name that begins with `_`."""
DIMENSION = "dimension"
TEXT, METADATA, CHUNK_ID, LISTS = "page_content", "metadata", "chunk_id", "lists"
INDEXES_LIMIT = 100
"""At most this many keys of a collection have a payload index; filters on others are slower."""
EF_CONSTRUCT = 200
EF_SEARCH = 256
"""How far the index looks when it is built, and when it is asked. Qdrant's defaults (100) find less
than 99 of 100 neighbours in large collections."""
_IDS = UUID("6f7a1c52-7d0e-5f43-9b53-2f0c1a9a4a11")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
PREFIX = "sluice:"


def stored_name(name: str) -> str:
    """The name of a collection in Qdrant: the same if it is of 1 to 63 ASCII letters, digits, `.`,
    `_` and `-`, otherwise `sluice-` and the SHA-256 of the name in UTF-8. That has 71 characters,
    so it is never the name of another collection."""
    if _NAME.fullmatch(name):
        return name
    return f"sluice-{hashlib.sha256(name.encode()).hexdigest()}"


class Qdrant:
    """A `VectorStore` on Qdrant. The key is the password of the URL, `qdrant://:KEY@host`, or
    SLUICE_QDRANT_API_KEY."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._url = StoreUrl.read(url)
        key = settings.qdrant_api_key
        self._key = self._url.password or (key.get_secret_value() if key else "")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ConfigurationError(
                f"The key of Qdrant ({API_KEY}, or in {VECTORS_URL}) has characters that no "
                "header of HTTP can have: only printable ASCII can be sent. Copy the key again."
            )
        self._timeout_s = settings.request_timeout_s
        self._timeout = httpx.Timeout(self._timeout_s, connect=settings.connect_timeout_s)
        self._pages = IdPages()
        self._is_local = not self._url.host
        # Local mode is a Python object that only one thread may use at a time.
        self._lock: AbstractContextManager[Any] = (
            threading.RLock() if self._is_local else nullcontext()
        )

    @cached_property
    def _client(self) -> QdrantClient:
        if self._is_local:
            self._require_unlocked()
            return QdrantClient(path=self._url.path, force_disable_check_same_thread=True)
        return QdrantClient(
            url=self._url.http,
            headers={"api-key": self._key} if self._key else None,
            check_compatibility=False,
            # Its own time limit is in whole seconds.
            event_hooks={"request": [self._limit]},
            transport=TimedTransport(self._timeout_s),
            trust_env=False,
        )

    def _limit(self, request: httpx.Request) -> None:
        request.extensions = {**request.extensions, "timeout": self._timeout.as_dict()}

    def _require_unlocked(self) -> None:
        """The client itself reads the whole folder before it looks at the lock, and leaves files
        open if it is taken."""
        lock = Path(self._url.path, ".lock")
        if not lock.exists():
            return
        with lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Permanent(
                    f"Another process has the folder {self._url} open. Qdrant's local mode is for "
                    f"one process: for several, start a Qdrant server and set {VECTORS_URL} to "
                    "qdrant://host:6333."
                ) from error

    def close(self) -> None:
        client = self.__dict__.get("_client")
        if client is not None:
            client.close()

    def make(self, name: str, distance: str) -> None:
        del distance
        entry = self._entry(name)
        if entry is not None and (DIMENSION not in entry or self._exists(name)):
            return
        payload = {"name": name, "collection": stored_name(name)}
        record = models.PointStruct(id=_point_id(name), vector={}, payload=payload)
        try:
            self._write(name, CATALOG, [record])
        except MissingCollection:
            self._create(CATALOG, {})
            self._write(name, CATALOG, [record])

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        stored, is_new = stored_name(name), False
        try:
            schema = self._indexed(name)
        except MissingCollection:
            if not self._is_made(name):
                raise
            if not entries:
                return
            self._create(
                stored,
                models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE),
            )
            self._note_dimension(name, vectors.shape[1])
            schema, is_new = set(), True
        self._index(name, entries, schema)
        limits = {"limit": BATCH, "limit_bytes": BATCH_BYTES}
        for batch in batches(entries, vectors, **limits):
            self._write(name, stored, [_point(*pair) for pair in zip(*batch, strict=True)])
        if is_new and self._entry(name) is None:
            # It was dropped between the two looks into the catalog: nothing may be left of it.
            self._ask(name, lambda client: client.delete_collection(stored))
            raise self._missing(name)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        translated = _ALL if where is None else _translate(where.root)
        if translated.is_nothing or (ids is not None and not ids):
            self._require(name)
            return [[] for _ in vectors]
        must: list[models.Condition] = [] if translated.where is None else [translated.where]
        if ids is not None:
            must.append(models.HasIdCondition(has_id=[_point_id(id_) for id_ in ids]))
        filter_ = models.Filter(must=must) if must else None
        # Local mode compares with all vectors.
        params = None if self._is_local else models.SearchParams(hnsw_ef=max(EF_SEARCH, limit))
        # Each query has a filter of its own.
        size_bytes = NUMBER_BYTES * vectors.shape[1] + REQUEST_BYTES
        if filter_ is not None:
            size_bytes += len(filter_.model_dump_json().encode())
        at_once = min(max(1, BATCH_BYTES // size_bytes), BATCH)
        rows: list[list[Match]] = []
        try:
            for first in range(0, len(vectors), at_once):
                requests = [
                    models.QueryRequest(
                        query=vector.tolist(),
                        filter=filter_,
                        params=params,
                        limit=limit,
                        with_payload=[CHUNK_ID],
                    )
                    for vector in vectors[first : first + at_once]
                ]
                rows += self._rows(name, requests)
        except MissingCollection:
            if self._is_made(name):
                return [[] for _ in vectors]
            raise
        return rows

    def _rows(self, name: str, requests: Sequence[models.QueryRequest]) -> list[list[Match]]:
        answers = self._ask(
            name, lambda client: client.query_batch_points(stored_name(name), requests)
        )
        return [
            [Match(id=_chunk_id(point), score=point.score) for point in answer.points]
            for answer in answers
        ]

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        vectors: dict[str, Vectors] = {}
        try:
            for batch in _batches(ids):
                for record in self._records(name, batch, with_vectors=True):
                    vector = np.asarray(record.vector, dtype=np.float32)
                    vectors[batch[str(record.id)]] = vector
        except MissingCollection:
            if not self._is_made(name):
                raise
        return vectors

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        written = {entry.id: _payload(entry) for entry in entries}
        same: dict[str, bool] = {}
        try:
            for batch in _batches(list(written)):
                for record in self._records(name, batch, with_payload=True):
                    id_ = batch[str(record.id)]
                    same[id_] = is_same(record.payload or {}, written[id_])
        except MissingCollection:
            if not self._is_made(name):
                raise
        return same

    def is_exact(self, where: MetadataFilter) -> bool:
        return _translate(where.root).is_exact

    def delete(self, name: str, ids: Sequence[str]) -> int:
        before = 0
        try:
            for batch in _batches(ids):
                there = [record.id for record in self._records(name, batch)]
                if not there:
                    continue
                before += len(there)
                self._remove(name, stored_name(name), there)
                if left := self._records(name, batch):
                    raise Unavailable(f"Qdrant still has {len(left)} vectors of {name!r}.")
        except MissingCollection:
            return before
        return before

    def drop(self, name: str) -> int:
        stored = stored_name(name)
        with suppress(MissingCollection):  # there may be no catalog yet
            self._remove(name, CATALOG, [_point_id(name)])
        try:
            count = self._ask(name, lambda client: client.count(stored, exact=True)).count
            self._ask(name, lambda client: client.delete_collection(stored))
        except MissingCollection:
            return 0
        return count

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        # Not by `query_points`: with several shards that may leave points out, and an offset costs
        # as much as all points before it.
        def after(position: str, count: int) -> list[tuple[str, str]]:
            # A page begins with the point at `offset`, if it is still there.
            count = min(count, IDS_AT_ONCE)
            records, _ = self._ask(
                name,
                lambda client: client.scroll(
                    stored_name(name),
                    limit=count + 1 if position else count,
                    offset=position or None,
                    with_payload=[CHUNK_ID],
                ),
            )
            pairs = [(str(record.id), _chunk_id(record)) for record in records]
            return [pair for pair in pairs if pair[0] != position][:count]

        try:
            return self._pages.page(name, limit=limit, offset=offset, after=after)
        except MissingCollection:
            return []

    # Collections

    def _create(self, stored: str, vectors: models.VectorParams | dict[str, Any]) -> None:
        """Create a collection of Qdrant, unless another process just did."""

        def create(client: QdrantClient) -> bool:
            return client.create_collection(
                stored,
                vectors_config=vectors,
                hnsw_config=models.HnswConfigDiff(ef_construct=EF_CONSTRUCT),
                # Managed servers refuse filters on keys without an index, unless told otherwise.
                strict_mode_config=models.StrictModeConfig(unindexed_filtering_retrieve=True),
            )

        try:
            self._ask(stored, create)
        except Permanent:
            if not self._ask(stored, lambda client: client.collection_exists(stored)):
                raise

    def _entry(self, name: str) -> dict[str, Any] | None:
        """What the catalog has of a collection: from `make` until `drop`."""
        try:
            records = self._ask(name, lambda client: client.retrieve(CATALOG, [_point_id(name)]))
        except MissingCollection:
            return None
        return (records[0].payload or {}) if records else None

    def _is_made(self, name: str) -> bool:
        """Whether a collection that is not there was made, and has no vectors yet."""
        entry = self._entry(name)
        return entry is not None and DIMENSION not in entry

    def _note_dimension(self, name: str, dimension: int) -> None:
        # By a filter: an id that was just dropped would be an error.
        own = models.Filter(must=[models.HasIdCondition(has_id=[_point_id(name)])])
        noted = {DIMENSION: dimension}
        self._ask(name, lambda client: client.set_payload(CATALOG, noted, own, wait=True))

    def _exists(self, name: str) -> bool:
        return self._ask(name, lambda client: client.collection_exists(stored_name(name)))

    def _require(self, name: str) -> None:
        if not self._exists(name) and not self._is_made(name):
            raise self._missing(name)

    def _indexed(self, name: str) -> set[str]:
        """The paths in the payload that have an index, as `_plain_path` has them. Raises
        MissingCollection."""
        info = self._ask(name, lambda client: client.get_collection(stored_name(name)))
        return set(map(_plain_path, info.payload_schema))

    def _index(self, name: str, entries: Sequence[VectorEntry], indexed: set[str]) -> None:
        """Give the keys of the metadata that are new an index of the type of their first value.

        Only the speed of filters depends on them: Qdrant compares values of another type without.
        """
        if self._is_local:
            return
        first: dict[str, Any] = {LISTS: ""}
        for entry in entries:
            for path, value in _values({**entry.own, **_normal(entry.metadata)}):
                first.setdefault(path, value)
        room = INDEXES_LIMIT - len(indexed)
        new = [pair for pair in first.items() if _plain_path(pair[0]) not in indexed]
        for path, value in new[: max(0, room)]:
            self._add_index(name, path, _index_type(value))

    def _add_index(self, name: str, path: str, type_: models.PayloadSchemaType) -> None:
        self._ask(
            name,
            lambda client: client.create_payload_index(stored_name(name), path, type_, wait=False),
        )

    # Points

    def _write(self, name: str, stored: str, points: Sequence[models.PointStruct]) -> None:
        self._ask(name, lambda client: client.upsert(stored, points, wait=True))

    def _remove(self, name: str, stored: str, ids: Sequence[models.ExtendedPointId]) -> None:
        selector = models.PointIdsList(points=list(ids))
        self._ask(name, lambda client: client.delete(stored, selector, wait=True))

    def _records(
        self,
        name: str,
        ids: dict[str, str],
        *,
        with_vectors: bool = False,
        with_payload: bool = False,
    ) -> list[models.Record]:
        return self._ask(
            name,
            lambda client: client.retrieve(
                stored_name(name), list(ids), with_payload=with_payload, with_vectors=with_vectors
            ),
        )

    # Errors

    def _ask(self, name: str, call: Callable[[QdrantClient], T]) -> T:
        """What `call` returns, with the client's exceptions turned into ours."""
        with self._translated(name), self._lock:
            return call(self._client)

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except UnexpectedResponse as error:
            raise self._refusal(name, error) from error
        except ResourceExhaustedResponse as error:
            raise self._unavailable(f"it has too much to do: {error}") from error
        except ResponseHandlingException as error:
            cause = error.source
            raise self._unavailable(cut(str(cause), 300) or type(cause).__name__) from error
        except OSError as error:
            raise self._unavailable(str(error)) from error
        except (ValueError, RuntimeError) as error:
            # Local mode has no types of its own for errors.
            if self._is_local and re.fullmatch("Collection .* not found", str(error), re.DOTALL):
                raise self._missing(name) from error
            raise Permanent(f"Qdrant refused: {shown(str(error))}") from error

    def _refusal(self, name: str, error: UnexpectedResponse) -> Exception:
        status = error.status_code or 0
        message = _message(error.content)
        if status in (401, 403):
            return Permanent(
                f"Qdrant at {self._url} refused the key ({status}): set {API_KEY}, or "
                f"write the key into {VECTORS_URL}, as qdrant://:KEY@host:6333."
            )
        if status == 404 and message is not None:
            return self._missing(name)
        text = f"{status} {shown(message or 'without an error of Qdrant in the answer')}"
        if status >= 500 or status in (408, 429):
            return self._unavailable(text)
        return Permanent(f"Qdrant at {self._url} ({VECTORS_URL}) refused: {text}")

    def _unavailable(self, reason: str) -> Unavailable:
        return Unavailable(f"Qdrant at {self._url} ({VECTORS_URL}) failed: {reason}")

    def _missing(self, name: str) -> MissingCollection:
        return MissingCollection(
            f"Qdrant at {self._url} ({VECTORS_URL}) has no collection {name!r}: its data was lost "
            f"or belongs to another server. {REBUILD}"
        )


def _message(content: bytes) -> str | None:
    """The error in an answer of Qdrant; None if the answer is not Qdrant's."""
    try:
        answer = json.loads(content)
        return str(answer["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return None


# Points


def _point_id(id_: str) -> str:
    """The id of the point of a chunk: a UUID made of the chunk's id."""
    return str(uuid5(_IDS, id_))


def _chunk_id(point: models.ScoredPoint | models.Record) -> str:
    """A point that another program wrote has no chunk id; its own is no id of ours either."""
    return str((point.payload or {}).get(CHUNK_ID, point.id))


def _batches(ids: Sequence[str]) -> Iterator[dict[str, str]]:
    """Ids of points -> ids of chunks, in batches."""
    for first in range(0, len(ids), BATCH):
        yield {_point_id(id_): id_ for id_ in ids[first : first + BATCH]}


def _point(entry: VectorEntry, vector: Vectors) -> models.PointStruct:
    return models.PointStruct(
        id=_point_id(entry.id), vector=vector.tolist(), payload=_payload(entry)
    )


def _payload(entry: VectorEntry) -> dict[str, Any]:
    metadata = {**entry.own, **_normal(entry.metadata)}
    lists = sorted(key for key, value in metadata.items() if isinstance(value, list))
    return {
        TEXT: entry.text,
        METADATA: metadata,
        CHUNK_ID: entry.id,
        **({LISTS: lists} if lists else {}),
    }


def _normal(metadata: Metadata) -> dict[str, Any]:
    return {_key(key): nfc_value(value) for key, value in metadata.items()}


def _key(key: str) -> str:
    """The name of a user's key in Qdrant. Its paths cannot name keys with a quotation mark or a
    backslash: these are stored as `sluice:`, with both written as in URLs."""
    key = nfc(key)
    if key.startswith(PREFIX) or '"' in key or "\\" in key:
        for sign in '%"\\':
            key = key.replace(sign, f"%{ord(sign):02X}")
        return PREFIX + key
    return key


def _plain_path(path: str) -> str:
    """The same for a path of ours and for what Qdrant makes of it: it writes keys of letters
    without quotation marks, by another Unicode than Python's."""
    return path.replace('"', "")


def _path(key: str) -> str:
    """The path of a key of `metadata`."""
    plain = key and all(sign.isalnum() or sign in "_-" for sign in key)
    return f"{METADATA}.{key}" if plain else f'{METADATA}."{key}"'


def _values(metadata: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each path with its value, of a list with the first one."""
    for key, value in metadata.items():
        if value != []:
            yield _path(key), value[0] if isinstance(value, list) else value


def _index_type(value: Any) -> models.PayloadSchemaType:
    if isinstance(value, bool):
        return models.PayloadSchemaType.BOOL
    # Not `integer`: that index truncates the fractions with which it is compared, and has none.
    if isinstance(value, int | float):
        return models.PayloadSchemaType.FLOAT
    return models.PayloadSchemaType.KEYWORD


# Filters -> Qdrant's conditions.
#
# Negations are moved down to the comparisons, where `must_not` holds for missing keys, as ours do.
# Qdrant cannot order texts; these comparisons are left out. It compares numbers as doubles, and a
# condition holds for a list if it does for an item. So that no chunk is missed, and few are
# returned that do not match:
#
# - numbers are compared by ranges, which know integers and fractions alike (a match of Qdrant knows
#   only integers); numbers that doubles round have a range that is a little wider;
# - `lists` tells lists from single values.

_DOUBLES_END = 2**53
"""Below this, doubles represent every integer exactly."""


@dataclass(frozen=True, kw_only=True)
class _StoreFilter:
    """A condition of Qdrant that holds for all chunks that a filter matches, and if `is_exact` for
    no others.

    If `where` is None, it holds for all chunks, or for none (`is_nothing`).
    """

    where: models.Condition | None = None
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
            parts = [_translate(part, negated=negated) for part in condition.conditions]
            return _all_of(parts) if isinstance(condition, AllOf) != negated else _any_of(parts)
        case Comparison():
            positive = _compare(condition)
            return _negate(positive) if negated else positive


def _all_of(parts: Sequence[_StoreFilter]) -> _StoreFilter:
    if any(part.is_nothing for part in parts):
        return _NOTHING
    is_exact = all(part.is_exact for part in parts)
    conditions = [part.where for part in parts if part.where is not None]
    if not conditions:
        return _StoreFilter(is_exact=is_exact)
    return _StoreFilter(where=models.Filter(must=conditions), is_exact=is_exact)


def _any_of(parts: Iterable[_StoreFilter]) -> _StoreFilter:
    parts = [part for part in parts if not part.is_nothing]
    if not parts:
        return _NOTHING
    if any(part == _ALL for part in parts):
        return _ALL
    conditions = [part.where for part in parts if part.where is not None]
    if len(conditions) < len(parts):
        return _UNKNOWN
    return _StoreFilter(
        where=models.Filter(should=conditions), is_exact=all(part.is_exact for part in parts)
    )


def _negate(positive: _StoreFilter) -> _StoreFilter:
    if positive.is_nothing:
        return _ALL
    if positive.where is None or not positive.is_exact:
        # What is not in a wider set is not all that does not match.
        return _UNKNOWN
    return _StoreFilter(where=models.Filter(must_not=[positive.where]))


def _compare(comparison: Comparison) -> _StoreFilter:
    key = _key(comparison.key)
    path = _path(key)
    match comparison.operator:
        case Operator.IN | Operator.CONTAINS:
            if not comparison.values:
                return _NOTHING
            conditions, is_exact = _equal(path, comparison.values)
        case _ if isinstance(comparison.value, str):
            return _UNKNOWN
        case operator:
            range_, is_exact = _ordered(operator, comparison.value)
            if range_ is None:
                return _UNKNOWN
            conditions = [models.FieldCondition(key=path, range=range_)]
    is_list = models.FieldCondition(key=LISTS, match=models.MatchValue(value=key))
    any_: list[models.Condition] = [models.Filter(should=conditions)]
    if comparison.operator is Operator.CONTAINS:
        return _StoreFilter(where=models.Filter(must=[*any_, is_list]), is_exact=is_exact)
    return _StoreFilter(where=models.Filter(must=any_, must_not=[is_list]), is_exact=is_exact)


def _equal(path: str, values: Sequence[Any]) -> tuple[list[models.Condition], bool]:
    """Conditions of which one holds if a value equals one of these; whether they are exact."""
    conditions: list[models.Condition] = []
    is_exact = True
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        conditions.append(models.FieldCondition(key=path, match=models.MatchAny(any=texts)))
    for value in values:
        if isinstance(value, bool):
            match_ = models.MatchValue(value=value)
            conditions.append(models.FieldCondition(key=path, match=match_))
        elif isinstance(value, int | float):
            range_ = _around(value)
            is_exact &= abs(value) < _DOUBLES_END
            conditions.append(models.FieldCondition(key=path, range=range_))
    return conditions, is_exact


def _ordered(operator: Operator, value: float) -> tuple[models.Range | None, bool]:
    """The range of an order, None if it holds for all numbers; whether it is exact."""
    if abs(value) < _DOUBLES_END:
        return models.Range(**{operator.value.removeprefix("$"): float(value)}), True
    around = _around(value)
    if operator in (Operator.GT, Operator.GTE):
        return (None if around.gte is None else models.Range(gte=around.gte)), False
    return (None if around.lte is None else models.Range(lte=around.lte)), False


def _around(value: float) -> models.Range:
    """The numbers that a double may hold for this one: itself, if it is not so large that doubles
    round it. A bound beyond the largest double is left out."""
    if abs(value) < _DOUBLES_END:
        return models.Range(gte=float(value), lte=float(value))
    low, high = float(value), float(value)
    for _ in range(2):
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return models.Range(
        gte=low if math.isfinite(low) else None, lte=high if math.isfinite(high) else None
    )
