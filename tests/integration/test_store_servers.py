"""Several servers of a vector store: each collection lies on one, and the ledger knows which."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.documents import collections, indexes
from shared.documents.documents import chunk_id
from shared.errors import Permanent
from shared.kinds import registry as kinds
from shared.kinds.rebuild import RebuildInput
from shared.tables import VectorIndex
from shared.vector_stores import StoreUrl, require_store
from tests.api_server import served
from tests.integration.erasures import erase
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    ingest,
    live_chunk_ids,
    new_collection,
    search,
    stores_agree,
)
from tests.integration.job_runner import drain, job_of, make_process, submit
from tests.integration.vector_store_contract import SmallStoreContract, along, entry
from tests.servers import start_chroma
from workers.attempts.process import Process
from workers.retrieval.servers import Servers, store_of
from workers.retrieval.store import VectorStore
from workers.retrieval.stores.chroma import Chroma


@pytest.fixture(scope="module")
def second_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = start_chroma(tmp_path_factory.mktemp("second"))
    yield server.url.replace("http", "chroma", 1)
    server.stop()


@pytest.fixture
def both(settings: Settings, second_url: str) -> str:
    """A list of two servers with a user, which no answer may show; Chroma asks for none."""
    first = require_store(settings).text
    return f"{first},{second_url.replace('://', '://me:s3cret@')}"


@pytest.fixture
def process(settings: Settings, both: str, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001
    process = make_process(settings, chroma_url=None, vectors_url=SecretStr(both))
    yield process
    process.close()


def alone(settings: Settings, url: str) -> Process:
    """A process that knows one server."""
    return make_process(settings, chroma_url=None, vectors_url=SecretStr(url))


@contextmanager
def api_of(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield client


class TestServers(SmallStoreContract):
    """Of collections that the ledger does not know, as while they are erased."""

    @pytest.fixture
    def store(self, process: Process) -> VectorStore:
        store = store_of(process)
        assert isinstance(store, Servers)
        return store


def test_a_new_collection_goes_to_the_server_with_the_fewest(
    process: Process, settings: Settings, second_url: str
) -> None:
    first_url = require_store(settings).text
    names = [new_collection(process) for _ in range(4)]
    for name in names:
        ingest(process, name, {"cats": CATS})
    with process.ledger.read() as session:
        views = {
            summary.name: summary for summary in collections.page(session, limit=9, after=None)
        }
    servers = [views[name].server for name in names]
    assert servers == [first_url, second_url] * 2
    for name, url in zip(names, servers, strict=True):
        assert url is not None
        assert Chroma(settings, url).id_page(name, limit=9, offset=0)
        other = first_url if url == second_url else second_url
        assert Chroma(settings, other).id_page(name, limit=9, offset=0) == []


def test_documents_are_found_replaced_and_erased_where_they_lie(process: Process) -> None:
    names = [new_collection(process) for _ in range(2)]
    for name in names:
        ingest(process, name, {"cats": CATS, "trains": TRAINS})
        assert search(process, name, "When does a train leave?", k=1)[0].source == "trains"
        assert ingest(process, name, {"cats": TRAINS})[0] == {"replaced": 1}
        stores_agree(process, name)
    for name in names:
        assert erase(process, collection=name)["vectors"] > 0
        assert store_of(process).id_page(name, limit=9, offset=0) == []


def test_what_was_made_on_a_single_server_is_found_when_there_are_two(
    process: Process, settings: Settings, second_url: str
) -> None:
    name = new_collection(process)
    before = alone(settings, second_url)
    ingest(before, name, {"cats": CATS})
    before.close()
    assert search(process, name, "How long do cats sleep?", k=1)[0].source == "cats"
    ingest(process, name, {"trains": TRAINS})
    stores_agree(process, name)


def test_a_server_that_is_taken_off_the_list_is_named(
    process: Process, settings: Settings, second_url: str
) -> None:
    names = [new_collection(process) for _ in range(2)]
    for name in names:
        ingest(process, name, {"cats": CATS})
    only = alone(settings, require_store(settings).text)
    assert search(only, names[0], "How long do cats sleep?", k=1)
    store = store_of(only)
    for call in (
        lambda: store.query(names[1], along(0), limit=1, where=None),
        lambda: store.upsert(names[1], [entry("a")], along(0)),
        lambda: store.delete(names[1], ["a"]),
        lambda: store.drop(names[1]),
        lambda: store.make(names[1], "cosine"),
    ):
        with pytest.raises(Permanent, match=str(StoreUrl.read(second_url))) as caught:
            call()
        assert "SLUICE_VECTORS_URL" in str(caught.value)
    # It is built anew, also where an index that was forgotten lies under the new name; what is
    # somebody else's stays.
    new = f"{names[1]}.2"
    store.make(new, "cosine")
    job_ids = []
    for id_ in ("of others", chunk_id(uuid4(), 0)):
        store.upsert(new, [entry(id_)], along(0))
        input_ = RebuildInput(collection=names[1]).model_dump(mode="json")
        job_ids.append(submit(only, kinds.REBUILD, input_))
        drain(only)
        if id_ == "of others":
            assert store.delete(new, [id_]) == 1
    refused, rebuilt = (job_of(only, job_id) for job_id in job_ids)
    assert (refused.state, rebuilt.state) == ("failed", "succeeded")
    assert "Sluice has not made" in str(refused.error)
    assert search(only, names[1], "How long do cats sleep?", k=1)
    live = live_chunk_ids(only, names[1])
    assert set(store.id_page(new, limit=9, offset=0)) == live
    with pytest.raises(AssertionError, match="--forget"):
        erase(only, collection=names[1])
    with only.ledger.begin() as session:
        away = session.scalars(select(VectorIndex).where(VectorIndex.stored_name == names[1])).one()
        indexes.forget(session, away)
    assert erase(only, collection=names[1])["vectors"] == len(live)
    only.close()


def test_collections_and_readiness_tell_the_server(
    process: Process, settings: Settings, second_url: str
) -> None:
    names = [new_collection(process) for _ in range(3)]
    for name in names[:2]:
        ingest(process, name, {"cats": CATS})
    first_url = require_store(settings).text
    with api_of(process.settings) as api:
        stores = {name: api.get(f"/v1/collections/{name}").json()["store"] for name in names}
        listed = api.get("/v1/collections").json()["items"]
        ready = api.get("/readyz").json()["checks"]["chroma"]
    assert stores == {names[0]: first_url, names[1]: second_url, names[2]: None}
    assert {item["name"]: item["store"] for item in listed} == stores
    assert ready["ok"]
    with api_of(settings) as api:
        ready = api.get("/readyz").json()["checks"]["chroma"]
        assert api.get(f"/v1/collections/{names[2]}").json()["store"] == first_url
    assert not ready["ok"]
    assert second_url in ready["detail"]
