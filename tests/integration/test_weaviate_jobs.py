"""Jobs whose vectors lie in Weaviate, by the stand-in of `tests/wire/weaviate_server.py`."""

from collections.abc import Callable

from tests.integration.ingestion import (
    CATS,
    TRAINS,
    ingest,
    live_chunk_ids,
    new_collection,
    search,
    vector_ids,
)
from tests.wire.weaviate_server import served_weaviate
from workers.attempts.process import Process
from workers.retrieval.servers import store_of
from workers.retrieval.stores.weaviate import Weaviate


def test_documents_are_ingested_searched_and_replaced(
    process_with_store: Callable[[str], Process],
) -> None:
    with served_weaviate() as wire:
        process = process_with_store(wire.url)
        collection = new_collection(process)
        assert ingest(process, collection, {"cats": CATS, "trains": TRAINS})[0] == {"added": 2}
        assert isinstance(store_of(process), Weaviate)
        question = "When does a train leave?"
        assert search(process, collection, question, k=1)[0].source == "trains"
        options = {"filter": {"source": {"$ne": "trains"}}}
        assert search(process, collection, question, k=1, search=options)[0].source == "cats"
        assert ingest(process, collection, {"cats": TRAINS})[0] == {"replaced": 1}
        assert vector_ids(process, collection) == live_chunk_ids(process, collection)
