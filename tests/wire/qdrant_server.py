"""A program that speaks Qdrant's REST API as far as `workers/retrieval/stores/qdrant.py` needs it:
`python -m tests.wire.qdrant_server --port N`.

No registry has the server itself. This one has its engine: `qdrant-edge-py` is Qdrant's own code of
one shard in Rust, with its filters, payload indexes and HNSW. Bodies are checked against the shapes
of Qdrant's OpenAPI document, from which `qdrant-client` has its models; answers are made of them.
The Python binding of the engine takes a condition on `true` for one on 1, so booleans are texts in
the engine here (`_engine_value`).

With `Wire.behaviours["qdrant"]` it refuses or hangs.
"""

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import qdrant_edge as edge
from pydantic import TypeAdapter, ValidationError
from qdrant_client import models
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.wire.behaviour import Wire, application, note, refusal, run, serving

T = TypeVar("T")

NOTHING = "nothing"
_SCHEMA_TYPES = {
    models.PayloadSchemaType.KEYWORD: edge.PayloadSchemaType.Keyword,
    models.PayloadSchemaType.FLOAT: edge.PayloadSchemaType.Float,
    models.PayloadSchemaType.BOOL: edge.PayloadSchemaType.Keyword,
}
_EMPTY_CONFIG: dict[str, Any] = {
    "params": {"vectors": {}},
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    },
}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Collection:
    def __init__(self, folder: Path, create: models.CreateCollection) -> None:
        self.folder, self.create = folder, create
        self.schema: dict[str, models.PayloadSchemaType] = {}
        vectors = create.vectors
        if isinstance(vectors, models.VectorParams):
            assert vectors.distance is models.Distance.COSINE
            ef_construct = create.hnsw_config and create.hnsw_config.ef_construct
            config = edge.EdgeConfig(
                vectors=edge.EdgeVectorParams(vectors.size, edge.Distance.Cosine),
                hnsw_config=edge.HnswIndexConfig(
                    m=16, ef_construct=ef_construct or 100, full_scan_threshold=10_000
                ),
            )
        else:
            # The engine wants a vector, which no point has to have.
            assert vectors == {}
            config = edge.EdgeConfig(sparse_vectors={NOTHING: edge.EdgeSparseVectorParams()})
        folder.mkdir()
        self.shard = edge.EdgeShard.create(str(folder), config)

    def info(self) -> dict[str, Any]:
        count = self.shard.count(edge.CountRequest())
        # The engine has its own way to write paths, and no type for booleans.
        types = {path.replace('"', ""): type_.value for path, type_ in self.schema.items()}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": count,
            "segments_count": 1,
            "config": _EMPTY_CONFIG,
            "payload_schema": {
                path: {"data_type": types[path.replace('"', "")], "points": count}
                for path in self.shard.info().payload_schema
            },
        }


