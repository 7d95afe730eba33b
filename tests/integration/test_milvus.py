"""What Milvus needs beyond the contract of stores (`test_vector_stores.py`), on Milvus Lite."""

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from langchain_milvus import Milvus as LangChainMilvus
from milvus_lite.server_manager import server_manager_instance
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from shared.bounds import METADATA_LIMIT_BYTES
from shared.config import Settings
from shared.errors import Permanent, Unavailable
from shared.filters import MetadataFilter
from shared.kinds import registry as kinds
from shared.vector_stores import Target, require_store
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    document_id,
    ingest,
    new_collection,
    search,
    stores_agree,
)
from tests.integration.job_runner import drain, job_of, submit
from tests.integration.test_filter_meanings import (
    KEYS,
    LISTS,
    SINGLE,
    filters,
    is_storable,
    metadata,
)
from tests.integration.vector_store_contract import along, between, entry
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval.servers import store_of
from workers.retrieval.store import MissingCollection, VectorEntry
from workers.retrieval.stores import milvus
from workers.retrieval.stores.milvus import Milvus, stored_name


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("milvus") / "vectors.db"


def store_at(place: object, **settings: Any) -> Milvus:
    return Milvus(Settings(_env_file=None, **settings), f"milvus://{place}")


@pytest.fixture
def open_store(file: Path) -> Iterator[Callable[[], Milvus]]:
    stores: list[Milvus] = []

    def open_() -> Milvus:
        stores.append(store_at(file))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Milvus]) -> Milvus:
    return open_store()


@pytest.fixture
def name(store: Milvus) -> Iterator[str]:
    name = f"test_{uuid4().hex[:12]}"
    store.make(name, "cosine")
    yield name
    store.drop(name)


def ids_of(store: Milvus, name: str, where: Any = None, limit: int = 1000) -> set[str]:
    filter_ = None if where is None else MetadataFilter.read(where)
    (row,) = store.query(name, along(0), limit=limit, where=filter_)
    return {match.id for match in row}


# Collections


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("letters_and_1_digit", True),
        ("_a", True),
        ("a" * 128, True),
        ("1a", False),
        ("with-hyphen", False),
        ("고객", False),
        ("sluice_made", False),
        ("sluice_" + "0" * 64, False),
    ],
)
def test_a_name_is_kept_where_milvus_takes_it(name: str, is_kept: bool) -> None:
    assert (stored_name(name) == name) is is_kept
    assert stored_name(name).isascii()
    assert stored_name(name).isidentifier()
    assert stored_name(stored_name(name)) != stored_name(name) or is_kept


def test_a_collection_that_was_made_is_empty_until_vectors_come(
    store: Milvus, open_store: Callable[[], Milvus], name: str
) -> None:
    other = open_store()
    for one in (store, other):
        assert ids_of(one, name) == set()
        assert one.vectors(name, ["a"]) == {}
        assert one.delete(name, ["a"]) == 0
        assert one.id_page(name, limit=9, offset=0) == []
        one.upsert(name, [], np.zeros((0, 3), dtype=np.float32))
    other.upsert(name, [entry("a")], along(0))
    assert ids_of(store, name) == {"a"}
    assert other.drop(name) == 1
    with pytest.raises(MissingCollection):
        ids_of(store, name)


def test_a_collection_that_another_worker_made_again_is_found(
    store: Milvus, open_store: Callable[[], Milvus], name: str
) -> None:
    store.upsert(name, [entry("a")], along(0))
    other = open_store()
    assert other.drop(name) == 1
    other.make(name, "l2")
    assert ids_of(store, name) == set()
    vector = np.array([[0.6, 0.8]], dtype=np.float32)  # of another dimension, too
    store.upsert(name, [entry("b")], vector)
    ((match,),) = other.query(name, np.eye(1, 2, dtype=np.float32), limit=9, where=None)
    assert match.id == "b"
    assert match.score == pytest.approx(0.6, abs=1e-3)


