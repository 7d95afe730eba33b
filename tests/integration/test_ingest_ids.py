"""Ids that clients choose: a document stays what it is when it is called otherwise."""

from typing import Any

from tests.integration.ingestion import (
    CATS,
    TRAINS,
    counts,
    live_texts,
    order_sources,
    search,
    stores_agree,
)
from tests.integration.job_runner import drain, job_of
from workers.attempts.process import Process


def ingest(
    process: Process, collection: str, *sources: tuple[str, str, str], **options: Any
) -> Any:
    """Sources of id, name and text; the counts, or the messages of what failed."""
    entries = [{"type": "text", "id": i, "name": n, "text": t} for i, n, t in sources]
    job_id = order_sources(process, collection, entries, **options)
    drain(process)
    job = job_of(process, job_id)
    assert job.result is not None, job.error
    return [error["message"] for error in job.result["errors"]] or counts(process, job_id)


def test_a_document_keeps_its_id_under_another_name(process: Process, collection: str) -> None:
    assert ingest(process, collection, ("crm-1", "old.txt", CATS)) == {"added": 1}
    assert ingest(process, collection, ("crm-1", "old.txt", CATS)) == {"skipped": 1}
    assert ingest(process, collection, ("crm-1", "new.txt", CATS)) == {"replaced": 1}
    assert live_texts(process, collection).keys() == {"new.txt"}
    assert search(process, collection, "cats", k=1)[0].source == "new.txt"
    assert ingest(process, collection, ("crm-1", "newer.txt", TRAINS)) == {"replaced": 1}
    assert live_texts(process, collection).keys() == {"newer.txt"}
    assert ingest(process, collection, ("crm-2", "new.txt", CATS)) == {"added": 1}
    stores_agree(process, collection)


def test_a_name_has_one_id(process: Process, collection: str) -> None:
    both = ("a", "a.txt", CATS), ("b", "b.txt", TRAINS)
    assert ingest(process, collection, *both) == {"added": 2}
    (message,) = ingest(process, collection, ("c", "a.txt", "Other."))
    assert "the document with the id a, not of c" in message
    (message,) = ingest(process, collection, ("a", "b.txt", "Other."))
    assert "another one is" in message
    assert live_texts(process, collection).keys() == {"a.txt", "b.txt"}
    stores_agree(process, collection)


def test_a_document_that_is_there_gets_its_id(process: Process, collection: str) -> None:
    source = {"type": "text", "name": "a.txt", "text": CATS}
    order_sources(process, collection, [source])
    drain(process)
    assert ingest(process, collection, ("a", "a.txt", TRAINS)) == {"replaced": 1}
    assert ingest(process, collection, ("a", "b.txt", TRAINS)) == {"replaced": 1}
    assert live_texts(process, collection).keys() == {"b.txt"}


def test_with_skip_a_document_is_left_as_it_is(process: Process, collection: str) -> None:
    assert ingest(process, collection, ("a", "a.txt", CATS)) == {"added": 1}
    options = {"on_existing": "skip"}
    assert ingest(process, collection, ("a", "b.txt", TRAINS), **options) == {"skipped": 1}
    assert live_texts(process, collection).keys() == {"a.txt"}
