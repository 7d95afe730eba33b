"""The vector store `postgres`, in the tests' PostgreSQL."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from sqlalchemy import Connection, Engine, event

from shared.config import Settings
from shared.errors import Permanent, Unavailable
from shared.filters import MetadataFilter
from shared.vector_stores import store_of_urls
from tests.integration.erasures import erase
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    document_id,
    ingest,
    live_chunk_ids,
    new_collection,
    search,
    stores_agree,
    vector_ids,
)
from tests.integration.vector_store_contract import VectorStoreContract, along, entry
from tests.servers import Server, start_postgres
from workers.attempts.process import Process
from workers.models.devices import Vectors, unit
from workers.retrieval.servers import store_of
from workers.retrieval.store import MissingCollection, VectorStore
from workers.retrieval.stores.pgvector import LEDGER, PgVector

SMALLEST_INDEX_MIB = 1


@pytest.fixture
def pgvector(settings: Settings) -> Iterator[PgVector]:
    with closing(PgVector(settings, LEDGER)) as store:
        yield store


@pytest.fixture
def name(pgvector: PgVector) -> Iterator[str]:
    name = f"test-{uuid4().hex[:12]}"
    pgvector.make(name, "cosine")
    yield name
    pgvector.drop(name)


@pytest.fixture
def empty_database(postgres_server: Server) -> Iterator[str]:
    """The URL of a database that the migrations have not seen."""
    name = f"plain_{uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url.rpartition("/")[0] + f"/{name}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def rows(url: str, statement: LiteralString, *values: object) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement, values).fetchall()


class TestPgVector(VectorStoreContract):
    store_class = PgVector

    @pytest.fixture
    def store(self, pgvector: PgVector) -> VectorStore:
        return pgvector


# Databases that are not ready for it


def test_a_user_without_rights_is_an_error_that_says_who_has_to_do_what(
    settings: Settings, empty_database: str
) -> None:
    role = f"plain_{uuid4().hex[:12]}"
    url = empty_database.replace("//postgres@", f"//{role}:secret@")
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        try:
            with closing(PgVector(settings, url)) as store:
                with pytest.raises(Permanent, match=r"CREATE EXTENSION vector .* superuser") as no:
                    store.make("a", "cosine")
                assert role in no.value.message
                assert "secret" not in no.value.message
                with pytest.raises(MissingCollection):
                    store.query("a", along(0), limit=1, where=None)
                admin.execute("CREATE EXTENSION vector")
                with pytest.raises(Permanent, match="CREATE SCHEMA vectors AUTHORIZATION"):
                    store.make("a", "cosine")
                admin.execute(f'CREATE SCHEMA vectors AUTHORIZATION "{role}"')
                store.make("a", "cosine")
                store.upsert("a", [entry("x")], along(0))
                assert store.drop("a") == 1
        finally:
            admin.execute("DROP SCHEMA IF EXISTS vectors CASCADE")
            admin.execute(f"DROP ROLE {role}")


def test_a_server_without_pgvector_is_an_error_that_says_what_to_install(
    settings: Settings, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(
            sql.SQL("ALTER DATABASE {} SET extension_control_path = '/nowhere'").format(
                sql.Identifier(admin.info.dbname)
            )
        )
    with (
        closing(PgVector(settings, empty_database)) as store,
        pytest.raises(Permanent, match=r"has no pgvector\. .* CREATE EXTENSION vector"),
    ):
        store.make("a", "cosine")


def test_types_are_used_from_the_schema_where_the_extension_is(
    settings: Settings, empty_database: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute("DROP EXTENSION IF EXISTS vector CASCADE")
        admin.execute('CREATE SCHEMA "Own types"')
        admin.execute('CREATE EXTENSION vector SCHEMA "Own types"')
    with closing(PgVector(settings, empty_database)) as store:
        store.make("a", "cosine")
        store.upsert("a", [entry("x")], along(0))
        ((match,),) = store.query("a", along(0), limit=1, where=None)
        assert match.id == "x"
        assert store.drop("a") == 1


def test_a_table_that_is_lost_is_a_collection_that_is_lost(
    pgvector: PgVector, settings: Settings, name: str
) -> None:
    assert pgvector.query(name, along(0), limit=1, where=None) == [[]]  # it has no table yet
    pgvector.upsert(name, [entry("a")], along(0))
    url = settings.require_database_url()
    ((table,),) = rows(url, "SELECT table_name FROM vectors.collections WHERE name = %s", name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("vectors", str(table))))
    for call in (
        lambda: pgvector.query(name, along(0), limit=1, where=None),
        lambda: pgvector.vectors(name, ["a"]),
        lambda: pgvector.compare(name, [entry("a")]),
        # It would have the new chunks alone.
        lambda: pgvector.upsert(name, [entry("b")], along(1)),
    ):
        with pytest.raises(MissingCollection, match="collections rebuild"):
            call()
    pgvector.make(name, "cosine")
    pgvector.upsert(name, [entry("b")], along(1))
    assert pgvector.id_page(name, limit=9, offset=0) == ["b"]


# Servers that are away


def test_a_server_that_is_away_or_silent_is_unavailable_within_the_time(
    settings: Settings, server_home: Path
) -> None:
    server = start_postgres(server_home / f"pgvector-{uuid4().hex[:8]}")
    quick = settings.model_copy(update={"request_timeout_s": 5, "connect_timeout_s": 2})
    url = server.url.replace("//postgres@", "//postgres:secret@")
    with closing(PgVector(quick, url)) as store:
        try:
            store.make("a", "cosine")
            store.upsert("a", [entry("x")], along(0))
            backends = rows(server.url, "SELECT pid FROM pg_stat_activity WHERE state = 'idle'")
            pids = [server.pid, *(int(str(pid)) for (pid,) in backends)]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(Unavailable, match="SLUICE_VECTORS_URL") as silent:
                store.query("a", along(0), limit=1, where=None)
            assert "postgres" not in silent.value.message.split("//")[1].split("/")[0]
            assert "secret" not in silent.value.message
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            assert store.id_page("a", limit=9, offset=0) == ["x"]
            server.kill()
            with pytest.raises(Unavailable, match="SLUICE_VECTORS_URL"):
                store.query("a", along(0), limit=1, where=None)
        finally:
            server.kill()


def test_the_health_of_another_database_is_told_without_its_password(
    postgres_server: Server,
) -> None:
    (url,) = store_of_urls(postgres_server.url).urls
    assert store_of_urls(postgres_server.url).problem(timeout_s=10) is None
    assert str(url).endswith("/postgres")
    lost = store_of_urls("postgresql://sluice:secret@127.0.0.1:9/vectors").problem(timeout_s=1)
    assert lost is not None
    assert "127.0.0.1:9/vectors" in lost
    assert "secret" not in lost
    assert store_of_urls("postgres").problem(timeout_s=1) is None


# Dimensions


@pytest.mark.parametrize(
    ("dimension", "type_"),
    [(2000, "vector"), (2001, "halfvec"), (4000, "halfvec"), (4096, "vector")],
)
def test_vectors_of_many_dimensions(
    pgvector: PgVector, settings: Settings, name: str, dimension: int, type_: str
) -> None:
    drawn = np.random.default_rng(dimension).normal(size=(300, dimension))
    vectors: Vectors = unit(drawn).astype(np.float32)
    pgvector.upsert(name, [entry(f"{n:03}") for n in range(300)], vectors)
    read = pgvector.vectors(name, ["007"])["007"]
    assert read.dtype == np.float32
    assert read == pytest.approx(vectors[7], abs=1e-3)
    ((best, *_),) = pgvector.query(name, vectors[7:8], limit=3, where=None)
    assert best.id == "007"
    assert best.score == pytest.approx(1, abs=1e-3)
    ((stored,),) = rows(
        settings.require_database_url(),
        "SELECT format_type(atttypid, NULL) FROM vectors.collections JOIN pg_attribute "
        "ON attrelid = ('vectors.' || table_name)::regclass AND attname = 'embedding' "
        "WHERE name = %s",
        name,
    )
    assert stored == type_


def test_another_dimension_is_refused(pgvector: PgVector, name: str) -> None:
    pgvector.upsert(name, [entry("a")], along(0))
    other = np.eye(1, 5, dtype=np.float32)
    with pytest.raises(Permanent, match="dimensions"):
        pgvector.upsert(name, [entry("b")], other)
    with pytest.raises(Permanent, match="dimensions"):
        pgvector.query(name, other, limit=1, where=None)
    assert pgvector.id_page(name, limit=9, offset=0) == ["a"]


def test_the_same_chunk_twice_in_one_call_is_there_once_as_the_last(
    pgvector: PgVector, name: str
) -> None:
    pgvector.upsert(name, [entry("a", {"n": 1}), entry("a", {"n": 2})], along(1, 0))
    ((match,),) = pgvector.query(name, along(0), limit=9, where=MetadataFilter.read({"n": 2}))
    assert match.score == pytest.approx(1)


# The index


def clustered(count: int, dimension: int = 64) -> Vectors:
    """Unit vectors around 200 centres, as texts lie around topics."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(200, dimension))
    vectors = centres[random.integers(200, size=count)] + random.normal(size=(count, dimension))
    return unit(vectors).astype(np.float32)


