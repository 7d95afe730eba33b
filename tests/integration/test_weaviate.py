"""The store Weaviate on the stand-in of `tests/wire/weaviate_server.py`, which says what it can be
trusted for. Jobs on it: `test_weaviate_jobs.py`."""

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from random import Random
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import weaviate
from hypothesis import given
from hypothesis import strategies as st
from weaviate.classes.query import Filter, MetadataQuery

from shared.bounds import Metadata, Scalar
from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Unavailable
from shared.filters import MetadataFilter
from shared.vector_stores import store_of_urls
from tests.integration.vector_store_contract import VectorStoreContract, along, entry
from tests.wire.behaviour import Behaviour
from tests.wire.weaviate_server import WeaviateWire, served_weaviate
from workers.retrieval.store import MissingCollection, VectorEntry, VectorStore
from workers.retrieval.stores import weaviate as weaviate_store
from workers.retrieval.stores.weaviate import Weaviate, object_id, stored_name

KEY = "a-key-of-weaviate"

EDGE = 2**53
SINGLE: list[Scalar] = [
    0, 1, -1, 2024, 2024.0, 0.5, -0.5, 0.1, 1e-300, 5e-324, -0.0, EDGE - 1, EDGE, EDGE + 1,
    float(EDGE), -EDGE - 1, 2**63 - 1, -(2**63), 1e19, -1e30, 1.7976931348623157e308,
    "", " ", "a", "A", "é", "가", "2024", "true", "2024-01-31", "a'\"\\%_", True, False,
]  # fmt: skip
LISTS: list[list[Scalar]] = [
    [], ["a"], ["a", "b"], ["2024"], [2024, 0], [0.5, 1], [1.0], [EDGE + 1, 0.5], [True, False],
]  # fmt: skip
KEYS = ["a", "b", "", "$price", "#", "a.b", "가", "source", "document_id", "start_index"]


@pytest.fixture(scope="module")
def shared_wire() -> Iterator[WeaviateWire]:
    with served_weaviate() as wire:
        yield wire


@pytest.fixture
def wire() -> Iterator[WeaviateWire]:
    """A server of its own for a test that sets faults."""
    with served_weaviate() as wire:
        yield wire


