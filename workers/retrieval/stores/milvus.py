"""The vector store Milvus, version 2.4.15 or newer: a server, Zilliz Cloud, or Milvus Lite.

`milvus://host:19530` is a server, `milvus+https://host` one with TLS. A token stands where a
password does (`milvus://:TOKEN@host`), or there are both `user:password`; `/NAME` behind the host
is another database than `default`. `milvus:///folder/file.db` is Milvus Lite: files that one
process at a time may open, for trials and tests.

A Milvus collection has the name of the Sluice collection, or a name made of it if Milvus does not
accept that (`stored_name`). Its fields are those of LangChain's `Milvus`: `pk`, `text`, `vector`,
and the metadata as dynamic fields. The keys `source`, `document_id` and `start_index` are ours: a
user's key of one of these names, or of the name of a field, is stored with the prefix `sluice:`.
Milvus stores no text of more than 65,535 bytes and no more than 64 KiB of metadata: it has the
beginning of a longer text, and of more metadata it lacks the longest values.

A collection of Milvus has a dimension from its beginning, so it is made when the first vectors
come. Until then, a line in the collection `sluice_made` says that it is there and empty.

Filters: Milvus compares values of JSON in other ways than ours (`shared/filters.py`), and its
versions differ. So each chunk has the field `sluice_terms`: hashes of what is equal to what in its
metadata, which Milvus only has to find in a list.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from shared.bounds import Metadata, Scalar, nfc, nfc_value
from shared.config import Settings
from shared.errors import Permanent, Unavailable
from shared.filters import (
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
    COLLECTIONS_KEPT,
    REBUILD,
    IdPages,
    Match,
    MissingCollection,
    VectorEntry,
    is_same,
)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what pymilvus reads from `.env` when it is imported: that file may have settings that
    Sluice takes only from the real environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


with environment_kept():
    import grpc
    from pymilvus import DataType, MilvusClient, MilvusException
    from pymilvus.client.types import LoadState
    from pymilvus.exceptions import ConnectError, ConnectionConfigException

# Its exceptions say what it logs.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
logging.getLogger("pymilvus.milvus_client").setLevel(logging.CRITICAL)

T = TypeVar("T")

ID, TEXT, VECTOR, TERMS = "pk", "text", "vector", "sluice_terms"
_DYNAMIC: Final = "$meta"
"""Milvus's name of all fields that the schema does not have."""
MADE: Final = "sluice_made"
"""The collection with a line for each collection that was made and has no vectors yet."""
PREFIX: Final = "sluice:"

BATCH: Final = 500
BATCH_BYTES: Final = 16 * 2**20
"""The size of one message; a server accepts 64 MiB by default."""
COMPARED_AT_ONCE: Final = 200
"""A chunk has at most 270 KB beside its vector, and Milvus refuses answers of more than 100 MiB
(`quotaAndLimits.limits.maxOutputSize`)."""
RESULTS: Final = 16_384
"""The most results that Milvus returns at once; an iterator returns more."""
ANSWERS: Final = 200_000
"""The most results of all queries of one request."""
TEXT_BYTES: Final = 65_535
METADATA_BYTES: Final = 65_000
"""Of the metadata of a chunk as JSON. Milvus accepts 65,536, including what its client adds."""
TERMS_LIMIT: Final = 4096
LIST_ITEMS: Final = 2000
"""Filters see as many items of lists in the metadata of one chunk. Single values have two terms
each, of at most 1,003 values."""

_DIRECT: Final = {"grpc.enable_http_proxy": 0}
"""Requests between parts of one network must not go through a proxy."""
_METRICS: Final = {"cosine": "COSINE", "ip": "IP", "l2": "L2"}
_INDEX: Final = {"M": 32, "efConstruction": 256}
"""Links of each vector, and candidates for them: a recall of 0.99 costs 256 bytes for each
vector."""
_NEIGHBOURS: Final = 256
"""The least number of candidates that a search keeps; Milvus accepts at most 32,768."""

_MILVUS_NAME = re.compile(r"(?!sluice_)[a-zA-Z_][a-zA-Z0-9_]{0,254}", re.ASCII)