class Server:
    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.folder, self.key = folder, key
        self.collections: dict[str, Collection] = {}
        self.made = 0

    def close(self) -> None:
        for collection in self.collections.values():
            collection.shard.close()

    def of(self, name: str) -> Collection:
        if name not in self.collections:
            raise Refusal(404, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[name]

    def create(self, name: str, body: Any) -> bool:
        create = _read(models.CreateCollection, body)
        if name in self.collections:
            raise Refusal(409, f"Wrong input: Collection `{name}` already exists!")
        self.made += 1
        self.collections[name] = Collection(self.folder / str(self.made), create)
        return True

    def delete(self, name: str) -> bool:
        collection = self.collections.pop(name, None)
        if collection is not None:
            collection.shard.close()
        return collection is not None

    def upsert(self, name: str, body: Any) -> dict[str, Any]:
        points = [
            edge.Point(point.id, _dense(point.vector), _engine_value(point.payload or {}))
            for point in _read(models.PointsList, body).points
        ]
        return self._update(name, edge.UpdateOperation.upsert_points(points))

    def set_payload(self, name: str, body: Any) -> dict[str, Any]:
        request = _read(models.SetPayload, body)
        assert request.filter is not None
        operation = edge.UpdateOperation.set_payload_by_filter(
            engine_filter(request.filter), _engine_value(request.payload)
        )
        return self._update(name, operation)

    def delete_points(self, name: str, body: Any) -> dict[str, Any]:
        selector = _read(models.PointIdsList, body)
        return self._update(name, edge.UpdateOperation.delete_points(selector.points))

    def index(self, name: str, body: Any) -> dict[str, Any]:
        request = _read(models.CreateFieldIndex, body)
        assert isinstance(request.field_schema, models.PayloadSchemaType)
        operation = edge.UpdateOperation.create_field_index(
            request.field_name, _SCHEMA_TYPES[request.field_schema]
        )
        answer = self._update(name, operation)
        self.of(name).schema[request.field_name] = request.field_schema
        return answer

    def _update(self, name: str, operation: edge.UpdateOperation) -> dict[str, Any]:
        shard = self.of(name).shard
        try:
            shard.update(operation)
        except Exception as error:  # the engine has no narrower one
            raise Refusal(400, f"Wrong input: {error}") from error
        return {"operation_id": 1, "status": "completed"}

    def retrieve(self, name: str, body: Any) -> list[dict[str, Any]]:
        request = _read(models.PointRequest, body)
        records = self.of(name).shard.retrieve(
            request.ids,
            with_payload=_payload(request.with_payload),
            with_vector=request.with_vector,
        )
        return [
            {"id": str(one.id), "payload": _client_value(one.payload), "vector": one.vector}
            for one in records
        ]

    def scroll(self, name: str, body: Any) -> dict[str, Any]:
        request = _read(models.ScrollRequest, body)
        assert request.filter is None
        records, following = self.of(name).shard.scroll(
            edge.ScrollRequest(
                offset=request.offset,
                limit=request.limit,
                with_payload=_payload(request.with_payload),
            )
        )
        points = [{"id": str(one.id), "payload": _client_value(one.payload)} for one in records]
        return {"points": points, "next_page_offset": following and str(following)}

    def query(self, name: str, body: Any) -> dict[str, Any]:
        request = _read(models.QueryRequest, body)
        query = request.query
        if isinstance(query, models.NearestQuery):
            query = query.nearest
        assert query is None or isinstance(query, list)
        points = self.of(name).shard.query(
            edge.QueryRequest(
                limit=10 if request.limit is None else request.limit,
                offset=request.offset,
                query=None if query is None else edge.Query.Nearest(query),
                filter=None if request.filter is None else engine_filter(request.filter),
                with_payload=_payload(request.with_payload),
                params=edge.SearchParams(
                    hnsw_ef=None if request.params is None else request.params.hnsw_ef
                ),
            )
        )
        return {
            "points": [
                {"id": str(one.id), "version": 0, "score": one.score, "payload": one.payload}
                for one in points
            ]
        }

    def batch(self, name: str, body: Any) -> list[dict[str, Any]]:
        return [self.query(name, search) for search in body["searches"]]

    def count(self, name: str, body: Any) -> dict[str, int]:
        assert _read(models.CountRequest, body).exact
        return {"count": self.of(name).shard.count(edge.CountRequest())}


def engine_filter(filter_: models.Filter) -> edge.Filter:
    return edge.Filter(
        must=_engine_conditions(filter_.must),
        should=_engine_conditions(filter_.should),
        must_not=_engine_conditions(filter_.must_not),
    )


def _engine_conditions(conditions: Any) -> list[Any] | None:
    return None if conditions is None else [_engine_condition(one) for one in conditions]


def _engine_condition(condition: models.Condition) -> Any:
    match condition:
        case models.Filter():
            return engine_filter(condition)
        case models.HasIdCondition():
            return edge.HasIdCondition(set(condition.has_id))
        case models.FieldCondition(match=models.MatchValue() as match_):
            return edge.FieldCondition(
                condition.key, match=edge.MatchValue(_engine_value(match_.value))
            )
        case models.FieldCondition(match=models.MatchAny() as match_):
            return edge.FieldCondition(condition.key, match=edge.MatchAny(match_.any))
        case models.FieldCondition(range=models.Range() as range_):
            bounds = edge.RangeFloat(**range_.model_dump())
            return edge.FieldCondition(condition.key, range=bounds)
    raise Refusal(400, f"no condition that this server knows: {condition!r}")


def _dense(vector: Any) -> list[float] | dict[str, Any]:
    """The vector of a point: one, or none."""
    assert isinstance(vector, list | dict)
    return vector


def _payload(selector: Any) -> bool | list[str]:
    """Which keys of the payload are wanted: all, none, or these."""
    assert isinstance(selector, bool | list)
    return selector


def _engine_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _engine_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_engine_value(inner) for inner in value]
    return f"\0{value}" if isinstance(value, bool) else value


def _client_value(value: Any) -> Any:
    """The opposite of `_engine_value`."""
    if isinstance(value, dict):
        return {key: _client_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_client_value(item) for item in value]
    return {"\0True": True, "\0False": False}.get(value, value) if isinstance(value, str) else value


def _read(shape: type[T], body: Any) -> T:
    try:
        return TypeAdapter(shape).validate_python(body)
    except ValidationError as error:
        raise Refusal(400, f"Format error in JSON body: {error}") from error


@contextmanager
def served_qdrant(key: str | None = None) -> Iterator[Wire]:
    """Until the end of the block; with a key, which clients have to have."""
    wire = Wire()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), key)
        with serving(wire, make_app(wire, server)):
            yield wire
        server.close()


def make_app(wire: Wire, server: Server) -> Starlette:
    def answered(call: Callable[[str, Any], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            body = await note(wire, request)
            if server.key not in (None, request.headers.get("api-key")):
                return _error("Invalid API key or JWT", 401)
            if answer := await refusal(
                wire, request, "qdrant", lambda message, _: _status(message)
            ):
                return answer
            try:
                result = call(request.path_params.get("name", ""), body)
            except Refusal as error:
                return _error(str(error), error.status)
            return JSONResponse({"result": result, "status": "ok", "time": 0.001})

        return answer

    def route(
        path: str,
        call: Callable[[str, Any], Any],
        *methods: str,
        below: str = "/collections/{name}",
    ) -> Route:
        return Route(below + path, answered(call), methods=list(methods))

    async def ready(_: Request) -> Response:
        return PlainTextResponse("all shards are ready")

    return application(
        wire,
        [
            Route("/readyz", ready),
            route("", server.create, "PUT"),
            route("", lambda name, _: server.delete(name), "DELETE"),
            route("", lambda name, _: server.of(name).info(), "GET"),
            route("/exists", lambda name, _: {"exists": name in server.collections}, "GET"),
            route("/index", server.index, "PUT"),
            route("/points", server.upsert, "PUT"),
            route("/points", server.retrieve, "POST"),
            route("/points/payload", server.set_payload, "POST"),
            route("/points/delete", server.delete_points, "POST"),
            route("/points/count", server.count, "POST"),
            route("/points/scroll", server.scroll, "POST"),
            route("/points/query", server.query, "POST"),
            route("/points/query/batch", server.batch, "POST"),
        ],
    )


def _status(message: str) -> dict[str, Any]:
    return {"status": {"error": message}, "time": 0.0}


def _error(message: str, status: int) -> Response:
    return JSONResponse(_status(message), status_code=status)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        run(make_app(Wire(), Server(Path(home))))
