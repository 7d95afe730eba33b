"""A server that speaks Weaviate's protocol, in threads of this process: a stand-in, since no
registry has Weaviate itself.

What it can be trusted for:

- gRPC messages are those that Weaviate publishes, as its Python client brings them: a request with
  other fields or types cannot be sent.
- Calls of the REST API are checked against `weaviate_contract.json`, which says its source; so are
  the answers of this program.
- What requests do, and with which words they are refused, is written after the source of Weaviate
  (adapters/handlers/grpc/v1, adapters/repos/db/inverted, entities/filters, usecases/schema). What
  it does not know it refuses.

What it does not have: the index of neighbours (it compares all vectors), more than one node,
anything about speed, disk and memory.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import jsonschema
import numpy as np
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from weaviate.proto.v1 import (
    aggregate_pb2,
    batch_delete_pb2,
    batch_pb2,
    properties_pb2,
    search_get_pb2,
)

from tests.wire.behaviour import Wire, application, note, refusal, serving

CONTRACT: dict[str, Any] = json.loads(
    Path(__file__).with_name("weaviate_contract.json").read_text(encoding="utf-8")
)
VERSION = "1.36.2"
DEFAULT_LIMIT = 10
MESSAGE_LIMIT_BYTES = 104_858_000
# By their numbers in base.proto: the client below 4.17 does not know `Not`.
OPERATORS = {7: "AND", 8: "OR", 12: "CONTAINS_ANY", 15: "NOT"}
SERVICE = "weaviate.v1.Weaviate"

Object = dict[str, Any]


@dataclass(kw_only=True)
class WeaviateCollection:
    """A class, its objects by UUID in the order of their arrival, and their vectors."""

    definition: dict[str, Any]
    objects: dict[str, Object] = field(default_factory=dict)
    vectors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.definition["class"])

    def property(self, name: str) -> dict[str, Any]:
        for one in self.definition["properties"]:
            if one["name"] == name:
                found: dict[str, Any] = one
                return found
        raise Refused(f"no such prop with name '{name}' found in class '{self.name}' in the schema")


@dataclass(kw_only=True)
class WeaviateWire:
    """A running server. `rest.behaviours["schema"]` and `["meta"]` set faults of the REST API;
    faults of gRPC are below, by the name of the method."""

    rest: Wire = field(default_factory=Wire)
    url: str = ""
    """For SLUICE_VECTORS_URL."""
    grpc_port: int = 0
    api_key: str | None = None
    version: str = VERSION
    maximum_results: int = 10_000
    """QUERY_MAXIMUM_RESULTS"""
    has_auto_schema: bool = True
    """AUTOSCHEMA_ENABLED"""
    collections: dict[str, WeaviateCollection] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    failures: dict[str, tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    object_error: str | None = None
    """With this each object of a batch is refused."""
    keeps_objects: bool = False
    """Deletions are answered, and delete nothing."""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Methods and requests of gRPC, as JSON."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def requests(self, method: str) -> list[dict[str, Any]]:
        return [request for name, request in self.calls if name == method]

    def find(self, name: str) -> WeaviateCollection | None:
        """Names differ in more than capitals and small letters."""
        return next(
            (one for key, one in self.collections.items() if key.lower() == name.lower()), None
        )

    def get(self, name: str) -> WeaviateCollection:
        collection = self.find(name)
        if collection is None:
            raise Refused(f"could not find class {name} in schema")
        return collection


class Refused(Exception):
    """Go's plain errors have the status UNKNOWN in gRPC."""


@contextmanager
def served_weaviate(wire: WeaviateWire | None = None) -> Iterator[WeaviateWire]:
    wire = wire or WeaviateWire()
    with ExitStack() as stack:
        wire.grpc_port = stack.enter_context(_serving_grpc(wire))
        stack.enter_context(serving(wire.rest, make_app(wire)))
        address = wire.rest.url.removeprefix("http://")
        wire.url = f"weaviate://{address}?grpc=127.0.0.1:{wire.grpc_port}"
        yield wire


# REST