def stored_name(name: str) -> str:
    """The name of a collection in Milvus: the same if Milvus accepts it (letters, digits and
    underscores of ASCII), otherwise `sluice_` and the SHA-256 of the name in UTF-8. Names that
    begin so are made in this way, too, so it is never the name of another collection."""
    if _MILVUS_NAME.fullmatch(name):
        return name
    return f"sluice_{hashlib.sha256(name.encode()).hexdigest()}"


class Milvus:
    """A `VectorStore` on a Milvus server or in a file of Milvus Lite."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._url = StoreUrl.read(url)
        self._timeout_s = settings.request_timeout_s
        self._connect_timeout_s = settings.connect_timeout_s
        self._metrics: dict[str, str] = {}
        """Name -> the distance of the index, for collections that have been opened."""
        self._pages = IdPages()

    @cached_property
    def _client(self) -> MilvusClient:
        url = self._url
        if url.host:
            return MilvusClient(
                uri=url.http,
                token=f"{url.user}:{url.password}" if url.user else url.password,
                db_name=url.path.strip("/"),
                timeout=self._connect_timeout_s,
                grpc_options=_DIRECT,
            )
        if not url.path.endswith(".db"):
            raise Permanent(
                f"{VECTORS_URL}: the file of Milvus Lite must have a name that ends in .db, as in "
                "milvus:///srv/vectors/sluice.db; a server is milvus://host:19530."
            )
        try:
            Path(url.path).parent.mkdir(parents=True, exist_ok=True)
            return MilvusClient(
                uri=url.path,
                timeout=self._connect_timeout_s,
                # Milvus Lite closes connections that send keep-alive messages as often as a server
                # accepts them.
                grpc_options=_DIRECT | {"grpc.keepalive_permit_without_calls": False},
            )
        except (OSError, ConnectionConfigException) as error:
            raise Permanent(
                f"Milvus Lite cannot open {url.path} ({VECTORS_URL}): {_message(error)}. One "
                "process at a time may have it open, and its package has to be there (pip install "
                "milvus-lite). For several workers set up a Milvus server: milvus://host:19530."
            ) from error

    def close(self) -> None:
        client = self.__dict__.get("_client")
        if client is not None:
            client.close()

    # Collections

    def make(self, name: str, distance: str) -> None:
        stored = stored_name(name)
        with self._translated(name):
            if self._has(stored):
                return
            if not self._has(MADE):
                self._create(MADE, "COSINE", dimension=2)
            if self._made_with(stored) is None:
                # A collection must have a vector field, even if it needs none.
                row = {ID: stored, TEXT: _METRICS[distance], VECTOR: [1.0, 0.0], TERMS: []}
                self._client.upsert(MADE, [row], timeout=self._timeout_s)

    def drop(self, name: str) -> int:
        stored = stored_name(name)
        self._forget(name)
        with self._translated(name):
            count = 0
            if self._has(stored):
                count = self._count(name, stored)
                self._client.drop_collection(stored, timeout=self._timeout_s)
            if self._has(MADE):
                self._load(MADE)
                self._client.delete(MADE, filter=_is_one_of([stored]), timeout=self._timeout_s)
        return count

    def _count(self, name: str, stored: str) -> int:
        """How many chunks a collection has; about how many, if it cannot be loaded: what is dropped
        to make room in the memory of Milvus may be what does not fit into it."""
        try:
            self._metric(name)
            (row,) = self._client.query(
                stored,
                output_fields=["count(*)"],
                consistency_level="Strong",
                timeout=self._timeout_s,
            )
            return int(row["count(*)"])
        except MilvusException:
            stats = self._client.get_collection_stats(stored, timeout=self._timeout_s)
            return int(stats.get("row_count", 0))

    def _create(self, stored: str, metric: str, *, dimension: int) -> None:
        """Make a collection with its index, and load it. Another process may do the same
        meanwhile."""
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(ID, DataType.VARCHAR, is_primary=True, max_length=512)
        schema.add_field(TEXT, DataType.VARCHAR, max_length=TEXT_BYTES)
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dimension)
        schema.add_field(
            TERMS,
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=TERMS_LIMIT,
            max_length=32,
        )
        try:
            self._client.create_collection(
                stored, schema=schema, consistency_level="Strong", timeout=self._timeout_s
            )
        except MilvusException:
            if not self._has(stored):
                raise
        self._index(stored, metric)
        self._load(stored)

    def _index(self, stored: str, metric: str) -> None:
        index = self._client.prepare_index_params()
        if self._url.host:  # Milvus Lite has no index of lists, and compares each chunk
            index.add_index(TERMS, index_name=TERMS, index_type="INVERTED")
        # As the last: where it is there, all are.
        index.add_index(
            VECTOR, index_name=VECTOR, index_type="HNSW", metric_type=metric, params=_INDEX
        )
        self._client.create_index(stored, index, timeout=self._timeout_s)

    def _has(self, stored: str) -> bool:
        return bool(self._client.has_collection(stored, timeout=self._timeout_s))

    def _load(self, stored: str) -> None:
        state = self._client.get_load_state(stored, timeout=self._timeout_s)["state"]
        if state != LoadState.Loaded:
            self._client.load_collection(stored, timeout=self._timeout_s)

    def _made_with(self, stored: str) -> str | None:
        """The distance of a collection that was made and has no vectors yet; None if there is
        none."""
        if not self._has(MADE):
            return None
        self._load(MADE)
        rows = self._rows(MADE, _is_one_of([stored]), TEXT)
        return str(rows[0][TEXT]) if rows else None

    def _metric(self, name: str) -> str | None:
        """The distance of a collection, which is ready for searches then; None if it was made and
        has no vectors yet. Raises MissingCollection."""
        if (cached := self._metrics.get(name)) is not None:
            return cached
        stored = stored_name(name)
        if not self._has(stored):
            if self._made_with(stored) is None:
                raise self._missing(name)
            return None
        index = self._client.describe_index(stored, VECTOR, timeout=self._timeout_s)
        if index is None:
            # The process that made the collection ended before it made the index.
            self._index(stored, self._made_with(stored) or _METRICS["cosine"])
            return self._metric(name)
        self._load(stored)
        self._metrics[name] = metric = str(index["metric_type"])
        if len(self._metrics) > COLLECTIONS_KEPT:
            del self._metrics[next(iter(self._metrics))]
        return metric

    def _forget(self, name: str) -> None:
        self._metrics.pop(name, None)
        self._pages.forget(name)

    def _read(self, name: str, read: Callable[[str, str], T], nothing: T) -> T:
        """Call `read` with the collection's name and distance; returns `nothing` if it has no
        vectors.

        Properties of collections are cached to save requests. If the collection was deleted and
        made again, Milvus refuses the request, and they are read again.
        """
        with self._translated(name):
            is_known = name in self._metrics
            metric = self._metric(name)
            if metric is None:
                return nothing
            try:
                return read(stored_name(name), metric)
            except MilvusException as error:
                self._forget(name)
                if not is_known or not _is_refusal(error):
                    raise
            metric = self._metric(name)
            return nothing if metric is None else read(stored_name(name), metric)

    # Chunks

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        stored = stored_name(name)
        with self._translated(name):
            is_known = name in self._metrics
            self._prepare(name, vectors)
            try:
                self._write(stored, entries, vectors)
            except MilvusException as error:
                self._forget(name)
                if not is_known or not _is_refusal(error):
                    raise
                self._prepare(name, vectors)
                self._write(stored, entries, vectors)

    def _prepare(self, name: str, vectors: Vectors) -> None:
        """Make the collection with the dimension of its first vectors."""
        if self._metric(name) is not None or not len(vectors):
            return
        stored = stored_name(name)
        metric = self._made_with(stored)
        if metric is None:
            raise self._missing(name)
        self._create(stored, metric, dimension=vectors.shape[1])
        self._client.delete(MADE, filter=_is_one_of([stored]), timeout=self._timeout_s)

    def _write(self, stored: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        rows: list[dict[str, Any]] = []
        size = 0
        # Of a chunk that is there twice, the last counts: Milvus may keep both.
        for n in {entry.id: n for n, entry in enumerate(entries)}.values():
            row, row_bytes = _row(entries[n], vectors[n])
            if rows and (len(rows) == BATCH or size + row_bytes > BATCH_BYTES):
                self._client.upsert(stored, rows, timeout=self._timeout_s)
                rows, size = [], 0
            rows.append(row)
            size += row_bytes
        if rows:
            self._client.upsert(stored, rows, timeout=self._timeout_s)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        filter_ = _ALL if where is None else _translate(where.root)
        if ids is not None:
            limit = min(limit, len(ids))
        among = "" if ids is None else _is_one_of(ids)
        text = _join(" and ", [part for part in (filter_.text, among) if part])

        def read(stored: str, metric: str) -> list[list[Match]]:
            if filter_.is_nothing or limit < 1:
                return [[] for _ in vectors]
            if limit > RESULTS:
                return [self._search_all(stored, metric, one, text, limit) for one in vectors]
            rows: list[list[Match]] = []
            at_once = max(1, ANSWERS // limit)
            for first in range(0, len(vectors), at_once):
                rows += self._search(stored, metric, vectors[first : first + at_once], text, limit)
            return rows

        nothing: list[list[Match]] = [[] for _ in vectors]
        return self._read(name, read, nothing)

    def _search(
        self, stored: str, metric: str, vectors: Vectors, text: str, limit: int
    ) -> list[list[Match]]:
        answer = self._client.search(
            stored,
            data=list(vectors),
            anns_field=VECTOR,
            filter=text,
            limit=limit,
            output_fields=[ID],
            search_params=_search_params(metric, limit),
            consistency_level="Strong",
            timeout=self._timeout_s,
        )
        return [[_match(metric, hit) for hit in hits] for hits in answer]

    def _search_all(
        self, stored: str, metric: str, vector: Vectors, text: str, limit: int
    ) -> list[Match]:
        """As `_search`, for more results than Milvus returns at once."""
        iterator = self._client.search_iterator(
            stored,
            data=[vector],
            anns_field=VECTOR,
            filter=text,
            batch_size=RESULTS,
            limit=limit,
            output_fields=[ID],
            search_params=_search_params(metric, RESULTS),
            consistency_level="Strong",
            timeout=self._timeout_s,
        )
        matches: list[Match] = []
        try:
            while len(matches) < limit and (hits := iterator.next()):
                matches += [_match(metric, hit) for hit in hits]
        finally:
            iterator.close()
        return matches[:limit]

    def is_exact(self, where: MetadataFilter) -> bool:
        return _translate(where.root).is_exact

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        nothing: dict[str, Vectors] = {}

        def read(stored: str, metric: str) -> dict[str, Vectors]:
            del metric
            return {
                row[ID]: np.asarray(row[VECTOR], dtype=np.float32)
                for batch in _batches(ids)
                for row in self._rows(stored, _is_one_of(batch), ID, VECTOR)
            }

        return self._read(name, read, nothing)

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        nothing: dict[str, bool] = {}
        written = {entry.id: _fields(entry) for entry in entries}

        def read(stored: str, metric: str) -> dict[str, bool]:
            del metric
            same: dict[str, bool] = {}
            for batch in _batches(list(written), COMPARED_AT_ONCE):
                for row in self._rows(stored, _is_one_of(batch), ID, TEXT, TERMS, _DYNAMIC):
                    same[row[ID]] = is_same(_flat(row), written[row[ID]])
            return same

        return self._read(name, read, nothing)

    def delete(self, name: str, ids: Sequence[str]) -> int:
        def delete(stored: str, metric: str) -> int:
            del metric
            before = 0
            for batch in _batches(ids):
                these = _is_one_of(batch)
                before += len(self._rows(stored, these, ID))
                self._client.delete(stored, filter=these, timeout=self._timeout_s)
                if left := self._rows(stored, these, ID):
                    raise Unavailable(f"Milvus still has {len(left)} vectors of {name!r}.")
            return before

        try:
            return self._read(name, delete, 0)
        except MissingCollection:
            return 0

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        nothing: list[str] = []

        def read(stored: str, metric: str) -> list[str]:
            del metric

            def after(position: str, count: int) -> list[tuple[str, str]]:
                ids = self._ids(stored, behind=position, limit=min(count, RESULTS))
                return [(id_, id_) for id_ in ids]

            return self._pages.page(name, limit=limit, offset=offset, after=after)

        try:
            return self._read(name, read, nothing)
        except MissingCollection:
            return []

    def _ids(self, stored: str, *, behind: str, limit: int) -> list[str]:
        """The first ids after this one, in their order; at most RESULTS."""
        iterator = self._client.query_iterator(
            stored,
            filter=f"{ID} > {_literal(behind)}" if behind else "",
            batch_size=limit,
            limit=limit,
            output_fields=[ID],
            consistency_level="Strong",
            timeout=self._timeout_s,
        )
        ids: list[str] = []
        try:
            while len(ids) < limit and (rows := iterator.next()):
                ids += [row[ID] for row in rows]
        finally:
            iterator.close()
        return ids[:limit]

    def _rows(self, stored: str, text: str, *fields: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._client.query(
            stored,
            filter=text,
            output_fields=list(fields),
            consistency_level="Strong",
            timeout=self._timeout_s,
        )
        return rows

    # Errors

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turn the client's exceptions into ours."""
        try:
            yield
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
            if isinstance(error, MilvusException) and error.code == _NO_COLLECTION:
                raise self._missing(name) from error
            if _is_refusal(error):
                raise Permanent(
                    f"Milvus at {self._url} ({VECTORS_URL}) refused: {_message(error)}"
                ) from error
            raise Unavailable(
                f"Milvus at {self._url} ({VECTORS_URL}) failed: {_message(error)}"
            ) from error

    def _missing(self, name: str) -> MissingCollection:
        return MissingCollection(
            f"Milvus at {self._url} ({VECTORS_URL}) has no collection {name!r}: its data was lost "
            f"or belongs to another server. {REBUILD}"
        )


