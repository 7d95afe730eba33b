"""Every vector store does what the protocol says; a new one is a module and a line."""

import sqlite3
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chromadb import HttpClient

from shared.config import Settings
from shared.filters import MetadataFilter
from shared.vector_stores import (
    STORES,
    StoreType,
    Target,
    require_store,
    store_of_urls,
    with_the_database,
)
from tests.integration import (
    test_pgvector,  # noqa: F401 (its subclass of the contract)
    test_qdrant,  # noqa: F401 (its subclasses of the contract)
    test_weaviate,  # noqa: F401 (its subclass of the contract)
)
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    ingest,
    live_chunk_ids,
    new_collection,
    search,
    vector_ids,
)
from tests.integration.toy_store import Memory
from tests.integration.vector_store_contract import VectorStoreContract, entry, random_vectors
from tests.integration.websites import serving
from tests.servers import Server, start_chroma
from workers.attempts.process import Process
from workers.retrieval.servers import import_store, store_of
from workers.retrieval.store import VectorEntry, VectorStore, batches
from workers.retrieval.stores.chroma import Chroma
from workers.retrieval.stores.faiss import Faiss
from workers.retrieval.stores.milvus import Milvus

every_store = pytest.mark.parametrize("type_", STORES.values(), ids=list(STORES))


@every_store
def test_a_store_is_complete(type_: StoreType) -> None:
    configured = store_of_urls(type_.example)
    assert configured.type_ is type_
    assert str(configured.urls[0]) == type_.example
    contracts = [contract.store_class for contract in VectorStoreContract.__subclasses__()]
    assert import_store(type_) in contracts, f"{type_.store} has no subclass of the contract"


def test_a_certificate_that_the_workers_trust_is_trusted_by_the_check(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    with serving(tls) as site:
        site.page("/api/v2/heartbeat", "{}", "application/json")
        store = store_of_urls(f"chroma+https://localhost:{site.server_port}")
        problem = store.problem(timeout_s=10)
        assert problem is not None
        assert "certificate" in problem.lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert store.problem(timeout_s=10) is None
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.parent / "missing"))
        assert store.problem(timeout_s=10) is not None


def test_a_request_has_so_many_bytes_as_its_json() -> None:
    entries = [VectorEntry(id=f"{n}", text="\x1b" * 100, metadata={"k": "\x1b"}) for n in range(4)]
    parts = batches(entries, random_vectors(4, 4), limit=9, limit_bytes=1600)
    assert [[entry.id for entry in part] for part, _ in parts] == [["0", "1"], ["2", "3"]]


class TestChroma(VectorStoreContract):
    store_class = Chroma
    is_approximate = True
    server: Server

    @pytest.fixture
    def store(self, settings: Settings) -> VectorStore:
        configured = require_store(settings)
        assert configured.problem(timeout_s=10) is None
        return Chroma(settings, configured.text)

    @pytest.fixture
    def own_store(self, settings: Settings, tmp_path: Path) -> Iterator[VectorStore]:
        self.server = start_chroma(tmp_path / "chroma")
        url = self.server.url.replace("http", "chroma", 1)
        store = Chroma(settings, url)
        yield store
        store.close()
        self.server.stop()

    def restart(self, store: VectorStore) -> VectorStore:
        self.server.kill()
        self.server.start()
        return store

    def test_lists_of_what_was_dropped_are_nobodys(
        self, own_store: VectorStore, tmp_path: Path
    ) -> None:
        """Chroma leaves them in its database, and gives them to chunks that are written later."""
        old = [entry(id_, {"tags": ["old"], "counts": [1]}) for id_ in ("a", "b", "c")]
        vectors = random_vectors(3, 8)
        own_store.make("first", "cosine")
        own_store.upsert("first", old, vectors)
        assert own_store.drop("first") == 3
        with closing(sqlite3.connect(tmp_path / "chroma" / "data" / "chroma.sqlite3")) as database:
            assert database.execute("SELECT * FROM embedding_metadata_array").fetchall() == []

        own_store.make("second", "cosine")
        own_store.upsert("second", old, vectors)
        host, port = self.server.url.removeprefix("http://").split(":")
        HttpClient(host=host, port=int(port)).delete_collection("second")  # as others do
        own_store.make("third", "cosine")
        new = [entry("d"), entry("e", {"tags": ["new"]}), entry("f", {"n": 1, "counts": [1]})]
        own_store.upsert("third", new, vectors)
        assert own_store.compare("third", new) == {"d": True, "e": True, "f": True}
        where = MetadataFilter.read({"tags": {"$contains": "old"}})
        assert own_store.query("third", vectors[:1], limit=9, where=where) == [[]]


class TestFaiss(VectorStoreContract):
    store_class = Faiss
    has_texts = False

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = Faiss(Settings(_env_file=None), f"faiss://{tmp_path}")
        yield store
        store.close()


class TestMilvus(VectorStoreContract):
    store_class = Milvus

    @pytest.fixture
    def store(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorStore]:
        # One file for all tests: each file is a server of its own, until the process ends.
        file = tmp_path_factory.getbasetemp() / "milvus.db"
        store = Milvus(Settings(_env_file=None), f"milvus://{file}")
        yield store
        store.close()


class TestMemory(VectorStoreContract):
    store_class = Memory

    @pytest.fixture
    def store(self, settings: Settings) -> VectorStore:
        return Memory(settings, "memory")


def test_documents_are_ingested_searched_and_replaced_with_a_new_store(
    process_with_store: Callable[[str], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = StoreType(
        name="memory",
        schemes=("memory",),
        example="memory",
        targets=(Target.DATABASE,),
        check=with_the_database,
        store="tests.integration.toy_store:Memory",
    )
    monkeypatch.setitem(STORES, line.name, line)
    process = process_with_store("memory")
    collection = new_collection(process)
    assert ingest(process, collection, {"cats": CATS, "trains": TRAINS})[0] == {"added": 2}
    assert isinstance(store_of(process), Memory)
    assert search(process, collection, "When does a train leave?", k=1)[0].source == "trains"
    assert ingest(process, collection, {"cats": TRAINS})[0] == {"replaced": 1}
    assert vector_ids(process, collection) == live_chunk_ids(process, collection)
