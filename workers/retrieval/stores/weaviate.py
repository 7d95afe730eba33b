"""The vector store Weaviate, version 1.33 or later.

A collection of Sluice is a collection of Weaviate (a class) with the name from `stored_name`. The
UUID of an object comes from the chunk's id (`object_id`). Its properties are `chunk_id`, `text`,
`metadata` (the user's, as JSON), `source`, `document_id`, `start_index`, and `terms`.

Weaviate's properties have ASCII names and one type each; keys of metadata have neither. So filters
do not compare properties. Each value of a chunk is a term in `terms`, a hash of its key, type and
value, and a filter tests which terms a chunk has (`ContainsAny`, `And`, `Or`, `Not`). Numbers have
more terms, for smaller and larger. All filters are exact, except for the order of texts, and of
numbers that a double rounds.

Requests are Weaviate's published gRPC messages from its Python client, and REST for collections.
The client's own methods would retry for a minute if a server is away, and hide the status of
errors; here every request ends in time, and its status is read.

Writing and deleting wait for all replicas (consistency level ALL), so reading needs one of them.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast
from uuid import UUID, uuid5

import grpc
import httpx
import numpy as np
from google.protobuf.struct_pb2 import Struct
from weaviate.proto.v1.aggregate_pb2 import AggregateReply, AggregateRequest
from weaviate.proto.v1.base_pb2 import (
    ConsistencyLevel,
    Filters,
    FilterTarget,
    TextArray,
    TextArrayProperties,
)
from weaviate.proto.v1.base_search_pb2 import NearVector
from weaviate.proto.v1.batch_delete_pb2 import BatchDeleteReply, BatchDeleteRequest
from weaviate.proto.v1.batch_pb2 import BatchObject, BatchObjectsReply, BatchObjectsRequest
from weaviate.proto.v1.search_get_pb2 import (
    MetadataRequest,
    PropertiesRequest,
    SearchReply,
    SearchRequest,
    SearchResult,
)

from shared.bounds import Scalar, nfc, nfc_value, shown
from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Unavailable
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
    REBUILD,
    IdPages,
    Match,
    MissingCollection,
    VectorEntry,
    is_same,
)
from workers.retrieval.stores.timed_transport import TimedTransport

API_KEY = "SLUICE_WEAVIATE_API_KEY"
OLDEST_VERSION = (1, 33)
"""The first version with the filter `Not`."""
GRPC_PORT = 50051
BATCH_OBJECTS = 200
BATCH_LIMIT_BYTES = 8 * 2**20
"""Below 10 MiB, which may be the limit of a small server (GRPC_MAX_MESSAGE_SIZE)."""
BATCH_IDS = 500
VECTORS_AT_ONCE = 100
"""So many of 16,384 dimensions, the most that Sluice has, are less than BATCH_LIMIT_BYTES."""
RESULTS_LIMIT = 10_000
"""The most results of one request (QUERY_MAXIMUM_RESULTS of Weaviate)."""
PARALLEL_QUERIES = 8
RECONNECT_LIMIT_MS = 2000

# OPERATOR_NOT, by its number in Weaviate's published base.proto: the client below 4.17 does not
# know it, and those above refuse the protobuf that Sluice has.
_NOT = cast(Filters.Operator, 15)
_GRPC_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_HEADER = re.compile(r"[!-~]*")
_OBJECTS = UUID("6f0f4f1e-5d0c-5b0a-9a53-7d2f6e1c8b14")
_BEFORE_ALL = str(UUID(int=0))
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,99}")
_PROPERTIES: tuple[dict[str, Any], ...] = (
    {"name": "chunk_id", "dataType": ["text"], "tokenization": "field", "indexFilterable": True},
    {"name": "terms", "dataType": ["text[]"], "tokenization": "field", "indexFilterable": True},
    {"name": "text", "dataType": ["text"], "indexFilterable": False},
    {"name": "metadata", "dataType": ["text"], "indexFilterable": False},
    {"name": "source", "dataType": ["text"], "tokenization": "field", "indexFilterable": True},
    {"name": "document_id", "dataType": ["text"], "tokenization": "field", "indexFilterable": True},
    {"name": "start_index", "dataType": ["int"], "indexFilterable": False},
)
# Errors of a cluster that may do the same later; Weaviate sends them without a status of their own.
_PASSING = re.compile(
    "cannot achieve consistency level|read-only|not enough memory|shutting down|leader not found"
    "|context deadline exceeded|context canceled|connection refused",
    re.IGNORECASE,
)
_PASSING_STATUS = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED"}
_REFUSING_STATUS = {"UNAUTHENTICATED", "PERMISSION_DENIED"}


def stored_name(name: str) -> str:
    """The name of a collection in Weaviate, whose names are ASCII, begin with a capital letter and
    are the same in capitals and small letters. `docs_2024` is `Sluice_docs_2024`; any other name
    ends in 128 bits of its SHA-256."""
    if _PLAIN_NAME.fullmatch(name):
        return f"Sluice_{name}"
    readable = re.sub(r"[^a-z0-9]+", "_", name.lower())[:60].strip("_")
    return f"Sluice__{readable}_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def object_id(chunk_id: str) -> str:
    return str(uuid5(_OBJECTS, chunk_id))


def _grpc_address(url: StoreUrl) -> str:
    """The address in `?grpc=HOST:PORT` of the URL, or else GRPC_PORT of the same host. Raises
    ConfigurationError."""
    host = f"[{url.host}]" if ":" in url.host else url.host
    address = url.options.get("grpc", f"{host}:{GRPC_PORT}")
    if set(url.options) - {"grpc"} or not _GRPC_ADDRESS.fullmatch(address):
        raise ConfigurationError(
            f"{VECTORS_URL}: behind the question mark of {url} may stand grpc=HOST:PORT, and "
            "nothing more."
        )
    return address


class Weaviate:
    """A `VectorStore` on a Weaviate server.

    Each class has the distance `cosine`, whatever distance `make` gets: for vectors of length 1 all
    three give the same order, and queries need not ask which one a class has.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self._url = StoreUrl.read(url)
        self._grpc = _grpc_address(self._url)
        self._timeout_s = settings.request_timeout_s
        self._connect_timeout_s = settings.connect_timeout_s
        key = self._url.password or (
            settings.weaviate_api_key.get_secret_value() if settings.weaviate_api_key else ""
        )
        if not _HEADER.fullmatch(key):
            raise ConfigurationError(
                f"The key of Weaviate ({API_KEY}, or in {VECTORS_URL}) has other than printable "
                "ASCII characters; copy it again."
            )
        self._authorization = f"Bearer {key}" if key else None
        self._pages = IdPages()

    # Connections

    @cached_property
    def _rest(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self._url.http}/v1",
            headers={"Authorization": self._authorization} if self._authorization else {},
            timeout=httpx.Timeout(self._timeout_s, connect=self._connect_timeout_s),
            transport=TimedTransport(self._timeout_s),
        )

    @cached_property
    def _channel(self) -> Any:
        self._check_version()
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Connections to a server that is back are made within seconds; the default is up to two
            # minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_LIMIT_MS),
            # Requests between parts of one network must not go through a proxy.
            ("grpc.enable_http_proxy", 0),
        ]
        if self._url.is_secure:
            credentials = grpc.ssl_channel_credentials()
            return grpc.secure_channel(self._grpc, credentials, options=options)
        return grpc.insecure_channel(self._grpc, options=options)

    def _check_version(self) -> None:
        version = str(self._get("/meta", expected=(200,)).get("version", ""))
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if numbers < OLDEST_VERSION:
            raise Permanent(
                f"Weaviate at {self._url} has the version {version or 'unknown'}; Sluice "
                f"needs {'.'.join(map(str, OLDEST_VERSION))} or later."
            )

    def close(self) -> None:
        for name in ("_rest", "_channel"):
            connection = self.__dict__.pop(name, None)
            if connection is not None:
                connection.close()

    def _method(self, name: str, reply: Any) -> Any:
        """A method of Weaviate's gRPC service."""
        return self._channel.unary_unary(
            f"/weaviate.v1.Weaviate/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=reply.FromString,
        )

    @property
    def _limits(self) -> dict[str, Any]:
        metadata = (("authorization", self._authorization),) if self._authorization else None
        return {"timeout": self._timeout_s, "metadata": metadata}

    def _search(self, name: str, request: SearchRequest) -> list[SearchResult]:
        with self._translated(name):
            reply: SearchReply = self._method("Search", SearchReply)(request, **self._limits)
            return list(reply.results)

    def _request(
        self, method: str, path: str, *, expected: Sequence[int] = (200,), body: Any = None
    ) -> httpx.Response:
        """A call of the REST API, whose answer has one of the `expected` statuses."""
        try:
            response = self._rest.request(method, path, json=body)
        except httpx.TransportError as error:
            raise self._unavailable(str(error) or type(error).__name__) from error
        status = response.status_code
        if status in expected:
            return response
        message = f"status {status}: {_rest_error(response)}"
        if status in (401, 403):
            raise self._forbidden(message)
        if status >= 500 or status in (408, 429):
            raise self._unavailable(message)
        raise Permanent(f"Weaviate refused: {message}")

    def _get(self, path: str, *, expected: Sequence[int]) -> dict[str, Any]:
        """The object at a path of the REST API; an empty one if it has none (404)."""
        response = self._request("GET", path, expected=expected)
        if response.status_code == 404:
            return {}
        try:
            body: dict[str, Any] = dict(response.json())
        except (ValueError, TypeError):
            raise Permanent(
                f"What answers at {self._url} ({VECTORS_URL}) is no Weaviate: {path} has "
                f"{shown(response.text[:200])} instead of an object."
            ) from None
        return body

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turn the errors of gRPC into ours."""
        try:
            yield
        except grpc.RpcError as error:
            status, details = error.code().name, str(error.details())
            if status in _PASSING_STATUS:
                raise self._unavailable(f"{status}: {details}") from error
            if status in _REFUSING_STATUS:
                raise self._forbidden(details) from error
            raise self._refusal(name, details) from error

    def _refusal(self, name: str, details: str) -> Exception:
        """The exception for an error without a status."""
        if _PASSING.search(details):
            return self._unavailable(details)
        if self._class(name) is None:
            return self._missing(name)
        return Permanent(f"Weaviate refused: {details}")

    def _unavailable(self, details: str) -> Unavailable:
        return Unavailable(
            f"Weaviate at {self._url}, with gRPC at {self._grpc} ({VECTORS_URL}), failed: {details}"
        )

    def _forbidden(self, details: str) -> Permanent:
        return Permanent(
            f"Weaviate at {self._url} refused the key: {details}. Set {API_KEY} to one that may "
            "read and write collections and their data."
        )

    def _missing(self, name: str) -> MissingCollection:
        return MissingCollection(
            f"Weaviate at {self._url} ({VECTORS_URL}) has no collection {name!r} "
            f"({stored_name(name)}): its data was lost or belongs to another server. {REBUILD}"
        )

    # Collections

    def make(self, name: str, distance: str) -> None:
        del distance
        self._check_version()
        if self._class(name) is not None:
            return
        made = self._request("POST", "/schema", body=_class(name), expected=(200, 422))
        # Status 422: another process was faster, or the server does not accept the definition.
        if made.status_code == 422 and self._class(name) is None:
            raise Permanent(f"Weaviate refused: {_rest_error(made)}")

    def _class(self, name: str) -> dict[str, Any] | None:
        """The definition of a collection; None if there is none. Raises Permanent if it is not one
        that `make` made."""
        stored = self._get(f"/schema/{stored_name(name)}", expected=(200, 404))
        if not stored:
            return None
        index = stored.get("vectorIndexConfig") or {}
        terms = [one for one in stored.get("properties") or () if one.get("name") == "terms"]
        if (
            index.get("distance") == "cosine"
            and terms
            and terms[0].get("tokenization") == "field"
            and terms[0].get("dataType") == ["text[]"]
        ):
            return stored
        raise Permanent(
            f"Weaviate's collection {stored_name(name)} was not made by Sluice: it lacks the "
            f"property `terms` or the distance `cosine`. Delete it in Weaviate. {REBUILD}"
        )

    def _require(self, name: str) -> None:
        if self._class(name) is None:
            raise self._missing(name)

    def drop(self, name: str) -> int:
        request = AggregateRequest(collection=stored_name(name), objects_count=True)
        try:
            with self._translated(name):
                reply: AggregateReply = self._method("Aggregate", AggregateReply)(
                    request, **self._limits
                )
        except MissingCollection:
            return 0
        self._request("DELETE", f"/schema/{stored_name(name)}")
        self._pages.forget(name)
        if self._class(name) is not None:
            raise Unavailable(f"Weaviate still has the collection {name!r}.")
        return reply.single_result.objects_count

    # Chunks

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        # Weaviate would make a missing class, with guessed types (AUTOSCHEMA_ENABLED).
        self._require(name)
        self._pages.forget(name)
        write = self._method("BatchObjects", BatchObjectsReply)
        last = {entry.id: number for number, entry in enumerate(entries)}
        class_name = stored_name(name)
        objects = (_object(class_name, entries[n], vectors[n]) for n in last.values())
        for batch in _batches(objects):
            request = BatchObjectsRequest(
                objects=batch, consistency_level=ConsistencyLevel.CONSISTENCY_LEVEL_ALL
            )
            with self._translated(name):
                reply: BatchObjectsReply = write(request, **self._limits)
            if reply.errors:
                first = f"{len(reply.errors)} of {len(batch)} chunks: {reply.errors[0].error}"
                raise self._refusal(name, first)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        condition = _ALL if where is None else _translate(where.root)
        rows: list[list[Match]] = [[] for _ in vectors]
        if condition.is_nothing or (ids is not None and not ids):
            self._require(name)
            return rows
        filters = [condition.filters]
        if ids is not None:
            filters = [
                _joined(Filters.OPERATOR_AND, [_with_ids(batch), condition.filters])
                for batch in _id_batches(ids)
            ]
        queries = [
            (row, vector, filter_)
            for row, vector in zip(rows, vectors, strict=True)
            for filter_ in filters
        ]
        search = self._method("Search", SearchReply)
        for first in range(0, len(queries), PARALLEL_QUERIES):
            batch = queries[first : first + PARALLEL_QUERIES]
            with self._translated(name):
                calls = [
                    search.future(_nearest(name, vector, filter_, limit), **self._limits)
                    for _, vector, filter_ in batch
                ]
                try:
                    for (row, *_), call in zip(batch, calls, strict=True):
                        row += map(_match, call.result().results)
                        if len(filters) > 1:
                            row.sort(key=lambda match: -match.score)
                            del row[limit:]
                finally:
                    for call in calls:
                        call.cancel()
        return rows

    def is_exact(self, where: MetadataFilter) -> bool:
        return _translate(where.root).is_exact

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        vectors: dict[str, Vectors] = {}
        for batch in _id_batches(ids, VECTORS_AT_ONCE):
            for result in self._with_ids(name, batch, MetadataRequest(vector=True)):
                vector = np.frombuffer(result.metadata.vector_bytes, dtype="<f4")
                vectors[_chunk_id(result)] = vector.astype(np.float32)
        if not ids:
            self._require(name)
        return vectors

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        names = [str(one["name"]) for one in _PROPERTIES]
        class_name, no_vector = stored_name(name), np.empty(0, dtype=np.float32)
        by_id = {entry.id: entry for entry in entries}
        same: dict[str, bool] = {}
        # An answer has as many bytes as what was written.
        for batch in _batches(_object(class_name, entry, no_vector) for entry in by_id.values()):
            written = {values["chunk_id"]: values for values in map(_written_values, batch)}
            metadata = MetadataRequest(uuid=True)
            for result in self._with_ids(name, list(written), metadata, properties=names):
                id_ = _chunk_id(result)
                same[id_] = is_same(_values(result), written[id_])
        if not by_id:
            self._require(name)
        return same

    def _with_ids(
        self,
        name: str,
        ids: Sequence[str],
        metadata: MetadataRequest,
        level: ConsistencyLevel = ConsistencyLevel.CONSISTENCY_LEVEL_ONE,
        *,
        properties: Sequence[str] = ("chunk_id",),
    ) -> list[SearchResult]:
        """The objects of at most BATCH_IDS chunks, without missing ones."""
        request = SearchRequest(
            collection=stored_name(name),
            limit=len(ids),
            filters=_with_ids(ids),
            metadata=metadata,
            properties=PropertiesRequest(non_ref_properties=properties),
            consistency_level=level,
            uses_127_api=True,
        )
        return self._search(name, request)

    def delete(self, name: str, ids: Sequence[str]) -> int:
        delete = self._method("BatchDelete", BatchDeleteReply)
        self._pages.forget(name)
        deleted = 0
        level = ConsistencyLevel.CONSISTENCY_LEVEL_ALL
        try:
            for batch in _id_batches(ids):
                request = BatchDeleteRequest(
                    collection=stored_name(name), filters=_with_ids(batch), consistency_level=level
                )
                with self._translated(name):
                    reply: BatchDeleteReply = delete(request, **self._limits)
                left = len(self._with_ids(name, batch, MetadataRequest(uuid=True), level))
                if reply.failed or left:
                    count = max(reply.failed, left)
                    raise Unavailable(f"Weaviate still has {count} vectors of {name!r}.")
                deleted += reply.successful
        except MissingCollection:
            return 0
        return deleted

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        # Weaviate has no offset beyond QUERY_MAXIMUM_RESULTS.
        def after(position: str, count: int) -> list[tuple[str, str]]:
            results = self._after(name, position or _BEFORE_ALL, min(count, RESULTS_LIMIT))
            return [(result.metadata.id, _chunk_id(result)) for result in results]

        try:
            return self._pages.page(name, limit=limit, offset=offset, after=after)
        except MissingCollection:
            return []

    def _after(self, name: str, after: str, limit: int) -> list[SearchResult]:
        """The objects that follow one, in the order of their UUIDs."""
        request = SearchRequest(
            collection=stored_name(name),
            limit=limit,
            after=after,
            metadata=MetadataRequest(uuid=True),
            properties=PropertiesRequest(non_ref_properties=["chunk_id"]),
            consistency_level=ConsistencyLevel.CONSISTENCY_LEVEL_ONE,
            uses_127_api=True,
        )
        return self._search(name, request)


def _class(name: str) -> dict[str, Any]:
    return {
        "class": stored_name(name),
        "description": f"Chunks of the collection {name} of Sluice",
        "vectorizer": "none",
        "vectorIndexType": "hnsw",
        # Servers may be configured to compress the vectors of classes that do not set this.
        "vectorIndexConfig": {"distance": "cosine", "skipDefaultQuantization": True},
        # A replica that missed a deletion does not bring the object back.
        "replicationConfig": {"deletionStrategy": "TimeBasedResolution"},
        "properties": [
            {**one, "indexSearchable": False} if one["dataType"][0].startswith("text") else one
            for one in _PROPERTIES
        ],
    }


def _rest_error(response: httpx.Response) -> str:
    try:
        errors = response.json().get("error")
        return "; ".join(str(error["message"]) for error in errors)
    except (ValueError, AttributeError, TypeError, KeyError):
        return response.text[:500]


def _object(class_name: str, entry: VectorEntry, vector: Vectors) -> BatchObject:
    properties = Struct()
    properties.update(_properties(entry))
    terms = TextArrayProperties(prop_name="terms", values=_sorted_terms(entry))
    return BatchObject(
        uuid=object_id(entry.id),
        collection=class_name,
        vector_bytes=_bytes(vector),
        properties=BatchObject.Properties(
            non_ref_properties=properties, text_array_properties=[terms]
        ),
    )


def _properties(entry: VectorEntry) -> dict[str, Any]:
    """What an object has beside `terms` and its vector."""
    return {
        **entry.own,
        "chunk_id": entry.id,
        "text": entry.text,
        "metadata": json.dumps(entry.metadata, ensure_ascii=False, sort_keys=True),
    }


def _nearest(name: str, vector: Vectors, filters: Filters | None, limit: int) -> SearchRequest:
    return SearchRequest(
        collection=stored_name(name),
        limit=min(limit, RESULTS_LIMIT),
        filters=filters,
        near_vector=NearVector(vector_bytes=_bytes(vector)),
        metadata=MetadataRequest(distance=True),
        properties=PropertiesRequest(non_ref_properties=["chunk_id"]),
        consistency_level=ConsistencyLevel.CONSISTENCY_LEVEL_ONE,
        uses_127_api=True,
    )


def _written_values(written: BatchObject) -> dict[str, Any]:
    """The properties of an object that is written."""
    (terms,) = written.properties.text_array_properties
    return {**written.properties.non_ref_properties, terms.prop_name: list(terms.values)}


def _values(result: SearchResult) -> dict[str, Any]:
    """The properties of an object that was read, those aside that it lacks."""
    values: dict[str, Any] = {}
    for name, value in result.properties.non_ref_props.fields.items():
        match value.WhichOneof("kind"):
            case "text_value":
                values[name] = value.text_value
            case "int_value":
                values[name] = value.int_value
            case "list_value":
                values[name] = list(value.list_value.text_values.values)
    return values


def _batches(objects: Iterable[BatchObject]) -> Iterator[list[BatchObject]]:
    batch: list[BatchObject] = []
    size = 0
    for one in objects:
        size_bytes = one.ByteSize()
        if batch and (len(batch) == BATCH_OBJECTS or size + size_bytes > BATCH_LIMIT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += size_bytes
    if batch:
        yield batch


def _id_batches(ids: Sequence[str], limit: int | None = None) -> Iterator[list[str]]:
    unique, limit = list(dict.fromkeys(ids)), limit or BATCH_IDS
    for first in range(0, len(unique), limit):
        yield unique[first : first + limit]


def _bytes(vector: Vectors) -> bytes:
    return vector.astype("<f4").tobytes()


def _chunk_id(result: SearchResult) -> str:
    return str(result.properties.non_ref_props.fields["chunk_id"].text_value)


def _match(result: SearchResult) -> Match:
    return Match(id=_chunk_id(result), score=1.0 - result.metadata.distance)


# The terms of a chunk
#
# A value has one term, an item of a list one of another kind. A number has 16 more terms, for
# order: the doubles in their order are numbered with 64 bits, and a term has the first 4, 8, ... or
# all 64 bits of that number. So each range is the union of at most 480 terms, 15 at either end for
# each length.

_DIGIT_BITS = 4
_FIRST_DIGIT_BIT = 64 - _DIGIT_BITS
_LARGEST_DOUBLE = float(np.finfo(np.float64).max)
_DOUBLES_END = 2**53
"""Below this, doubles represent every integer exactly."""


def _terms(entry: VectorEntry) -> Iterator[str]:
    metadata = {nfc(key): nfc_value(value) for key, value in entry.metadata.items()}
    for key, value in entry.own.items():
        if key not in metadata:
            yield _term(key, value)
    for key, value in metadata.items():
        if isinstance(value, list):
            for item in value:
                yield _term(key, item, kind="item")
        else:
            yield _term(key, value)
            if isinstance(value, int | float) and not isinstance(value, bool):
                for shift in range(0, 64, _DIGIT_BITS):
                    yield _prefix(key, shift, place(value) >> shift)


def _sorted_terms(entry: VectorEntry) -> list[str]:
    return sorted(set(_terms(entry)))


def _term(key: str, value: Scalar, *, kind: str = "value") -> str:
    """Equal for equal values of one type: 2024 and 2024.0 are both the number 2024/1."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _hash(kind, key, *map(str, decimal(value).as_integer_ratio()))
    return _hash(kind, key, value)