def test_vectors_of_another_dimension_are_refused(store: Milvus, name: str) -> None:
    store.upsert(name, [entry("a")], along(0))
    with pytest.raises(Permanent, match="dim"):
        store.upsert(name, [entry("b")], np.eye(1, 5, dtype=np.float32))
    assert ids_of(store, name) == {"a"}


def test_all_is_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "vectors.db"
    before = store_at(file)
    before.make("empty", "cosine")
    before.make("full", "cosine")
    before.upsert("full", [entry(f"id-{n}") for n in range(30)], along(*(n % 3 for n in range(30))))
    before.close()
    server_manager_instance.release_server(str(file))
    after = store_at(file)
    assert ids_of(after, "full") == {f"id-{n}" for n in range(30)}
    assert ids_of(after, "empty") == set()
    assert after.drop("empty") == 0
    assert after.drop("full") == 30
    after.close()


# Limits of Milvus


def test_a_text_or_metadata_that_milvus_does_not_take_whole(store: Milvus, name: str) -> None:
    long = "가" * 100_000
    short = {"n": 5, "team": "office"}
    filling = {"a": "x" * 40_000, "b": "y" * (METADATA_LIMIT_BYTES - 40_100)}
    chunks = [
        VectorEntry(id="text", text=long, metadata=short, own={"source": "s"}),
        VectorEntry(id="metadata", text="x", metadata=short | filling, own={"source": "s" * 4000}),
    ]
    store.upsert(name, chunks, along(0, 0))
    both = {"text", "metadata"}
    assert ids_of(store, name, {"team": "office", "n": {"$gt": 4}}) == both
    assert ids_of(store, name, {"a": filling["a"]}) == {"metadata"}
    assert ids_of(store, name, {"a": {"$ne": filling["a"]}}) == {"text"}
    # The longest value is not stored, so Milvus cannot compare it: the caller does.
    assert ids_of(store, name, {"a": {"$gte": "w"}}) == {"metadata"}
    assert "metadata" in ids_of(store, name, {"a": {"$lt": "w"}})
    assert not store.is_exact(MetadataFilter.read({"a": {"$lt": "w"}}))


def test_lists_that_are_longer_than_milvus_takes(store: Milvus, name: str) -> None:
    long = {"n": 1, "tags": list(range(milvus.LIST_ITEMS + 1))}
    store.upsert(name, [entry("long", long), entry("short", {"tags": [7]})], along(0, 0))
    assert ids_of(store, name, {"n": 1}) == {"long"}
    assert ids_of(store, name, {"tags": {"$contains": 7}}) == {"long", "short"}
    assert "long" in ids_of(store, name, {"$not": {"tags": {"$contains": 9999}}})
    assert not store.is_exact(MetadataFilter.read({"tags": {"$contains": 9999}}))


def test_more_results_than_milvus_returns_at_once(
    store: Milvus, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus, "RESULTS", 20)
    ids = [f"id-{n:03}" for n in range(70)]
    vectors = np.stack([between(1 - n / 100) for n in range(70)])
    store.upsert(name, [entry(id_, {"n": n}) for n, id_ in enumerate(ids)], vectors)
    rows = store.query(name, along(0, 0), limit=55, where=MetadataFilter.read({"n": {"$gte": 5}}))
    for row in rows:
        assert [match.id for match in row] == ids[5:60]
        assert row[0].score == pytest.approx(0.95, abs=1e-3)
    pages = [store.id_page(name, limit=30, offset=offset) for offset in (0, 30, 60, 70, 15)]
    assert pages == [ids[:30], ids[30:60], ids[60:], [], ids[15:45]]


# Filters


def hold(store: Milvus, name: str, rows: Sequence[dict[str, Any]]) -> list[VectorEntry]:
    """These chunks instead of what the collection held."""
    store.delete(name, store.id_page(name, limit=10_000, offset=0))
    own = {"source": "wiki", "document_id": "d"}
    entries = [
        VectorEntry(id=f"{n}", text="x", metadata=row, own={**own, "start_index": n})
        for n, row in enumerate(rows)
    ]
    store.upsert(name, entries, along(*[0] * len(entries)))
    return entries


