"""Jobs whose vectors lie in Weaviate, by the stand-in of `tests/wire/weaviate_server.py`."""

from pydantic import SecretStr

from shared.config import Settings
from shared.database.transaction import Ledger
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    ingest,
    live_chunk_ids,
    new_collection,
    search,
    vector_ids,
)
from tests.integration.job_runner import make_process
from tests.wire.weaviate_server import served_weaviate
from workers.retrieval.servers import store_of
from workers.retrieval.stores.weaviate import Weaviate


def test_documents_are_ingested_searched_and_replaced(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
) -> None:
    with served_weaviate() as wire:
        process = make_process(settings, chroma_url=None, vectors_url=SecretStr(wire.url))
        try:
            collection = new_collection(process)
            assert ingest(process, collection, {"cats": CATS, "trains": TRAINS})[0] == {"added": 2}
            assert isinstance(store_of(process), Weaviate)
            question = "When does a train leave?"
            assert search(process, collection, question, k=1)[0].source == "trains"
            options = {"filter": {"source": {"$ne": "trains"}}}
            assert search(process, collection, question, k=1, search=options)[0].source == "cats"
            assert ingest(process, collection, {"cats": TRAINS})[0] == {"replaced": 1}
            assert vector_ids(process, collection) == live_chunk_ids(process, collection)
        finally:
            process.close()