def _search_params(metric: str, limit: int) -> dict[str, Any]:
    return {
        "metric_type": metric,
        "params": {"ef": min(max(_NEIGHBOURS, 2 * limit), 2 * RESULTS)},
    }


def _match(metric: str, hit: Mapping[str, Any]) -> Match:
    """Milvus's `distance` is the cosine or the dot product, and for L2 the squared length of the
    difference, which is 2 - 2 cos for vectors of length 1."""
    distance = float(hit["distance"])
    return Match(id=str(hit[ID]), score=1 - distance / 2 if metric == "L2" else distance)


def _batches(ids: Sequence[str], limit: int = BATCH) -> Iterator[Sequence[str]]:
    for first in range(0, len(ids), limit):
        yield ids[first : first + limit]


# Error codes of Milvus (pkg/util/merr in its source). An error without a class counts as one of the
# server, so that it is tried again; so do memory, disk or a quota that are used up (3, 7, 9).
_NO_COLLECTION = 100
_REFUSALS = frozenset(
    {
        *(6, 10),  # also Milvus Lite's "illegal argument"
        *(_NO_COLLECTION, 101, 102, 105, 107),
        *(700, 701, 702, 800, 801, 802),  # indexes, databases
        *(1100, 1101, 1102, 1400, 1401),  # parameters, privileges
        *range(1600, 1900),  # aliases, fields, the request's form
        *(2001, 3000),  # not supported
    }
)
_REFUSED_CALLS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def _is_refusal(error: BaseException) -> bool:
    """Whether the same request would be refused again, at least while the collection is as it is
    now."""
    if isinstance(error, grpc.RpcError):
        return error.code() in _REFUSED_CALLS
    if not isinstance(error, MilvusException):
        return False
    if isinstance(error.__cause__, grpc.RpcError):
        return _is_refusal(error.__cause__)
    if error.is_input_error or error.code in _REFUSALS:
        return True
    # The client's own checks raise other classes.
    return not isinstance(error, ConnectError) and type(error) is not MilvusException