def check(store: Milvus, name: str, entries: Sequence[VectorEntry], filter_: Any) -> None:
    where = MetadataFilter.read(filter_)
    matching = {entry.id for entry in entries if where.matches(entry.metadata, entry.own)}
    ids = ids_of(store, name, filter_)
    assert ids >= matching, filter_
    if store.is_exact(where):
        assert ids == matching, filter_


def test_each_comparison_of_each_pair_of_values(store: Milvus, name: str) -> None:
    values: list[Any] = [*SINGLE, *LISTS]
    entries = hold(store, name, [*({"k": value} for value in values), {"other": 1}])
    # Milvus Lite takes long for a search: the orders take turns, and so do negations.
    orders = [("$gt", "$lte"), ("$gte", "$lt")]
    for n, operand in enumerate(SINGLE):
        signs = ["$eq", "$contains", *(() if isinstance(operand, bool) else orders[n % 2])]
        for m, sign in enumerate(signs):
            check(store, name, entries, {"k": {sign: operand}})
            if (n + m) % 3 == 0:
                check(store, name, entries, {"k": {"$not": {sign: operand}}})


@pytest.fixture(scope="module")
def filtered(file: Path) -> Iterator[tuple[Milvus, str]]:
    store, name = store_at(file), "filtered"
    store.make(name, "cosine")
    yield store, name
    store.drop(name)
    store.close()


@given(rows=st.lists(metadata, min_size=1, max_size=9), wheres=st.lists(filters, max_size=6))
@settings_of_hypothesis(max_examples=15, deadline=None)
def test_random_filters_leave_nothing_out(
    filtered: tuple[Milvus, str], rows: list[dict[str, Any]], wheres: list[Any]
) -> None:
    store, name = filtered
    entries = hold(store, name, rows)
    for where in filter(is_storable, wheres):
        check(store, name, entries, where)


def test_any_key_may_be_asked_for(store: Milvus, name: str) -> None:
    keys = [*KEYS, "text", "pk", "vector", "sluice_terms", "$meta", 'a"]\n']
    rows = [{key: value} for key in keys for value in (5, 2.5, "b")]
    entries = hold(store, name, [*rows, {}])
    for key in keys:
        written = f"$${key[1:]}" if key.startswith("$") else key
        for condition in (5, {"$lte": 2.5}, {"$not": {"$gt": 2.5}}, {"$lt": "c"}):
            check(store, name, entries, {written: condition})


def test_most_filters_are_exact() -> None:
    store = store_at("127.0.0.1:19530")
    for filter_ in (
        {"team": "office", "year": {"$gte": 2020, "$lt": 2025.5}},
        {"$or": [{"a": {"$in": [1, "x", True]}}, {"$not": {"b": {"$lt": 3}}}]},
        {"source": {"$ne": "wiki"}, "start_index": {"$gt": 100}},
    ):
        assert store.is_exact(MetadataFilter.read(filter_))


# Errors


QUICK = {"request_timeout_s": 0.5, "connect_timeout_s": 0.5}


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = store_at(f":secret-token@127.0.0.1:{port}", **QUICK)
    with pytest.raises(Unavailable, match="SLUICE_VECTORS_URL") as error:
        store.query("a", along(0), limit=1, where=None)
    assert "secret-token" not in str(error.value)
    assert "secret-token" not in repr(error.value.__cause__)


def test_a_server_that_does_not_answer() -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        thread = threading.Thread(target=hold_connections, args=(silent, ended))
        thread.start()
        store = store_at(f"127.0.0.1:{silent.getsockname()[1]}", **QUICK)
        with pytest.raises(Unavailable, match="SLUICE_VECTORS_URL"):
            store.delete("a", ["b"])
        ended.set()
        silent.shutdown(socket.SHUT_RDWR)
    thread.join()


