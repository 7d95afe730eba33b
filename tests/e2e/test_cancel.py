"""Cancelling an ingest job in the middle: it stops, leaves nothing half, and can be redriven."""

from sluice import Client, State
from tests.e2e import corpus
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack

DOCUMENTS = 120
COLLECTION = "cancelled"


def test_a_cancelled_ingest_job_leaves_whole_documents_only(
    stack: LiveStack, client: Client
) -> None:
    documents = corpus.samples(DOCUMENTS, seed=COLLECTION)
    client.put_collection(COLLECTION)
    job = client.submit_untyped(
        "ingest",
        {
            "collection": COLLECTION,
            "sources": corpus.as_sources(documents),
            "splitter": corpus.CHUNKING,
        },
    )
    until(lambda: stack.progress(job.id) >= 16 and stack.running_steps(job.id), "it is at work")
    sent_at = stack.value("SELECT clock_timestamp()")
    client.cancel(job.id)
    answered_at = stack.value("SELECT clock_timestamp()")

    ended = client.wait(job.id)
    assert ended.state is State.CANCELLED
    assert ended.finished_at is not None
    assert ended.finished_at >= sent_at
    assert stack.value("SELECT count(*) FROM steps WHERE job_id = %s", job.id)
    # The job has not ended before its steps have, and none was begun after the answer.
    assert stack.sql(
        "SELECT name, state FROM steps WHERE job_id = %s AND (state IN ('queued', 'running') "
        "OR finished_at > %s OR started_at > %s)",
        job.id, ended.finished_at, answered_at,
    ) == []  # fmt: skip
    not_begun = "SELECT count(*) FROM steps WHERE job_id = %s AND state = 'cancelled'"
    assert stack.value(not_begun, job.id) > 0

    stack.until_tidy(COLLECTION)
    # Settled: vectors that a stopped step had under way are taken out again.
    until(lambda: stack.vector_ids(COLLECTION) == stack.ledger_ids(COLLECTION), "the stores agree")
    stack.check_agreement(COLLECTION)
    chunks = {document.name: document.chunks for document in documents}
    whole = {document.source: document.chunks for document in client.documents(COLLECTION)}
    assert 16 <= len(whole) < DOCUMENTS
    assert whole == {name: chunks[name] for name in whole}

    assert client.cancel(job.id).state is State.CANCELLED  # changes nothing
    # A worker may have begun before the answer is written.
    assert client.retry(job.id).state in (State.QUEUED, State.RUNNING)
    redone = client.wait(job.id).require_success().result or {}
    assert redone["documents"] == {
        "added": DOCUMENTS - len(whole),
        "replaced": 0,
        "skipped": len(whole),
        "failed": 0,
        "erased": 0,
    }
    stack.until_tidy(COLLECTION)
    stack.check_agreement(COLLECTION, chunks=sum(chunks.values()))


def test_a_running_step_stops_before_its_end(stack: LiveStack, client: Client) -> None:
    text = "lanterns, harbours and the river in spring. " * 6
    job = client.submit("embed", {"texts": [f"{n}: {text}" for n in range(5000)]})
    until(lambda: stack.running_steps(job.id), "it is at work")
    client.cancel(job.id)
    ended = client.wait(job.id)
    assert ended.state is State.CANCELLED
    assert ended.result is None
    # It was begun, and not carried through.
    steps = stack.sql("SELECT state, attempt, result FROM steps WHERE job_id = %s", job.id)
    assert steps == [("cancelled", 1, None)]