def best_of(vectors: Vectors, query: Vectors, numbers: NDArray[np.int64], limit: int) -> set[str]:
    order = np.argsort(-(vectors[numbers] @ query), kind="stable")[:limit]
    return {str(number) for number in numbers[order]}


@pytest.mark.parametrize("mib", [SMALLEST_INDEX_MIB, 1000], ids=["indexed", "exact"])
def test_10_000_vectors_are_found_as_exactly_and_filters_lose_nothing(
    settings: Settings, mib: int
) -> None:
    vectors, queries = np.split(clustered(10_040), [10_000])
    entries = [entry(f"{n}", {"n": n, "tenth": n % 10, "rare": n % 1000}) for n in range(10_000)]
    changes = {"pgvector_index_above_mib": mib, "request_timeout_s": 600}
    limited = settings.model_copy(update=changes)
    name = f"test-{uuid4().hex[:12]}"
    everything = np.arange(10_000)
    with closing(PgVector(limited, LEDGER)) as store:
        store.make(name, "cosine")
        for first in range(0, 10_000, 2000):
            store.upsert(name, entries[first : first + 2000], vectors[first : first + 2000])
        indexes = rows(
            settings.require_database_url(),
            "SELECT FROM pg_indexes JOIN vectors.collections ON tablename = table_name "
            "WHERE name = %s AND position('USING hnsw' IN indexdef) > 0",
            name,
        )
        assert len(indexes) == (mib == SMALLEST_INDEX_MIB)

        def recall(
            limit: int, where: dict[str, object] | None, numbers: NDArray[np.int64]
        ) -> float:
            filter_ = MetadataFilter.read(where) if where else None
            result = store.query(name, queries, limit=limit, where=filter_)
            found = 0
            for query, row in zip(queries, result, strict=True):
                ids = {match.id for match in row}
                assert len(row) == len(ids) == min(limit, len(numbers))
                assert ids <= {str(number) for number in numbers}
                scores = [match.score for match in row]
                assert scores == sorted(scores, reverse=True)
                found += len(ids & best_of(vectors, query, numbers, limit))
            return found / (len(queries) * min(limit, len(numbers)))

        for limit in (10, 100, 1500):
            assert recall(limit, None, everything) >= 0.99
        for limit in (10, 100):
            assert recall(limit, {"tenth": 3}, everything[3::10]) >= 0.99
            assert recall(limit, {"n": {"$lt": 100}}, everything[:100]) >= 0.99
            assert recall(limit, {"rare": {"$ne": 5}}, everything[everything % 1000 != 5]) >= 0.99
            assert recall(limit, {"n": {"$gte": 5000}}, everything[5000:]) >= 0.99
        assert recall(10, {"rare": 7}, everything[7::1000]) == 1
        half = MetadataFilter.read({"n": {"$gte": 5000}})
        read = rows_read(lambda: store.query(name, queries, limit=10, where=half))
        assert len(read) == len(queries)
        if mib == SMALLEST_INDEX_MIB:
            assert max(read) <= 1000
        else:
            assert min(read) == 10_000

        kept = [str(n) for n in range(0, 10_000, 500)]
        assert store.delete(name, [f"{n}" for n in range(10_000) if n % 500]) == 9980
        ((*matches,),) = store.query(name, queries[:1], limit=50, where=None)
        assert sorted(match.id for match in matches) == sorted(kept)
        assert store.drop(name) == 20