def settings_with(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@pytest.fixture
def store(wire: WeaviateWire) -> Iterator[Weaviate]:
    store = Weaviate(settings_with(), wire.url)
    yield store
    store.close()


class TestWeaviate(VectorStoreContract):
    store_class = Weaviate

    @pytest.fixture
    def store(self, shared_wire: WeaviateWire) -> Iterator[VectorStore]:
        (url,) = store_of_urls(shared_wire.url).urls
        store = Weaviate(settings_with(), url.text)
        yield store
        store.close()


# Names and ids

NAMES = ["docs", "docs_2024", "Docs", "DOCS", "docs-2024", "docs 2024", "_docs", "고객",
         "고객 지원", "é", "e\u0301", "a" * 100, "a" * 101, "A" * 100, "-", "日" * 128]  # fmt: skip


def test_names_are_those_of_weaviate_and_differ_without_capitals() -> None:
    stored = [stored_name(name) for name in NAMES]
    assert all(re.fullmatch(r"[A-Z][_0-9A-Za-z]{0,254}", name) for name in stored)
    assert len({name.lower() for name in stored}) == len(NAMES)
    assert stored_name("docs_2024") == "Sluice_docs_2024"
    assert stored_name("Docs 2024").startswith("Sluice__docs_2024_")


def test_an_id_has_the_same_uuid_always() -> None:
    assert object_id("a") == "09138df9-a318-5ef2-8794-fbbaac21d209"


# Filters


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_doubles_have_places_in_their_order(one: float, other: float) -> None:
    places = weaviate_store.place(one), weaviate_store.place(other)
    assert (one < other) == (places[0] < places[1])
    assert (one == other) == (places[0] == places[1])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_range_is_covered_once_and_with_few_terms(one: int, other: int) -> None:
    low, high = sorted((one, other))
    parts = sorted(
        (digits << shift, ((digits + 1) << shift) - 1)
        for shift, digits in weaviate_store.cover(low, high)
    )
    assert (parts[0][0], parts[-1][1]) == (low, high)
    assert all(end + 1 == start for (_, end), (start, _) in pairwise(parts))
    assert len(parts) <= 480


def filters(random: Random, depth: int = 3) -> dict[str, Any]:
    kind = random.choice(["$and", "$or", "$not", *["key"] * 6]) if depth else "key"
    if kind == "$not":
        return {"$not": filters(random, depth - 1)}
    if kind != "key":
        return {kind: [filters(random, depth - 1) for _ in range(random.randint(1, 3))]}
    value = random.choice(SINGLE)
    comparisons: list[dict[str, Any]] = [
        {"$eq": value},
        {"$ne": value},
        {"$in": random.sample(SINGLE, random.randint(0, 4))},
        {"$nin": random.sample(SINGLE, random.randint(0, 4))},
        {"$contains": value},
    ]
    if not isinstance(value, bool):
        comparisons += [{sign: value} for sign in ("$gt", "$gte", "$lt", "$lte")] * 2
    key = random.choice(["a", "b", "가", "start_index", "source"])
    return {key: random.choice(comparisons)}


def chunks(random: Random, count: int) -> Iterator[VectorEntry]:
    values: Sequence[Any] = [*SINGLE, *LISTS]
    for n in range(count):
        keys = random.sample(KEYS, random.randint(0, 4)) + ["a"] * (n % 2)
        yield VectorEntry(
            id=f"chunk-{n}",
            text="x",
            metadata={key: random.choice(values) for key in keys},
            own={"source": random.choice(["wiki", "a"]), "document_id": "d", "start_index": n},
        )


def test_filters_mean_what_they_mean_in_python(store: Weaviate) -> None:
    random = Random(14)
    store.make("filters", "cosine")
    entries = list(chunks(random, 70))
    store.upsert("filters", entries, along(*[0] * len(entries)))
    exact = 0
    for _ in range(150):
        where = MetadataFilter.read(filters(random))
        expected = {one.id for one in entries if where.matches(one.metadata, one.own)}
        (row,) = store.query("filters", along(0), limit=1000, where=where)
        found = {match.id for match in row}
        assert found >= expected, where.json
        if store.is_exact(where):
            exact += 1
            assert found == expected, where.json
    assert exact > 30


def test_which_filters_are_exact() -> None:
    store = Weaviate(settings_with(), "weaviate://127.0.0.1:8080")
    cases: list[tuple[Metadata, bool]] = [
        ({"year": {"$gte": 2020, "$lt": 2025}}, True),
        ({"$not": {"$or": [{"year": {"$gt": 0.5}}, {"city": {"$nin": ["a", 1, True]}}]}}, True),
        ({"day": {"$gte": "2024-01-31"}}, False),
        ({"size": {"$gt": 2**60}}, False),
        ({"start_index": {"$gt": 5}}, False),
    ]
    for where, is_exact in cases:
        assert store.is_exact(MetadataFilter.read(where)) is is_exact, where


# What is sent


def test_writes_and_deletes_wait_for_all_replicas_and_searches_ask_one(
    wire: WeaviateWire, store: Weaviate
) -> None:
    store.make("docs", "ip")
    store.upsert("docs", [entry("a"), entry("b")], along(0, 1))
    store.query("docs", along(0), limit=1, where=None)
    assert store.delete("docs", ["a"]) == 1
    all_ = "CONSISTENCY_LEVEL_ALL"
    assert [one["consistencyLevel"] for one in wire.requests("BatchObjects")] == [all_]
    assert [one["consistencyLevel"] for one in wire.requests("BatchDelete")] == [all_]
    search, verification = wire.requests("Search")
    assert search["consistencyLevel"] == "CONSISTENCY_LEVEL_ONE"
    assert verification["consistencyLevel"] == all_
    definition = wire.get(stored_name("docs")).definition
    assert definition["vectorizer"] == "none"
    assert definition["vectorIndexConfig"] == {
        "distance": "cosine",
        "skipDefaultQuantization": True,
    }


def test_no_request_is_larger_than_a_small_server_takes(
    wire: WeaviateWire, store: Weaviate
) -> None:
    store.make("docs", "cosine")
    text = "x" * 1_000_000
    entries = [VectorEntry(id=f"{n}", text=text, metadata={}) for n in range(20)]
    store.upsert("docs", entries, along(*[0] * 20))
    sizes = [len(one["objects"]) for one in wire.requests("BatchObjects")]
    assert sum(sizes) == 20
    assert max(sizes) == 8
    # Nor is an answer.
    assert all(store.compare("docs", entries).values())
    asked = [one["limit"] for one in wire.requests("Search")]
    assert (sum(asked), max(asked)) == (20, 8)


def test_one_chunk_twice_in_one_call_is_there_once_and_the_last_counts(store: Weaviate) -> None:
    store.make("docs", "cosine")
    store.upsert("docs", [entry("a", {"n": 1}), entry("a", {"n": 2})], along(1, 0))
    ((match,),) = store.query("docs", along(0), limit=9, where=None)
    assert match.score == pytest.approx(1)


def test_results_are_asked_for_in_pages_that_the_server_allows(
    wire: WeaviateWire, store: Weaviate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weaviate_store, "RESULTS_LIMIT", 50)
    monkeypatch.setattr(weaviate_store, "BATCH_IDS", 50)
    monkeypatch.setattr(weaviate_store, "VECTORS_AT_ONCE", 50)
    wire.maximum_results = 50
    store.make("docs", "cosine")
    ids = [f"id-{n}" for n in range(230)]
    store.upsert("docs", [entry(id_) for id_ in ids], along(*[0] * 230))
    everything = store.id_page("docs", limit=1000, offset=0)
    assert sorted(everything) == sorted(ids)
    for limit, offset in ((120, 0), (120, 120), (7, 223), (9, 100), (9, 109), (9, 0), (9, 230)):
        page = store.id_page("docs", limit=limit, offset=offset)
        assert page == everything[offset : offset + limit]
    assert len(store.vectors("docs", ids)) == 230
    (row,) = store.query("docs", along(0), limit=60, where=None, ids=ids)
    assert len(row) == 60
    assert store.delete("docs", ids) == 230


def test_pages_in_a_row_do_not_begin_at_the_first_chunk(
    wire: WeaviateWire, store: Weaviate
) -> None:
    store.make("docs", "cosine")
    store.upsert("docs", [entry(f"id-{n}") for n in range(30)], along(*[0] * 30))
    for offset in (0, 10, 20):
        assert len(store.id_page("docs", limit=10, offset=offset)) == 10
    assert len(wire.requests("Search")) == 3


def test_the_official_client_reads_what_was_written(wire: WeaviateWire, store: Weaviate) -> None:
    store.make("docs", "cosine")
    store.upsert("docs", [entry("a", {"year": 2024, "시": ["서울"]}), entry("b")], along(0, 1))
    client = weaviate.connect_to_custom(
        http_host="127.0.0.1", http_port=urlsplit(wire.rest.url).port or 0, http_secure=False,
        grpc_host="127.0.0.1", grpc_port=wire.grpc_port, grpc_secure=False,
        skip_init_checks=True,
    )  # fmt: skip
    try:
        collection = client.collections.use(stored_name("docs"))
        nearest = collection.query.near_vector(
            [1.0, 0.0, 0.0], limit=1, return_metadata=MetadataQuery(distance=True),
            include_vector=True, filters=Filter.by_id().contains_any([object_id("a")]),
        ).objects[0]  # fmt: skip
        assert str(nearest.uuid) == object_id("a")
        assert nearest.metadata.distance == pytest.approx(0)
        assert nearest.vector["default"] == pytest.approx([1, 0, 0])
        properties = dict(nearest.properties)
        terms = properties.pop("terms")
        assert properties == {
            "chunk_id": "a", "text": "text of a", "metadata": '{"year": 2024, "시": ["서울"]}',
            "source": "file", "document_id": "d", "start_index": 0,
        }  # fmt: skip
        assert isinstance(terms, list)
        assert len(terms) == 3 + 1 + 16 + 1
        assert {str(one.uuid) for one in collection.iterator()} == {object_id("a"), object_id("b")}
        assert collection.aggregate.over_all(total_count=True).total_count == 2
    finally:
        client.close()


# Settings


def test_the_key_is_sent_and_never_shown(wire: WeaviateWire) -> None:
    wire.api_key = KEY
    host = wire.url.removeprefix("weaviate://")
    for settings, url in (
        (settings_with(weaviate_api_key=KEY), wire.url),
        (settings_with(), f"weaviate://:{KEY}@{host}"),
    ):
        store = Weaviate(settings, url)
        store.make("docs", "cosine")
        store.upsert("docs", [entry("a")], along(0))
        assert store.drop("docs") == 1
        store.close()
    for key in (None, "another-key"):
        wrong = Weaviate(settings_with(weaviate_api_key=key), wire.url)
        with pytest.raises(Permanent, match="SLUICE_WEAVIATE_API_KEY") as error:
            wrong.make("docs", "cosine")
        assert "another-key" not in str(error.value)
        wrong.close()


def test_a_key_that_only_the_data_refuse(wire: WeaviateWire, store: Weaviate) -> None:
    store.make("docs", "cosine")
    wire.failures["Search"] = (grpc.StatusCode.PERMISSION_DENIED, "forbidden")
    with pytest.raises(Permanent, match="SLUICE_WEAVIATE_API_KEY"):
        store.query("docs", along(0), limit=1, where=None)


def test_a_key_with_a_line_end_is_an_error_that_does_not_show_it() -> None:
    with pytest.raises(ConfigurationError, match="SLUICE_WEAVIATE_API_KEY") as error:
        Weaviate(settings_with(weaviate_api_key="abc\ndef"), "weaviate://host:8080")
    assert "def" not in str(error.value)


@pytest.mark.parametrize("options", ["grpc=nowhere", "grpc=a:b", "port=1"])
def test_wrong_options_of_the_url(options: str) -> None:
    with pytest.raises(ConfigurationError, match="grpc=HOST:PORT"):
        Weaviate(settings_with(), f"weaviate://host:8080?{options}")


# Errors


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def calls_of(store: Weaviate) -> dict[str, Any]:
    return {
        "make": lambda: store.make("docs", "cosine"),
        "upsert": lambda: store.upsert("docs", [entry("a")], along(0)),
        "query": lambda: store.query("docs", along(0, 1), limit=1, where=None),
        "vectors": lambda: store.vectors("docs", ["a"]),
        "delete": lambda: store.delete("docs", ["a"]),
        "id_page": lambda: store.id_page("docs", limit=1, offset=0),
        "drop": lambda: store.drop("docs"),
    }


def test_a_server_that_is_away() -> None:
    store = Weaviate(settings_with(), f"weaviate://127.0.0.1:{closed_port()}")
    for call in calls_of(store).values():
        with pytest.raises(Unavailable, match="SLUICE_VECTORS_URL"):
            call()
    store.close()


def test_a_server_whose_grpc_is_away(wire: WeaviateWire) -> None:
    url = f"{wire.url.partition('?')[0]}?grpc=127.0.0.1:{closed_port()}"
    store = Weaviate(settings_with(), url)
    calls = calls_of(store)
    calls.pop("make")()
    for call in calls.values():
        with pytest.raises(Unavailable, match="gRPC"):
            call()
    store.close()


def test_a_server_that_hangs(wire: WeaviateWire, store: Weaviate) -> None:
    store.make("docs", "cosine")
    wire.hanging |= {"Search", "Aggregate", "BatchObjects", "BatchDelete"}
    hurried = Weaviate(settings_with(request_timeout_s=0.5), wire.url)
    calls = calls_of(hurried)
    make = calls.pop("make")
    for call in calls.values():
        with pytest.raises(Unavailable):
            call()
    wire.rest.behaviours["schema"] = Behaviour(hang=True)
    with pytest.raises(Unavailable):
        make()
    hurried.close()


def test_what_a_server_answers_instead(wire: WeaviateWire, store: Weaviate) -> None:
    calls = calls_of(store)
    calls.pop("make")()
    unknown, full = grpc.StatusCode.UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED
    for status, text, expected in (
        (unknown, "broadcast: cannot achieve consistency level ALL", Unavailable),
        (unknown, "store is read-only due to: disk usage", Unavailable),
        (grpc.StatusCode.UNAVAILABLE, "scale-out mode is enabled", Unavailable),
        (unknown, "something is wrong with it", Permanent),
        (full, "the limit of objects is reached", Permanent),
    ):
        methods = ("Search", "Aggregate", "BatchObjects", "BatchDelete")
        wire.failures |= dict.fromkeys(methods, (status, text))
        for call in calls.values():
            with pytest.raises(expected, match=text.partition(":")[0]):
                call()


def test_a_page_of_something_else_is_no_weaviate() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>log in</html>")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    store = Weaviate(settings_with(), f"weaviate://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(Permanent, match="is no Weaviate"):
            store.make("docs", "cosine")
    finally:
        store.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_rest_errors_say_what_weaviate_said(wire: WeaviateWire, store: Weaviate) -> None:
    wire.rest.behaviours["schema"] = Behaviour(refuse_times=1, refuse_status=500)
    with pytest.raises(Unavailable, match="out of order"):
        store.make("docs", "cosine")
    store.make("docs", "cosine")


def test_chunks_that_are_refused(wire: WeaviateWire, store: Weaviate) -> None:
    store.make("docs", "cosine")
    store.upsert("docs", [entry("a")], along(0))
    with pytest.raises(Permanent, match=r"1 of 1 chunks: .*length 2"):
        store.upsert("docs", [entry("b")], np.eye(2, dtype=np.float32)[:1])
    wire.object_error = "put object: cannot achieve consistency level ALL"
    with pytest.raises(Unavailable, match="consistency level"):
        store.upsert("docs", [entry("b")], along(0))


def test_vectors_that_stay_are_an_error(wire: WeaviateWire, store: Weaviate) -> None:
    store.make("docs", "cosine")
    store.upsert("docs", [entry("a"), entry("b")], along(0, 1))
    wire.keeps_objects = True
    with pytest.raises(Unavailable, match="still has 2 vectors of 'docs'"):
        store.delete("docs", ["a", "b", "never"])


def test_an_older_version_is_an_error(wire: WeaviateWire, store: Weaviate) -> None:
    wire.version = "1.32.4"
    with pytest.raises(Permanent, match=r"has the version 1\.32\.4; Sluice needs 1\.33"):
        store.make("docs", "cosine")


def test_a_collection_that_weaviate_made_by_itself_is_not_searched(
    wire: WeaviateWire, store: Weaviate
) -> None:
    store.make("docs", "cosine")
    store.upsert("docs", [entry("a")], along(0))
    # As where it was dropped between the look at it and the write.
    request = wire.requests("BatchObjects")[0]
    assert request["objects"][0]["collection"] == stored_name("docs")
    definition = wire.get(stored_name("docs")).definition
    definition["properties"] = [{"name": "terms", "dataType": ["text[]"], "tokenization": "word"}]
    for call in ("make", "upsert"):
        with pytest.raises(Permanent, match="was not made by Sluice"):
            calls_of(store)[call]()


def test_a_collection_that_is_gone_is_not_made_by_a_write(
    wire: WeaviateWire, store: Weaviate
) -> None:
    with pytest.raises(MissingCollection):
        store.upsert("docs", [entry("a")], along(0))
    assert wire.find(stored_name("docs")) is None
    assert wire.requests("BatchObjects") == []