def make_app(wire: WeaviateWire) -> Starlette:
    def answer(call: str, status: int, content: Any = None) -> Response:
        """An answer as the contract has it."""
        definition = CONTRACT["calls"][call][str(status)]
        if definition is None:
            return Response(status_code=status)
        _check(content, definition)
        return JSONResponse(content, status_code=status)

    async def refused(request: Request, part: str) -> Response | None:
        authorization = request.headers.get("authorization")
        if wire.api_key is not None and authorization != f"Bearer {wire.api_key}":
            body = {"code": 401, "message": "unauthorized: invalid api key"}
            return JSONResponse(body, status_code=401)
        return await refusal(wire.rest, request, part, lambda text, _: _errors(text))

    async def meta(request: Request) -> Response:
        await note(wire.rest, request)
        content = {
            "hostname": "http://[::]:8080",
            "version": wire.version,
            "modules": {},
            "grpcMaxMessageSize": MESSAGE_LIMIT_BYTES,
        }
        return await refused(request, "meta") or answer("GET /v1/meta", 200, content)

    async def ready(_: Request) -> Response:
        return answer("GET /v1/.well-known/ready", 200)

    async def add(request: Request) -> Response:
        call = "POST /v1/schema"
        body = await note(wire.rest, request)
        no = await refused(request, "schema")
        if no is not None:
            return no
        try:
            _check(body, CONTRACT["calls"][call]["body"])
            with wire.lock:
                if wire.find(body["class"]) is not None:
                    raise Refused(f"class name {body['class']} already exists")
                collection = WeaviateCollection(definition=_with_defaults(body))
                wire.collections[body["class"]] = collection
        except Refused as error:
            return answer(call, 422, _errors(str(error)))
        return answer(call, 200, collection.definition)

    async def get(request: Request) -> Response:
        call = "GET /v1/schema/{className}"
        await note(wire.rest, request)
        no = await refused(request, "schema")
        if no is not None:
            return no
        collection = wire.find(request.path_params["name"])
        return answer(call, 404) if collection is None else answer(call, 200, collection.definition)

    async def remove(request: Request) -> Response:
        await note(wire.rest, request)
        no = await refused(request, "schema")
        if no is not None:
            return no
        with wire.lock:
            collection = wire.find(request.path_params["name"])
            if collection is not None:
                del wire.collections[collection.name]
        return answer("DELETE /v1/schema/{className}", 200)

    return application(
        wire.rest,
        [
            Route("/v1/meta", meta),
            Route("/v1/.well-known/ready", ready),
            Route("/v1/schema", add, methods=["POST"]),
            Route("/v1/schema/{name}", get, methods=["GET"]),
            Route("/v1/schema/{name}", remove, methods=["DELETE"]),
        ],
    )


def _check(content: Any, definition: str) -> None:
    schema = {"$ref": f"#/definitions/{definition}", "definitions": CONTRACT["definitions"]}
    try:
        jsonschema.validate(content, schema)
    except jsonschema.ValidationError as error:
        raise Refused(f"{definition}: {error.message}") from error


def _errors(message: str) -> dict[str, Any]:
    return {"error": [{"message": message}]}