def rows_read(search: Callable[[], object]) -> list[int]:
    """How many rows of the table each query of a search has read, by the server's own count."""
    plans: list[Any] = []

    def explain(connection: Connection, _: Any, statement: str, values: Any, *__: Any) -> None:
        if "<#>" in statement:
            cursor = connection.connection.cursor()
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
            plans.append((cursor.fetchone() or [[]])[0][0]["Plan"])

    event.listen(Engine, "after_cursor_execute", explain)
    try:
        search()
    finally:
        event.remove(Engine, "after_cursor_execute", explain)
    scans = [plan["Plans"][0] for plan in plans]
    while any("Plans" in scan for scan in scans):
        scans = [scan.get("Plans", [scan])[0] for scan in scans]
    return [int(scan["Actual Rows"]) + scan.get("Rows Removed by Filter", 0) for scan in scans]


# Jobs


def test_documents_are_ingested_found_replaced_and_erased(
    process_with_store: Callable[[str], Process],
) -> None:
    process = process_with_store("postgres")
    collection = new_collection(process)
    texts = {"cats": CATS, "trains": TRAINS}
    assert ingest(process, collection, texts, metadata={"team": "office"})[0] == {"added": 2}
    assert isinstance(store_of(process), PgVector)
    stores_agree(process, collection)
    question = "When does a train leave?"
    similar = {"type": "similarity"}
    assert search(process, collection, question, k=1, search=similar)[0].source == "trains"
    filtered = similar | {"filter": {"source": "cats", "team": {"$ne": "sales"}}}
    hits = search(process, collection, question, k=9, search=filtered)
    assert {hit.source for hit in hits} == {"cats"}
    none = similar | {"filter": {"team": "sales"}}
    assert search(process, collection, question, search=none) == []

    assert ingest(process, collection, {"cats": TRAINS})[0] == {"replaced": 1}
    stores_agree(process, collection)
    assert vector_ids(process, collection) == live_chunk_ids(process, collection)

    erase(process, document_ids=[str(document_id(process, collection, "cats"))])
    stores_agree(process, collection)
    erase(process, collection=collection)
    assert vector_ids(process, collection) == set()
    assert store_of(process).drop(collection) == 0
