"""Someone who waits is served while a bulk job runs."""

from datetime import datetime

from cli.client import Client
from cli.wire import Job, State
from tests.e2e import corpus
from tests.e2e.running import until
from tests.e2e.stack import LiveStack

DOCUMENTS = 150
COLLECTION = "priorities"


def test_an_interactive_search_does_not_wait_for_a_bulk_job(
    stack: LiveStack, client: Client
) -> None:
    client.ingest(COLLECTION, texts={"known.md": "The lighthouse keeper is called Mina."})
    documents = corpus.samples(DOCUMENTS, seed=COLLECTION)
    bulk = client.submit(
        "ingest",
        {
            "collection": COLLECTION,
            "sources": corpus.as_sources(documents),
            "splitter": corpus.CHUNKING,
        },
        lane="bulk",
    )
    until(lambda: stack.running_steps(bulk.id) > 0, "the bulk job runs")
    waiting = client.submit("embed", {"texts": ["later"]}, lane="bulk")
    hits = client.search(COLLECTION, "Who keeps the lighthouse?", k=1)
    embedded = client.submit("embed", {"texts": ["now"]}, lane="interactive", wait_s=60)
    assert [hit.source for hit in hits] == ["known.md"]

    ended = client.wait(bulk.id).require_success()
    later = client.wait(waiting.id).require_success()
    search = next(job for job in client.jobs(kind="search", collection=COLLECTION))
    assert search.state is State.SUCCEEDED
    # By the clock of the database: served while the bulk job went on.
    assert _end(search) < _end(ended)
    assert _end(embedded) < _end(ended)
    # Submitted before, but in the lane of those who do not wait.
    assert _end(embedded) < _end(later)
    stack.check_agreement(COLLECTION)


def _end(job: Job) -> datetime:
    assert job.finished_at is not None
    return job.finished_at