def _prefix(key: str, shift: int, digits: int) -> str:
    return _hash("order", key, shift, digits)


def _hash(*parts: Scalar) -> str:
    """128 bits as 32 hexadecimal digits, which no tokenization divides or changes."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def place(number: float) -> int:
    """The index of the nearest double among all doubles in their order, from 0 to 2^64 - 1."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", number + 0.0))
    sign = 1 << 63
    return int(bits ^ (2 * sign - 1) if bits & sign else bits | sign)


def cover(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Pairs (shift, digits): the places from `low` to `high` are those with one of these digits
    before their last `shift` bits."""
    shift, digits = 0, 1 << _DIGIT_BITS
    while True:
        if shift == _FIRST_DIGIT_BIT:
            yield from ((shift, digit) for digit in range(low, high + 1))
            return
        while low <= high and low % digits:
            yield shift, low
            low += 1
        while low <= high and high % digits != digits - 1:
            yield shift, high
            high -= 1
        if low > high:
            return
        low, high, shift = low // digits, high // digits, shift + _DIGIT_BITS


# Filters -> Weaviate's conditions


@dataclass(frozen=True, kw_only=True)
class _StoreFilter:
    """A condition of Weaviate that holds for all chunks that a filter matches, and if `is_exact`
    for no others.

    If `filters` is None, it holds for all chunks, or for none (`is_nothing`).
    """

    filters: Filters | None = None
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
            return _negation(_compare(condition)) if negated else _compare(condition)


def _all_of(parts: Sequence[_StoreFilter]) -> _StoreFilter:
    if any(part.is_nothing for part in parts):
        return _NOTHING
    return _StoreFilter(
        filters=_joined(Filters.OPERATOR_AND, [part.filters for part in parts]),
        is_exact=all(part.is_exact for part in parts),
    )


def _any_of(parts: Sequence[_StoreFilter]) -> _StoreFilter:
    parts = [part for part in parts if not part.is_nothing]
    if not parts:
        return _NOTHING
    if any(part == _ALL for part in parts):
        return _ALL
    if any(part.filters is None for part in parts):
        return _UNKNOWN
    return _StoreFilter(
        filters=_joined(Filters.OPERATOR_OR, [part.filters for part in parts]),
        is_exact=all(part.is_exact for part in parts),
    )


def _negation(part: _StoreFilter) -> _StoreFilter:
    if not part.is_exact:
        return _UNKNOWN
    if part.filters is None:
        return _ALL if part.is_nothing else _NOTHING
    return _StoreFilter(filters=Filters(operator=_NOT, filters=[part.filters]))


def _compare(comparison: Comparison) -> _StoreFilter:
    key = comparison.key
    if comparison.operator is Operator.IN:
        return _having([_term(key, value) for value in comparison.values])
    if comparison.operator is Operator.CONTAINS:
        return _having([_term(key, comparison.value, kind="item")])
    if isinstance(comparison.value, str) or key in OWN_KEYS:
        return _UNKNOWN
    return _order(key, comparison.operator, comparison.value)


def _order(key: str, operator: Operator, value: float) -> _StoreFilter:
    low, high = place(-_LARGEST_DOUBLE), place(_LARGEST_DOUBLE)
    is_exact = abs(value) < _DOUBLES_END
    # A large number may be rounded, and so may those that it is compared with: one place more.
    margin = 0 if is_exact else 1
    match operator:
        case Operator.GT:
            low = place(value) + (1 if is_exact else -margin)
        case Operator.GTE:
            low = place(value) - margin
        case Operator.LT:
            high = place(value) - (1 if is_exact else -margin)
        case _:
            high = place(value) + margin
    terms = [_prefix(key, shift, digits) for shift, digits in cover(low, high)]
    if not is_exact:
        return _StoreFilter(filters=_having(terms).filters, is_exact=False)
    return _having(terms)


def _having(terms: Sequence[str]) -> _StoreFilter:
    """The chunks that have one of these terms."""
    if not terms:
        return _NOTHING
    return _StoreFilter(filters=_contains_any("terms", terms))


def _with_ids(ids: Sequence[str]) -> Filters:
    return _contains_any("_id", [object_id(id_) for id_ in ids])


def _contains_any(name: str, values: Sequence[str]) -> Filters:
    return Filters(
        operator=Filters.OPERATOR_CONTAINS_ANY,
        target=FilterTarget(property=name),
        value_text_array=TextArray(values=list(dict.fromkeys(values))),
    )


def _joined(operator: Filters.Operator, parts: Sequence[Filters | None]) -> Filters | None:
    filters = [part for part in parts if part is not None]
    if len(filters) < 2:
        return filters[0] if filters else None
    return Filters(operator=operator, filters=filters)