def hold_connections(server: socket.socket, ended: threading.Event) -> None:
    connections: list[socket.socket] = []
    while not ended.is_set():
        try:
            connections.append(server.accept()[0])
        except OSError:
            break
    for connection in connections:
        connection.close()


SERVICE = "milvus.proto.milvus.MilvusService"


@contextmanager
def served(**calls: Callable[[Any, grpc.ServicerContext], Any]) -> Iterator[str]:
    """A server that answers these calls alone, by their names, and `Connect`; its address."""
    calls = {"Connect": lambda *_: milvus_pb2.ConnectResponse(), **calls}
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=getattr(milvus_pb2, f"{name}Request").FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        for name, call in calls.items()
    }
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(
            threads, handlers=[grpc.method_handlers_generic_handler(SERVICE, handlers)]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def describe(request: Any, context: grpc.ServicerContext) -> Any:
    """The only collection is `a`."""
    del context
    status = common_pb2.Status(code=0 if request.collection_name == "a" else 100)
    return milvus_pb2.DescribeCollectionResponse(status=status)


def test_a_server_that_refuses_the_token() -> None:
    def refuse(request: Any, context: grpc.ServicerContext) -> None:
        del request
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")

    with served(Connect=refuse) as address:
        store = store_at(f"someone:secret-token@{address}")
        with pytest.raises(Permanent, match="auth check failure") as error:
            store.make("a", "cosine")
        assert "secret-token" not in str(error.value)


def test_which_errors_of_a_server_pass() -> None:
    """What is used up now may be free later, as with the other stores."""
    status = common_pb2.Status()
    answer = milvus_pb2.DescribeCollectionResponse
    with served(DescribeCollection=lambda *_: answer(status=status)) as address:
        store = store_at(address)
        for code, kind in ((3, Unavailable), (7, Unavailable), (9, Unavailable), (1102, Permanent)):
            status.code, status.reason = code, f"reason {code}"
            with pytest.raises(kind, match=f"reason {code}"):
                store.make("a", "cosine")
        store.close()


def test_the_index_of_vectors_is_made_last() -> None:
    """Whoever finds it takes the collection for ready."""
    indexed: list[str] = []

    def create_index(request: Any, context: grpc.ServicerContext) -> Any:
        del context
        indexed.append(request.field_name)
        return common_pb2.Status(code=1100, reason="no more")

    none = milvus_pb2.DescribeIndexResponse(status=common_pb2.Status(code=700))
    calls = {"DescribeCollection": describe, "CreateIndex": create_index}
    with served(DescribeIndex=lambda *_: none, **calls) as address:
        store = store_at(address)
        with pytest.raises(Permanent, match="no more"):
            store.query("a", along(0), limit=1, where=None)
        store.close()
    assert indexed == [milvus.TERMS]


def test_a_collection_that_does_not_fit_into_memory_can_be_dropped() -> None:
    dropped: list[str] = []

    def drop(request: Any, context: grpc.ServicerContext) -> Any:
        del context
        dropped.append(request.collection_name)
        return common_pb2.Status()

    metric = common_pb2.KeyValuePair(key="metric_type", value="COSINE")
    index = milvus_pb2.IndexDescription(params=[metric])
    count = common_pb2.KeyValuePair(key="row_count", value="7")
    answers = {
        "DescribeIndex": milvus_pb2.DescribeIndexResponse(index_descriptions=[index]),
        "GetLoadState": milvus_pb2.GetLoadStateResponse(state=common_pb2.LoadStateNotLoad),
        "LoadCollection": common_pb2.Status(code=3, reason="no memory"),
        "GetCollectionStatistics": milvus_pb2.GetCollectionStatisticsResponse(stats=[count]),
    }
    calls = {name: lambda *_, answer=answer: answer for name, answer in answers.items()}
    with served(DescribeCollection=describe, DropCollection=drop, **calls) as address:
        store = store_at(address)
        assert store.drop("a") == 7
        store.close()
    assert dropped == ["a"]


def test_a_file_that_another_process_has_open(tmp_path: Path) -> None:
    file = tmp_path / "vectors.db"
    file.mkdir()
    with (file / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Permanent, match="One process at a time"):
            store_at(file).make("a", "cosine")


def test_a_file_without_the_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match=r"ends in \.db"):
        store_at(tmp_path).make("a", "cosine")


