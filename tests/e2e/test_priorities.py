"""Someone who waits is served while a bulk job runs."""

from sluice import Client, State
from tests.e2e import corpus
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack

DOCUMENTS = 150
COLLECTION = "priorities"


def test_an_interactive_search_does_not_wait_for_a_bulk_job(
    stack: LiveStack, client: Client
) -> None:
    client.ingest(COLLECTION, texts={"known.md": "The lighthouse keeper is called Mina."})
    documents = corpus.samples(DOCUMENTS, seed=COLLECTION)
    client.pause("embed")  # so that the bulk job cannot end before it is resumed
    try:
        bulk = client.submit_untyped(
            "ingest",
            {
                "collection": COLLECTION,
                "sources": corpus.as_sources(documents),
                "splitter": corpus.CHUNKING,
            },
            lane="bulk",
        )
        queued = "SELECT count(*) FROM steps WHERE job_id = %s AND queue = 'embed'"
        until(lambda: stack.value(queued, bulk.id) > 0, "the bulk job has steps to embed")
        hits = client.search(COLLECTION, "Who keeps the lighthouse?", k=1)
        assert [hit.source for hit in hits] == ["known.md"]
        assert client.job(bulk.id).state is State.RUNNING

        later = client.submit("embed", {"texts": ["later"]}, lane="bulk")
        now = client.submit("embed", {"texts": ["now"]}, lane="interactive")
        # Submitted after all the others, and claimed before them.
        assert client.job(now.id).position == 0
        assert (client.job(later.id).position or 0) > 0
    finally:
        client.resume("embed")
    for job in (now, later, bulk):
        client.wait(job.id).require_success()
    stack.check_agreement(COLLECTION)


def test_a_search_needs_no_process_that_ingests(stack: LiveStack, client: Client) -> None:
    """These may be busy for seconds with one step."""
    client.ingest("beside", texts={"known.md": "The lighthouse keeper is called Mina."})
    with stack.pool_stopped(with_queries=False):
        hits = client.search("beside", "Who keeps the lighthouse?", k=1)
    assert [hit.source for hit in hits] == ["known.md"]