def _message(error: BaseException) -> str:
    if isinstance(error, MilvusException):
        cause = error.__cause__
        reason = f" ({_message(cause)})" if isinstance(cause, grpc.RpcError) else ""
        return f"{error.message}{reason}"
    if isinstance(error, grpc.RpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


# Chunks -> rows.


def _row(entry: VectorEntry, vector: Vectors) -> tuple[dict[str, Any], int]:
    """A chunk as Milvus stores it, and about how many bytes it has."""
    fields = _fields(entry)
    return {**fields, VECTOR: vector}, _json_bytes(fields) + vector.nbytes + 1000


def _fields(entry: VectorEntry) -> dict[str, Any]:
    """What Milvus stores of a chunk beside its vector."""
    values = {nfc(key): nfc_value(value) for key, value in entry.metadata.items()}
    dynamic = {_key(key): value for key, value in values.items()} | entry.own
    sizes = {key: _json_bytes({key: value}) for key, value in dynamic.items()}
    size, left_out = sum(sizes.values()), set[str]()
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if size <= METADATA_BYTES:
            break
        if not isinstance(dynamic[key], str | list):
            continue
        size -= sizes[key]
        left_out.add(key)
        del dynamic[key]
    text = entry.text.encode()[:TEXT_BYTES].decode(errors="ignore")
    terms = _terms(values, entry.own, left_out)
    return {ID: entry.id, TEXT: text, TERMS: terms, **dynamic}


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that was read, whose dynamic fields servers give alone or together."""
    return {**row.get(_DYNAMIC, {}), **{key: row[key] for key in row if key != _DYNAMIC}}


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def _key(key: str) -> str:
    """The name of a user's key in Milvus."""
    taken = key in OWN_KEYS or key in (ID, TEXT, VECTOR, TERMS) or key.startswith((PREFIX, "$"))
    return PREFIX + key if taken else key


def _terms(values: Metadata, own: Metadata, left_out: set[str]) -> list[str]:
    """The terms that filters compare, as hashes: the value of a key, the items of its list, and the
    type of a value that Milvus can compare as smaller or larger."""
    terms: set[str] = set()
    items: set[str] = set()
    for key, value in {**own, **values}.items():
        stored = _key(key) if key in values else key
        if isinstance(value, list):
            items |= {_item(key, item) for item in value}
            continue
        terms.add(_equal(key, value))
        if stored in left_out:
            terms.add(_left_out(stored))  # a text: numbers are never left out
        elif not isinstance(value, bool):
            terms.add(_comparable(stored, value))
    return sorted(terms | (items if len(items) <= LIST_ITEMS else {_LONG_LISTS}))


def _term(*parts: str) -> str:
    """128 bits in hexadecimal digits."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _equal(key: str, value: Scalar) -> str:
    return _term("equal", key, *_canonical(value))


def _item(key: str, value: Scalar) -> str:
    return _term("item", key, *_canonical(value))


def _comparable(stored: str, value: Scalar) -> str:
    return _term("comparable", stored, _canonical(value)[0])


def _left_out(stored: str) -> str:
    return _term("left out", stored)


_LONG_LISTS: Final = _term("long lists")
"""For a chunk whose lists have too many items for terms."""


def _canonical(value: Scalar) -> tuple[str, str]:
    """The type, and the same notation for all values that are equal."""
    if isinstance(value, bool):
        return "boolean", str(value)
    if isinstance(value, str):
        return "text", value
    number = decimal(value)
    return "number", str(number.normalize()) if number else "0"


# Filters -> Milvus's conditions.
#
# Negations are moved down to the comparisons. What is equal is asked of the terms. Larger and
# smaller values are asked of the metadata, after the terms say that the value is there and of the
# right type: so it does not matter what Milvus does with a missing key or another type.
#
# Milvus compares integers with integers exactly, others as doubles. Large numbers are compared
# less strictly, so that no chunk is missed.

_DOUBLES_END = 2**53
"""Below this, doubles represent every integer exactly."""
_PLAIN_KEY = re.compile(r"[\w .:-]+")
"""Keys that all versions of Milvus read as they are written, between quotation marks."""
_PLAIN_TEXT = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*")
_FLIPPED: Final = {
    Operator.GT: Operator.LTE,
    Operator.GTE: Operator.LT,
    Operator.LT: Operator.GTE,
    Operator.LTE: Operator.GT,
}
_SIGNS: Final = {Operator.GT: ">", Operator.GTE: ">=", Operator.LT: "<", Operator.LTE: "<="}


@dataclass(frozen=True, kw_only=True)
class _StoreFilter:
    """A condition of Milvus that holds for all chunks that a filter matches, and if `is_exact` for
    no others.

    Without `text`, it holds for all chunks, or for none (`is_nothing`).
    """

    text: str = ""
    is_nothing: bool = False
    is_exact: bool = True


_ALL = _StoreFilter()
_NOTHING = _StoreFilter(is_nothing=True)


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
    text = _join(" and ", [part.text for part in parts if part.text])
    return _StoreFilter(text=text, is_exact=all(part.is_exact for part in parts))


def _any_of(parts: Iterable[_StoreFilter]) -> _StoreFilter:
    parts = [part for part in parts if not part.is_nothing]
    if not parts:
        return _NOTHING
    if everything := [part for part in parts if not part.text]:
        return _StoreFilter(is_exact=any(part.is_exact for part in everything))
    text = _join(" or ", [part.text for part in parts])
    return _StoreFilter(text=text, is_exact=all(part.is_exact for part in parts))


def _join(sign: str, texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else sign.join(f"({text})" for text in texts)


def _comparison(comparison: Comparison, *, negated: bool) -> _StoreFilter:
    key, values = comparison.key, comparison.values
    if comparison.operator is Operator.IN:
        return _has([_equal(key, value) for value in values], negated=negated)
    if comparison.operator is Operator.CONTAINS:
        terms = [_item(key, value) for value in values]
        if not negated:
            terms.append(_LONG_LISTS)
        return _inexact(_has(terms, negated=negated))
    # The user's value of a key, or else ours. The terms know which one counts.
    parts = [_order(comparison, stored, negated=negated) for stored in _stored_keys(key)]
    return _all_of(parts) if negated else _any_of(parts)


def _stored_keys(key: str) -> list[str]:
    return [_key(key), key] if key in OWN_KEYS else [_key(key)]


def _has(terms: Sequence[str], *, negated: bool) -> _StoreFilter:
    """Whether a chunk has one of these terms."""
    if not terms:
        return _ALL if negated else _NOTHING
    list_ = ", ".join(f'"{term}"' for term in terms)
    text = f"array_contains_any({TERMS}, [{list_}])"
    return _StoreFilter(text=f"not {text}" if negated else text)


def _inexact(filter_: _StoreFilter) -> _StoreFilter:
    return _StoreFilter(text=filter_.text, is_nothing=filter_.is_nothing, is_exact=False)


def _order(comparison: Comparison, stored: str, *, negated: bool) -> _StoreFilter:
    operator, value = comparison.operator, comparison.value
    compared = _compared(stored, _FLIPPED[operator] if negated else operator, value)
    is_comparable = _has([_comparable(stored, value)], negated=negated)
    if negated:
        fitting = _any_of([is_comparable, compared])
        return _inexact(fitting) if isinstance(value, str) else fitting
    fitting = _all_of([is_comparable, compared])
    if not isinstance(value, str):
        return fitting
    return _inexact(_any_of([fitting, _has([_left_out(stored)], negated=False)]))


def _compared(stored: str, operator: Operator, value: Scalar) -> _StoreFilter:
    """A comparison of a value that is there and of the right type."""
    if not _PLAIN_KEY.fullmatch(stored):
        return _inexact(_ALL)
    left = f"$meta[{_literal(stored)}]"
    if isinstance(value, str):
        if not _PLAIN_TEXT.fullmatch(value):
            return _inexact(_ALL)
        return _StoreFilter(text=f"{left} {_SIGNS[operator]} {_literal(value)}")
    number = decimal(value)
    if abs(number) < _DOUBLES_END:
        whole = number == number.to_integral_value()
        right = str(int(number)) if whole else repr(float(value))
        return _StoreFilter(text=f"{left} {_SIGNS[operator]} {right}")
    is_lower_bound = operator in (Operator.GT, Operator.GTE)
    bound = math.nextafter(float(value), -math.inf if is_lower_bound else math.inf)
    if math.isinf(bound):
        return _inexact(_ALL)
    sign = _SIGNS[Operator.GTE if is_lower_bound else Operator.LTE]
    return _StoreFilter(text=f"{left} {sign} {bound!r}", is_exact=False)


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _literal(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def _is_one_of(ids: Sequence[str]) -> str:
    return f"{ID} in [{', '.join(map(_literal, ids))}]"