def _with_defaults(body: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with what the server adds."""
    return {
        **body,
        "vectorizer": body.get("vectorizer", "none"),
        "vectorIndexType": body.get("vectorIndexType", "hnsw"),
        "vectorIndexConfig": {"distance": "cosine", **body.get("vectorIndexConfig", {})},
        "replicationConfig": {"factor": 1, **body.get("replicationConfig", {})},
        "properties": [_property_with_defaults(one) for one in body.get("properties", ())],
    }


def _property_with_defaults(body: Mapping[str, Any]) -> dict[str, Any]:
    is_text = body["dataType"][0] in ("text", "text[]")
    if not is_text and "tokenization" in body:
        raise Refused(f"Tokenization is not allowed for data type '{body['dataType'][0]}'")
    if not is_text and body.get("indexSearchable"):
        raise Refused("`indexSearchable` is allowed only for text/text[] data types")
    defaults: dict[str, Any] = {"indexFilterable": True, "indexSearchable": is_text}
    if is_text:
        defaults["tokenization"] = "word"
    return {**defaults, **body}


# gRPC


@contextmanager
def _serving_grpc(wire: WeaviateWire) -> Iterator[int]:
    pool = ThreadPoolExecutor(32, thread_name_prefix="weaviate")
    limit = ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES)
    server = grpc.server(pool, options=[limit])
    server.add_generic_rpc_handlers((_handlers(wire),))
    bound = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield bound
    finally:
        server.stop(grace=None).wait()
        pool.shutdown()


def _handlers(wire: WeaviateWire) -> Any:
    methods: dict[str, tuple[Callable[[WeaviateWire, Any], Any], Any]] = {
        "Search": (_search, search_get_pb2.SearchRequest),
        "Aggregate": (_aggregate, aggregate_pb2.AggregateRequest),
        "BatchObjects": (_batch_objects, batch_pb2.BatchObjectsRequest),
        "BatchDelete": (_batch_delete, batch_delete_pb2.BatchDeleteRequest),
    }

    def handler(name: str) -> Any:
        function, request_type = methods[name]

        def serve(request: Any, context: Any) -> Any:
            wire.calls.append((name, MessageToDict(request)))
            sent = dict(context.invocation_metadata()).get("authorization")
            if wire.api_key is not None and sent != f"Bearer {wire.api_key}":
                why = "extract auth: unauthorized: invalid api key"
                context.abort(grpc.StatusCode.UNAUTHENTICATED, why)
            while name in wire.hanging and context.is_active():
                time.sleep(0.01)
            if name in wire.failures:
                context.abort(*wire.failures[name])
            try:
                with wire.lock:
                    return function(wire, request)
            except Refused as error:
                context.abort(grpc.StatusCode.UNKNOWN, str(error))

        return grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=request_type.FromString,
            response_serializer=lambda reply: reply.SerializeToString(),
        )

    return grpc.method_handlers_generic_handler(SERVICE, {name: handler(name) for name in methods})


def _search(wire: WeaviateWire, request: Any) -> Any:
    collection = wire.get(request.collection)
    _refuse_other_fields(
        request,
        "collection", "limit", "offset", "after", "filters", "near_vector", "metadata",
        "properties", "consistency_level", "uses_123_api", "uses_125_api", "uses_127_api",
    )  # fmt: skip
    limit = request.limit or DEFAULT_LIMIT
    if request.offset + limit > wire.maximum_results:
        raise Refused(
            "invalid pagination params: query maximum results exceeded: the total limit calculated "
            f"from the provided offset '{request.offset}' and limit '{limit}' exceeds the "
            f"configured value for QUERY_MAXIMUM_RESULTS '{wire.maximum_results}'."
        )
    for name in request.properties.non_ref_properties:
        collection.property(name)
    ids = list(collection.objects)
    has_filters = request.HasField("filters")
    if has_filters:
        ids = [id_ for id_ in ids if _holds(collection, id_, request.filters)]
    if request.after:
        if has_filters or request.offset or request.HasField("near_vector"):
            raise Refused(
                "cursor api: invalid 'after' parameter: where cannot be set with after and limit "
                "parameters"
            )
        ids = sorted(id_ for id_ in ids if id_ > str(UUID(request.after)))
    distances: dict[str, float] = {}
    if request.HasField("near_vector"):
        distances = _distances(collection, ids, request.near_vector)
        ids = sorted((id_ for id_ in ids if id_ in distances), key=lambda id_: distances[id_])
    ids = ids[request.offset : request.offset + limit]
    return search_get_pb2.SearchReply(
        results=[_result(collection, id_, request, distances.get(id_)) for id_ in ids]
    )


def _distances(
    collection: WeaviateCollection, ids: list[str], near_vector: Any
) -> dict[str, float]:
    _refuse_other_fields(near_vector, "vector_bytes", "vectors")
    data = near_vector.vectors[0].vector_bytes if near_vector.vectors else near_vector.vector_bytes
    if not data:
        raise Refused("near_vector: vector is required")
    ids = [id_ for id_ in ids if id_ in collection.vectors]
    if not ids:
        return {}
    query = np.frombuffer(data, dtype="<f4")
    stored = np.stack([collection.vectors[id_] for id_ in ids])
    if stored.shape[1] != len(query):
        raise Refused(
            "vector search: knn search: distance between entrypoint and query node: vector lengths "
            f"don't match: {stored.shape[1]} vs {len(query)}"
        )
    metric = collection.definition["vectorIndexConfig"]["distance"]
    if metric == "l2-squared":
        values = np.sum((stored - query) ** 2, axis=1)
    elif metric == "dot":
        values = -(stored @ query)
    else:
        values = 1 - stored @ (query / np.linalg.norm(query))
    return dict(zip(ids, values.tolist(), strict=True))


def _result(collection: WeaviateCollection, id_: str, request: Any, distance: float | None) -> Any:
    metadata = search_get_pb2.MetadataResult()
    if request.metadata.uuid:
        metadata.id, metadata.id_as_bytes = id_, UUID(id_).bytes
    if request.metadata.vector and id_ in collection.vectors:
        metadata.vector_bytes = collection.vectors[id_].astype("<f4").tobytes()
    if request.metadata.distance and distance is not None:
        metadata.distance, metadata.distance_present = distance, True
    stored = collection.objects[id_]
    names = request.properties.non_ref_properties
    if not request.HasField("properties") or request.properties.return_all_nonref_properties:
        names = [one["name"] for one in collection.definition["properties"]]
    properties = properties_pb2.Properties()
    for name in names:
        properties.fields[name].CopyFrom(_value(collection.property(name), stored.get(name)))
    return search_get_pb2.SearchResult(
        metadata=metadata,
        properties=search_get_pb2.PropertiesResult(
            non_ref_props=properties, target_collection=collection.name
        ),
    )


def _value(definition: Mapping[str, Any], value: Any) -> Any:
    if value is None:
        return properties_pb2.Value(null_value=0)
    match definition["dataType"][0]:
        case "text":
            return properties_pb2.Value(text_value=value)
        case "text[]":
            texts = properties_pb2.TextValues(values=value)
            return properties_pb2.Value(list_value=properties_pb2.ListValue(text_values=texts))
        case "int":
            return properties_pb2.Value(int_value=int(value))
        case "number":
            return properties_pb2.Value(number_value=value)
    return properties_pb2.Value(bool_value=value)


def _aggregate(wire: WeaviateWire, request: Any) -> Any:
    collection = wire.get(request.collection)
    _refuse_other_fields(request, "collection", "objects_count")
    single = aggregate_pb2.AggregateReply.Single()
    if request.objects_count:
        single.objects_count = len(collection.objects)
    return aggregate_pb2.AggregateReply(single_result=single)


def _batch_objects(wire: WeaviateWire, request: Any) -> Any:
    reply = batch_pb2.BatchObjectsReply()
    for index, one in enumerate(request.objects):
        try:
            _put(wire, one)
        except (Refused, ValueError) as error:
            reply.errors.add(index=index, error=str(error))
    return reply


def _put(wire: WeaviateWire, one: Any) -> None:
    _refuse_other_fields(one, "uuid", "properties", "collection", "vector_bytes")
    _refuse_other_fields(one.properties, "non_ref_properties", "text_array_properties")
    if wire.object_error is not None:
        raise Refused(wire.object_error)
    id_ = str(UUID(one.uuid))
    collection = wire.find(one.collection)
    if collection is None:
        if not wire.has_auto_schema:
            raise Refused(f"class '{one.collection}' not present in schema")
        collection = WeaviateCollection(definition=_with_defaults({"class": one.collection}))
        wire.collections[one.collection] = collection
    properties: Object = MessageToDict(one.properties.non_ref_properties)
    for array in one.properties.text_array_properties:
        properties[array.prop_name] = list(array.values)
    for name, value in properties.items():
        if not any(one["name"] == name for one in collection.definition["properties"]):
            guess = _property_with_defaults({"name": name, "dataType": [_type(value)]})
            collection.definition["properties"].append(guess)
        _check_value(collection, name, value)
    vector = np.frombuffer(one.vector_bytes, dtype="<f4").astype(np.float32)
    for other in collection.vectors.values():
        if len(other) != len(vector):
            raise Refused(
                f"insert to vector index: new node has a vector with length {len(vector)}. "
                f"Existing nodes have vectors with length {len(other)}"
            )
        break
    if collection.definition["vectorIndexConfig"]["distance"] == "cosine":
        vector = vector / np.linalg.norm(vector)
    # An object that is written again has another place in the order of arrival.
    collection.objects.pop(id_, None)
    collection.objects[id_] = properties
    collection.vectors[id_] = vector


def _type(value: Any) -> str:
    if isinstance(value, list):
        return "text[]"
    names: dict[type, str] = {str: "text", bool: "boolean", float: "number"}
    return names[type(value)]


def _check_value(collection: WeaviateCollection, name: str, value: Any) -> None:
    type_ = collection.property(name)["dataType"][0]
    fits = {
        "text": isinstance(value, str),
        "text[]": isinstance(value, list) and all(isinstance(item, str) for item in value),
        "int": isinstance(value, float) and value.is_integer(),
        "number": isinstance(value, float),
        "boolean": isinstance(value, bool),
    }[type_]
    if not fits:
        raise Refused(f"invalid {type_} property '{name}' on class '{collection.name}': {value!r}")


def _batch_delete(wire: WeaviateWire, request: Any) -> Any:
    collection = wire.get(request.collection)
    _refuse_other_fields(request, "collection", "filters", "consistency_level", "dry_run")
    if not request.HasField("filters"):
        raise Refused("batch delete params: no filters in batch delete request")
    ids = [id_ for id_ in collection.objects if _holds(collection, id_, request.filters)]
    deleted = ids[: wire.maximum_results]
    if not request.dry_run and not wire.keeps_objects:
        for id_ in deleted:
            del collection.objects[id_]
            del collection.vectors[id_]
    return batch_delete_pb2.BatchDeleteReply(matches=len(ids), successful=len(deleted))


def _holds(collection: WeaviateCollection, id_: str, filters: Any) -> bool:
    """Whether an object matches. Every part is looked at, as the server checks the whole first."""
    operator = OPERATORS.get(filters.operator, str(filters.operator))
    if operator in ("AND", "OR", "NOT"):
        parts = [_holds(collection, id_, part) for part in filters.filters]
        if not parts:
            raise Refused(f'no children for operator "{operator}"')
        if operator == "NOT":
            if len(parts) > 1:
                raise Refused(
                    f'too many children for operator "Not". Expected 1, given {len(parts)}'
                )
            return not parts[0]
        return all(parts) if operator == "AND" else any(parts)
    if operator != "CONTAINS_ANY" or filters.WhichOneof("test_value") != "value_text_array":
        raise Refused(f"this stand-in has no filter {operator} of {filters}")
    name, values = filters.target.property, list(filters.value_text_array.values)
    if name == "_id":
        return id_ in values
    definition = collection.property(name)
    if definition["dataType"][0] not in ("text", "text[]"):
        raise Refused(f'data type filter cannot use "valueText" on type "{definition["dataType"]}"')
    if not definition["indexFilterable"] and not definition["indexSearchable"]:
        raise Refused(f"Filtering by property '{name}' requires inverted index.")
    stored = collection.objects[id_].get(name, [])
    terms = _tokens(definition, stored if isinstance(stored, list) else [stored])
    if definition["tokenization"] == "field":  # one token of each value
        return not terms.isdisjoint(_tokens(definition, values))
    return any(_tokens(definition, [value]) <= terms for value in values)


def _tokens(definition: Mapping[str, Any], texts: list[str]) -> set[str]:
    if definition["tokenization"] == "field":
        return {text.strip() for text in texts}
    if definition["tokenization"] == "word":
        return {token for text in texts for token in re.findall(r"\w+", text.lower())}
    raise Refused(f"this stand-in has no tokenization {definition['tokenization']}")


def _refuse_other_fields(message: Any, *known: str) -> None:
    other = {descriptor.name for descriptor, _ in message.ListFields()} - set(known)
    if other:
        raise Refused(f"this stand-in has no {', '.join(sorted(other))} of {type(message)}")