def test_the_client_leaves_the_environment_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLUICE_FROM_A_FILE", raising=False)
    with milvus.environment_kept():
        os.environ["SLUICE_FROM_A_FILE"] = "1"
    assert "SLUICE_FROM_A_FILE" not in os.environ


# Other programs, and jobs


class Axes(Embeddings):
    """Texts as vectors: those with `cat` along the first axis, others along the second."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: Vectors = along(*(0 if "cat" in text else 1 for text in texts))
        rows: list[list[float]] = vectors.tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of langchain-milvus itself
def test_a_langchain_program_opens_a_collection(store: Milvus, name: str, file: Path) -> None:
    chunks = [entry("cat", {"year": 2024, "tags": ["pet"]}), entry("train", {"year": 2020})]
    store.upsert(name, chunks, along(0, 1))
    langchain = LangChainMilvus(
        embedding_function=Axes(),
        collection_name=stored_name(name),
        connection_args={"uri": str(file)},
        enable_dynamic_field=True,
    )
    ((document, score),) = langchain.similarity_search_with_score("a cat", k=1)
    assert document.page_content == "text of cat"
    assert (document.metadata["source"], document.metadata["pk"]) == ("file", "cat")
    assert (document.metadata["year"], document.metadata["tags"]) == (2024, ["pet"])
    assert score == pytest.approx(1, abs=1e-3)
    (other,) = langchain.similarity_search("a cat", k=2, expr="year < 2024")
    assert other.page_content == "text of train"


@pytest.fixture
def process(process_with_store: Callable[[str], Process], tmp_path: Path) -> Process:
    return process_with_store(f"milvus://{tmp_path / 'vectors.db'}")


def test_documents_are_ingested_searched_replaced_and_erased(process: Process) -> None:
    configured = require_store(process.settings)
    assert configured.problem(timeout_s=10) is None
    assert Target.FOLDER in configured.type_.targets
    collection = new_collection(process)
    assert ingest(process, collection, {"cats": CATS}, metadata={"topic": "pets", "year": 2024})[
        0
    ] == {"added": 1}
    assert ingest(process, collection, {"trains": TRAINS}, metadata={"topic": "travel"})[0] == {
        "added": 1
    }
    assert isinstance(store_of(process), Milvus)
    stores_agree(process, collection)
    nearest: dict[str, Any] = {"type": "similarity"}
    question = "When does a train leave?"
    assert search(process, collection, question, k=1, search=nearest)[0].source == "trains"
    for filter_ in ({"topic": "pets"}, {"year": {"$gt": 2023}}, {"topic": {"$ne": "travel"}}):
        hits = search(process, collection, question, search=nearest | {"filter": filter_})
        assert {hit.source for hit in hits} == {"cats"}
    assert ingest(process, collection, {"cats": TRAINS})[0] == {"replaced": 1}
    stores_agree(process, collection)
    id_ = document_id(process, collection, "trains")
    job_id = submit(process, kinds.ERASE, {"document_ids": [str(id_)]})
    drain(process)
    result = job_of(process, job_id).result
    assert result is not None
    assert result["vectors"] > 0
    stores_agree(process, collection)
    hits = search(process, collection, question, search=nearest)
    assert {hit.source for hit in hits} == {"cats"}
    submit(process, kinds.ERASE, {"collection": collection})
    drain(process)
    with pytest.raises(MissingCollection):
        store_of(process).query(collection, np.eye(1, 384, dtype=np.float32), limit=1, where=None)
